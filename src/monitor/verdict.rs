//! What must be done now: wait and until when, ping, retry a write, evict.

use std::time::Duration;

use super::kernel_view::{BehindReadAhead, Kernel};
use super::lifecycle::Lifecycle;
use super::moment::Moment;
use super::policy::{HeartbeatPolicy, IdlePolicy, Policy, Traffic};
use super::reason::Reason;
use super::{FirstMessage, Monitor};

/// A verdict this late means that the runtime was paused. Below it, lateness is noise.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// How long a refused write has for its second try before it counts as stalled or abandoned.
const SECOND_TRY: Duration = Duration::from_millis(100);

/// What only the connection knows, at the moment of a poll.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoState {
    /// A control frame can be written now: the handler is at a frame boundary.
    pub(crate) can_inject: bool,
    /// The handler is between two fragments of a message.
    pub(crate) mid_message: bool,
    /// The handler must repeat a refused write before any other bytes can be written.
    pub(crate) claimed: bool,
    /// The read-ahead buffer is full, so bytes of the peer could not be read.
    pub(crate) read_ahead_full: bool,
}

/// What the connection must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing before [`Monitor::deadline`].
    Wait,
    /// Write a ping with this payload, and poll again.
    Ping([u8; 8]),
    /// Retry the refused write, report whether the transport refuses again, and poll again.
    Retry,
    /// The connection has ended for this reason: evict it.
    Evict(Reason),
    /// The connection ended `close_timeout` ago, and its transport is still in use: drop it.
    Cut,
}

impl Monitor {
    /// What must be done at `now`. The caller has read the bytes of the peer first. `kernel` is
    /// asked before a peer is declared dead and before a write is declared stalled.
    ///
    /// When several verdicts are due at the same time, the first of these is returned:
    /// `MaxLifetime`, `FirstMessageTimeout`, `MessageTimeout`, `IdleTimeout`, `ControlFlood`,
    /// `HandlerStalled`, `WriteStalled`, `HeartbeatTimeout`. What was configured for a healthy
    /// connection comes before faults, and the fault of the peer comes last. In the closing
    /// handshake only `CloseTimeout` is left.
    pub(crate) fn poll(
        &mut self,
        now: Moment,
        policy: &Policy,
        io_state: IoState,
        kernel: &mut Kernel<'_>,
    ) -> Action {
        self.read_ahead_full = io_state.read_ahead_full;
        self.set_mid_message(io_state.mid_message);
        match self.lifecycle {
            Lifecycle::Ended { since, reason, .. }
                if now >= since + policy.close_timeout(Some(reason)) =>
            {
                Action::Cut
            }
            Lifecycle::Closing { since, .. } if now >= since + policy.close_timeout(None) => {
                self.evict(now, Reason::CloseTimeout)
            }
            Lifecycle::Opening | Lifecycle::Ended { .. } | Lifecycle::Closing { .. } => {
                Action::Wait
            }
            Lifecycle::Open => match self.poll_idle(now, policy) {
                Action::Wait => self.poll_heartbeat(now, policy, io_state, kernel),
                action => action,
            },
        }
    }

    fn poll_idle(&mut self, now: Moment, policy: &Policy) -> Action {
        let Some(idle) = &policy.idle else {
            return Action::Wait;
        };
        if due(self.lifetime_deadline(idle), now).is_some() {
            return self.evict(now, Reason::MaxLifetime);
        }
        if due(self.first_message_deadline(idle), now).is_some() {
            return self.evict(now, Reason::FirstMessageTimeout);
        }
        if due(self.message_deadline(idle), now).is_some() {
            return self.evict(now, Reason::MessageTimeout);
        }
        if due(self.idle_deadline(idle), now).is_some() {
            return self.evict(now, Reason::IdleTimeout);
        }
        Action::Wait
    }

