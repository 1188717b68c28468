//! Behaviour that the examples promise, over in-memory connections.

mod chat_room;
