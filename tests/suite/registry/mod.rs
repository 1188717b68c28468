//! The registry: snapshots, the connection limit, and the drain.

mod counts;
mod drain;
mod drain_deadlines;
mod drain_over_sockets;
mod drained;
mod handles;
mod limit;
mod snapshots;
