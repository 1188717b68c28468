//! The session map: seats are inserted, replaced, and removed with their connection.

mod concurrency;
mod ends;
mod groups;
mod lifetime;
mod lingering;
mod lingering_model;
mod lingering_storm;
mod map_in;
mod maps;
mod outbox;
mod panicking_keys;
mod panics;
mod reconnects;
mod reentry;
mod register_error;
mod rooms;
mod seats;
mod seeded;
mod slow_maps;
