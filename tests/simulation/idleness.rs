//! Was a connection that the idle layer ended idle, and was one that was idle ended in time?
//!
//! What counts is what could be seen: the peer's bytes as they are taken from the transport, and the
//! handler's as the transport accepts them.

use tower_ws_liveness::{Reason, Traffic};

use super::bounds::{READ_AHEAD, slack};
use super::facts::{Facts, Span, TELLING, Verdict};
use super::log::Event;
use super::peer::MALFORMED;
use super::plan::Idle;
use super::verdicts::closed_by_handler;

/// One direction of a connection.
struct Way<'a> {
    frames: &'a [Span],
    /// Whether it is one of those in which data counts.
    watched: bool,
    /// How many bytes of it were seen so far.
    seen: usize,
    /// The message that was begun and is not complete, with when that was.
    open: Option<u64>,
    /// Complete messages.
    complete: usize,
}

impl Way<'_> {
    /// `count` more bytes are seen, at `at`. Whether there is data among them: for sure, or perhaps.
    fn see(&mut self, count: usize, at: u64) -> (bool, bool) {
        let (from, to) = (self.seen, self.seen + count);
        self.seen = to;
        let first = self.frames.partition_point(|frame| frame.to <= from);
        let (mut sure, mut perhaps) = (false, false);
        for (n, frame) in self.frames.iter().enumerate().skip(first) {
            if frame.from >= to {
                break;
            }
            if frame.opcode == MALFORMED {
                // Where the first one begins there may still be a frame.
                let begins = n == 0 || self.frames[n - 1].opcode != MALFORMED;
                let known = frame.from + if begins { TELLING } else { 0 };
                (sure, perhaps) = (sure || to > known, true);
                self.open = None;
            } else if frame.is_data() {
                (sure, perhaps) = (true, true);
                self.open = self.open.or(Some(at));
                if frame.fin && frame.whole && frame.to <= to {
                    (self.open, self.complete) = (None, self.complete + 1);
                }
            }
        }
        (sure, perhaps)
    }
}

struct Walk<'a> {
    facts: &'a Facts<'a>,
    idle: Idle,
    inbound: Way<'a>,
    outbound: Way<'a>,
    arrived: usize,
    read: usize,
    /// When data was last seen for sure, and perhaps.
    sure: u64,
    perhaps: u64,
    /// Since when the read-ahead is full, and when it last was.
    blind: Option<u64>,
    blinded: u64,
    jumped: u64,
}

pub(crate) fn check(facts: &Facts<'_>) -> Verdict {
    let Some(idle) = facts.fast.idle else {
        return Ok(());
    };
    let way = |frames, other| Way {
        frames,
        watched: idle.watch != other,
        seen: 0,
        open: None,
        complete: 0,
    };
    let mut walk = Walk {
        facts,
        idle,
        inbound: way(&facts.said, Traffic::Outbound),
        outbound: way(&facts.sent, Traffic::Inbound),
        arrived: 0,
        read: 0,
        sure: 0,
        perhaps: 0,
        blind: None,
        blinded: 0,
        jumped: 0,
    };
    // In a closing handshake other bounds hold.
    let closing = closed_by_handler(facts, None).unwrap_or(u64::MAX);
    for entry in &facts.world.log {
        if let Event::Evicted(told) = entry.event {
            return walk.judge(told.reason, entry.at);
        }
        let (by, what) = walk.due();
        let late = entry.at > by.max(walk.jumped) + slack(&facts.slow);
        if late && entry.at <= closing {
            return Err(format!(
                "(i) {what} was due by {by} ms, and {entry} came first"
            ));
        }
        walk.step(entry.at, entry.event);
    }
    Ok(())
}

