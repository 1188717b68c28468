//! Bytes: how the handler and the driver read from and write to the transport.

mod close_handshake;
mod control_frame;
mod handler_wait;
#[cfg(any(all(test, not(liveness_loom)), feature = "test-util"))]
mod no_transport;
mod observer;
mod pong_buffer;
mod read_half;
mod report;
mod transport_traits;
mod write_half;

pub(crate) use close_handshake::CloseHandshake;
pub(crate) use handler_wait::HandlerWait;
#[cfg(any(all(test, not(liveness_loom)), feature = "test-util"))]
pub(crate) use no_transport::NoTransport;
pub(crate) use observer::Observer;
pub(crate) use read_half::{Filled, MAX_READ_AHEAD_BYTES, MAX_READS_PER_VISIT, ReadHalf};
pub(crate) use report::Report;
pub(crate) use transport_traits::TransportTraits;
pub(crate) use write_half::{Outgoing, WriteHalf};