    fn poll_heartbeat(
        &mut self,
        now: Moment,
        policy: &Policy,
        io_state: IoState,
        kernel: &mut Kernel<'_>,
    ) -> Action {
        let Some(heartbeat) = &policy.heartbeat else {
            return self.poll_requested(now);
        };
        if self.is_flooded() {
            return self.evict(now, Reason::ControlFlood);
        }
        if let Some(late) = due(self.handler_deadline(heartbeat), now) {
            let stalled_since = self.handler_stalled_since();
            let faults = self.faults();
            let was_postponed = stalled_since == faults.handler_verdict_postponed_at;
            if was_postponed || !was_paused(late, heartbeat.handler_stall_timeout) {
                return self.evict(now, Reason::HandlerStalled);
            }
            // While the runtime was paused, so was the handler.
            faults.handler_verdict_postponed_at = Some(now);
            self.backlog = self.backlog.map(|_| now);
            self.pings.restart_queued(now);
        }
        match self.poll_write(now, heartbeat, io_state, kernel) {
            Action::Wait if self.passive => {
                if now >= self.read_due(heartbeat) {
                    // The caller has read.
                    self.last_proof = now;
                }
                Action::Wait
            }
            Action::Wait => self.poll_ping(now, heartbeat, io_state, kernel),
            action => action,
        }
    }

    fn poll_write(
        &mut self,
        now: Moment,
        heartbeat: &HeartbeatPolicy,
        io_state: IoState,
        kernel: &mut Kernel<'_>,
    ) -> Action {
        let Some(late) = due(self.write_deadline(heartbeat), now) else {
            return Action::Wait;
        };
        let faults = self.faults.as_mut();
        let Some(blocked) = faults.and_then(|faults| faults.blocked.as_mut()) else {
            return Action::Wait;
        };
        match blocked.retried_at {
            // The runtime was paused, and so was the task that writes. Postponed once per stall.
            None if !blocked.pause_postponed && was_paused(late, heartbeat.write_timeout) => {
                *blocked = blocked.restarted(now);
                blocked.pause_postponed = true;
            }
            None => {
                // The handler may have abandoned the write, and the transport may have room by now,
                // so the verdict waits for a second refusal.
                blocked.retried_at = Some(now);
                let unflushed = blocked.in_flush;
                let ask = io_state.can_inject && !unflushed && !self.passive;
                return if ask && !self.pings.is_queued() {
                    Action::Ping(self.pings.queue_extra(now))
                } else {
                    Action::Retry
                };
            }
            Some(_) if blocked.maybe_refused_again && heartbeat.write_timeout.is_none() => {
                *blocked = blocked.restarted(now);
            }
            Some(_) if blocked.maybe_refused_again => {
                // What the transport refuses is not delivered.
                let judged = kernel.judge(blocked.since, now, |_| false);
                if !judged.is_some_and(|judged| self.postpone_for_drain(&judged.view)) {
                    return self.evict(now, Reason::WriteStalled);
                }
            }
            // The handler has abandoned its write, and neither a ping nor anything else can be
            // written.
            Some(_) if io_state.claimed => {
                let reason = match heartbeat.write_timeout {
                    Some(_) => Reason::WriteStalled,
                    None => Reason::HandlerStalled,
                };
                return self.evict(now, reason);
            }
            // No write is pending any more.
            Some(_) => {
                self.faults().blocked = None;
                self.pings.restart_queued(now);
            }
        }
        Action::Wait
    }

    fn poll_ping(
        &mut self,
        now: Moment,
        heartbeat: &HeartbeatPolicy,
        io_state: IoState,
        kernel: &mut Kernel<'_>,
    ) -> Action {
        let Some(since) = self.pings.timeout_since() else {
            return self.poll_next_ping(now, heartbeat);
        };
        let deadline = since + heartbeat.timeout;
        if now < deadline {
            return self.poll_requested(now);
        }
        let judged = self.judge_ping(since, now, kernel);
        let mut nothing_arrived = None;
        if io_state.read_ahead_full {
            // The pong may be among the bytes behind the full buffer.
            match BehindReadAhead::of(judged, self.pings.asked_at(since)) {
                BehindReadAhead::Nothing { data_segments } => nothing_arrived = Some(data_segments),
                BehindReadAhead::Arrived(at) => {
                    self.on_proof_of_life(at);
                    return self.poll_next_ping(now, heartbeat);
                }
                // The handler stalls, which is another verdict. But what the peer sends into a wider
                // window may show that it is alive, and a write to a broken transport fails, so
                // ping.
                BehindReadAhead::Unknown => {
                    if judged.is_some() {
                        kernel.widen_receive_window();
                    }
                    self.postpone_for_segments(None);
                    return self.ping_again(now);
                }
            }
        }
        if was_paused(now.since(deadline), Some(heartbeat.timeout))
            && self.pings.take_postponement()
        {
            // The runtime was paused (SIGSTOP, a suspended machine). The pong may have been lost
            // meanwhile, so this silence does not count against the peer: ping once more.
            return self.ping_again(now);
        }
        if judged.is_some_and(|judged| {
            self.postpone_for_delivery(now, since, heartbeat.timeout, &judged.view)
        }) {
            return self.poll_requested(now);
        }
        if self.postpone_for_segments(nothing_arrived) {
            return self.ping_again(now);
        }
        let missed = self.pings.miss();
        self.faults().on_missed_ping(now);
        if missed >= heartbeat.missed_pings {
            self.evict(now, Reason::HeartbeatTimeout { missed })
        } else {
            self.ping_again(now)
        }
    }

