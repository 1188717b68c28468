//! What an operation noticed that must be acted on once the lock is released.

use std::io::ErrorKind;
use std::task::Waker;

use crate::monitor::JudgedView;
use crate::wire::Malformed;

/// What an operation on a connection's state reports to the code that releases the lock.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// A ping was handed to the transport.
    pub(crate) ping_sent: bool,
    /// The frame boundaries of a direction are lost, and the rule of RFC 6455 that it broke. Its
    /// bytes still pass; no pong is cut out and no frame is inserted there any more.
    pub(crate) malformed: Option<(Direction, Malformed)>,
    /// The transport refused its socket options. The connection works without them.
    pub(crate) socket_options_error: Option<ErrorKind>,
    /// A `Pending` may come from tokio's cooperative budget and not from the transport, so the
    /// driver must poll.
    pub(crate) uncertain: bool,
    /// The view of the kernel at the verdict, if it was asked. Boxed, since a report is made for
    /// every operation.
    pub(crate) kernel: Option<Box<JudgedView>>,
    /// The handler's previous waker. It may be the last one of its task, and dropping that may use
    /// the connection.
    pub(crate) replaced_waker: Option<Waker>,
}

impl Report {
    /// Whether nothing must be done but to drop it.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.ping_sent
            && self.malformed.is_none()
            && self.socket_options_error.is_none()
            && !self.uncertain
    }
}

/// One of the two directions of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}
