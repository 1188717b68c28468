//! Bytes on their way: what the handler and the driver read from and write to the transport.

mod control_frame;
mod handler_polls;
mod observer;
mod pong_buffer;
mod read_half;
mod transport_traits;
mod write_half;

pub(crate) use handler_polls::Outgoing;
pub(crate) use observer::{Observer, Report};
pub(crate) use read_half::{Filled, MAX_READ_AHEAD_BYTES, MAX_READS_PER_VISIT, ReadHalf};
pub(crate) use transport_traits::TransportTraits;
pub(crate) use write_half::WriteHalf;
