//! Whom both directions of a connection report to.

use std::time::Duration;

use tokio::task::coop::has_budget_remaining;

use crate::connection::metadata::PingWaiters;
use crate::driver::Clock;
use crate::monitor::{Data, Moment, Monitor, Policy};
use crate::wire::{FrameEnd, Malformed, Scanner};

/// What the two directions need besides the transport: who is told what passed, and the time.
pub(crate) struct Observer<'a> {
    pub(crate) monitor: &'a mut Monitor,
    pub(crate) policy: &'a Policy,
    pub(crate) notes: &'a mut Report,
    pub(crate) ping_waiters: &'a mut Option<Box<PingWaiters>>,
    pub(crate) clock: &'a Clock,
}

impl Observer<'_> {
    /// The driver is to observer for bytes from the peer: among them may be a pong whose round trip is
    /// measured, or that somebody waits for, and the handler may be slow to read it.
    #[inline]
    pub(crate) fn is_awaited(&self) -> bool {
        // The usual case, asked for every read.
        let idle = self.monitor.has_answers_to_all_pings() && self.ping_waiters.is_none();
        !idle && self.is_pong_awaited()
    }

    fn is_pong_awaited(&self) -> bool {
        if self.monitor.is_waiting()
            || self
                .ping_waiters
                .as_ref()
                .is_some_and(|waiters| waiters.any())
        {
            return true;
        }
        let until = self.monitor.round_trip_until(self.policy);
        until.is_some_and(|until| self.now() < until)
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// A direction's frame boundaries are lost.
    pub(crate) fn malformed(&mut self, direction: Direction, rule: Malformed) {
        self.monitor.go_passive();
        self.notes.malformed = Some((direction, rule));
    }

    /// A pong with the length of ours came. Returns whether it is ours; for the rest see
    /// [`Monitor::pong`] and [`Monitor::control_in`].
    pub(crate) fn pong(
        &mut self,
        now: Moment,
        (unseen, unread): (Duration, Duration),
        earliest: Option<Moment>,
        payload: [u8; 8],
    ) -> bool {
        let answer = self.monitor.pong(now, unseen, unread, payload, self.policy);
        let Some(answer) = answer else {
            return false;
        };
        if !answer.fresh {
            self.monitor.control_in(now, earliest, self.policy);
        } else if let Some(ping_waiters) = self.ping_waiters {
            ping_waiters.answer(now, answer);
        }
        true
    }

    /// A ping was handed to the transport.
    pub(crate) fn pinged(&mut self, now: Moment) {
        self.monitor.ping_flushed(now);
        self.notes.pinged = true;
        if let Some(ping_waiters) = self.ping_waiters {
            ping_waiters.flushed(self.monitor.stats().pings_sent, now);
        }
    }

    /// The transport accepted `bytes`; `rest` if more of the same write or frame is waiting.
    pub(crate) fn accepted(&mut self, bytes: usize, rest: bool) {
        self.monitor.sent(bytes);
        // The clock is read only for those who wait for this.
        if self.monitor.is_held_up() {
            let now = self.now();
            self.monitor.accepted(now, rest, self.policy);
        }
    }

    /// The transport refused bytes.
    pub(crate) fn refused(&mut self) {
        let now = self.now();
        match has_budget_remaining() {
            true => self.monitor.refused(now),
            false => self.maybe_held_up(now, false),
        }
    }

    /// The transport holds bytes that it has accepted.
    pub(crate) fn unflushed(&mut self) {
        let now = self.now();
        match has_budget_remaining() {
            true => self.monitor.unflushed(now),
            false => self.maybe_held_up(now, true),
        }
    }

    /// Asks the driver once per refusal. The driver wakes the handler, so a task that spends its budget in
    /// every poll would otherwise make both spin.
    fn maybe_held_up(&mut self, now: Moment, in_flush: bool) {
        self.notes.uncertain |= !self.monitor.is_uncertain();
        self.monitor.maybe_held_up(now, in_flush);
    }

    /// Records that a read returned `Pending`. Returns whether the transport certainly has nothing to read.
    ///
    /// In a task that has used up its cooperative budget, tokio's transports return `Pending` in any state
    /// and wake the task at once; others return it only if they are not ready, and do not wake the task. So
    /// the driver, whose task has no budget, polls again, here as for writes.
    pub(crate) fn found_nothing(&mut self) -> bool {
        let certain = has_budget_remaining();
        self.notes.uncertain |= !certain;
        certain
    }

    /// The transport holds no bytes back.
    pub(crate) fn flushed(&mut self) {
        if self.monitor.is_blocked() {
            let now = self.now();
            self.monitor.flushed(now, self.policy);
        }
    }
}

/// Classifies the bytes that `scanner` has just consumed for the idle layer's clocks. `end` is the frame
/// that ended with them, if any. `None` for bytes of a control frame.
pub(crate) fn data_of(scanner: &Scanner, end: Option<FrameEnd>) -> Option<Data> {
    let opcode = match end {
        Some(end) => Some(end.opcode),
        None => scanner.open_frame(),
    };
    match opcode {
        None => Some(Data::Unframed),
        Some(opcode) if opcode.is_control() => None,
        Some(_) if end.is_some_and(|end| end.fin) => Some(Data::End),
        Some(_) => Some(Data::Part),
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

/// What has to be logged, or looked after by the driver, when the lock was given back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// A ping was handed to the transport.
    pub(crate) pinged: bool,
    /// A direction whose frame boundaries are lost, and the rule of RFC 6455 that it broke. Its
    /// bytes flow on; nothing is cut out or put in there any more.
    pub(crate) malformed: Option<(Direction, Malformed)>,
    /// The transport refused to be tuned. It serves as it is.
    pub(crate) untuned: Option<std::io::ErrorKind>,
    /// A `Pending` may be due to tokio's cooperative budget, not to the transport: the driver must poll.
    pub(crate) uncertain: bool,
}

impl Report {
    pub(crate) fn is_empty(&self) -> bool {
        !self.pinged && self.malformed.is_none() && self.untuned.is_none() && !self.uncertain
    }
}
