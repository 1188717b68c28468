//! What changes a [`Monitor`]: bytes, frames, pongs, refusals, and the ways a connection ends.

use std::time::Duration;

use super::blocked_write::BlockedWrite;
use super::data_activity::Data;
use super::history::Thresholds;
use super::lifecycle::Lifecycle;
use super::moment::Moment;
use super::pings::Answer;
use super::policy::{Policy, ProofOfLife};
use super::reason::Reason;
use super::{FirstMessage, Monitor};

/// The shortest refusal after which an accepted byte proves that the peer has drained others.
const MIN_PROVING_REFUSAL: Duration = Duration::from_millis(5);
/// A refusal of this length proves it for every timeout.
const MAX_PROVING_REFUSAL: Duration = Duration::from_millis(100);

impl Monitor {
    /// `bytes` bytes of the peer were read at `now`, up to `unseen` after their arrival.
    /// `mid_frame` if they end inside a frame.
    pub(crate) fn received(
        &mut self,
        now: Moment,
        unseen: Duration,
        bytes: usize,
        mid_frame: bool,
        policy: &Policy,
    ) {
        self.last_inbound = now;
        self.counters.bytes_received += bytes as u64;
        match policy.proof_of_life() {
            ProofOfLife::AnyBytes => self.on_proof_of_life(now.before(unseen)),
            // The peer cannot send a pong before its frame ends.
            ProofOfLife::MatchingPong if mid_frame => self.pings.extend(now),
            ProofOfLife::MatchingPong => {}
        }
    }

    /// One message of `bytes` bytes was received at `now`, as [`data_in`](Self::data_in) and
    /// [`received`](Self::received) would record it while the connection
    /// [is routine](Self::is_routine): there is no silence of the peer to end.
    #[inline]
    pub(crate) fn message_in(
        &mut self,
        now: Moment,
        arrived: Moment,
        bytes: usize,
        policy: &Policy,
    ) {
        self.inbound.pass(now, Data::End);
        self.first_message = FirstMessage::Complete;
        self.counters.messages_received += 1;
        self.last_inbound = now;
        self.counters.bytes_received += bytes as u64;
        if policy.proof_of_life() == ProofOfLife::AnyBytes {
            self.last_proof = self.last_proof.max(arrived);
        }
    }

    /// A pong with the length of ours was read, up to `unseen` after its arrival; for its round
    /// trip `unread` counts if that is more. Returns which ping it answers, if it is one of ours.
    pub(crate) fn pong(
        &mut self,
        now: Moment,
        unseen: Duration,
        unread: Duration,
        payload: [u8; 8],
        policy: &Policy,
    ) -> Option<Answer> {
        let answer = self.pings.answer(now, payload)?;
        if answer.fresh {
            self.moved = true;
            self.on_proof_of_life(now.before(unseen));
        }
        if let Some(rtt) = answer.rtt.filter(|rtt| unseen.max(unread) <= *rtt / 8) {
            self.rtt.sample(rtt);
            if rtt > Thresholds::of(policy).silence {
                self.faults().on_slow_pong(now);
            }
        }
        Some(answer)
    }

    /// A ping was received, or a pong that answers none of our pings. For `earliest` see
    /// [`ControlRate::count`](super::control_rate::ControlRate::count).
    pub(crate) fn control_in(&mut self, now: Moment, earliest: Option<Moment>, policy: &Policy) {
        let heartbeat = policy.heartbeat.as_ref();
        if let Some(limit) = heartbeat.and_then(|heartbeat| heartbeat.control_frame_limit) {
            self.moved |= self.faults().control_rate.count(now, earliest, limit);
        }
    }

    /// The peer was alive at this moment.
    pub(super) fn on_proof_of_life(&mut self, alive: Moment) {
        // The next ping may now be due before the awaited timeout would have been.
        self.moved |= self.pings.timeout_since().is_some();
        self.last_proof = self.last_proof.max(alive);
        if let Some(faults) = &mut self.faults {
            faults.earlier_views.on_proof_of_life();
        }
        self.pings.on_proof_of_life();
    }

    /// Data was received.
    pub(crate) fn data_in(&mut self, now: Moment, data: Data, policy: &Policy) {
        let begins = self.inbound.pass(now, data);
        self.moved |= begins && policy.limits_messages();
        if data != Data::Part {
            self.first_message = FirstMessage::Complete;
        }
        self.counters.messages_received += u64::from(data == Data::End);
    }

