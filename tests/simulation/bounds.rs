//! Was everything in time? Walks through the log, and knows at each moment what has to happen by
//! when.

use tower_ws_liveness::Reason;

use super::facts::{Facts, Verdict};
use super::log::{By, Entry, Event, Told, ours};
use super::plan::{Config, Spends};
use super::script::CLOSE;
use super::times::Times;

/// What is read ahead for a handler that does not read.
pub(crate) const READ_AHEAD: usize = 16 * 1024;

/// How long somebody has who gave a write up to think better of it.
const SECOND_TRY: u64 = 100;

struct Walk<'a> {
    facts: &'a Facts<'a>,
    slack: u64,
    now: u64,

    arrived: usize,
    took: usize,
    /// When something was last taken from the transport, if that left some there.
    left_some: Option<u64>,
    read: usize,
    wrote: usize,
    /// Last time that a byte arrived, or that a handler came late for it.
    heard: u64,
    reader_waits: bool,
    reader_blocked: bool,
    waited_at_arrival: bool,
    /// Since when the handler has not read what waits.
    unread: Option<u64>,
    /// Since when no ping can be put in, and when that was last so.
    inside: Option<u64>,
    full: Option<u64>,
    /// Since when nothing but one certain write may go on.
    claimed: Option<u64>,
    flushing: Option<u64>,
    excused: u64,
    too_much: Option<u64>,
    writer_waits: Option<u64>,
    /// A write was given up once.
    given_up: bool,
    /// Frame boundaries are lost.
    malformed: bool,
    /// A message of the handler's is half sent, and when one last was.
    half: bool,
    half_until: u64,
    jumped: u64,
    ended: Option<u64>,
    /// Where the peer's Close ends, in all that it sent.
    closes_at: Option<usize>,
    handler_gone: Option<u64>,
    kicked: Option<u64>,

    evicted: Option<(u64, Told)>,
    /// When the handler's Close frame was out.
    closing: Option<u64>,
    dropped: bool,
}

/// How late something may be: one tick, or 1 ms for each step, and the millisecond in which it
/// happens.
pub(crate) fn slack(config: &Config) -> u64 {
    let heartbeat = [config.interval, config.timeout];
    let heartbeat = heartbeat.into_iter().filter(|_| config.heartbeat);
    let optional = [config.write_timeout, config.stall_timeout];
    let idle = config.idle.map(|idle| {
        let optional = [idle.first_message, idle.message_timeout, idle.max_lifetime];
        optional.into_iter().flatten().chain([idle.timeout])
    });
    let all = heartbeat.chain(optional.into_iter().flatten());
    let all = all.chain(idle.into_iter().flatten());
    let shortest = all.fold(config.close_timeout, u64::min);
    (shortest / 32).max(config.missed + 1) + 1
}

/// (b) and (e).
pub(crate) fn check(facts: &Facts<'_>) -> Verdict {
    let mut walk = Walk {
        facts,
        slack: slack(&facts.slow),
        now: 0,
        arrived: 0,
        took: 0,
        left_some: None,
        read: 0,
        wrote: 0,
        heard: 0,
        reader_waits: false,
        reader_blocked: false,
        waited_at_arrival: false,
        unread: None,
        inside: None,
        full: None,
        claimed: None,
        flushing: None,
        excused: 0,
        too_much: None,
        writer_waits: None,
        given_up: false,
        malformed: false,
        half: false,
        half_until: 0,
        jumped: 0,
        ended: None,
        closes_at: facts
            .fates
            .iter()
            .find(|fate| fate.opcode == CLOSE)
            .map(|fate| fate.to),
        handler_gone: None,
        kicked: None,
        evicted: None,
        closing: None,
        dropped: false,
    };
    for entry in &facts.world.log {
        if let Some((by, what)) = walk.due() {
            // What was due while the process stood still is due when it goes on.
            if entry.at > by.max(walk.jumped + 1) {
                return Err(format!("{what} was due by {by} ms, and {entry} came first"));
            }
        }
        walk.step(entry)?;
    }
    if !walk.dropped {
        return Err("(e) the transport was never dropped".into());
    }
    lags(facts)
}

