//! Rule (i): the idle layer evicts idle connections, by their deadline, and no others.
//!
//! Inbound bytes count when they are read from the transport, outbound bytes when it accepts them.

use tower_ws_liveness::{Reason, Traffic};

use super::bounds::{READ_AHEAD_BYTES, slack};
use super::facts::{Check, Facts, MALFORMED_HEADER_BYTES, Span};
use super::log::Event;
use super::peer::MALFORMED;
use super::plan::Idle;
use super::reasons::closed_by_handler;

/// One direction of a connection.
struct Direction<'a> {
    frames: &'a [Span],
    /// Whether data in this direction counts (`watch`).
    watched: bool,
    /// Bytes counted so far.
    seen: usize,
    /// When the message began that is incomplete.
    open: Option<u64>,
    /// Number of complete messages.
    complete: usize,
}

impl Direction<'_> {
    /// Counts `count` more bytes at `at`. Returns whether data is among them: certainly, and
    /// possibly.
    fn observe(&mut self, count: usize, at: u64) -> (bool, bool) {
        let (from, to) = (self.seen, self.seen + count);
        self.seen = to;
        let first = self.frames.partition_point(|frame| frame.to <= from);
        let (mut certain, mut possible) = (false, false);
        for (n, frame) in self.frames.iter().enumerate().skip(first) {
            if frame.from >= to {
                break;
            }
            if frame.opcode == MALFORMED {
                // The first malformed frame is known to be malformed only a few bytes after its
                // begin.
                let begins = n == 0 || self.frames[n - 1].opcode != MALFORMED;
                let known = frame.from + if begins { MALFORMED_HEADER_BYTES } else { 0 };
                (certain, possible) = (certain || to > known, true);
                self.open = None;
            } else if frame.is_data() {
                (certain, possible) = (true, true);
                self.open = self.open.or(Some(at));
                if frame.fin && frame.complete && frame.to <= to {
                    (self.open, self.complete) = (None, self.complete + 1);
                }
            }
        }
        (certain, possible)
    }
}

/// State of the connection after the log entries so far. Times are in ms.
struct IdleWalk<'a> {
    facts: &'a Facts<'a>,
    idle: Idle,
    inbound: Direction<'a>,
    outbound: Direction<'a>,
    arrived: usize,
    read: usize,
    /// When data was last counted with certainty.
    certain: u64,
    /// When data was last possibly counted.
    possible: u64,
    /// Since when the read-ahead is full.
    read_ahead_full: Option<u64>,
    /// When the read-ahead last ceased to be full.
    last_full: u64,
    standstill_end: u64,
}

pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let Some(idle) = facts.fast.idle else {
        return Ok(());
    };
    let direction = |frames, other| Direction {
        frames,
        watched: idle.watch != other,
        seen: 0,
        open: None,
        complete: 0,
    };
    let mut walk = IdleWalk {
        facts,
        idle,
        inbound: direction(&facts.inbound_frames, Traffic::Outbound),
        outbound: direction(&facts.outbound_frames, Traffic::Inbound),
        arrived: 0,
        read: 0,
        certain: 0,
        possible: 0,
        read_ahead_full: None,
        last_full: 0,
        standstill_end: 0,
    };
    // In a closing handshake the deadlines of `bounds` apply.
    let closing = closed_by_handler(facts, None).unwrap_or(u64::MAX);
    for entry in &facts.world.log {
        if let Event::Evicted(report) = entry.event {
            return walk.judge(report.reason, entry.at);
        }
        if let Some((by, what)) = walk.due() {
            let late = entry.at > by.max(walk.standstill_end) + slack(&facts.slow);
            if late && entry.at <= closing {
                return Err(format!(
                    "(i) {what} was due by {by} ms, and {entry} came first"
                ));
            }
        }
        walk.step(entry.at, entry.event);
    }
    Ok(())
}

