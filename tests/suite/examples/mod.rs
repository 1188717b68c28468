//! What the examples promise, over a connection in memory.

mod chat_room;
