//! The end of a connection: eviction, announcement, release of the transport.

mod announce;
mod at_frame_boundary;
mod evict;
mod teardown;

pub(crate) use teardown::drop_transport;
