//! Each connection has exactly one eviction, on every end path.

mod end_paths;
mod failed_upgrades;
mod handle;
mod hooks;
mod http2_streams;
mod open_hooks;
mod order;
mod stream;
