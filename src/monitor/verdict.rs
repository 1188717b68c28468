//! What follows from what is known: whether to ping, to wait and until when, or to end it.

use std::time::Duration;

use super::inputs::{Ending, Monitor};
use super::moment::Moment;
use super::policy::{HeartbeatPolicy, IdlePolicy, Policy, Traffic};
use super::reason::Reason;

/// A verdict this late means that the runtime, not the peer, was away. Under it, lateness is noise.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// How long whoever wants to write has to try again before a write counts as stalled or given up.
const SECOND_TRY: Duration = Duration::from_millis(100);

/// What the connection knows at the moment of the question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    /// A control frame could be written now: the handler is at a frame boundary.
    pub(crate) can_inject: bool,
    /// The handler is between two fragments of a message.
    pub(crate) mid_message: bool,
    /// The handler must repeat a refused write before any other bytes can be written.
    pub(crate) claimed: bool,
    /// The read-ahead buffer is full, so bytes from the peer could not be looked at.
    pub(crate) blind: bool,
}

/// What the connection has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing before [`Monitor::deadline`].
    Wait,
    /// Write a ping with this payload, and ask again.
    Ping([u8; 8]),
    /// Have whoever wants to write try again, report if the transport refuses, and ask again.
    Retry,
    /// The connection is over for this reason: evict it.
    Evict(Reason),
    /// The connection was over before and its transport outlived `close_timeout`: close it.
    Cut,
}

