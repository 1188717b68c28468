//! The registry: snapshots, the limit on connections, and the drain.

mod counts;
mod drain;
mod drain_deadlines;
mod drain_over_sockets;
mod drained;
mod limit;
mod snapshots;
