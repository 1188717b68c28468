//! Time: the driver's visits, the deadline they come at, and the closing handshake they drive.

mod close_handshake;
mod deadline;
mod tick;
mod timer_entry;

pub(crate) use close_handshake::CloseHandshake;
pub(crate) use timer_entry::{DeadlineMove, TimerEntry};
