//! Rules (b), (c) and (e): what must happen, happens by its deadline.
//!
//! Walks through the log. Before each entry, `due` returns what must happen next and its deadline.
//! The entry must not be later than that.

use tower_ws_liveness::Reason;

use super::facts::{Check, Facts};
use super::log::{Entry, Event, Poller, Report, ended_by_layer};
use super::plan::{Config, Spends};
use super::script::CLOSE;
use super::times::Times;

/// Bytes that the layer reads ahead for a handler that does not read.
pub(crate) const READ_AHEAD_BYTES: usize = 16 * 1024;

/// Time in ms that a handler has to repeat a write that it cancelled, before the layer acts.
const RETRY_MS: u64 = 100;

/// State of the connection after the log entries so far. Times are in ms.
struct BoundsWalk<'a> {
    facts: &'a Facts<'a>,
    slack: u64,
    now: u64,

    /// Number of the peer's bytes that have arrived, and that were read from the transport.
    arrived: usize,
    took: usize,
    /// Time of the last read from the transport, if it left bytes unread.
    left_unread: Option<u64>,
    /// Number of bytes that the handler read and wrote.
    read: usize,
    wrote: usize,
    /// Time at which the last byte arrived, or was read by a handler that was woken for it and came
    /// late.
    last_byte: u64,
    /// Whether the handler's last read is pending, also after it was cancelled.
    reader_waits: bool,
    /// Whether the handler waits in a read.
    reader_blocked: bool,
    /// `reader_waits` when the last byte arrived.
    waited_at_arrival: bool,
    /// Since when bytes wait for the handler.
    unread: Option<u64>,
    /// Since when the handler's frame is unfinished, so that no ping can be sent.
    in_frame: Option<u64>,
    /// Since when the transport accepts nothing.
    full: Option<u64>,
    /// Since when a refused write keeps bytes, so that nothing else can be written.
    claimed: Option<u64>,
    /// Since when a flush is pending.
    flushing: Option<u64>,
    /// When an obstacle to the heartbeat last ended, so that its time restarted.
    restarted: u64,
    /// Since when the read-ahead is full, so that later bytes are not seen.
    read_ahead_full: Option<u64>,
    /// Since when the handler waits in a write.
    writer_waits: Option<u64>,
    /// Whether the handler cancelled a write before.
    write_cancelled: bool,
    /// Whether a malformed frame has arrived, so that no frame boundary is known.
    malformed: bool,
    /// Whether a message of the handler is half sent, and when that last changed.
    in_message: bool,
    last_in_message: u64,
    /// End of the last standstill.
    standstill_end: u64,
    /// When the peer's Close frame, FIN or reset arrived.
    peer_ended: Option<u64>,
    /// End of the peer's Close frame, as an offset into the peer's bytes.
    close_end: Option<usize>,
    handler_dropped: Option<u64>,
    evict_called: Option<u64>,

    evicted: Option<(u64, Report)>,
    /// Time at which the handler wrote its Close frame.
    closing: Option<u64>,
    dropped: bool,
}

/// How late an event may be: one tick of the timer (a 32nd of the shortest duration, or 1 ms per
/// step of the heartbeat), plus the millisecond in which it happens.
pub(crate) fn slack(config: &Config) -> u64 {
    let heartbeat = [config.interval, config.timeout];
    let heartbeat = heartbeat.into_iter().filter(|_| config.heartbeat);
    let optional = [config.write_timeout, config.stall_timeout];
    let idle = config.idle.map(|idle| {
        let optional = [
            idle.timeout,
            idle.first_message,
            idle.message_timeout,
            idle.max_lifetime,
        ];
        optional.into_iter().flatten()
    });
    let all = heartbeat.chain(optional.into_iter().flatten());
    let all = all.chain(idle.into_iter().flatten());
    let shortest = all.fold(config.close_timeout, u64::min);
    (shortest / 32).max(config.missed + 1) + 1
}

