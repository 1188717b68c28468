//! The state machine that decides: it is told what passed and when, and answers what to do.

use std::time::Duration;

use super::health::Health;
use super::moment::Moment;
use super::pings::Pings;
use super::policy::{HeartbeatPolicy, IdlePolicy, Policy, ProofOfLife, Traffic};
use super::reason::Reason;
use super::rtt::{Rtt, RttEstimate};
use super::stats::Stats;

/// A verdict this late means that the runtime, not the peer, was away. Under it, lateness is noise.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// What the connection knows at the moment of the question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlook {
    /// A control frame could be written now: the handler is at a frame boundary.
    pub(crate) can_inject: bool,
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
    /// The connection is over for this reason: evict it.
    Evict(Reason),
    /// The connection was over before and its transport outlived `close_timeout`: close it.
    Cut,
}

/// How far the connection has come towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Not at all.
    Open,
    /// The handler's Close frame (or shutdown) went out; the peer's answer is awaited.
    ServerClosing { since: Moment, code: Option<u16> },
    /// It is over, the verdict has been given; only the transport may still be there.
    Over { since: Moment, reason: Reason },
}

/// Everything that is known of one connection's liveness.
#[derive(Clone, Debug)]
pub(crate) struct Monitor {
    opened: Moment,
    last_inbound: Moment,
    /// The last byte or pong that counts as proof of life.
    last_proof: Moment,
    data_in: Moment,
    data_out: Moment,
    /// Since when bytes to the peer wait that the transport does not accept.
    blocked: Option<Moment>,
    /// Since when bytes from the peer wait that the handler does not read.
    backlog: Option<Moment>,
    ending: Ending,
    /// Part of the first interval that is left out, in 0..=1 (jitter).
    head_start: f32,
    pings: Pings,
    rtt: RttEstimate,
    stats: Stats,
    verdict: Option<Reason>,
    /// The deadline may have moved forward since this was last taken.
    moved: bool,
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
            data_in: now,
            data_out: now,
            blocked: None,
            backlog: None,
            ending: Ending::Open,
            head_start: jitter as f32 * random,
            pings: Pings::new(tag),
            rtt: RttEstimate::default(),
            stats: Stats::default(),
            verdict: None,
            moved: false,
        }
    }

    // ---- what passed -------------------------------------------------------------------------

    /// `bytes` came from the peer; `mid_frame` if they end inside a frame.
    pub(crate) fn received(&mut self, now: Moment, bytes: usize, mid_frame: bool, policy: &Policy) {
        self.last_inbound = now;
        self.stats.bytes_received += bytes as u64;
        match policy
            .heartbeat
            .as_ref()
            .map(|heartbeat| heartbeat.proof_of_life)
        {
            Some(ProofOfLife::MatchingPong) if mid_frame => self.pings.extend(now),
            Some(ProofOfLife::MatchingPong) => {}
            Some(ProofOfLife::AnyBytes) | None => {
                // The next ping may now be due before the awaited timeout would have been.
                self.moved |= self.pings.waiting().is_some();
                self.last_proof = now;
                self.pings.sign_of_life();
            }
        }
    }

    /// A pong with the length of ours came. Returns whether it is ours. `blind` says for how long
    /// it may have waited before anybody looked.
    pub(crate) fn pong(&mut self, now: Moment, payload: [u8; 8], blind: Duration) -> bool {
        let Some(answer) = self.pings.answer(now, payload) else {
            return false;
        };
        if answer.fresh {
            self.moved = true;
            self.last_proof = now;
            self.stats.pongs_received = self.stats.pongs_received.saturating_add(1);
        }
        if let Some(rtt) = answer.rtt.filter(|rtt| blind <= *rtt / 8) {
            self.rtt.sample(rtt);
        }
        true
    }

    /// A data message from the peer is complete.
    pub(crate) fn message_in(&mut self, now: Moment) {
        self.data_in = now;
        self.stats.messages_received += 1;
    }

    /// A data message to the peer was accepted whole by the transport.
    pub(crate) fn message_out(&mut self, now: Moment) {
        self.data_out = now;
        self.stats.messages_sent += 1;
    }

    /// The transport accepted `bytes`; `rest` if more of the same write or frame is waiting.
    pub(crate) fn accepted(&mut self, now: Moment, bytes: usize, rest: bool) {
        self.stats.bytes_sent += bytes as u64;
        // Bytes that go into an empty send buffer prove nothing. Bytes that a transport accepts
        // after it had refused some do: the peer has drained others.
        if self.blocked.is_some() {
            self.pings.extend(now);
            self.blocked = rest.then_some(now);
        }
    }

    /// The transport refused bytes.
    pub(crate) fn refused(&mut self, now: Moment) {
        if self.blocked.is_none() {
            self.blocked = Some(now);
            self.moved = true;
        }
    }

    /// The ping that was asked for last is with the transport.
    pub(crate) fn ping_flushed(&mut self, now: Moment) {
        self.pings.flushed(now);
        self.moved = true;
        self.stats.pings_sent = self.pings.flushed_count();
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
            self.verdict = Some(reason);
            self.moved = true;
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
        self.verdict.take()
    }

    /// Whether the deadline may have moved forward since the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    // ---- what to do --------------------------------------------------------------------------

    /// What has to be done at `now`. The caller has looked for bytes from the peer first.
    pub(crate) fn poll(&mut self, now: Moment, policy: &Policy, outlook: Outlook) -> Action {
        match self.ending {
            Ending::Over { since, reason } if now >= since + policy.close_timeout(Some(reason)) => {
                Action::Cut
            }
            Ending::ServerClosing { since, .. } if now >= since + policy.close_timeout(None) => {
                self.evict(now, Reason::CloseTimeout)
            }
            Ending::Over { .. } | Ending::ServerClosing { .. } => Action::Wait,
            Ending::Open => match self.poll_idle(now, policy, outlook) {
                Action::Wait => self.poll_heartbeat(now, policy, outlook),
                action => action,
            },
        }
    }

    fn poll_idle(&mut self, now: Moment, policy: &Policy, outlook: Outlook) -> Action {
        let Some(idle) = &policy.idle else {
            return Action::Wait;
        };
        let due = |deadline: Option<Moment>| deadline.is_some_and(|deadline| now >= deadline);
        if due(self.lifetime_deadline(idle)) {
            return self.evict(now, Reason::MaxLifetime);
        }
        // With the read-ahead buffer full, messages may wait that nobody could count.
        if !outlook.blind && due(self.first_message_deadline(idle)) {
            return self.evict(now, Reason::FirstMessageTimeout);
        }
        let unseen = outlook.blind && idle.watch != Traffic::Outbound;
        if !unseen && now >= self.active(idle.watch) + idle.timeout {
            return self.evict(now, Reason::IdleTimeout);
        }
        Action::Wait
    }

    fn poll_heartbeat(&mut self, now: Moment, policy: &Policy, outlook: Outlook) -> Action {
        let Some(heartbeat) = &policy.heartbeat else {
            return Action::Wait;
        };
        let due = |deadline: Option<Moment>| deadline.is_some_and(|deadline| now >= deadline);
        if due(self.handler_deadline(heartbeat)) {
            return self.evict(now, Reason::HandlerStalled);
        }
        if due(self.write_deadline(heartbeat)) {
            // The handler may have given up a write that the transport would take by now. If a
            // frame of ours is accepted, the peer drains and nothing is stalled.
            return if outlook.can_inject && !self.pings.is_wanted() {
                Action::Ping(self.pings.next())
            } else {
                self.evict(now, Reason::WriteStalled)
            };
        }
        if self.pings.is_wanted() {
            return Action::Wait;
        }
        let Some(since) = self.pings.waiting() else {
            return if now >= self.ping_due(heartbeat) {
                Action::Ping(self.pings.next())
            } else {
                Action::Wait
            };
        };
        let deadline = since + heartbeat.timeout;
        if now < deadline {
            return Action::Wait;
        }
        if outlook.blind {
            // Nobody can tell whether the peer's pong is among what waits: the handler stalls,
            // and that is another verdict.
            self.pings.extend(now);
            return Action::Wait;
        }
        if now.since(deadline) >= LEAST_PAUSE.max(heartbeat.timeout / 2) {
            // The runtime was away (SIGSTOP, a suspended machine): the pong may have been lost
            // meanwhile, and this silence is not the peer's. Ask again before judging.
            return Action::Ping(self.pings.next());
        }
        let missed = self.pings.miss();
        if missed >= heartbeat.missed_pings {
            self.evict(now, Reason::HeartbeatTimeout { missed })
        } else {
            Action::Ping(self.pings.next())
        }
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
            consider(Some(self.active(idle.watch) + idle.timeout));
        }
        if let Some(heartbeat) = &policy.heartbeat {
            consider(self.handler_deadline(heartbeat));
            consider(self.write_deadline(heartbeat));
            consider(match self.pings.waiting() {
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

    fn first_message_deadline(&self, idle: &IdlePolicy) -> Option<Moment> {
        let within = idle.first_message?;
        (self.stats.messages_received == 0).then(|| self.opened + within)
    }

    fn handler_deadline(&self, heartbeat: &HeartbeatPolicy) -> Option<Moment> {
        Some(self.backlog? + heartbeat.handler_stall_timeout?)
    }

    fn write_deadline(&self, heartbeat: &HeartbeatPolicy) -> Option<Moment> {
        Some(self.blocked? + heartbeat.write_timeout?)
    }

    /// The interval is counted from the last proof of life. The first one is shortened at random, so that clients who all connected
    /// at once are not all pinged at once.
    fn ping_due(&self, heartbeat: &HeartbeatPolicy) -> Moment {
        if self.pings.any() {
            self.last_proof + heartbeat.interval
        } else {
            self.last_proof + heartbeat.interval.mul_f32(1.0 - self.head_start)
        }
    }

    fn active(&self, watch: Traffic) -> Moment {
        match watch {
            Traffic::Inbound => self.data_in,
            Traffic::Outbound => self.data_out,
            Traffic::Either => self.data_in.max(self.data_out),
        }
    }

    // ---- what is known -----------------------------------------------------------------------

    /// A ping is out and nothing has come since: somebody should be watching for bytes.
    pub(crate) fn is_waiting(&self) -> bool {
        self.pings.waiting().is_some() && self.ending == Ending::Open
    }

    /// A pong from the peer may be ours.
    pub(crate) fn expects_pongs(&self) -> bool {
        self.pings.any()
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

    /// The last complete data message in the directions that the idle timeout watches.
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

    pub(crate) fn health(&self) -> Health {
        match self.ending {
            Ending::Over { .. } => Health::Ended,
            Ending::ServerClosing { .. } => Health::Closing,
            Ending::Open if self.backlog.is_some() => Health::HandlerStalled,
            Ending::Open if self.blocked.is_some() => Health::WriteStalled,
            Ending::Open if self.pings.waiting().is_some() || self.pings.missed() > 0 => {
                Health::PeerSilent {
                    missed: self.pings.missed(),
                }
            }
            Ending::Open => Health::Live,
        }
    }
}
