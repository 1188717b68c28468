//! The pings of one connection: queued, in flight, answered or missed, and their round trips.

use std::time::Duration;

use super::moment::Moment;
use super::stats::PingCounts;

/// Flush times are stored for this many of the newest pings. The pong to an older ping gives no
/// round trip.
const REMEMBERED_FLUSHES: usize = 4;

/// The state of our own pings.
///
/// A ping's payload combines a random tag of the connection with a sequence number, so its pong is
/// distinguished from pongs to the handler's own pings without storing a payload per ping.
///
/// A ping is *queued* until the transport has flushed it, then *in flight* until it is answered. A
/// pong to a ping answers all earlier pings too.
#[derive(Clone, Debug)]
pub(crate) struct Pings {
    /// The first half of each payload. The second is the sequence number.
    tag: u32,
    /// Sequence number of the newest ping. The first is 1.
    queued_count: u32,
    newest: Newest,
    /// Every ping up to this sequence number counts as answered.
    answered_up_to: u32,
    /// Pongs that answered a ping for the first time.
    pongs: u32,
    /// Timeouts that expired in the current silence. `missed_pings` is at most 255.
    missed: u8,
    /// Where in the outbound bytes the ping ends whose timeout runs: the low half of the number of
    /// bytes sent by then.
    awaited_end: u32,
    /// Since when the timeout of a ping in flight runs; `None` after a sign of life.
    timeout_since: Option<Moment>,
    /// Since when the newest ping is queued, which restarts while others are written. Once it is
    /// flushed: when it was queued, so not later than it was written.
    queued_at: Moment,
    /// Whether the handler was between two fragments of a message at the last poll.
    mid_message: bool,
    /// A late verdict was postponed in the current silence.
    verdict_postponed: bool,
    /// When the newest ping was flushed. If it is not: when it was queued.
    flushed_at: Option<Moment>,
    /// Present only if the application has requested a ping, or a ping was unanswered when the next
    /// was queued.
    rare: Option<Box<RarePings>>,
}

/// What few connections need for their pings.
#[derive(Clone, Debug, Default)]
struct RarePings {
    /// Sequence number of the newest ping that the application has requested. More than
    /// `queued_count` if that ping is not queued yet.
    requested_sequence: u32,
    /// `flushed_at` of the pings before the newest, the latest first.
    earlier_flushes: [Option<Moment>; REMEMBERED_FLUSHES - 1],
}

/// How far the newest ping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newest {
    /// It is not flushed yet, and between two fragments it waits for the end of the message.
    Holdable,
    /// It is not flushed yet, and has waited long enough for the end of a message.
    Queued,
    /// Cancelled. The rest of it is still written if its first bytes were.
    Cancelled,
    /// It is flushed, or there was none.
    Flushed,
}

/// A pong that answers one of our pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The sequence number of the ping. All earlier pings are answered too.
    pub(crate) sequence: u32,
    /// The ping was unanswered until now.
    pub(crate) fresh: bool,
    /// Time since the ping was flushed, if the flush time is still stored.
    pub(crate) rtt: Option<Duration>,
}

impl Pings {
    pub(crate) fn new(tag: u32) -> Self {
        Self {
            tag,
            queued_count: 0,
            newest: Newest::Flushed,
            answered_up_to: 0,
            pongs: 0,
            missed: 0,
            awaited_end: 0,
            timeout_since: None,
            queued_at: Moment::START,
            mid_message: false,
            verdict_postponed: false,
            flushed_at: None,
            rare: None,
        }
    }

    /// Queues the next ping and returns its payload, which the caller must write. The timeout of
    /// the ping in flight is cancelled; that of the new ping starts with its flush.
    pub(crate) fn queue_next(&mut self, now: Moment) -> [u8; 8] {
        self.timeout_since = None;
        self.queue_extra(now)
    }

    /// Like [`queue_next`](Self::queue_next), but the timeout of the ping in flight continues.
    /// Otherwise an application that requests pings regularly would keep a dead peer forever.
    pub(crate) fn queue_extra(&mut self, now: Moment) -> [u8; 8] {
        if self.answered_up_to < self.queued_count {
            let earlier = &mut self.rare.get_or_insert_default().earlier_flushes;
            earlier.rotate_right(1);
            earlier[0] = self.flushed_at;
        } else if self.requested_sequence() <= self.queued_count {
            // Otherwise the box stays, with flush times that are not looked up: those of answered
            // pings.
            self.rare = None;
        }
        self.queued_count = self.queued_count.saturating_add(1);
        self.newest = Newest::Holdable;
        self.queued_at = now;
        self.flushed_at = Some(now);
        self.payload(self.queued_count).to_be_bytes()
    }

