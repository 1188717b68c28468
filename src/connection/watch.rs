//! Whom both directions of a connection report to.

use tokio::task::coop::has_budget_remaining;

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

    /// The transport accepted `bytes`; `rest` if more of the same write or frame is waiting.
    pub(super) fn accepted(&mut self, bytes: usize, rest: bool) {
        let now = self.now();
        self.monitor.accepted(now, bytes, rest, self.policy);
    }

    /// The transport refused bytes, or the scheduler did: a task that has used up its budget gets
    /// `Pending` from tokio's transports whatever their state.
    pub(super) fn refused(&mut self) {
        if has_budget_remaining() {
            let now = self.now();
            self.monitor.refused(now);
        }
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
