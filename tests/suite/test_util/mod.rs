//! The feature `test-util`: what an application's own tests are built from.

mod client;
mod detached;
mod hooks;
mod opening_handshake;