impl Walk<'_> {
    fn step(&mut self, at: u64, event: Event) {
        match event {
            Event::Arrived(count) => self.arrived += count,
            Event::Read(count) => self.read += count,
            Event::Took(count, _) => {
                let data = self.inbound.see(count, at);
                self.note(self.inbound.watched, data, at);
            }
            Event::Accepted(count, _) => {
                let data = self.outbound.see(count, at);
                self.note(self.outbound.watched, data, at);
            }
            Event::Jumped(span) => self.jumped = at + span,
            _ => {}
        }
        let unread = self.facts.kept(self.arrived).saturating_sub(self.read);
        match unread + 256 > READ_AHEAD {
            true => self.blind = self.blind.or(Some(at)),
            false if self.blind.take().is_some() => self.blinded = at,
            false => {}
        }
    }

    fn note(&mut self, watched: bool, (sure, perhaps): (bool, bool), at: u64) {
        if watched && sure {
            self.sure = at;
        }
        if watched && perhaps {
            self.perhaps = at;
        }
    }

    /// The first verdict that has to be given, and by when.
    fn due(&self) -> (u64, &'static str) {
        let idle = &self.idle;
        let mut due = vec![(self.perhaps + idle.timeout, "the eviction of an idle one")];
        if let Some(lifetime) = idle.max_lifetime {
            due.push((lifetime, "the end of a life"));
        }
        let begun = self.facts.malformed.is_some_and(|from| from < self.arrived);
        if let (Some(within), 0, None) = (idle.first_message, self.inbound.complete, self.blind) {
            if !begun {
                // What the handler held up has the time anew.
                due.push((within + self.blinded, "the eviction of a silent one"));
            }
        }
        if let Some(within) = idle.message_timeout {
            let inbound = match self.blind {
                None => self.inbound.open.filter(|_| self.inbound.watched),
                Some(_) => None,
            };
            let inbound = inbound.map(|since| since.max(self.blinded));
            let outbound = self.outbound.open.filter(|_| self.outbound.watched);
            let open = inbound.into_iter().chain(outbound);
            due.extend(open.map(|since| (since + within, "the end of an endless message")));
        }
        due.into_iter().min().expect("one at least")
    }

    /// The connection was ended at `at`. Was it time?
    fn judge(&self, reason: Reason, at: u64) -> Verdict {
        let idle = &self.idle;
        let wrong = |why: String| Err(format!("(i) {reason:?} at {at} ms, but {why}"));
        let unseen = self.arrived - self.inbound.seen;
        // As much waits for the handler as is read ahead, so an end may be behind it.
        let kept = self.facts.kept(self.inbound.seen);
        // Of what is held back, the handler may have read what is no pong of the layer's.
        let ahead = kept.saturating_sub(self.read);
        let full = ahead >= READ_AHEAD;
        let looks = matches!(
            reason,
            Reason::IdleTimeout | Reason::FirstMessageTimeout | Reason::MessageTimeout
        );
        if looks && unseen > 0 && self.blind.is_none() {
            return wrong(format!("{unseen} bytes waited in the transport"));
        }
        match reason {
            Reason::IdleTimeout if at < self.sure + idle.timeout => {
                wrong(format!("there was data at {} ms", self.sure))
            }
            Reason::FirstMessageTimeout => match idle.first_message {
                None => wrong("that is off".into()),
                Some(within) if at < within => wrong(format!("there are {within} ms for it")),
                Some(_) if full => wrong("its end may be behind the read-ahead".into()),
                Some(_) if self.inbound.complete > 0 => wrong("it had come".into()),
                Some(_) if self.facts.shows_malformed(self.inbound.seen) => {
                    wrong("it may have come: framing is lost".into())
                }
                Some(_) => Ok(()),
            },
            Reason::MessageTimeout => {
                let Some(within) = idle.message_timeout else {
                    return wrong("that is off".into());
                };
                let inbound = (self.inbound.open).filter(|_| self.inbound.watched && !full);
                let outbound = self.outbound.open.filter(|_| self.outbound.watched);
                match inbound.into_iter().chain(outbound).min() {
                    Some(since) if at >= since + within => Ok(()),
                    since => wrong(format!("the open one began at {since:?}")),
                }
            }
            Reason::MaxLifetime => match idle.max_lifetime {
                None => wrong("that is off".into()),
                Some(lifetime) if at < lifetime => wrong(format!("it may be {lifetime} ms")),
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