impl IdleWalk<'_> {
    fn step(&mut self, at: u64, event: Event) {
        match event {
            Event::Arrived(count) => self.arrived += count,
            Event::Read(count) => self.read += count,
            Event::Took(count, _) => {
                let data = self.inbound.observe(count, at);
                self.note(self.inbound.watched, data, at);
            }
            Event::Accepted(count, _) => {
                let data = self.outbound.observe(count, at);
                self.note(self.outbound.watched, data, at);
            }
            Event::Standstill(span) => self.standstill_end = at + span,
            _ => {}
        }
        let unread = self
            .facts
            .handler_bytes(self.arrived)
            .saturating_sub(self.read);
        match unread + 256 > READ_AHEAD_BYTES {
            true => self.read_ahead_full = self.read_ahead_full.or(Some(at)),
            false if self.read_ahead_full.take().is_some() => self.last_full = at,
            false => {}
        }
    }

    fn note(&mut self, watched: bool, (certain, possible): (bool, bool), at: u64) {
        if watched && certain {
            self.certain = at;
        }
        if watched && possible {
            self.possible = at;
        }
    }

    /// The next verdict of the idle layer, and its deadline.
    fn due(&self) -> Option<(u64, &'static str)> {
        let idle = &self.idle;
        let mut due = Vec::new();
        if let Some(timeout) = idle.timeout {
            due.push((
                self.possible + timeout,
                "the eviction of an idle connection",
            ));
        }
        let begun = self.facts.malformed.is_some_and(|from| from < self.arrived);
        if let (Some(within), 0, None) = (
            idle.first_message,
            self.inbound.complete,
            self.read_ahead_full,
        ) {
            if !begun {
                // A full read-ahead hides the message's end, so its time restarts when the handler
                // reads.
                due.push((
                    within + self.last_full,
                    "the eviction without a first message",
                ));
            }
        }
        if let Some(within) = idle.message_timeout {
            let inbound = match self.read_ahead_full {
                None => self.inbound.open.filter(|_| self.inbound.watched),
                Some(_) => None,
            };
            let inbound = inbound.map(|since| since.max(self.last_full));
            let outbound = self.outbound.open.filter(|_| self.outbound.watched);
            let open = inbound.into_iter().chain(outbound);
            due.extend(
                open.map(|since| (since + within, "the eviction for an unfinished message")),
            );
        }
        due.into_iter().min()
    }

    /// Whether the idle layer could give this reason at `at`.
    fn judge(&self, reason: Reason, at: u64) -> Check {
        let idle = &self.idle;
        let wrong = |why: String| Err(format!("(i) {reason:?} at {at} ms, but {why}"));
        let unseen = self.arrived - self.inbound.seen;
        // With a full read-ahead the end of the message may be unread in the transport.
        let kept = self.facts.handler_bytes(self.inbound.seen);
        // The handler may have read a held-back pong that turned out not to be the layer's.
        let ahead = kept.saturating_sub(self.read);
        let full = ahead >= READ_AHEAD_BYTES;
        let reads_first = matches!(
            reason,
            Reason::IdleTimeout | Reason::FirstMessageTimeout | Reason::MessageTimeout
        );
        if reads_first && unseen > 0 && self.read_ahead_full.is_none() {
            return wrong(format!("{unseen} bytes were unread in the transport"));
        }
        match reason {
            Reason::IdleTimeout => match idle.timeout {
                None => wrong("its timeout is off".into()),
                Some(timeout) if at < self.certain + timeout => {
                    wrong(format!("data was seen at {} ms", self.certain))
                }
                Some(_) => Ok(()),
            },
            Reason::FirstMessageTimeout => match idle.first_message {
                None => wrong("its timeout is off".into()),
                Some(within) if at < within => wrong(format!("the timeout is {within} ms")),
                Some(_) if full => wrong("its end may be behind the read-ahead".into()),
                Some(_) if self.inbound.complete > 0 => {
                    wrong("the first message was complete".into())
                }
                Some(_) if self.facts.shows_malformed(self.inbound.seen) => {
                    wrong("a frame was malformed, so the first message may be complete".into())
                }
                Some(_) => Ok(()),
            },
            Reason::MessageTimeout => {
                let Some(within) = idle.message_timeout else {
                    return wrong("its timeout is off".into());
                };
                let inbound = (self.inbound.open).filter(|_| self.inbound.watched && !full);
                let outbound = self.outbound.open.filter(|_| self.outbound.watched);
                match inbound.into_iter().chain(outbound).min() {
                    Some(since) if at >= since + within => Ok(()),
                    since => wrong(format!("the unfinished message began at {since:?}")),
                }
            }
            _ => Ok(()),
        }
    }
}
