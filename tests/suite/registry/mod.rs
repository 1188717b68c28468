//! The registry: snapshots, the connection limit, the drain, and the shutdown.

mod counts;
mod drain;
mod drain_deadlines;
mod drain_over_sockets;
mod drained;
mod limit;
mod readiness;
mod shutdown;
mod snapshots;
