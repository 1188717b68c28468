//! The pings of one connection: which are out, which were answered, and how long that took.

use std::time::Duration;

use super::moment::Moment;

/// Flush times are kept for so many of the newest pings; an older one's pong gives no round trip.
const REMEMBERED: usize = 4;

/// Bookkeeping of our own pings.
///
/// A ping's payload is a tag drawn per connection and a sequence number, so its pong is told from
/// the pongs to the handler's own pings without storing a payload per ping.
#[derive(Clone, Debug)]
pub(crate) struct Pings {
    tag: u64,
    /// Sequence number of the newest ping given out to be written. The first is 1.
    sent: u32,
    /// Sequence number of the newest ping that was handed to the transport.
    flushed: u32,
    /// Every ping up to this one counts as answered.
    acked: u32,
    /// Timeouts that ran out in the current silence.
    missed: u32,
    /// Since when a ping is out with no sign of life.
    waiting: Option<Moment>,
    /// Since when a ping is given out and not handed to the transport.
    wished: Option<Moment>,
    /// Until when that ping waits for the end of an outbound message.
    held_until: Option<Moment>,
    /// Whether the handler was between two fragments of a message at the last poll.
    mid_message: bool,
    /// The application wants a ping besides those that are due.
    asked: bool,
    /// Sequence number of the newest ping that the application asked for.
    called: u32,
    /// A late verdict was put off in the current silence.
    reprieved: bool,
    flushed_at: [Option<Moment>; REMEMBERED],
}

/// A pong of ours was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Which ping it answers, and with it all earlier ones.
    pub(crate) sequence: u32,
    /// It answers a ping that was still open, not one that was answered before.
    pub(crate) fresh: bool,
    /// Time since the ping was handed to the transport, if that is still known.
    pub(crate) rtt: Option<Duration>,
}

impl Pings {
    pub(crate) fn new(tag: u64) -> Self {
        Self {
            tag,
            sent: 0,
            flushed: 0,
            acked: 0,
            missed: 0,
            waiting: None,
            wished: None,
            held_until: None,
            mid_message: false,
            asked: false,
            called: 0,
            reprieved: false,
            flushed_at: [None; REMEMBERED],
        }
    }

    /// Payload of the next ping, which the caller now has to write. What counts from now on is the
    /// answer to this one. It waits for the end of a message for at most `hold`.
    pub(crate) fn next(&mut self, now: Moment, hold: Duration) -> [u8; 8] {
        self.waiting = None;
        self.besides(now, hold)
    }

    /// Payload of a ping besides the one whose answer is awaited: that one's timeout runs on, or
    /// whoever asks for a ping every now and then would keep a dead peer for ever.
    pub(crate) fn besides(&mut self, now: Moment, hold: Duration) -> [u8; 8] {
        self.asked = false;
        self.sent = self.sent.saturating_add(1);
        self.wished = Some(now);
        self.held_until = Some(now + hold);
        (self.tag ^ u64::from(self.sent)).to_be_bytes()
    }

    /// The application wants a ping. Returns its sequence number: of one that is yet to be handed to
    /// the transport.
    pub(crate) fn ask(&mut self) -> u32 {
        // The transport may confirm a flush after the peer has already answered.
        if self.is_wanted() && self.acked < self.sent {
            self.called = self.sent;
        } else {
            self.asked = true;
            self.called = self.sent.saturating_add(1);
        }
        self.called
    }

    /// When the newest ping went out, if the application waits for the pong to it or to an earlier
    /// one. Some peers answer only the oldest of several pings, so there may be none.
    pub(crate) fn called_since(&self) -> Option<Moment> {
        let called = self.acked < self.called && self.called <= self.flushed;
        self.flushed_at[self.flushed as usize % REMEMBERED].filter(|_| called)
    }