    /// The transport accepted data of the handler's.
    #[inline]
    pub(crate) fn data_out(&mut self, now: Moment, data: Data, policy: &Policy) {
        let begins = self.outbound.pass(now, data);
        self.moved |= begins && policy.limits_messages();
        self.counters.messages_sent += u64::from(data == Data::End);
    }

    /// The transport accepted `bytes`.
    #[inline]
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.counters.bytes_sent += bytes as u64;
    }

    /// The transport accepted bytes; `rest` if more of the same write or frame waits. Needed only
    /// if the connection [is held up](Self::has_output_waiting).
    pub(crate) fn accepted(&mut self, now: Moment, rest: bool, policy: &Policy) {
        // A handler that continues its frame is slow, not stalled.
        self.pings.restart_queued(now);
        let Some(faults) = &mut self.faults else {
            return;
        };
        let Some(blocked) = faults.blocked.take() else {
            return;
        };
        faults.blocked = rest.then(|| BlockedWrite::new(now));
        // If a second try was under way, the next refusal starts with a first one again.
        self.moved |= !rest || blocked.retried_at.is_some();
        // A refusal that may come from the budget proves nothing about the peer.
        let refused = match blocked.uncertain {
            true => Duration::ZERO,
            false => now.since(blocked.refused),
        };
        if refused >= Thresholds::of(policy).write_stall {
            faults.on_write_stall(now);
        }
        // Bytes that fit into a send buffer prove nothing, or a server that always writes could
        // never find its peer dead. Bytes accepted after a time of refusal do: the peer has drained
        // others. A short refusal comes from the local scheduler.
        if let Some(heartbeat) = &policy.heartbeat {
            let drained = (heartbeat.timeout / 32).clamp(MIN_PROVING_REFUSAL, MAX_PROVING_REFUSAL);
            if refused >= drained {
                self.pings.extend(now);
            }
        }
    }

    /// The transport refused bytes.
    pub(crate) fn refused(&mut self, now: Moment) {
        self.block(now, false, true);
    }

    /// The transport did not flush what it has accepted.
    pub(crate) fn unflushed(&mut self, now: Moment) {
        self.block(now, true, true);
    }

    /// The transport or tokio's cooperative budget refused bytes or, if `in_flush`, did not flush
    /// them.
    pub(crate) fn maybe_refused(&mut self, now: Moment, in_flush: bool) {
        self.block(now, in_flush, false);
    }

    /// The [uncertain](Self::maybe_refused) refusal did not come from the transport.
    pub(crate) fn not_refused(&mut self) {
        let Some(faults) = &mut self.faults else {
            return;
        };
        if let Some(blocked) = faults.blocked.take_if(|blocked| blocked.uncertain) {
            // The handler tried to continue its frame.
            self.pings.restart_queued(blocked.refused);
        }
    }

    /// The transport flushed what it had accepted. This does not end a refusal of bytes: most
    /// transports have nothing to flush.
    pub(crate) fn flushed(&mut self, now: Moment, policy: &Policy) {
        if self.blocked().is_some_and(|blocked| blocked.in_flush) {
            self.accepted(now, false, policy);
        }
    }

    fn block(&mut self, now: Moment, in_flush: bool, certain: bool) {
        let slot = &mut self.faults().blocked;
        match slot {
            None => {
                *slot = Some(BlockedWrite {
                    in_flush,
                    uncertain: !certain,
                    ..BlockedWrite::new(now)
                });
            }
            // The refusals so far may have come from the scheduler.
            Some(blocked) if blocked.uncertain && certain => {
                *blocked = BlockedWrite {
                    in_flush,
                    ..BlockedWrite::new(now)
                };
            }
            Some(blocked) => {
                blocked.in_flush &= in_flush;
                blocked.maybe_refused_again = blocked.retried_at.is_some();
                if !blocked.maybe_refused_again || !certain {
                    return;
                }
                blocked.refused_again = true;
            }
        }
        self.moved = true;
    }

    /// Frame boundaries are lost in one direction. RFC 6455 has no way to find them again.
    pub(crate) fn go_passive(&mut self) {
        self.passive = true;
        self.pings.cancel_all();
    }

    /// The application requests a ping. Returns the sequence number whose pong answers it.
    pub(crate) fn request_ping(&mut self) -> u32 {
        self.moved = true;
        self.pings.request()
    }

    /// The policy has changed; the timeout of its pings was `before`.
    pub(crate) fn policy_changed(
        &mut self,
        now: Moment,
        policy: &Policy,
        before: Option<Duration>,
    ) {
        self.moved = true;
        if let (Some(heartbeat), Some(before)) = (&policy.heartbeat, before) {
            self.pings.timeout_changed(now, before, heartbeat.timeout);
        }
    }

    /// Records whether the handler is between two fragments of a message, where a ping waits for
    /// the end of the message.
    pub(crate) fn set_mid_message(&mut self, mid_message: bool) {
        self.moved |= self.pings.set_mid_message(mid_message);
    }

    /// Releases a ping that has waited long enough for the end of a message. The driver calls this.
    pub(crate) fn release_ping(&mut self, now: Moment, policy: &Policy) {
        self.pings.release(now, policy.ping_timeout());
    }

    /// The newest ping is with the transport.
    pub(crate) fn ping_flushed(&mut self, now: Moment) {
        self.pings.flushed(now, self.counters.bytes_sent);
        self.moved = true;
        if self.passive {
            self.pings.cancel_all();
        }
    }

    /// Bytes of the peer were read ahead and wait for the handler.
    pub(crate) fn on_backlog(&mut self, now: Moment) {
        if self.backlog.is_none() {
            self.backlog = Some(now);
            self.moved = true;
        }
    }

    /// The handler read waiting bytes; `rest` if more wait. A slow handler is not stalled.
    pub(crate) fn handler_read(&mut self, now: Moment, rest: bool) {
        self.backlog = rest.then_some(now);
        if self.read_ahead_full {
            self.read_ahead_full = false;
            if self.first_message == FirstMessage::Awaited {
                self.first_message = FirstMessage::AwaitedAfterFullReadAhead;
            }
            // While the buffer was full, the peer may have been unable to send.
            self.inbound.restart_message(now);
            self.moved = true;
        }
    }

    /// The peer's Close frame was received.
    pub(crate) fn peer_closed(&mut self, now: Moment, code: Option<u16>) {
        let reason = match self.lifecycle {
            Lifecycle::Closing { code, .. } => Reason::ServerClosed { code },
            Lifecycle::Opening | Lifecycle::Open | Lifecycle::Ended { .. } => {
                Reason::PeerClosed { code }
            }
        };
        self.end(now, reason);
    }

    /// The transport accepted the handler's Close frame, or the handler shut its direction down.
    pub(crate) fn handler_closed(&mut self, now: Moment, code: Option<u16>) {
        if self.lifecycle == Lifecycle::Open {
            self.lifecycle = Lifecycle::Closing { since: now, code };
            self.moved = true;
        }
    }

    /// The peer ended the transport without a Close frame.
    pub(crate) fn eof(&mut self, now: Moment) {
        self.end_unless_closing(now, Reason::PeerVanished);
    }

    /// The transport failed.
    pub(crate) fn failed(&mut self, now: Moment, kind: std::io::ErrorKind) {
        self.end_unless_closing(now, Reason::Transport(kind));
    }

    /// The handler dropped its stream.
    pub(crate) fn dropped(&mut self, now: Moment) {
        self.end_unless_closing(now, Reason::HandlerDropped);
    }

    /// Ends the connection for `reason`, unless it has ended before.
    pub(crate) fn end(&mut self, now: Moment, reason: Reason) {
        if !self.lifecycle.is_ended() {
            self.lifecycle.end(now, reason);
            self.moved = true;
        }
    }

    /// After the handler's Close frame the reason is `ServerClosed`, whichever way the transport
    /// ends: end of stream, error or drop.
    fn end_unless_closing(&mut self, now: Moment, reason: Reason) {
        let reason = match self.lifecycle {
            Lifecycle::Closing { code, .. } => Reason::ServerClosed { code },
            Lifecycle::Opening | Lifecycle::Open | Lifecycle::Ended { .. } => reason,
        };
        self.end(now, reason);
    }

    /// Whether the deadline may have moved forward since the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }
}
