//! The registry: snapshots, the connection limit, the drain, the shutdown, and shedding.

mod counts;
mod drain;
mod drain_deadlines;
mod drain_over_sockets;
mod drained;
mod handles;
mod limit;
mod readiness;
mod shedding;
mod shutdown;
mod snapshots;