impl Monitor {
    /// What has to be done at `now`. The caller has looked for bytes from the peer first.
    ///
    /// When several verdicts are due at once, the first of these is given: `MaxLifetime`,
    /// `FirstMessageTimeout`, `MessageTimeout`, `IdleTimeout`, `ControlFlood`, `HandlerStalled`,
    /// `WriteStalled`, `HeartbeatTimeout`.
    /// So what was configured for a healthy connection comes before what went wrong with it, and
    /// the peer is blamed last. In the closing handshake only `CloseTimeout` is left.
    pub(crate) fn poll(&mut self, now: Moment, policy: &Policy, outlook: Outlook) -> Action {
        self.blind = outlook.blind;
        self.mid_message(outlook.mid_message);
        match self.ending {
            Ending::Over { since, reason } if now >= since + policy.close_timeout(Some(reason)) => {
                Action::Cut
            }
            Ending::ServerClosing { since, .. } if now >= since + policy.close_timeout(None) => {
                self.evict(now, Reason::CloseTimeout)
            }
            Ending::Over { .. } | Ending::ServerClosing { .. } => Action::Wait,
            Ending::Open => match self.poll_idle(now, policy) {
                Action::Wait => self.poll_heartbeat(now, policy, outlook),
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
        if due(Some(self.idle_deadline(idle)), now).is_some() {
            return self.evict(now, Reason::IdleTimeout);
        }
        Action::Wait
    }

    fn poll_heartbeat(&mut self, now: Moment, policy: &Policy, outlook: Outlook) -> Action {
        let Some(heartbeat) = &policy.heartbeat else {
            return self.poll_asked(now, HeartbeatPolicy::default().timeout);
        };
        if self.control_rate.is_exceeded() {
            return self.evict(now, Reason::ControlFlood);
        }
        if let Some(late) = due(self.handler_deadline(heartbeat), now) {
            let once = self.handler_stalled_since() != self.reprieved;
            if !once || !was_paused(late, heartbeat.handler_stall_timeout) {
                return self.evict(now, Reason::HandlerStalled);
            }
            // The handler was away as long as the runtime was.
            self.reprieved = Some(now);
            self.backlog = self.backlog.map(|_| now);
            self.pings.wish_again(now);
        }
        match self.poll_write(now, heartbeat, outlook) {
            Action::Wait if self.passive => {
                if now >= self.look_due(heartbeat) {
                    // The caller has looked.
                    self.last_proof = now;
                }
                Action::Wait
            }
            Action::Wait => self.poll_ping(now, heartbeat, outlook),
            action => action,
        }
    }

    fn poll_write(&mut self, now: Moment, heartbeat: &HeartbeatPolicy, outlook: Outlook) -> Action {
        let Some(late) = due(self.write_deadline(heartbeat), now) else {
            return Action::Wait;
        };
        let Some(blocked) = &mut self.blocked else {
            return Action::Wait;
        };
        match blocked.asked {
            // The runtime stood still, and so did the task that writes. Postponed once per stall.
            None if !blocked.is_anew() && was_paused(late, heartbeat.write_timeout) => {
                *blocked = blocked.anew(now);
            }
            None => {
                // The handler may have given up a write that the transport would take by now, so
                // nothing is said before it has refused once more.
                blocked.asked = Some(now);
                let unflushed = blocked.in_flush;
                let ask = outlook.can_inject && !unflushed && !self.passive;
                return if ask && !self.pings.is_wanted() {
                    Action::Ping(self.pings.besides(now, heartbeat.timeout))
                } else {
                    Action::Retry
                };
            }
            Some(_) if blocked.maybe_again && heartbeat.write_timeout.is_none() => {
                *blocked = blocked.anew(now);
            }
            Some(_) if blocked.maybe_again => return self.evict(now, Reason::WriteStalled),
            // The handler has abandoned its write, and nothing else can be written, not even a ping.
            Some(_) if outlook.claimed => {
                let reason = match heartbeat.write_timeout {
                    Some(_) => Reason::WriteStalled,
                    None => Reason::HandlerStalled,
                };
                return self.evict(now, reason);
            }
            // Nobody wants to write any more.
            Some(_) => {
                self.blocked = None;
                self.pings.wish_again(now);
            }
        }
        Action::Wait
    }

    fn poll_ping(&mut self, now: Moment, heartbeat: &HeartbeatPolicy, outlook: Outlook) -> Action {
        let Some(since) = self.pings.waiting() else {
            return if now >= self.ping_due(heartbeat) && !self.pings.is_wanted() {
                Action::Ping(self.pings.next(now, heartbeat.timeout))
            } else {
                self.poll_asked(now, heartbeat.timeout)
            };
        };
        let deadline = since + heartbeat.timeout;
        if now < deadline {
            return self.poll_asked(now, heartbeat.timeout);
        }
        if outlook.blind {
            // Nobody can tell whether the peer's pong is among what waits: the handler stalls, and
            // that is another verdict. But a transport that is gone says so when it is written to.
            return self.ping_again(now, heartbeat);
        }
        if was_paused(now.since(deadline), Some(heartbeat.timeout)) && self.pings.reprieve() {
            // The runtime was away (SIGSTOP, a suspended machine): the pong may have been lost
            // meanwhile, and this silence is not the peer's. Ask once more before judging.
            return self.ping_again(now, heartbeat);
        }
        let missed = self.pings.miss();
        self.stats.missed_pings = self.stats.missed_pings.saturating_add(1);
        self.history.error(now);
        if missed >= heartbeat.missed_pings {
            self.evict(now, Reason::HeartbeatTimeout { missed })
        } else {
            self.ping_again(now, heartbeat)
        }
    }

    /// Another ping, whose timeout is yet to run. The application may have one on its way already.
    fn ping_again(&mut self, now: Moment, heartbeat: &HeartbeatPolicy) -> Action {
        if self.pings.is_wanted() {
            self.pings.await_wanted();
            return Action::Wait;
        }
        Action::Ping(self.pings.next(now, heartbeat.timeout))
    }

    /// The ping that the application asked for.
    fn poll_asked(&mut self, now: Moment, hold: Duration) -> Action {
        if self.pings.is_asked() && !self.passive {
            return Action::Ping(self.pings.besides(now, hold));
        }
        Action::Wait
    }

    fn evict(&mut self, now: Moment, reason: Reason) -> Action {
        self.end(now, reason);
        Action::Evict(reason)
    }

    /// When [`poll`](Self::poll) has to be asked again at the latest, if nothing else happens.
    pub(crate) fn deadline(&self, policy: &Policy) -> Moment {
        match self.ending {
            Ending::Over { since, reason } => return since + policy.close_timeout(Some(reason)),
            Ending::ServerClosing { since, .. } => return since + policy.close_timeout(None),
            Ending::Open => {}
        }
        let mut earliest = Moment::NEVER;
        let mut consider = |deadline: Option<Moment>| {
            earliest = earliest.min(deadline.unwrap_or(Moment::NEVER));
        };
        if let Some(idle) = &policy.idle {
            consider(self.lifetime_deadline(idle));
            consider(self.first_message_deadline(idle));
            consider(self.message_deadline(idle));
            consider(Some(self.idle_deadline(idle)));
        }
        if self.pings.is_asked() && !self.passive {
            return Moment::START;
        }
        consider(self.pings.held_until());
        if let Some(heartbeat) = &policy.heartbeat {
            if self.control_rate.is_exceeded() {
                return Moment::START;
            }
            consider(self.handler_deadline(heartbeat));
            consider(self.write_deadline(heartbeat));
            consider(match self.pings.waiting() {
                _ if self.passive => Some(self.look_due(heartbeat)),
                Some(since) => Some(since + heartbeat.timeout),
                None if self.pings.is_wanted() => None,
                None => Some(self.ping_due(heartbeat)),
            });
        }
        earliest
    }

    fn lifetime_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        idle.max_lifetime.map(|lifetime| self.opened + lifetime)
    }

    /// With the read-ahead buffer full, the end of the message may wait unseen behind a handler that
    /// does not read. When it reads on, the rest of the message has the time anew.
    fn first_message_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        let within = idle.first_message?;
        let from = match self.inbound.message {
            Some(since) if self.was_blind => since,
            _ => self.opened,
        };
        (!self.first_message && !self.blind).then(|| from + within)
    }