impl Walk<'_> {
    /// The first thing that has to happen, and by when.
    fn due(&self) -> Option<(u64, &'static str)> {
        let config = &self.facts.slow;
        let slack = self.slack;
        if let Some((at, told)) = self.evicted {
            let closed = at.max(self.jumped) + config.close_timeout + slack;
            let woken = if ours(told) {
                at.max(self.jumped) + 1
            } else {
                closed
            };
            let blocked = self.reader_blocked || self.writer_waits.is_some();
            let wake = blocked.then_some((woken, "(e) the wake-up of a blocked handler"));
            let drop = (!self.dropped).then_some((closed, "(e) the drop of the transport"));
            return wake.into_iter().chain(drop).min();
        }
        if let Some(closing) = self.closing {
            let by = closing.max(self.jumped) + config.close_timeout + slack;
            return Some((by, "(e) the end of a closing handshake"));
        }
        let from = self.heard.max(self.jumped);
        let silence = config.interval + config.timeout * config.missed;
        // A standstill in the silence brings a fresh ping.
        let again = if self.jumped > 0 {
            config.timeout + silence
        } else {
            0
        };
        // A ping waits for the end of a message for so long.
        let again = match self.half || self.half_until >= from {
            true => again + config.timeout,
            false => again,
        };
        let mut due = Vec::new();
        let excused = self
            .inside
            .or(self.full)
            .or(self.claimed)
            .or(self.flushing)
            .or(self.too_much);
        if excused.is_none() && !self.malformed && config.heartbeat {
            let by = from.max(self.excused) + silence + again + slack;
            due.push((by, "(b) the eviction of a dead peer"));
        }
        if let (Some(write_timeout), Some(claimed)) = (config.write_timeout, self.claimed) {
            let by = claimed.max(self.jumped) + write_timeout + SECOND_TRY + slack;
            due.push((by, "(b) the eviction for a claimed write"));
        } else if let (Some(write_timeout), Some(full)) = (config.write_timeout, self.full) {
            let wanted = match self.writer_waits {
                Some(since) => Some(full.max(since)),
                // The layer's own next ping, which what was held up before may put off.
                None if self.inside.is_none() && !self.malformed => {
                    let wanted = full.max(from.max(self.excused) + silence + again);
                    // Who sees nothing asks again every timeout, and that may have been just now.
                    Some(
                        self.too_much
                            .map_or(wanted, |_| wanted.max(full + config.timeout)),
                    )
                }
                None => None,
            };
            if let Some(wanted) = wanted {
                // A second try without budget says nothing before its time is over.
                let again = match self.facts.world.plan.handler.spends {
                    Spends::Often => SECOND_TRY,
                    Spends::Never | Spends::Once => 0,
                };
                let by = wanted.max(self.jumped) + write_timeout + again + slack;
                due.push((by, "(b) the eviction for a write stall"));
            }
        }
        if let Some(stall_timeout) = config.stall_timeout {
            // Nobody looks while a ping waits behind a frame or for room: the others decide.
            let stuck = self.full.or(self.claimed).or(self.flushing);
            if let (Some(unread), None) = (self.unread, self.inside.or(stuck)) {
                let by = unread.max(self.jumped).max(self.excused)
                    + config.interval
                    + stall_timeout
                    + slack;
                due.push((by, "(b) the eviction of a handler that does not read"));
            }
            let inside = self.inside.filter(|_| !self.malformed);
            if let (Some(inside), None) = (inside, stuck) {
                // What was held up before may have gone out, and been waited for, since then.
                let wanted = inside.max(from.max(self.excused) + silence + again);
                // What was given up has to be asked for again before anybody knows.
                let asked = match self.given_up {
                    true => config.write_timeout.unwrap_or(stall_timeout) + SECOND_TRY,
                    false => 0,
                };
                let by = wanted + asked + stall_timeout + slack;
                due.push((by, "(b) the eviction of a stuck writer"));
            }
        }
        let unseen = self.ended.filter(|_| config.heartbeat);
        if let (Some(ended), None) = (unseen, self.too_much) {
            let by = ended.max(self.jumped).max(self.excused) + config.interval + slack;
            due.push((by, "(b) the discovery of the peer's end"));
        }
        let gone = self
            .handler_gone
            .map(|at| (at + 1, "(c) the event of a dropped handler"));
        let kick = self.kicked.map(|at| (at, "(c) the event of a kick"));
        due.into_iter().chain(gone).chain(kick).min()
    }

    fn step(&mut self, entry: &Entry) -> Verdict {
        self.now = entry.at;
        if let Event::Took(count, _) = entry.event {
            // What one look left there, and a later one finds, may have come in between.
            if let Some(left) = self.left_some.filter(|left| *left < entry.at) {
                self.heard = self.heard.max(left);
            }
            self.took += count;
            self.left_some = (self.took < self.arrived).then_some(entry.at);
        }
        match entry.event {
            Event::Arrived(count) => {
                self.arrived += count;
                self.heard = entry.at;
                self.waited_at_arrival = self.reader_waits;
                self.malformed |= self.facts.malformed.is_some_and(|from| from < self.arrived);
                if self.ended.is_none() && self.closes_at.is_some_and(|to| to <= self.arrived) {
                    self.ended = Some(entry.at);
                }
                if self.evicted.is_some_and(|(at, _)| at < entry.at) {
                    // Whatever comes now is nobody's business.
                    return Ok(());
                }
            }
            Event::EndArrived | Event::ResetArrived(_) => {
                self.ended = self.ended.or(Some(entry.at));
            }
            // What a handler comes late for counts from then on, be it a pong that it does not get.
            Event::Took(_, By::Handler) if self.waited_at_arrival => self.heard = entry.at,
            Event::Read(count) => {
                self.read += count;
                self.unread = None;
                if self.waited_at_arrival {
                    self.heard = entry.at;
                }
                (self.reader_waits, self.reader_blocked) = (false, false);
                self.not_after_eviction(entry)?;
            }
            Event::ReadWaits => (self.reader_waits, self.reader_blocked) = (true, true),
            Event::ReadGivenUp => self.reader_blocked = false,
            Event::ReadEnds => self.reader_blocked = false,
            Event::ReadFails(why) => {
                self.reader_blocked = false;
                self.same_reason(entry, why)?;
            }
            Event::WriteWaits => self.writer_waits = Some(entry.at),
            Event::WriteGivenUp => (self.writer_waits, self.given_up) = (None, true),
            Event::Wrote(count) => {
                self.wrote += count;
                self.writer_waits = None;
                let ends = &self.facts.boundaries;
                let place = ends.binary_search(&self.wrote);
                let boundary = place.is_ok();
                let from = ends
                    .iter()
                    .rev()
                    .find(|end| **end < self.wrote)
                    .unwrap_or(&0);
                if boundary && self.facts.world.wrote[*from] & 0xF == CLOSE {
                    self.closing = Some(entry.at);
                }
                if std::mem::replace(&mut self.half, self.facts.is_half_sent(self.wrote)) {
                    self.half_until = entry.at;
                }
                self.excuse(self.inside, entry.at);
                self.inside = if boundary { None } else { Some(entry.at) };
            }
            Event::WriteFails(why) => {
                self.writer_waits = None;
                self.same_reason(entry, why)?;
            }
            Event::Claimed(_) => self.claimed = Some(entry.at),
            Event::Accepted(..) => {
                self.excuse(self.claimed, entry.at);
                self.claimed = None;
            }
            Event::Full => self.full = Some(entry.at),
            Event::Room => {
                self.excuse(self.full, entry.at);
                self.full = None;
            }
            Event::FlushWaits => self.flushing = Some(entry.at),
            Event::Flushed => {
                self.excuse(self.flushing, entry.at);
                self.flushing = None;
            }
            Event::AsksShutdown => self.closing = self.closing.or(Some(entry.at)),
            Event::Jumped(span) => self.jumped = entry.at + span,
            Event::HandlerDrops => {
                self.handler_gone = Some(entry.at);
                (self.reader_blocked, self.writer_waits) = (false, None);
            }
            Event::Kicks(_) => self.kicked = Some(entry.at),
            Event::Evicted(told) => self.evicted = Some((entry.at, told)),
            Event::Dropped => self.dropped = true,
            _ => {}
        }
        let unread = self.facts.kept(self.arrived).saturating_sub(self.read);
        if unread > 0 {
            self.unread = self.unread.or(Some(entry.at));
        }
        // What is held back, or only waits to be cut, takes its room too.
        match unread + 256 > READ_AHEAD {
            true => self.too_much = self.too_much.or(Some(entry.at)),
            false => {
                self.excuse(self.too_much, entry.at);
                self.too_much = None;
            }
        }
        Ok(())
    }

    /// What prevented something for a while gives the rest of the time anew.
    fn excuse(&mut self, since: Option<u64>, now: u64) {
        if since.is_some_and(|since| since < now) {
            self.excused = now;
        }
    }

    fn same_reason(&self, entry: &Entry, why: Option<Reason>) -> Verdict {
        let told = self.evicted.map(|(_, told)| told.reason);
        match why {
            Some(why) if told != Some(why) => Err(format!("(e) {entry}, but the event: {told:?}")),
            _ => Ok(()),
        }
    }

    fn not_after_eviction(&self, entry: &Entry) -> Verdict {
        match self.evicted {
            Some((_, told)) if ours(told) => {
                Err(format!("(e) after its eviction the handler got {entry}"))
            }
            _ => Ok(()),
        }
    }
}