    /// The application wants a ping, and none is on its way to the transport.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked && !self.is_wanted()
    }

    /// The ping that is on its way to the transport is the one that counts from now on.
    pub(crate) fn await_wanted(&mut self) {
        self.waiting = None;
    }

    /// The newest ping was handed to the transport: its timeout runs from here.
    pub(crate) fn flushed(&mut self, now: Moment) {
        self.flushed = self.sent;
        self.wished = None;
        self.held_until = None;
        self.flushed_at[self.flushed as usize % REMEMBERED] = Some(now);
        // The transport may confirm a flush after the peer has already answered.
        if self.acked < self.flushed {
            self.waiting.get_or_insert(now);
        }
    }

    /// Whether `payload` is that of a ping of ours, and if so marks it and all earlier ones
    /// answered: peers may answer only the latest of several pings (RFC 6455 section 5.5.3).
    pub(crate) fn answer(&mut self, now: Moment, payload: [u8; 8]) -> Option<Answer> {
        let sequence = u32::try_from(u64::from_be_bytes(payload) ^ self.tag).ok()?;
        if sequence == 0 || sequence > self.sent {
            return None;
        }
        let fresh = sequence > self.acked;
        let remembered =
            sequence <= self.flushed && self.flushed - sequence < REMEMBERED as u32 && fresh;
        let rtt = remembered
            .then(|| self.flushed_at[sequence as usize % REMEMBERED])
            .flatten()
            .map(|at| now.since(at));
        if fresh {
            self.acked = sequence;
            self.sign_of_life();
        }
        Some(Answer {
            sequence,
            fresh,
            rtt,
        })
    }

    /// The peer is alive: the silence is over.
    pub(crate) fn sign_of_life(&mut self) {
        self.waiting = None;
        self.missed = 0;
        self.reprieved = false;
    }

    /// Nobody is waited for any more, and no ping is to be written.
    pub(crate) fn give_up(&mut self) {
        self.sign_of_life();
        self.wished = None;
        self.held_until = None;
        self.asked = false;
        self.flushed = self.sent;
    }

    /// Whether a late verdict may be put off: once in a silence.
    pub(crate) fn reprieve(&mut self) -> bool {
        !std::mem::replace(&mut self.reprieved, true)
    }

    /// Counts the wish from `now`, if a ping is given out and not handed to the transport.
    pub(crate) fn wish_again(&mut self, now: Moment) {
        self.wished = self.wished.map(|_| now);
    }

    /// Releases a ping that has waited long enough for the end of a message.
    pub(crate) fn release(&mut self, now: Moment) {
        let held = self.is_held();
        if self.held_until.take_if(|until| *until <= now).is_some() && held {
            self.wish_again(now);
        }
    }

    /// Report whether the handler is between two fragments. Returns whether that is new.
    pub(crate) fn mid_message(&mut self, mid_message: bool) -> bool {
        std::mem::replace(&mut self.mid_message, mid_message) != mid_message
    }

    /// Whether a ping waits between two fragments for the end of the message.
    pub(crate) fn is_held(&self) -> bool {
        self.mid_message && self.held_until.is_some()
    }

    pub(crate) fn held_until(&self) -> Option<Moment> {
        self.held_until
    }

    /// Since when a ping is given out and not handed to the transport.
    pub(crate) fn wished(&self) -> Option<Moment> {
        self.wished
    }

    /// The peer could not have answered until now: gives it the whole timeout again.
    pub(crate) fn extend(&mut self, now: Moment) {
        if let Some(since) = &mut self.waiting {
            *since = now;
        }
    }

    /// A timeout that has run out only because it is shorter now ends now. It would look late
    /// otherwise, and lateness is taken for a standstill. (One that had run out before was late.)
    pub(crate) fn timeout_changed(&mut self, now: Moment, before: Duration, timeout: Duration) {
        // A ping that waits for a message's end has waited since then.
        self.held_until = self
            .held_until
            .map(|until| until.min(until.before(before) + timeout).max(now));
        if let Some(since) = &mut self.waiting {
            if *since + before > now {
                *since = (*since).max(now.before(timeout));
            }
        }
    }

    /// The timeout of the ping that is out ran out. Returns how many did in this silence.
    pub(crate) fn miss(&mut self) -> u32 {
        self.waiting = None;
        self.missed += 1;
        self.missed
    }

    /// Every ping that was given out is handed to the transport, and answered.
    #[inline]
    pub(crate) fn all_answered(&self) -> bool {
        self.sent == self.flushed && self.sent == self.acked
    }

    /// A ping was given out and not yet handed to the transport.
    pub(crate) fn is_wanted(&self) -> bool {
        self.sent != self.flushed
    }

    pub(crate) fn waiting(&self) -> Option<Moment> {
        self.waiting
    }

    /// When the newest ping was handed to the transport, if its pong is still to come. The peer may
    /// have shown meanwhile that it is alive.
    pub(crate) fn unanswered(&self) -> Option<Moment> {
        if self.acked >= self.flushed {
            return None;
        }
        self.flushed_at[self.flushed as usize % REMEMBERED]
    }

    pub(crate) fn missed(&self) -> u32 {
        self.missed
    }

    /// Any ping was ever given out, so that a pong may be ours.
    pub(crate) fn any(&self) -> bool {
        self.sent > 0
    }

    pub(crate) fn flushed_count(&self) -> u32 {
        self.flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn three_out() -> (Pings, [[u8; 8]; 3]) {
        let mut pings = Pings::new(0x1234_5678_9abc_def0);
        let payloads = [10, 20, 30].map(|millis| {
            let payload = pings.next(at(0), HOLD);
            pings.flushed(at(millis));
            payload
        });
        (pings, payloads)
    }

    #[test]
    fn the_latest_pong_answers_all_earlier_pings() {
        let (mut pings, payloads) = three_out();
        let answer = pings.answer(at(35), payloads[2]).unwrap();
        assert_eq!(
            answer,
            Answer {
                sequence: 3,
                fresh: true,
                rtt: Some(Duration::from_millis(5))
            }
        );
        assert_eq!(pings.waiting(), None);
        let late = pings.answer(at(36), payloads[0]).unwrap();
        assert_eq!(
            late,
            Answer {
                sequence: 1,
                fresh: false,
                rtt: None
            },
            "ours, but it says nothing new"
        );
    }

    #[test]
    fn the_oldest_pong_is_life_and_gives_its_own_round_trip() {
        let (mut pings, payloads) = three_out();
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
    fn payloads_that_we_never_sent_are_not_ours() {
        let (mut pings, payloads) = three_out();
        let mut forged = payloads[2];
        forged[0] ^= 1;
        assert_eq!(pings.answer(at(40), forged), None);
        let future = (u64::from_be_bytes(payloads[2]) ^ 3 ^ 4).to_be_bytes();
        assert_eq!(pings.answer(at(40), future), None, "ping 4 was never sent");
        let zeroth = (u64::from_be_bytes(payloads[2]) ^ 3).to_be_bytes();
        assert_eq!(pings.answer(at(40), zeroth), None, "the first ping is 1");
        assert!(pings.waiting().is_some());
    }

    #[test]
    fn a_pong_before_the_flush_was_confirmed_leaves_nothing_to_wait_for() {
        let mut pings = Pings::new(7);
        let payload = pings.next(at(0), HOLD);
        assert!(pings.is_wanted());
        assert_eq!(
            pings.answer(at(1), payload),
            Some(Answer {
                sequence: 1,
                fresh: true,
                rtt: None
            })
        );
        pings.flushed(at(2));
        assert_eq!(pings.waiting(), None);
    }

    #[test]
    fn a_forgotten_flush_time_gives_no_round_trip() {
        let mut pings = Pings::new(7);
        let first = pings.next(at(0), HOLD);
        pings.flushed(at(1));
        for millis in 2..6 {
            pings.next(at(0), HOLD);
            pings.flushed(at(millis));
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
}
