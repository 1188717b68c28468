//! What is known of one connection: it is told what passed, and when. What can be asked of it is in
//! [`queries`](super::view), and what follows from it is decided in [`verdict`](super::verdict).

use std::time::Duration;

use super::control_rate::ControlRate;
use super::data_activity::{Data, DataClock};
use super::history::{History, Thresholds};
use super::moment::Moment;
use super::pings::{Answer, Pings};
use super::policy::{Policy, ProofOfLife};
use super::reason::Reason;
use super::rtt::RttEstimate;
use super::stats::Stats;

/// The least time of refusal after which an accepted byte says that the peer has drained others.
const LEAST_DRAIN: Duration = Duration::from_millis(5);
/// A refusal of this length says so whatever the timeout.
const MOST_DRAIN: Duration = Duration::from_millis(100);

/// How far the connection has come towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Not at all.
    Open,
    /// The handler's Close frame (or shutdown) went out; the peer's answer is awaited.
    ServerClosing { since: Moment, code: Option<u16> },
    /// It is over, the verdict has been given; only the transport may still be there.
    Over { since: Moment, reason: Reason },
}

/// A write that the transport refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked {
    /// Since when the transport has accepted nothing.
    pub(super) refused: Moment,
    /// The same, or since when the time was begun anew.
    pub(super) since: Moment,
    /// When the time was up, and whoever wants to write was asked to try again.
    pub(super) asked: Option<Moment>,
    /// The transport refused again after that.
    pub(super) again: bool,
    /// The same, or the scheduler did: then the transport has until the second try is over.
    pub(super) maybe_again: bool,
    /// It took the bytes, and does not get them out: what it does not flush, it holds in a buffer
    /// of its own (TLS, HTTP/2).
    pub(super) in_flush: bool,
    /// The refusal may be due to tokio's cooperative budget, not to the transport.
    pub(super) uncertain: bool,
}

impl Blocked {
    pub(super) fn new(since: Moment) -> Self {
        Self {
            refused: since,
            since,
            asked: None,
            again: false,
            maybe_again: false,
            in_flush: false,
            uncertain: false,
        }
    }

    /// Whether the time was begun anew.
    pub(super) fn is_anew(&self) -> bool {
        self.since != self.refused
    }

    /// The time begins anew. That does not change since when nothing was accepted.
    pub(super) fn anew(self, now: Moment) -> Self {
        Self {
            refused: self.refused,
            ..Self::new(now)
        }
    }
}

/// Everything that is known of one connection's liveness.
#[derive(Clone, Debug)]
pub(crate) struct Monitor {
    pub(super) opened: Moment,
    pub(super) last_inbound: Moment,
    /// The latest moment at which the peer is known to have been alive. Not later than the byte or
    /// the pong that proves it, however late that was looked at.
    pub(super) last_proof: Moment,
    pub(super) inbound: DataClock,
    pub(super) outbound: DataClock,
    pub(super) blocked: Option<Blocked>,
    /// Since when bytes from the peer wait that the handler does not read.
    pub(super) backlog: Option<Moment>,
    /// When a late verdict on the handler was last postponed. A stall counted from that time is not
    /// postponed again.
    pub(super) reprieved: Option<Moment>,
    pub(super) ending: Ending,
    /// Part of the first interval that is left out, in 0..=1 (jitter).
    pub(super) head_start: f32,
    pub(super) pings: Pings,
    pub(super) rtt: RttEstimate,
    pub(super) stats: Stats,
    /// The peer's first message is complete, or its end cannot be found since frame boundaries are lost.
    pub(super) first_message: bool,
    /// The read-ahead buffer was full once, and the handler has read since.
    pub(super) was_blind: bool,
    /// The read-ahead buffer was full when this was last polled, and the handler has not
    /// read since: what is suspended meanwhile has no deadline either.
    pub(super) blind: bool,
    /// Frame boundaries are lost in one direction: nobody can be pinged, or be blamed for silence.
    pub(super) passive: bool,
    pub(super) control_rate: ControlRate,
    pub(super) history: History,
    /// It is over, and the verdict has not been taken.
    pub(super) judged: bool,
    /// The deadline may have moved forward since this was last taken.
    pub(super) moved: bool,
}

impl Monitor {
    /// A connection whose opening handshake was completed at `now`. `random` is uniform in 0..1 and
    /// places the first ping, `tag` marks our pings.
    pub(crate) fn new(now: Moment, policy: &Policy, random: f32, tag: u64) -> Self {
        let jitter = policy
            .heartbeat
            .as_ref()
            .map_or(0.0, |heartbeat| heartbeat.jitter);
        Self {
            opened: now,
            last_inbound: now,
            last_proof: now,
            inbound: DataClock::new(now),
            outbound: DataClock::new(now),
            blocked: None,
            backlog: None,
            reprieved: None,
            ending: Ending::Open,
            head_start: jitter as f32 * random,
            pings: Pings::new(tag),
            rtt: RttEstimate::default(),
            stats: Stats::default(),
            first_message: false,
            was_blind: false,
            blind: false,
            passive: false,
            control_rate: ControlRate::new(now),
            history: History::default(),
            judged: false,
            moved: false,
        }
    }

