//! Behaviour that the examples promise, and the examples in the docs.

mod chat_room;
mod docs;
mod line_counts;
