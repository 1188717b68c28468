//! What a [`Monitor`] knows; nothing here changes it.

use super::Monitor;
use super::health::Health;
use super::kernel_view::KernelView;
use super::lifecycle::Lifecycle;
use super::moment::Moment;
use super::policy::{Policy, Traffic};
use super::reason::Reason;
use super::rtt::Rtt;
use super::stats::{FaultCounters, Stats};

impl Monitor {
    pub(super) fn last_data(&self, watch: Traffic) -> Moment {
        match watch {
            Traffic::Inbound => self.inbound.last,
            Traffic::Outbound => self.outbound.last,
            Traffic::Either => self.inbound.last.max(self.outbound.last),
        }
    }

    /// Whether every ping is answered and was flushed by the transport. True if there was none.
    #[inline]
    pub(crate) fn has_answers_to_all_pings(&self) -> bool {
        self.pings.all_answered()
    }

    /// Whether the connection is open, no ping is queued or unanswered, and the transport has not
    /// refused bytes.
    pub(crate) fn is_routine(&self) -> bool {
        self.lifecycle == Lifecycle::Open && self.has_answers_to_all_pings() && !self.is_blocked()
    }

    /// Whether a ping is out, or waits to be written, and nothing has come since. The driver must
    /// then watch for bytes and for the end of the stream.
    pub(crate) fn awaits_answer(&self) -> bool {
        let pinged = self.pings.timeout_since().is_some() || self.pings.is_queued();
        pinged && self.lifecycle == Lifecycle::Open
    }

    /// Until when the driver watches for the pong to the newest ping, although the peer is known to
    /// be alive: the round trip must not include the handler's delay. Bounded, since bytes that the
    /// driver reads are copied once more, and some peers never answer.
    pub(crate) fn round_trip_until(&self, policy: &Policy) -> Option<Moment> {
        let since = self.pings.unanswered().filter(|_| !self.passive)?;
        let heartbeat = policy.heartbeat.as_ref()?;
        Some(since + heartbeat.timeout * heartbeat.missed_pings)
    }

    /// Whether the newest ping would wait for the end of an outbound message.
    pub(crate) fn holds_ping(&self) -> bool {
        self.pings.is_holdable()
    }

    /// Whether the transport has a ping whose pong has not come yet.
    pub(crate) fn has_unanswered_ping(&self) -> bool {
        self.pings.unanswered().is_some()
    }

    /// Whether a pong of the peer may answer one of our pings.
    pub(crate) fn expects_pongs(&self) -> bool {
        self.pings.has_pinged()
    }

    /// Whether bytes wait for the transport: refused ones, or a ping behind a frame of the handler.
    pub(crate) fn has_output_waiting(&self) -> bool {
        self.is_blocked() || self.pings.queued_since().is_some()
    }

    /// Whether the deadline may have moved forward.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved
    }

    /// Whether the last refusal may come from tokio's cooperative budget.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.blocked().is_some_and(|blocked| blocked.uncertain)
    }

    /// Whether the transport refuses bytes or does not flush them.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked().is_some()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lifecycle.is_ended()
    }

    /// Why the connection has ended; `None` if it has not.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.lifecycle.reason()
    }

    /// Whether the upgrade was completed before the end.
    pub(crate) fn was_opened(&self) -> bool {
        self.opened != Moment::NEVER
    }

    pub(crate) fn opened(&self) -> Moment {
        self.opened
    }

    pub(crate) fn last_inbound(&self) -> Moment {
        self.last_inbound
    }

    /// When the last byte of data passed in the directions that the idle timeout watches.
    pub(crate) fn last_active(&self, policy: &Policy) -> Moment {
        self.last_data(
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
        Stats::new(
            self.counters,
            self.pings.counts(),
            self.fault_counters(),
            None,
        )
    }

    /// The statistics with what our kernel knows now.
    pub(crate) fn stats_with(&self, kernel: &KernelView) -> Stats {
        Stats::new(
            self.counters,
            self.pings.counts(),
            self.fault_counters(),
            Some(kernel),
        )
    }

    fn fault_counters(&self) -> FaultCounters {
        let faults = self.faults.as_ref();
        faults.map(|faults| faults.counters).unwrap_or_default()
    }

    /// How many pings the transport has flushed, by its own report or by the peer's answer.
    pub(crate) fn pings_sent(&self) -> u32 {
        self.pings.counts().pings_sent
    }

    /// The state at `now`, however short it has lasted.
    pub(crate) fn health(&self, now: Moment, policy: &Policy) -> Health {
        match self.lifecycle {
            Lifecycle::Opening => Health::Opening,
            Lifecycle::Ended { .. } => Health::Ended,
            Lifecycle::Closing { .. } => Health::Closing,
            Lifecycle::Open if self.backlog.is_some() => Health::HandlerStalled,
            Lifecycle::Open if self.is_blocked() && !self.is_uncertain() => Health::WriteStalled,
            Lifecycle::Open if self.pings.timeout_since().is_some() || self.pings.missed() > 0 => {
                Health::PeerSilent {
                    missed: self.pings.missed(),
                }
            }
            // A ping waits for the end of a frame that the handler does not finish.
            Lifecycle::Open if self.unfinished_frame_since().is_some() => Health::HandlerStalled,
            Lifecycle::Open => self.faultless_health(now, policy),
        }
    }
}