    /// Inbound messages have no deadline while the read-ahead buffer is full, for the same reason.
    fn message_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        let within = idle.message_timeout?;
        let inbound = self.inbound.message.filter(|_| !self.blind);
        let outbound = self.outbound.message;
        let begun = match idle.watch {
            Traffic::Inbound => inbound,
            Traffic::Outbound => outbound,
            Traffic::Either => inbound.into_iter().chain(outbound).min(),
        };
        Some(begun? + within)
    }

    /// A full read-ahead buffer does not postpone this deadline: it runs from the byte that filled it.
    fn idle_deadline(&self, idle: &IdlePolicy) -> Moment {
        self.active(idle.watch) + idle.timeout
    }

    fn handler_deadline(&self, heartbeat: &HeartbeatPolicy) -> Option<Moment> {
        let timeout = heartbeat.handler_stall_timeout?;
        Some(self.handler_stalled_since()? + timeout)
    }

    /// The handler does not read what waits for it, or has left a frame half-written (though the
    /// transport would take the rest) into which no ping can be put.
    fn handler_stalled_since(&self) -> Option<Moment> {
        match (self.backlog, self.half_written()) {
            (Some(backlog), Some(half_written)) => Some(backlog.min(half_written)),
            (since, None) | (None, since) => since,
        }
    }

    /// Since when a ping waits for the end of a frame whose rest the transport would accept. `None` while it
    /// waits between two fragments for the end of a message, since that wait is bounded.
    pub(super) fn half_written(&self) -> Option<Moment> {
        let waits = self.blocked.is_none() && !self.pings.is_held();
        self.pings.wished().filter(|_| waits)
    }

    fn write_deadline(&self, heartbeat: &HeartbeatPolicy) -> Option<Moment> {
        let blocked = self.blocked?;
        // A write that was given up is the other verdict's business, also where writes have no bound.
        let timeout = heartbeat
            .write_timeout
            .or(heartbeat.handler_stall_timeout)?;
        Some(match blocked.asked {
            None => blocked.since + timeout,
            Some(asked) if blocked.again => asked,
            Some(asked) => asked + SECOND_TRY,
        })
    }

    /// When the driver polls for inbound bytes and for the end of the stream if no ping is sent, because a
    /// handler that does not read would not notice them.
    fn look_due(&self, heartbeat: &HeartbeatPolicy) -> Moment {
        self.last_proof + heartbeat.interval
    }

    /// The interval is counted from the last proof of life. The first one is shortened at random,
    /// so that clients who all connected at once are not all pinged at once.
    fn ping_due(&self, heartbeat: &HeartbeatPolicy) -> Moment {
        let interval = heartbeat.interval;
        if self.pings.any() {
            // Whoever waits for a pong is not helped by other traffic.
            let called = self.pings.called_since().unwrap_or(self.last_proof);
            return self.last_proof.min(called) + interval;
        }
        // Only what is left out goes through a float, or the interval itself would be rounded.
        let left_out = interval.mul_f64(f64::from(self.head_start));
        self.last_proof + interval.saturating_sub(left_out)
    }
}

/// How late it is, if `deadline` has come.
fn due(deadline: Option<Moment>, now: Moment) -> Option<Duration> {
    let deadline = deadline.filter(|deadline| now >= *deadline)?;
    Some(now.since(deadline))
}

/// Whether a verdict that is so `late` says more about the runtime than about `timeout`.
fn was_paused(late: Duration, timeout: Option<Duration>) -> bool {
    late >= LEAST_PAUSE.max(timeout.unwrap_or_default() / 2)
}