/// Rules (b), (c) and (e).
pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let mut walk = BoundsWalk {
        facts,
        slack: slack(&facts.slow),
        now: 0,
        arrived: 0,
        took: 0,
        left_unread: None,
        read: 0,
        wrote: 0,
        last_byte: 0,
        reader_waits: false,
        reader_blocked: false,
        waited_at_arrival: false,
        unread: None,
        in_frame: None,
        full: None,
        claimed: None,
        flushing: None,
        restarted: 0,
        read_ahead_full: None,
        writer_waits: None,
        write_cancelled: false,
        malformed: false,
        in_message: false,
        last_in_message: 0,
        standstill_end: 0,
        peer_ended: None,
        close_end: facts
            .peer_frames
            .iter()
            .find(|frame| frame.opcode == CLOSE)
            .map(|frame| frame.to),
        handler_dropped: None,
        evict_called: None,
        evicted: None,
        closing: None,
        dropped: false,
    };
    for entry in &facts.world.log {
        if let Some((by, what)) = walk.due() {
            // What was due in a standstill is due in the millisecond after it.
            if entry.at > by.max(walk.standstill_end + 1) {
                return Err(format!("{what} was due by {by} ms, and {entry} came first"));
            }
        }
        walk.step(entry)?;
    }
    if !walk.dropped {
        return Err("(e) the transport was not dropped".into());
    }
    check_wakeups(facts)
}

