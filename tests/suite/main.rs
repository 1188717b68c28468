//! The library's promises, one folder each. A folder's own helpers are in it; what several share is
//! beside `main.rs`, in `tests/support`.
//!
//! `cargo test --test suite sessions::` runs one folder. Only tests that need a process of their own
//! are in other binaries, each of which says why.

mod dead_peer;
mod eviction;
mod examples;
mod hostile;
mod layers;
mod live_peer;
#[path = "../support/logs.rs"]
mod logs;
mod raw_streams;
mod registry;
mod resources;
#[path = "../support/script.rs"]
mod script;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod transparency;
#[path = "../support/unwritable.rs"]
mod unwritable;
