//! What can be asked of a [`Monitor`]: nothing here changes it.

use super::health::Health;
use super::inputs::{Ending, Monitor};
use super::moment::Moment;
use super::policy::{Policy, Traffic};
use super::reason::Reason;
use super::rtt::Rtt;
use super::stats::Stats;

impl Monitor {
    pub(super) fn active(&self, watch: Traffic) -> Moment {
        match watch {
            Traffic::Inbound => self.inbound.last,
            Traffic::Outbound => self.outbound.last,
            Traffic::Either => self.inbound.last.max(self.outbound.last),
        }
    }

    /// Every ping that was given out is answered and confirmed by the transport, or there was none.
    #[inline]
    pub(crate) fn has_answers_to_all_pings(&self) -> bool {
        self.pings.all_answered()
    }

    /// A ping is out, or would be if it could be put in, and nothing has come since: somebody should
    /// be watching for bytes, and for the end.
    pub(crate) fn is_waiting(&self) -> bool {
        let pinged = self.pings.waiting().is_some() || self.pings.is_wanted();
        pinged && self.ending == Ending::Open
    }

    /// Until when the pong to the newest ping is worth watching for, though the peer has shown that
    /// it is alive: its round trip is not to be the handler's. A peer that never answers is not
    /// watched for ever, since bytes that the driver reads take the longer way.
    pub(crate) fn round_trip_until(&self, policy: &Policy) -> Option<Moment> {
        let since = self.pings.unanswered().filter(|_| !self.passive)?;
        let heartbeat = policy.heartbeat.as_ref()?;
        Some(since + heartbeat.timeout * heartbeat.missed_pings)
    }

    /// Whether a ping waits for the end of an outbound message.
    pub(crate) fn holds_ping(&self) -> bool {
        self.pings.held_until().is_some()
    }

    /// Whether the transport has a ping whose pong has not come yet.
    pub(crate) fn has_unanswered_ping(&self) -> bool {
        self.pings.unanswered().is_some()
    }

    /// A pong from the peer may be ours.
    pub(crate) fn expects_pongs(&self) -> bool {
        self.pings.any()
    }

    /// Somebody waits for the transport to accept something: bytes that it refused, or a ping of ours
    /// behind a frame of the handler's.
    pub(crate) fn is_held_up(&self) -> bool {
        self.blocked.is_some() || self.pings.wished().is_some()
    }

    /// Something happened from which something may follow: the deadline has moved, or it is over.
    pub(crate) fn is_stirred(&self) -> bool {
        self.moved || self.judged
    }

    /// Whether the last refusal may be due to tokio's cooperative budget.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.blocked.is_some_and(|blocked| blocked.uncertain)
    }

    /// The transport is holding something up.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.ending, Ending::Over { .. })
    }

    /// Why the connection is over, if it is.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self.ending {
            Ending::Over { reason, .. } => Some(reason),
            Ending::Open | Ending::ServerClosing { .. } => None,
        }
    }

    pub(crate) fn opened(&self) -> Moment {
        self.opened
    }

    pub(crate) fn last_inbound(&self) -> Moment {
        self.last_inbound
    }

    /// The last byte of data in the directions that the idle timeout watches.
    pub(crate) fn last_active(&self, policy: &Policy) -> Moment {
        self.active(
            policy
                .idle
                .as_ref()
                .map(|idle| idle.watch)
                .unwrap_or_default(),
        )
    }

    pub(crate) fn rtt(&self) -> Option<Rtt> {
        self.rtt.get()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// What is so at `now`, however short a time it has been so.
    pub(crate) fn health(&self, now: Moment, policy: &Policy) -> Health {
        match self.ending {
            Ending::Over { .. } => Health::Ended,
            Ending::ServerClosing { .. } => Health::Closing,
            Ending::Open if self.backlog.is_some() => Health::HandlerStalled,
            Ending::Open if self.blocked.is_some() && !self.is_uncertain() => Health::WriteStalled,
            Ending::Open if self.pings.waiting().is_some() || self.pings.missed() > 0 => {
                Health::PeerSilent {
                    missed: self.pings.missed(),
                }
            }
            // A ping waits behind a frame that the handler does not finish.
            Ending::Open if self.half_written().is_some() => Health::HandlerStalled,
            Ending::Open => self.calm(now, policy),
        }
    }
}
