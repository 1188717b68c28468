//! Time: the driver's visits, the deadline that triggers them, and the closing handshake.

mod close_handshake;
mod deadline;
mod tick;
mod timer_entry;

pub(crate) use close_handshake::CloseHandshake;
pub(crate) use timer_entry::{DeadlineMove, TimerEntry};