/// (e) A handler that waits gets what it waits for when it is there.
fn lags(facts: &Facts<'_>) -> Verdict {
    let arrivals = Times::arrivals(facts.world);
    let (mut waits, mut asleep, mut read, mut jumped) = (None, None, 0, 0);
    let mut full = false;
    let mut room_since = 0;
    let mut writes = None;
    let late = |what: &str, since: u64, now: u64, jumped: u64| {
        let fair = since.max(jumped) + 2;
        match now > fair {
            true => Err(format!(
                "(e) {what} since {since} ms, and was woken at {now} ms"
            )),
            false => Ok(()),
        }
    };
    for entry in &facts.world.log {
        match entry.event {
            Event::Jumped(span) => jumped = entry.at + span,
            Event::ReadWaits => waits = Some(entry.at),
            Event::ReadGivenUp | Event::HandlerDrops | Event::ReadFails(_) => waits = None,
            Event::Read(count) => {
                if let (Some(waited), Some(came)) = (waits, facts.came(&arrivals, read)) {
                    late(
                        "a reader's bytes were there",
                        came.max(waited),
                        entry.at,
                        jumped,
                    )?;
                }
                read += count;
                waits = None;
            }
            Event::Over => asleep = waits.map(|waited: u64| (waited, entry.at)),
            Event::Full => full = true,
            // What goes out first is a ping, flushed.
            Event::Flushed => room_since = entry.at,
            Event::Room => (full, room_since) = (false, entry.at),
            Event::WriteWaits => writes = Some(entry.at),
            Event::WriteGivenUp | Event::WriteFails(_) => writes = None,
            Event::Wrote(_) => {
                if let (Some(waited), false) = (writes, full) {
                    late(
                        "a writer had room",
                        room_since.max(waited),
                        entry.at,
                        jumped,
                    )?;
                }
                writes = None;
            }
            _ => {}
        }
    }
    let Some((waited, over)) = asleep else {
        return Ok(());
    };
    let next = facts.fates.iter().find(|fate| {
        fate.read_from
            .is_some_and(|from| from + fate.to - fate.from > read)
    });
    let Some(next) = next else {
        return Ok(());
    };
    let part = next.read_from.map_or(0, |from| read.saturating_sub(from));
    match arrivals.reached(next.needs(part)) {
        Some((_, came)) => late(
            "a reader's bytes were there",
            came.max(waited),
            over,
            jumped,
        ),
        None => Ok(()),
    }
}
