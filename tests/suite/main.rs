//! Integration tests, one folder per promise of the README.
//!
//! Helpers of one folder are in it, shared helpers are in `tests/support`. `cargo test --test suite
//! sessions::` runs one folder. Tests that need a process of their own are in other binaries, each
//! of which says why.

mod dead_peer;
mod documentation;
mod eviction;
mod examples;
mod hostile;
mod layers;
mod live_peer;
#[path = "../support/logs.rs"]
mod logs;
mod panicking_waker;
mod raw_streams;
mod recorded;
mod registry;
mod resources;
#[path = "../support/script.rs"]
mod script;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "test-util")]
mod test_util;
mod transparency;
#[path = "../support/unwritable.rs"]
mod unwritable;
