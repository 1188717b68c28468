//! The context passed to both I/O halves: monitor, policy, report, clock.

use std::io;
use std::time::Duration;

use tokio::task::coop::has_budget_remaining;

use super::report::{Direction, Report};
use crate::connection::metadata::PingWaiters;
use crate::driver::Clock;
use crate::monitor::{Data, Moment, Monitor, Policy};
use crate::wire::{FrameEnd, Malformed, Scanner};

/// What the I/O halves report to while they read and write.
pub(crate) struct Observer<'a> {
    pub(crate) monitor: &'a mut Monitor,
    pub(crate) policy: &'a Policy,
    pub(crate) report: &'a mut Report,
    pub(crate) ping_waiters: Option<&'a mut PingWaiters>,
    pub(crate) clock: &'a Clock,
}

impl Observer<'_> {
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Whether the driver must watch for inbound bytes: a pong may be among them whose round trip
    /// is measured or awaited, and the handler may be slow to read it.
    #[inline]
    pub(crate) fn awaits_pong(&self) -> bool {
        // The usual case, asked for every read.
        let idle = self.monitor.has_answers_to_all_pings() && self.ping_waiters.is_none();
        !idle && self.awaits_pong_now()
    }

    fn awaits_pong_now(&self) -> bool {
        let waiters = self.ping_waiters.as_ref();
        if self.monitor.awaits_answer() || waiters.is_some_and(|waiters| waiters.has_waiting()) {
            return true;
        }
        let until = self.monitor.round_trip_until(self.policy);
        until.is_some_and(|until| self.now() < until)
    }

    /// The frame boundaries of a direction are lost.
    pub(crate) fn malformed(&mut self, direction: Direction, rule: Malformed) {
        self.monitor.go_passive();
        self.report.malformed = Some((direction, rule));
    }

    /// A read returned no bytes: the peer ended its direction.
    pub(crate) fn eof(&mut self) {
        self.monitor.eof(self.clock.now());
    }

    /// A read failed.
    pub(crate) fn read_failed(&mut self, kind: io::ErrorKind) {
        match kind {
            // TLS reports this for an end without close_notify: the peer was killed, or it never
            // sends close_notify.
            io::ErrorKind::UnexpectedEof => self.eof(),
            kind => self.monitor.failed(self.clock.now(), kind),
        }
    }

    /// A pong with the length of ours was read. Returns whether it is ours. For the parameters see
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
        } else if let Some(waiters) = &mut self.ping_waiters {
            waiters.answer(now, answer);
        }
        true
    }

    /// A ping was flushed.
    pub(crate) fn ping_flushed(&mut self, now: Moment) {
        self.monitor.ping_flushed(now);
        self.report.ping_sent = true;
        if let Some(waiters) = &mut self.ping_waiters {
            waiters.flushed(self.monitor.pings_sent(), now);
        }
    }

    /// The transport accepted `bytes`; `rest` if more of the same write or frame waits.
    pub(crate) fn accepted(&mut self, bytes: usize, rest: bool) {
        self.monitor.sent(bytes);
        // The clock is read only if a verdict depends on it.
        if self.monitor.has_output_waiting() {
            let now = self.now();
            self.monitor.accepted(now, rest, self.policy);
        }
    }

    /// The transport refused bytes.
    pub(crate) fn refused(&mut self) {
        let now = self.now();
        match has_budget_remaining() {
            true => self.monitor.refused(now),
            false => self.maybe_refused(now, false),
        }
    }

    /// The transport did not flush the bytes that it has accepted.
    pub(crate) fn unflushed(&mut self) {
        let now = self.now();
        match has_budget_remaining() {
            true => self.monitor.unflushed(now),
            false => self.maybe_refused(now, true),
        }
    }

    /// Asks the driver to poll, once per refusal. The driver wakes the handler, so with a task that
    /// spends its budget in every poll both would spin otherwise.
    fn maybe_refused(&mut self, now: Moment, in_flush: bool) {
        self.report.uncertain |= !self.monitor.is_uncertain();
        self.monitor.maybe_refused(now, in_flush);
    }

    /// A read returned `Pending`. Returns whether the transport is known to have nothing to read.
    ///
    /// In a task whose cooperative budget is spent, tokio's transports return `Pending` in any
    /// state and wake the task immediately. Other transports return it only if they are not ready,
    /// and do not wake the task. So the driver, whose task has no budget, polls again, here as for
    /// writes.
    pub(crate) fn found_nothing(&mut self) -> bool {
        let certain = has_budget_remaining();
        self.report.uncertain |= !certain;
        certain
    }

    /// The transport flushed all bytes.
    pub(crate) fn flushed(&mut self) {
        if self.monitor.is_blocked() {
            let now = self.now();
            self.monitor.flushed(now, self.policy);
        }
    }
}

/// Classifies the bytes that `scanner` has just consumed for the clocks of the idle layer. `end` is
/// the frame that ended with them, if any. `None` for bytes of a control frame.
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