    fn payload(&self, sequence: u32) -> u64 {
        u64::from(self.tag) << 32 | u64::from(sequence)
    }

    /// Requests a ping for the application. Returns its sequence number: that of the queued ping,
    /// or of the next one.
    pub(crate) fn request(&mut self) -> u32 {
        // The transport may confirm a flush after the peer has already answered.
        let waits = self.is_queued() && self.answered_up_to < self.queued_count;
        let sequence = match waits {
            true => self.queued_count,
            false => self.queued_count.saturating_add(1),
        };
        self.rare.get_or_insert_default().requested_sequence = sequence;
        sequence
    }

    fn requested_sequence(&self) -> u32 {
        let rare = self.rare.as_ref();
        rare.map_or(0, |rare| rare.requested_sequence)
    }

    /// When the newest ping was flushed, if the application waits for the pong to it or to an
    /// earlier one. Some peers answer only the oldest of several pings, so the newest may stay
    /// unanswered.
    pub(crate) fn requested_since(&self) -> Option<Moment> {
        let (requested, flushed) = (self.requested_sequence(), self.flushed_count());
        let in_flight = self.answered_up_to < requested && requested <= flushed;
        self.flushed_at(flushed).filter(|_| in_flight)
    }

    /// Whether the application has requested a ping and none is queued.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested_sequence() > self.queued_count && !self.is_queued()
    }

    /// Awaits the answer to the queued ping: the timeout of the ping in flight is cancelled.
    pub(crate) fn await_queued(&mut self) {
        self.timeout_since = None;
    }

    /// The transport has flushed the newest ping, whose timeout starts now. `bytes_sent` are all
    /// bytes that the transport has accepted.
    pub(crate) fn flushed(&mut self, now: Moment, bytes_sent: u64) {
        self.newest = Newest::Flushed;
        if let Some(queued_at) = self.flushed_at.replace(now) {
            self.queued_at = queued_at;
        }
        // The transport may confirm a flush after the peer has already answered.
        if self.answered_up_to < self.queued_count && self.timeout_since.is_none() {
            self.timeout_since = Some(now);
            self.awaited_end = bytes_sent as u32;
        }
    }

    /// If `payload` is that of one of our pings, marks this ping and all earlier ones as answered:
    /// a peer may answer only the latest of several pings (RFC 6455 section 5.5.3).
    pub(crate) fn answer(&mut self, now: Moment, payload: [u8; 8]) -> Option<Answer> {
        let sequence = u32::try_from(u64::from_be_bytes(payload) ^ self.payload(0)).ok()?;
        if sequence == 0 || sequence > self.queued_count {
            return None;
        }
        let fresh = sequence > self.answered_up_to;
        let flushed_at = match fresh && sequence <= self.flushed_count() {
            true => self.flushed_at(sequence),
            false => None,
        };
        let rtt = flushed_at.map(|at| now.since(at));
        if fresh {
            self.answered_up_to = sequence;
            self.pongs = self.pongs.saturating_add(1);
            self.on_proof_of_life();
        }
        Some(Answer {
            sequence,
            fresh,
            rtt,
        })
    }

    /// The peer is alive: ends the current silence.
    pub(crate) fn on_proof_of_life(&mut self) {
        self.timeout_since = None;
        self.missed = 0;
        self.verdict_postponed = false;
    }

    /// Cancels all timeouts and the queued ping.
    pub(crate) fn cancel_all(&mut self) {
        self.on_proof_of_life();
        if self.is_queued() {
            self.newest = Newest::Cancelled;
        }
    }

    /// Whether a late verdict may be postponed: once in a silence.
    pub(crate) fn take_postponement(&mut self) -> bool {
        !std::mem::replace(&mut self.verdict_postponed, true)
    }

    /// The number of bytes sent, in its low half, when the ping was flushed whose timeout runs.
    pub(crate) fn awaited_end(&self) -> u32 {
        self.awaited_end
    }

    /// Restarts the time of the queued ping, if there is one.
    pub(crate) fn restart_queued(&mut self, now: Moment) {
        if self.is_queued() {
            self.queued_at = now;
        }
    }

    /// Releases a ping that has waited for the end of a message for as long as `hold`.
    pub(crate) fn release(&mut self, now: Moment, hold: Duration) {
        if self.held_until(hold).is_some_and(|until| until <= now) {
            self.newest = Newest::Queued;
            if self.mid_message {
                self.restart_queued(now);
            }
        }
    }

    /// Sets whether the handler is between two fragments. Returns whether that has changed.
    pub(crate) fn set_mid_message(&mut self, mid_message: bool) -> bool {
        std::mem::replace(&mut self.mid_message, mid_message) != mid_message
    }

    /// Whether a ping waits between two fragments for the end of the message.
    pub(crate) fn is_held(&self) -> bool {
        self.mid_message && self.is_holdable()
    }

    /// Whether the newest ping would wait between two fragments for the end of the message.
    pub(crate) fn is_holdable(&self) -> bool {
        self.newest == Newest::Holdable
    }

    /// Until when the queued ping would wait, for at most `hold`.
    pub(crate) fn held_until(&self, hold: Duration) -> Option<Moment> {
        let queued_at = self.flushed_at.filter(|_| self.is_holdable());
        queued_at.map(|at| at + hold)
    }

    /// Since when a ping is queued.
    pub(crate) fn queued_since(&self) -> Option<Moment> {
        self.is_queued().then_some(self.queued_at)
    }

    /// A moment before the peer could answer the ping whose timeout runs since `since`. The timeout
    /// may have restarted, and starts only when the transport confirms the flush.
    pub(crate) fn asked_at(&self, since: Moment) -> Moment {
        match self.is_queued() {
            true => since,
            false => since.min(self.queued_at),
        }
    }

    /// Restarts the timeout of the ping in flight, since the peer could not answer until then.
    pub(crate) fn extend(&mut self, until: Moment) {
        if let Some(since) = &mut self.timeout_since {
            *since = until.max(*since);
        }
    }

    /// The timeout changes from `before` to `timeout`. A timeout that has expired only because it
    /// is shorter now expires at `now`: an earlier time would look like a paused runtime. (A
    /// timeout that had expired before is late.)
    pub(crate) fn timeout_changed(&mut self, now: Moment, before: Duration, timeout: Duration) {
        if let Some(since) = &mut self.timeout_since {
            if *since + before > now {
                *since = (*since).max(now.before(timeout));
            }
        }
    }

    /// The timeout of the ping in flight has expired. Returns how many have in this silence.
    pub(crate) fn miss(&mut self) -> u32 {
        self.timeout_since = None;
        self.missed = self.missed.saturating_add(1);
        self.missed()
    }

    /// Whether every ping is flushed and answered.
    #[inline]
    pub(crate) fn all_answered(&self) -> bool {
        !self.is_queued() && self.queued_count == self.answered_up_to
    }

    /// Whether a ping is queued: not yet flushed.
    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.newest, Newest::Holdable | Newest::Queued)
    }

    /// Since when the timeout of a ping in flight runs.
    pub(crate) fn timeout_since(&self) -> Option<Moment> {
        self.timeout_since
    }

    /// When the newest ping was flushed, if it is unanswered. The peer may have proved meanwhile by
    /// other bytes that it is alive.
    pub(crate) fn unanswered(&self) -> Option<Moment> {
        let flushed = self.flushed_count();
        self.flushed_at(flushed)
            .filter(|_| self.answered_up_to < flushed)
    }

    /// When an unanswered ping was flushed, if that is still stored.
    fn flushed_at(&self, sequence: u32) -> Option<Moment> {
        match (self.queued_count - sequence) as usize {
            0 => self.flushed_at,
            age => *self.rare.as_ref()?.earlier_flushes.get(age - 1)?,
        }
    }

    pub(crate) fn missed(&self) -> u32 {
        u32::from(self.missed)
    }

    /// Whether a ping was ever queued, so that a pong may answer it.
    pub(crate) fn has_pinged(&self) -> bool {
        self.queued_count > 0
    }

    /// Sequence number of the newest ping that the transport has flushed.
    fn flushed_count(&self) -> u32 {
        self.queued_count - u32::from(self.is_queued())
    }

    /// How many pings the transport has flushed, by its own report or by the peer's answer, and how
    /// many of them the peer has answered.
    pub(crate) fn counts(&self) -> PingCounts {
        let unsent = self.newest != Newest::Flushed;
        let sent = self.queued_count - u32::from(unsent);
        PingCounts {
            pings_sent: sent.max(self.answered_up_to),
            pongs_received: self.pongs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    /// Three pings in flight, flushed at 10, 20 and 30 ms, and their payloads.
    fn three_in_flight() -> (Pings, [[u8; 8]; 3]) {
        let mut pings = Pings::new(0x1234_5678);
        let payloads = [10, 20, 30].map(|millis| {
            let payload = pings.queue_next(at(0));
            pings.flushed(at(millis), 0);
            payload
        });
        (pings, payloads)
    }

    #[test]
    fn the_latest_pong_answers_all_earlier_pings() {
        let (mut pings, payloads) = three_in_flight();
        let answer = pings.answer(at(35), payloads[2]).unwrap();
        assert_eq!(
            answer,
            Answer {
                sequence: 3,
                fresh: true,
                rtt: Some(Duration::from_millis(5))
            }
        );
        assert_eq!(pings.timeout_since(), None);
        let late = pings.answer(at(36), payloads[0]).unwrap();
        assert_eq!(
            late,
            Answer {
                sequence: 1,
                fresh: false,
                rtt: None
            },
            "answered before"
        );
    }

    #[test]
    fn a_pong_to_the_oldest_ping_ends_the_silence_and_gives_its_round_trip() {
        let (mut pings, payloads) = three_in_flight();
        pings.miss();
        let answer = pings.answer(at(40), payloads[0]).unwrap();
        assert_eq!(
            answer,
            Answer {
                sequence: 1,
                fresh: true,
                rtt: Some(Duration::from_millis(30))
            }
        );
        assert_eq!(pings.missed(), 0);
    }

    #[test]
    fn payloads_that_were_never_sent_are_not_answers() {
        let (mut pings, payloads) = three_in_flight();
        let mut forged = payloads[2];
        forged[0] ^= 1;
        assert_eq!(pings.answer(at(40), forged), None);
        let future = (u64::from_be_bytes(payloads[2]) ^ 3 ^ 4).to_be_bytes();
        assert_eq!(pings.answer(at(40), future), None, "ping 4 was never sent");
        let zeroth = (u64::from_be_bytes(payloads[2]) ^ 3).to_be_bytes();
        assert_eq!(pings.answer(at(40), zeroth), None, "the first ping is 1");
        assert!(pings.timeout_since().is_some());
    }

    #[test]
    fn a_pong_before_the_flush_is_confirmed_leaves_no_timeout() {
        let mut pings = Pings::new(7);
        let payload = pings.queue_next(at(0));
        assert!(pings.is_queued());
        assert_eq!(
            pings.answer(at(1), payload),
            Some(Answer {
                sequence: 1,
                fresh: true,
                rtt: None
            })
        );
        pings.flushed(at(2), 0);
        assert_eq!(pings.timeout_since(), None);
    }

    #[test]
    fn a_ping_whose_flush_time_is_no_longer_stored_gives_no_round_trip() {
        let mut pings = Pings::new(7);
        let first = pings.queue_next(at(0));
        pings.flushed(at(1), 0);
        for millis in 2..6 {
            pings.queue_next(at(0));
            pings.flushed(at(millis), 0);
        }
        assert_eq!(
            pings.answer(at(9), first),
            Some(Answer {
                sequence: 1,
                fresh: true,
                rtt: None
            })
        );
    }

    #[test]
    fn a_ping_counts_as_sent_once_it_is_flushed_or_answered() {
        let counts = |pings: &Pings| (pings.counts().pings_sent, pings.counts().pongs_received);
        let mut pings = Pings::new(7);
        let payload = pings.queue_next(at(0));
        assert_eq!(counts(&pings), (0, 0), "queued");
        pings.answer(at(1), payload);
        assert_eq!(
            counts(&pings),
            (1, 1),
            "answered before its flush is confirmed"
        );
        pings.flushed(at(2), 0);
        pings.answer(at(3), payload);
        assert_eq!(counts(&pings), (1, 1), "answered before");
        pings.queue_next(at(4));
        pings.cancel_all();
        assert!(!pings.is_queued());
        assert_eq!(counts(&pings), (1, 1), "cancelled");
        pings.flushed(at(5), 0);
        assert_eq!(counts(&pings), (2, 1), "it was half-written");
    }

    #[test]
    fn a_requested_ping_is_known_until_its_answer() {
        let (mut pings, payloads) = three_in_flight();
        pings.answer(at(35), payloads[2]);
        assert_eq!(pings.request(), 4);
        assert!(pings.is_requested());
        let payload = pings.queue_extra(at(40));
        assert!(!pings.is_requested());
        pings.flushed(at(41), 0);
        assert_eq!(pings.requested_since(), Some(at(41)));
        assert_eq!(pings.answer(at(42), payload).unwrap().sequence, 4);
        assert_eq!(pings.requested_since(), None);
        pings.queue_next(at(50));
        assert!(pings.rare.is_none(), "not needed any more");
    }
}