impl BoundsWalk<'_> {
    /// The first thing that must happen, and its deadline.
    fn due(&self) -> Option<(u64, &'static str)> {
        let config = &self.facts.slow;
        let slack = self.slack;
        if let Some((at, report)) = self.evicted {
            let closed = at.max(self.standstill_end) + config.close_timeout + slack;
            let woken = if ended_by_layer(report) {
                at.max(self.standstill_end) + 1
            } else {
                closed
            };
            let blocked = self.reader_blocked || self.writer_waits.is_some();
            let wake = blocked.then_some((woken, "(e) the wake-up of a blocked handler"));
            let drop = (!self.dropped).then_some((closed, "(e) the drop of the transport"));
            return wake.into_iter().chain(drop).min();
        }
        if let Some(closing) = self.closing {
            let by = closing.max(self.standstill_end) + config.close_timeout + slack;
            return Some((by, "(e) the end of a closing handshake"));
        }
        let from = self.last_byte.max(self.standstill_end);
        let silence = config.interval + config.timeout * config.missed;
        // After a standstill in the silence, the peer gets a new ping.
        let extra = if self.standstill_end > 0 {
            config.timeout + silence
        } else {
            0
        };
        // A ping waits for the end of a message, for at most one `timeout`.
        let extra = match self.in_message || self.last_in_message >= from {
            true => extra + config.timeout,
            false => extra,
        };
        let mut due = Vec::new();
        let obstacle = self
            .in_frame
            .or(self.full)
            .or(self.claimed)
            .or(self.flushing)
            .or(self.read_ahead_full);
        if obstacle.is_none() && !self.malformed && config.heartbeat {
            let by = from.max(self.restarted) + silence + extra + slack;
            due.push((by, "(b) the eviction of a dead peer"));
        }
        if let (Some(write_timeout), Some(claimed)) = (config.write_timeout, self.claimed) {
            let by = claimed.max(self.standstill_end) + write_timeout + RETRY_MS + slack;
            due.push((by, "(b) the eviction for a write that must be repeated"));
        } else if let (Some(write_timeout), Some(full)) = (config.write_timeout, self.full) {
            let wanted = match self.writer_waits {
                Some(since) => Some(full.max(since)),
                // The layer's next ping, which an obstacle before may have delayed.
                None if self.in_frame.is_none() && !self.malformed => {
                    let wanted = full.max(from.max(self.restarted) + silence + extra);
                    // With a full read-ahead the layer sends a ping every `timeout` without looking
                    // for bytes, so the last one may be recent.
                    Some(
                        self.read_ahead_full
                            .map_or(wanted, |_| wanted.max(full + config.timeout)),
                    )
                }
                None => None,
            };
            if let Some(wanted) = wanted {
                // A retry without cooperative budget proves nothing until its time is over.
                let retry = match self.facts.world.plan.handler.spends {
                    Spends::Often => RETRY_MS,
                    Spends::Never | Spends::Once => 0,
                };
                let by = wanted.max(self.standstill_end) + write_timeout + retry + slack;
                due.push((by, "(b) the eviction for a write stall"));
            }
        }
        if let Some(stall_timeout) = config.stall_timeout {
            // The stall of the handler is not checked while a ping waits for the end of a frame or
            // for room in the transport: other deadlines apply.
            let stuck = self.full.or(self.claimed).or(self.flushing);
            if let (Some(unread), None) = (self.unread, self.in_frame.or(stuck)) {
                let by = unread.max(self.standstill_end).max(self.restarted)
                    + config.interval
                    + stall_timeout
                    + slack;
                due.push((by, "(b) the eviction of a handler that does not read"));
            }
            let in_frame = self.in_frame.filter(|_| !self.malformed);
            if let (Some(in_frame), None) = (in_frame, stuck) {
                // A ping that was delayed before may have been sent, and have waited for its pong,
                // since then.
                let wanted = in_frame.max(from.max(self.restarted) + silence + extra);
                // Whether the transport accepts a cancelled write is not known until the layer
                // writes again.
                let asked = match self.write_cancelled {
                    true => config.write_timeout.unwrap_or(stall_timeout) + RETRY_MS,
                    false => 0,
                };
                let by = wanted + asked + stall_timeout + slack;
                due.push((by, "(b) the eviction of a handler with an unfinished frame"));
            }
        }
        let unseen = self.peer_ended.filter(|_| config.heartbeat);
        if let (Some(ended), None) = (unseen, self.read_ahead_full) {
            let by = ended.max(self.standstill_end).max(self.restarted) + config.interval + slack;
            due.push((by, "(b) the discovery of the peer's end"));
        }
        let dropped = self
            .handler_dropped
            .map(|at| (at + 1, "(c) the eviction event of a dropped handler"));
        let kick = self
            .evict_called
            .map(|at| (at, "(c) the eviction event of a call of `evict`"));
        due.into_iter().chain(dropped).chain(kick).min()
    }

    fn step(&mut self, entry: &Entry) -> Check {
        self.now = entry.at;
        if let Event::Took(count, _) = entry.event {
            // Bytes that one read left, and a later read returns, may have arrived in between.
            if let Some(left) = self.left_unread.filter(|left| *left < entry.at) {
                self.last_byte = self.last_byte.max(left);
            }
            self.took += count;
            self.left_unread = (self.took < self.arrived).then_some(entry.at);
        }
        match entry.event {
            Event::Arrived(count) => {
                self.arrived += count;
                self.last_byte = entry.at;
                self.waited_at_arrival = self.reader_waits;
                self.malformed |= self.facts.malformed.is_some_and(|from| from < self.arrived);
                if self.peer_ended.is_none() && self.close_end.is_some_and(|to| to <= self.arrived)
                {
                    self.peer_ended = Some(entry.at);
                }
                if self.evicted.is_some_and(|(at, _)| at < entry.at) {
                    // Nothing is due for bytes that arrive after the eviction.
                    return Ok(());
                }
            }
            Event::EndArrived | Event::ResetArrived(_) => {
                self.peer_ended = self.peer_ended.or(Some(entry.at));
            }
            // Bytes that a woken handler reads late count from that read, including a pong that is
            // removed.
            Event::Took(_, Poller::Handler) if self.waited_at_arrival => self.last_byte = entry.at,
            Event::Read(count) => {
                self.read += count;
                self.unread = None;
                if self.waited_at_arrival {
                    self.last_byte = entry.at;
                }
                (self.reader_waits, self.reader_blocked) = (false, false);
                self.check_not_evicted(entry)?;
            }
            Event::ReadPending => (self.reader_waits, self.reader_blocked) = (true, true),
            Event::ReadCancelled => self.reader_blocked = false,
            Event::ReadEnds => self.reader_blocked = false,
            Event::ReadFails(why) => {
                self.reader_blocked = false;
                self.check_reason(entry, why)?;
            }
            Event::WritePending => self.writer_waits = Some(entry.at),
            Event::WriteCancelled => (self.writer_waits, self.write_cancelled) = (None, true),
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
                if std::mem::replace(&mut self.in_message, self.facts.is_half_sent(self.wrote)) {
                    self.last_in_message = entry.at;
                }
                self.restart(self.in_frame, entry.at);
                self.in_frame = if boundary { None } else { Some(entry.at) };
            }
            Event::WriteFails(why) => {
                self.writer_waits = None;
                self.check_reason(entry, why)?;
            }
            Event::Claimed(_) => self.claimed = Some(entry.at),
            Event::Accepted(..) => {
                self.restart(self.claimed, entry.at);
                self.claimed = None;
            }
            Event::Full => self.full = Some(entry.at),
            Event::Room => {
                self.restart(self.full, entry.at);
                self.full = None;
            }
            Event::FlushPending => self.flushing = Some(entry.at),
            Event::Flushed => {
                self.restart(self.flushing, entry.at);
                self.flushing = None;
            }
            Event::ShutdownCalled => self.closing = self.closing.or(Some(entry.at)),
            Event::Standstill(span) => self.standstill_end = entry.at + span,
            Event::HandlerDrops => {
                self.handler_dropped = Some(entry.at);
                (self.reader_blocked, self.writer_waits) = (false, None);
            }
            Event::EvictCalled(_) => self.evict_called = Some(entry.at),
            Event::Evicted(report) => self.evicted = Some((entry.at, report)),
            Event::Dropped => self.dropped = true,
            _ => {}
        }
        let unread = self
            .facts
            .handler_bytes(self.arrived)
            .saturating_sub(self.read);
        if unread > 0 {
            self.unread = self.unread.or(Some(entry.at));
        }
        // Bytes that are held back, and pongs that are removed later, take up read-ahead too.
        match unread + 256 > READ_AHEAD_BYTES {
            true => self.read_ahead_full = self.read_ahead_full.or(Some(entry.at)),
            false => {
                self.restart(self.read_ahead_full, entry.at);
                self.read_ahead_full = None;
            }
        }
        Ok(())
    }

    /// Restarts the heartbeat's time when an obstacle (since `since`) ends.
    fn restart(&mut self, since: Option<u64>, now: u64) {
        if since.is_some_and(|since| since < now) {
            self.restarted = now;
        }
    }

    fn check_reason(&self, entry: &Entry, why: Option<Reason>) -> Check {
        let report = self.evicted.map(|(_, report)| report.reason);
        match why {
            Some(why) if report != Some(why) => {
                Err(format!("(e) {entry}, but the hook's reason is {report:?}"))
            }
            _ => Ok(()),
        }
    }

    fn check_not_evicted(&self, entry: &Entry) -> Check {
        match self.evicted {
            Some((_, report)) if ended_by_layer(report) => Err(format!(
                "(e) after the eviction by the layer the handler got {entry}"
            )),
            _ => Ok(()),
        }
    }
}

