//! Exactly one eviction event on every path by which a connection can end.

mod end_paths;
mod failed_upgrades;
mod hooks;
mod http2_streams;
mod order;
mod stream;