    /// `bytes` came from the peer, and were seen at `now`; they may have lain unread for as long as
    /// `unseen`. `mid_frame` if they end inside a frame.
    pub(crate) fn received(
        &mut self,
        now: Moment,
        unseen: Duration,
        bytes: usize,
        mid_frame: bool,
        policy: &Policy,
    ) {
        self.last_inbound = now;
        self.stats.bytes_received += bytes as u64;
        let proof = policy
            .heartbeat
            .as_ref()
            .map(|heartbeat| heartbeat.proof_of_life);
        match proof.unwrap_or_default() {
            ProofOfLife::AnyBytes => self.alive(now, unseen),
            // The peer cannot send a pong before its frame ends.
            ProofOfLife::MatchingPong if mid_frame => self.pings.extend(now),
            ProofOfLife::MatchingPong => {}
        }
    }

    /// A pong with the length of ours came, and may have lain unread for as long as `unseen`: for its
    /// round trip, `unread` if that is more. Returns what it answers, if it is ours.
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
            self.alive(now, unseen);
            self.stats.pongs_received = self.stats.pongs_received.saturating_add(1);
            // The peer may have answered before the transport confirms the flush.
            self.stats.pings_sent = self.stats.pings_sent.max(answer.sequence);
        }
        if let Some(rtt) = answer.rtt.filter(|rtt| unseen.max(unread) <= *rtt / 8) {
            self.rtt.sample(rtt);
            if rtt > Thresholds::of(policy).silence {
                self.stats.slow_pongs = self.stats.slow_pongs.saturating_add(1);
                self.history.error(now);
            }
        }
        Some(answer)
    }

    /// A ping came, or a pong that answers nothing. For `earliest` see [`ControlRate::count`].
    pub(crate) fn control_in(&mut self, now: Moment, earliest: Option<Moment>, policy: &Policy) {
        let heartbeat = policy.heartbeat.as_ref();
        if let Some(limit) = heartbeat.and_then(|heartbeat| heartbeat.control_frame_limit) {
            self.moved |= self.control_rate.count(now, earliest, limit);
        }
    }

    fn alive(&mut self, now: Moment, unseen: Duration) {
        // The next ping may now be due before the awaited timeout would have been.
        self.moved |= self.pings.waiting().is_some();
        self.last_proof = self.last_proof.max(now.before(unseen));
        self.pings.sign_of_life();
    }

    /// Data came from the peer.
    pub(crate) fn data_in(&mut self, now: Moment, data: Data, policy: &Policy) {
        let begins = self.inbound.pass(now, data);
        self.moved |= begins && policy.limits_messages();
        self.first_message |= data != Data::Part;
        self.stats.messages_received += u64::from(data == Data::End);
    }

    /// The transport accepted data of the handler's.
    pub(crate) fn data_out(&mut self, now: Moment, data: Data, policy: &Policy) {
        let begins = self.outbound.pass(now, data);
        self.moved |= begins && policy.limits_messages();
        self.stats.messages_sent += u64::from(data == Data::End);
    }

    /// The transport accepted `bytes`.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.stats.bytes_sent += bytes as u64;
    }

    /// The transport accepted something; `rest` if more of the same write or frame is waiting. Says
    /// nothing new unless the connection [is held up](Self::is_held_up).
    pub(crate) fn accepted(&mut self, now: Moment, rest: bool, policy: &Policy) {
        // A handler that goes on with its frame is slow, not stalled.
        self.pings.wish_again(now);
        let Some(blocked) = self.blocked.take() else {
            return;
        };
        self.blocked = rest.then(|| Blocked::new(now));
        // What is left of a half-written frame is the handler's to write, from now on. And whoever
        // was waiting for a second try waits for the first one again.
        self.moved |= !rest || blocked.asked.is_some();
        // A refusal that may be due to the budget proves nothing about the peer.
        let refused = match blocked.uncertain {
            true => Duration::ZERO,
            false => now.since(blocked.refused),
        };
        if refused >= Thresholds::of(policy).write_stall {
            self.stats.write_stalls = self.stats.write_stalls.saturating_add(1);
            self.history.error(now);
        }
        // Bytes that go into a send buffer with room prove nothing, or a server that writes all
        // the time could never tell that its peer is dead. Bytes that are accepted after a time of
        // refusal do: the peer has drained others. A short refusal is the local scheduler's.
        if let Some(heartbeat) = &policy.heartbeat {
            let drained = (heartbeat.timeout / 32).clamp(LEAST_DRAIN, MOST_DRAIN);
            if refused >= drained {
                self.pings.extend(now);
            }
        }
    }

    /// The transport refused bytes.
    pub(crate) fn refused(&mut self, now: Moment) {
        self.held_up(now, false, true);
    }

    /// The transport did not flush what it has accepted.
    pub(crate) fn unflushed(&mut self, now: Moment) {
        self.held_up(now, true, true);
    }

    /// Bytes were refused or, if `in_flush`, not flushed, by the transport or by tokio's cooperative budget.
    pub(crate) fn maybe_held_up(&mut self, now: Moment, in_flush: bool) {
        self.held_up(now, in_flush, false);
    }

    /// The refusal that was [uncertain](Self::maybe_held_up) did not come from the transport.
    pub(crate) fn not_held_up(&mut self) {
        if let Some(blocked) = self.blocked.take_if(|blocked| blocked.uncertain) {
            // The handler did try to go on with its frame.
            self.pings.wish_again(blocked.refused);
        }
    }

    /// The transport flushed what it has accepted. That says nothing of bytes that it refused: most
    /// transports have nothing to flush.
    pub(crate) fn flushed(&mut self, now: Moment, policy: &Policy) {
        if self.blocked.is_some_and(|blocked| blocked.in_flush) {
            self.accepted(now, false, policy);
        }
    }

    fn held_up(&mut self, now: Moment, in_flush: bool, certain: bool) {
        match &mut self.blocked {
            None => {
                self.blocked = Some(Blocked {
                    in_flush,
                    uncertain: !certain,
                    ..Blocked::new(now)
                });
            }
            // What held it up until now may have been the scheduler.
            Some(blocked) if blocked.uncertain && certain => {
                *blocked = Blocked {
                    in_flush,
                    ..Blocked::new(now)
                };
            }
            Some(blocked) => {
                blocked.in_flush &= in_flush;
                blocked.maybe_again = blocked.asked.is_some();
                if !blocked.maybe_again || !certain {
                    return;
                }
                blocked.again = true;
            }
        }
        self.moved = true;
    }

    /// Frame boundaries are lost in one direction (RFC 6455 leaves no way to find them again).
    pub(crate) fn go_passive(&mut self) {
        self.passive = true;
        self.pings.give_up();
    }

    /// The application wants a ping now. Returns its sequence number, by which to know its answer.
    pub(crate) fn ask_ping(&mut self) -> u32 {
        self.moved = true;
        self.pings.ask()
    }

    /// The policy is another one from now on; the timeout of its pings was `before`.
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

    /// Whether the handler is between two fragments of a message, where a ping waits for its end.
    pub(crate) fn mid_message(&mut self, mid_message: bool) {
        self.moved |= self.pings.mid_message(mid_message);
    }

    /// Called by the driver: releases a ping that has waited long enough for the end of a message.
    pub(crate) fn release_ping(&mut self, now: Moment) {
        self.pings.release(now);
    }

    /// The ping that was asked for last is with the transport.
    pub(crate) fn ping_flushed(&mut self, now: Moment) {
        self.pings.flushed(now);
        self.moved = true;
        self.stats.pings_sent = self.pings.flushed_count();
        if self.passive {
            self.pings.give_up();
        }
    }

    /// Bytes from the peer were read ahead, and wait for the handler.
    pub(crate) fn bytes_wait(&mut self, now: Moment) {
        if self.backlog.is_none() {
            self.backlog = Some(now);
            self.moved = true;
        }
    }

    /// The handler took bytes that were waiting; `rest` if there are more. Slow is not stalled.
    pub(crate) fn handler_read(&mut self, now: Moment, rest: bool) {
        self.backlog = rest.then_some(now);
        if self.blind {
            self.blind = false;
            self.was_blind = true;
            // The peer may have been held up for as long as the buffer was full.
            self.inbound.restart_message(now);
            self.moved = true;
        }
    }

    /// The peer's Close frame came.
    pub(crate) fn peer_closed(&mut self, now: Moment, code: Option<u16>) {
        let reason = match self.ending {
            Ending::Open => Reason::PeerClosed { code },
            Ending::ServerClosing { code, .. } => Reason::ServerClosed { code },
            Ending::Over { .. } => return,
        };
        self.end(now, reason);
    }

    /// The handler's Close frame was accepted by the transport, or it shut its side down.
    pub(crate) fn server_closed(&mut self, now: Moment, code: Option<u16>) {
        if self.ending == Ending::Open {
            self.ending = Ending::ServerClosing { since: now, code };
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
        if !matches!(self.ending, Ending::Over { .. }) {
            self.ending = Ending::Over { since: now, reason };
            self.judged = true;
            self.moved = true;
        }
    }

    /// The transport of an evicted connection opens only now, so its `close_timeout` starts at `now`.
    pub(crate) fn close_from(&mut self, now: Moment) {
        if let Ending::Over { since, .. } = &mut self.ending {
            *since = now;
        }
    }

    /// After the server's Close frame, however the transport ends, it was the server that closed.
    fn end_unless_closing(&mut self, now: Moment, reason: Reason) {
        let reason = match self.ending {
            Ending::ServerClosing { code, .. } => Reason::ServerClosed { code },
            Ending::Open | Ending::Over { .. } => reason,
        };
        self.end(now, reason);
    }

    /// The verdict, once.
    pub(crate) fn take_verdict(&mut self) -> Option<Reason> {
        let judged = std::mem::take(&mut self.judged);
        self.reason().filter(|_| judged)
    }

    /// Whether the deadline may have moved forward since the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }
}