/// (e) A handler that is blocked in a read or a write is woken within 2 ms of the byte or the room.
fn check_wakeups(facts: &Facts<'_>) -> Check {
    let arrivals = Times::arrivals(facts.world);
    let (mut read_pending, mut pending_at_end, mut read, mut standstill_end) = (None, None, 0, 0);
    let mut full = false;
    let mut room_since = 0;
    let mut write_pending = None;
    let late = |what: &str, since: u64, now: u64, standstill_end: u64| {
        let deadline = since.max(standstill_end) + 2;
        match now > deadline {
            true => Err(format!(
                "(e) {what} since {since} ms, and the handler was woken at {now} ms"
            )),
            false => Ok(()),
        }
    };
    for entry in &facts.world.log {
        match entry.event {
            Event::Standstill(span) => standstill_end = entry.at + span,
            Event::ReadPending => read_pending = Some(entry.at),
            Event::ReadCancelled | Event::HandlerDrops | Event::ReadFails(_) => read_pending = None,
            Event::Read(count) => {
                if let (Some(waited), Some(arrived_at)) =
                    (read_pending, facts.arrival_of(&arrivals, read))
                {
                    late(
                        "bytes were readable",
                        arrived_at.max(waited),
                        entry.at,
                        standstill_end,
                    )?;
                }
                read += count;
                read_pending = None;
            }
            Event::Over => pending_at_end = read_pending.map(|waited: u64| (waited, entry.at)),
            Event::Full => full = true,
            // The ping goes out first, and is flushed.
            Event::Flushed => room_since = entry.at,
            Event::Room => (full, room_since) = (false, entry.at),
            Event::WritePending => write_pending = Some(entry.at),
            Event::WriteCancelled | Event::WriteFails(_) => write_pending = None,
            Event::Wrote(_) => {
                if let (Some(waited), false) = (write_pending, full) {
                    late(
                        "the transport had room",
                        room_since.max(waited),
                        entry.at,
                        standstill_end,
                    )?;
                }
                write_pending = None;
            }
            _ => {}
        }
    }
    let Some((waited, over)) = pending_at_end else {
        return Ok(());
    };
    let next = facts.peer_frames.iter().find(|frame| {
        frame
            .read_from
            .is_some_and(|from| from + frame.to - frame.from > read)
    });
    let Some(next) = next else {
        return Ok(());
    };
    let part = next.read_from.map_or(0, |from| read.saturating_sub(from));
    match arrivals.reached(next.needs(part)) {
        Some((_, arrived_at)) => late(
            "bytes were readable",
            arrived_at.max(waited),
            over,
            standstill_end,
        ),
        None => Ok(()),
    }
}