    /// The ping that is due while no timeout runs.
    fn poll_next_ping(&mut self, now: Moment, heartbeat: &HeartbeatPolicy) -> Action {
        if now >= self.ping_due(heartbeat) && !self.pings.is_queued() {
            Action::Ping(self.pings.queue_next(now))
        } else {
            self.poll_requested(now)
        }
    }

    /// Another ping, whose timeout starts when it is sent. The application may have requested one
    /// that waits already.
    fn ping_again(&mut self, now: Moment) -> Action {
        if let Some(faults) = &mut self.faults {
            faults.earlier_views.on_ping_again();
        }
        if self.pings.is_queued() {
            self.pings.await_queued();
            return Action::Wait;
        }
        Action::Ping(self.pings.queue_next(now))
    }

    /// The ping that the application requested.
    fn poll_requested(&mut self, now: Moment) -> Action {
        if self.pings.is_requested() && !self.passive {
            return Action::Ping(self.pings.queue_extra(now));
        }
        Action::Wait
    }

    fn evict(&mut self, now: Moment, reason: Reason) -> Action {
        self.end(now, reason);
        Action::Evict(reason)
    }

    /// The latest moment for the next [`poll`](Self::poll) if nothing else happens.
    pub(crate) fn deadline(&self, policy: &Policy) -> Moment {
        match self.lifecycle {
            Lifecycle::Ended { since, reason, .. } => {
                return since + policy.close_timeout(Some(reason));
            }
            Lifecycle::Closing { since, .. } => return since + policy.close_timeout(None),
            Lifecycle::Opening | Lifecycle::Open => {}
        }
        let mut earliest = Moment::NEVER;
        let mut consider = |deadline: Option<Moment>| {
            earliest = earliest.min(deadline.unwrap_or(Moment::NEVER));
        };
        if let Some(idle) = &policy.idle {
            consider(self.lifetime_deadline(idle));
            consider(self.first_message_deadline(idle));
            consider(self.message_deadline(idle));
            consider(self.idle_deadline(idle));
        }
        if self.pings.is_requested() && !self.passive {
            return Moment::START;
        }
        consider(self.pings.held_until(policy.ping_timeout()));
        if let Some(heartbeat) = &policy.heartbeat {
            if self.is_flooded() {
                return Moment::START;
            }
            consider(self.handler_deadline(heartbeat));
            consider(self.write_deadline(heartbeat));
            consider(match self.pings.timeout_since() {
                _ if self.passive => Some(self.read_due(heartbeat)),
                Some(since) => Some(since + heartbeat.timeout),
                None if self.pings.is_queued() => None,
                None => Some(self.ping_due(heartbeat)),
            });
        }
        earliest
    }

    /// The peer exceeded the limit of control frames per second.
    fn is_flooded(&self) -> bool {
        let faults = self.faults.as_ref();
        faults.is_some_and(|faults| faults.control_rate.is_exceeded())
    }

