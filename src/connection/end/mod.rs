//! The end of a connection: when it happens, who is called, and what becomes of the transport.

mod at_frame_boundary;
mod teardown;

pub(crate) use teardown::{Departure, drop_transport};
