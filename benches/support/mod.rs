//! Shared by the benches of whole processes: servers, child processes, peers and statistics.

pub(crate) mod callgrind;
pub(crate) mod comparison;
pub(crate) mod connection_stats;
pub(crate) mod floor;
pub(crate) mod hand_written;
pub(crate) mod options;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod plot;
pub(crate) mod process;
pub(crate) mod raw_tungstenite;
pub(crate) mod server;
pub(crate) mod sockudo;
pub(crate) mod spread;