    /// The lifetime is shortened at random, so that clients that connected at the same time do not
    /// all reconnect at the same time. The expiry of credentials is not.
    fn lifetime_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        let jitter = idle.max_lifetime_jitter;
        let lifetime = idle.max_lifetime;
        let end = lifetime.map(|lifetime| self.opened + shortened(lifetime, jitter, self.random));
        end.into_iter().chain(idle.expires_at).min()
    }

    /// While the read-ahead buffer is full, the end of the message may be behind it. When the
    /// handler reads again, the time restarts for the rest of the message.
    fn first_message_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        let within = idle.first_message?;
        let from = match (self.first_message, self.inbound.message) {
            (FirstMessage::Complete, _) => return None,
            (FirstMessage::AwaitedAfterFullReadAhead, Some(since)) => since,
            _ => self.opened,
        };
        (!self.read_ahead_full).then(|| from + within)
    }

    /// Inbound messages have no deadline while the read-ahead buffer is full, for the same reason.
    fn message_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        let within = idle.message_timeout?;
        let inbound = self.inbound.message.filter(|_| !self.read_ahead_full);
        let outbound = self.outbound.message;
        let begun = match idle.watch {
            Traffic::Inbound => inbound,
            Traffic::Outbound => outbound,
            Traffic::Either => inbound.into_iter().chain(outbound).min(),
        };
        Some(begun? + within)
    }

    /// A full read-ahead buffer does not postpone this deadline: it runs from the byte that filled
    /// it.
    fn idle_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        Some(self.last_data(idle.watch) + idle.timeout?)
    }

    fn handler_deadline(&self, heartbeat: &HeartbeatPolicy) -> Option<Moment> {
        let timeout = heartbeat.handler_stall_timeout?;
        Some(self.handler_stalled_since()? + timeout)
    }

    /// Since when the handler does not read the bytes that wait, or does not finish a frame that
    /// the transport would accept and in which no ping can be sent.
    fn handler_stalled_since(&self) -> Option<Moment> {
        match (self.backlog, self.unfinished_frame_since()) {
            (Some(backlog), Some(unfinished_frame_since)) => {
                Some(backlog.min(unfinished_frame_since))
            }
            (since, None) | (None, since) => since,
        }
    }

    /// Since when a ping waits for the end of a frame whose rest the transport would accept. `None`
    /// while it waits between two fragments for the end of a message, since that wait is bounded.
    pub(super) fn unfinished_frame_since(&self) -> Option<Moment> {
        let waits = !self.is_blocked() && !self.pings.is_held();
        self.pings.queued_since().filter(|_| waits)
    }

    fn write_deadline(&self, heartbeat: &HeartbeatPolicy) -> Option<Moment> {
        let blocked = self.blocked()?;
        // Without `write_timeout`, an abandoned write is a stall of the handler.
        let timeout = heartbeat
            .write_timeout
            .or(heartbeat.handler_stall_timeout)?;
        Some(match blocked.retried_at {
            None => blocked.since + timeout,
            Some(retried_at) if blocked.refused_again => retried_at,
            Some(retried_at) => retried_at + SECOND_TRY,
        })
    }

    /// When the driver must read if no ping can be sent: a handler that does not read notices
    /// neither bytes nor the end of the stream.
    fn read_due(&self, heartbeat: &HeartbeatPolicy) -> Moment {
        self.last_proof + heartbeat.interval
    }

    /// The interval runs from the last proof of life. The first one is shortened at random, so that
    /// clients that connected at the same time are not pinged at the same time.
    fn ping_due(&self, heartbeat: &HeartbeatPolicy) -> Moment {
        let interval = heartbeat.interval;
        if self.pings.has_pinged() {
            // While the application awaits a pong, other traffic does not postpone the next ping.
            let requested = self.pings.requested_since().unwrap_or(self.last_proof);
            return self.last_proof.min(requested) + interval;
        }
        self.last_proof + shortened(interval, heartbeat.jitter, self.random)
    }
}

/// `duration` without the part of its last `jitter` fraction that `random`, in 0..1, leaves out.
fn shortened(duration: Duration, jitter: f64, random: f32) -> Duration {
    // Only the part left out is computed as a float, or the duration would be rounded.
    let left_out = duration.mul_f64(jitter * f64::from(random));
    duration.saturating_sub(left_out)
}

/// How long ago `deadline` expired, if it has.
fn due(deadline: Option<Moment>, now: Moment) -> Option<Duration> {
    let deadline = deadline.filter(|deadline| now >= *deadline)?;
    Some(now.since(deadline))
}

/// Whether a verdict is so `late` that the runtime must have been paused.
fn was_paused(late: Duration, timeout: Option<Duration>) -> bool {
    late >= MIN_PAUSE.max(timeout.unwrap_or_default() / 2)
}
