//! Whom both directions of a connection report to.

use crate::driver::Clock;
use crate::monitor::{Moment, Monitor, Policy};
use crate::wire::Malformed;

/// What the two directions need besides the transport: who is told what passed, and the time.
pub(super) struct Watch<'a> {
    pub(super) monitor: &'a mut Monitor,
    pub(super) policy: &'a Policy,
    pub(super) notes: &'a mut Notes,
    pub(super) clock: &'a Clock,
}

impl Watch<'_> {
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }
}

/// What is worth a line in the log, to be written when the lock was given back: a subscriber is
/// foreign code.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Notes {
    /// A ping was handed to the transport.
    pub(super) pinged: bool,
    /// A direction whose frame boundaries are lost, and the rule of RFC 6455 that it broke. Its
    /// bytes flow on; nothing is cut out or put in there any more.
    pub(super) malformed: Option<(&'static str, Malformed)>,
}

impl Notes {
    pub(super) fn is_empty(&self) -> bool {
        !self.pinged && self.malformed.is_none()
    }
}
