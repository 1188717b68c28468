//! What the oracle knows of a run before it judges: which bytes were whose, and when.

use std::collections::HashMap;

use super::log::{Event, Told, ours};
use super::peer::{MALFORMED, whole};
use super::plan::Config;
use super::script::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, parse};
use super::times::Times;
use super::world::World;

pub(crate) type Verdict<T = ()> = Result<T, String>;

/// The length of the payload of one of the layer's pings.
const OWN_PAYLOAD: usize = 8;

/// So many bytes tell that a frame is malformed.
pub(crate) const TELLING: usize = 3;

pub(crate) struct Facts<'a> {
    pub(crate) world: &'a World,
    /// The settings, with the smallest times that ever held and with the largest. What changes in
    /// between is judged by one or the other.
    pub(crate) fast: Config,
    pub(crate) slow: Config,
    /// When the process stood still: from, and to.
    jumps: Vec<(u64, u64)>,
    /// Where in the log the hook was called, when, and what it was told.
    pub(crate) evicted: Option<(usize, u64, Told)>,
    /// The layer's own pings, in order.
    pub(crate) pings: Vec<OwnPing>,
    /// How the handler's output is cut into frames: where each ends in what it wrote.
    pub(crate) boundaries: Vec<usize>,
    /// The peer's frames, and what became of each.
    pub(crate) fates: Vec<Fate>,
    /// The places of those that are for the handler.
    kept: Vec<usize>,
    /// All that the peer sent, and all of the handler's that the transport accepted, frame by frame.
    pub(crate) said: Vec<Span>,
    pub(crate) sent: Vec<Span>,
    /// Where, in all that the peer sent, the first malformed frame begins. Behind that there are no
    /// frames, and all bytes are for the handler.
    pub(crate) malformed: Option<usize>,
}

pub(crate) struct OwnPing {
    pub(crate) payload: Vec<u8>,
    /// Whether it stands between two fragments of a message.
    pub(crate) inside: bool,
    /// The entry with which its first byte was accepted, and when its last one was.
    pub(crate) begun: usize,
    pub(crate) at: u64,
    /// The entry of the log with which it was with the transport, flushed, and when that was.
    pub(crate) handed: Option<(usize, u64)>,
    /// The entry with which the process knew that it was.
    pub(crate) told: Option<usize>,
    /// When the last byte of the first pong to it could be read, and how many the peer had sent by
    /// then.
    pub(crate) answered: Option<u64>,
    pub(crate) answer: Option<usize>,
}

/// Offsets are into all that the peer sent, and all that the handler read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// [`MALFORMED`] from the first malformed frame on.
    pub(crate) opcode: u8,
    /// Whether it may be a pong of the layer's, by its length.
    pub(crate) held: bool,
    /// Whether it is the first pong to a ping of the layer's.
    pub(crate) answers: bool,
    /// Where it starts for the handler. `None`: it is cut out.
    pub(crate) read_from: Option<usize>,
}

/// A frame, or as much of it as there was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// [`MALFORMED`] from the first malformed frame on.
    pub(crate) opcode: u8,
    pub(crate) fin: bool,
    /// Whether all of it is there.
    pub(crate) whole: bool,
}

impl Span {
    pub(crate) fn is_data(&self) -> bool {
        matches!(self.opcode, CONTINUATION | TEXT | BINARY)
    }
}

impl Fate {
    /// How many of the peer's bytes have to be here for the byte at `part` of this frame to be read.
    /// What may become a pong of the layer's is held back until that is known; by its length, if
    /// that is not a ping's.
    pub(crate) fn needs(&self, part: usize) -> usize {
        let known = match self.opcode {
            PONG if self.held => self.to,
            PONG => self.from + 2,
            _ => self.from,
        };
        known.max(self.from + part + 1)
    }
}

impl<'a> Facts<'a> {
    pub(crate) fn gather(world: &'a World) -> Verdict<Self> {
        let mut evictions = world.log.iter().enumerate().filter_map(|(index, entry)| {
            let Event::Evicted(told) = entry.event else {
                return None;
            };
            Some((index, entry.at, told))
        });
        let evicted = evictions.next();
        if let Some(again) = evictions.next() {
            return Err(format!("(c) a second event at {} ms", again.1));
        }
        if evicted.is_none() {
            return Err("(c) no event, though the handler was dropped".into());
        }
        let (mut fast, mut slow) = (world.plan.config.clone(), world.plan.config.clone());
        for entry in &world.log {
            match entry.event {
                Event::SetsInterval(interval) => {
                    fast.interval = fast.interval.min(interval);
                    slow.interval = slow.interval.max(interval);
                }
                Event::SetsTimeout(timeout) => {
                    fast.timeout = fast.timeout.min(timeout);
                    slow.timeout = slow.timeout.max(timeout);
                }
                _ => {}
            }
        }
        let jumps = world.log.iter().filter_map(|entry| match entry.event {
            Event::Jumped(span) => Some((entry.at, entry.at + span)),
            _ => None,
        });
        let jumps = jumps.collect();
        let mut facts = Self {
            world,
            fast,
            slow,
            jumps,
            evicted,
            pings: Vec::new(),
            boundaries: Vec::new(),
            fates: Vec::new(),
            kept: Vec::new(),
            said: Vec::new(),
            sent: Vec::new(),
            malformed: None,
        };
        facts.outbound()?;
        facts.inbound()?;
        Ok(facts)
    }

    /// (d) The peer is sent the handler's bytes, and whole control frames in between.
    fn outbound(&mut self) -> Verdict {
        let (mut sent, mut wrote) = (&self.world.accepted[..], &self.world.wrote[..]);
        let times = Times::of(self.world, |event| match event {
            Event::Accepted(count, _) => Some(count),
            _ => None,
        });
        let mut closed = false;
        while !sent.is_empty() {
            if closed {
                return Err("(d) something was sent after a Close".into());
            }
            let offset = self.world.accepted.len() - sent.len();
            let frame = whole(wrote).min(wrote.len());
            let common = frame.min(sent.len());
            if common > 0 && sent[..common] == wrote[..common] {
                let finished = whole(wrote) <= common;
                if !finished && sent.len() > common {
                    let at = times.reached(offset + common + 1);
                    return Err(format!(
                        "(d) injected into a frame of the handler's, {at:?}"
                    ));
                }
                closed = finished && wrote[0] & 0xF == CLOSE;
                self.sent.push(Span {
                    from: offset,
                    to: offset + common,
                    opcode: wrote[0] & 0xF,
                    fin: wrote[0] & 0x80 != 0,
                    whole: finished,
                });
                sent = &sent[common..];
                wrote = &wrote[common..];
                if finished {
                    self.boundaries.push(self.world.wrote.len() - wrote.len());
                }
                continue;
            }
            let len = whole(sent);
            let Some(bytes) = sent.get(..len) else {
                // Cut off by the end, which the bounds judge.
                break;
            };
            let (index, at) = times.reached(offset + len).unwrap_or_default();
            let begun = times.reached(offset + 1).unwrap_or_default().0;
            let early = self
                .evicted
                .is_none_or(|(evicted, _, told)| begun < evicted || !ours(told))
                || self.was_claimed();
            let (frames, _) = parse(bytes);
            match frames.first() {
                Some(ping) if ping.first == 0x80 | PING && !ping.masked && len < 128 => {
                    if !early {
                        return Err(format!("(d) a ping after the event, at {at} ms"));
                    }
                    let payload = ping.payload.clone();
                    let handed = self.handed(index);
                    let data = self.sent.iter().rev().find(|frame| frame.is_data());
                    self.pings.push(OwnPing {
                        payload,
                        inside: data.is_some_and(|frame| !frame.fin),
                        begun,
                        at,
                        handed,
                        told: self.told(index),
                        answered: None,
                        answer: None,
                    });
                }
                Some(close) if close.first == 0x80 | CLOSE && !close.masked => {
                    if self.evicted.is_none_or(|(evicted, ..)| begun < evicted) {
                        return Err(format!(
                            "(d) a Close of the layer's before the event, {at} ms"
                        ));
                    }
                    closed = true;
                }
                other => return Err(format!("(d) at {at} ms the peer was sent {other:?}")),
            }
            sent = &sent[len..];
        }
        match wrote {
            [] => Ok(()),
            lost => Err(format!(
                "(d) {} bytes that the handler wrote never went out",
                lost.len()
            )),
        }
    }

    /// When the connection was evicted, the transport had a refused write that must be repeated first.
    fn was_claimed(&self) -> bool {
        let evicted = self.evicted.map_or(0, |(index, ..)| index);
        let mut before = self.world.log[..evicted].iter().rev();
        let last =
            before.find(|entry| matches!(entry.event, Event::Claimed(_) | Event::Accepted(..)));
        last.is_some_and(|entry| matches!(entry.event, Event::Claimed(_)))
    }

    /// When what was accepted with the entry at `index` was flushed.
    fn handed(&self, index: usize) -> Option<(usize, u64)> {
        let log = &self.world.log;
        if self.world.plan.net.buffered.unwrap_or(0) == 0 {
            return Some((index, log[index].at));
        }
        let after = log.iter().enumerate().skip(index);
        let mut flushed = after.filter(|(_, entry)| entry.event == Event::Flushed);
        flushed.next().map(|(index, entry)| (index, entry.at))
    }

    fn told(&self, index: usize) -> Option<usize> {
        let mut after = self.world.log.iter().enumerate().skip(index);
        after
            .find(|(_, entry)| entry.event == Event::FlushTold)
            .map(|(index, _)| index)
    }

    /// (d) The handler reads the peer's bytes, without the pongs to the layer's pings.
    fn inbound(&mut self) -> Verdict {
        let arrivals = Times::arrivals(self.world);
        let took = Times::of(self.world, |event| match event {
            Event::Took(count, _) => Some(count),
            _ => None,
        });
        let mut read = &self.world.read[..];
        let places = self.pings.iter().enumerate();
        let by_payload: HashMap<_, _> = places.map(|(n, ping)| (ping.payload.clone(), n)).collect();
        let (mut offset, mut to, mut closed) = (0, 0, false);
        for (n, said) in self.world.said.iter().enumerate() {
            let mut later = self.world.said[n + 1..].iter();
            let later = later.find(|later| !by_payload.contains_key(&later.payload));
            let from = to;
            to += said.raw.len();
            let arrived = arrivals.reached(to);
            if said.opcode == MALFORMED {
                self.malformed = self.malformed.or(Some(from));
            }
            let opcode = match self.malformed {
                Some(_) => MALFORMED,
                None => said.opcode,
            };
            let pong = opcode == PONG;
            let place = by_payload.get(&said.payload).filter(|_| pong);
            let ours = place.map(|place| &mut self.pings[*place]);
            // The first answer to a ping is a pong to it; what an answer to an answered ping is, or
            // one after the end, nobody says.
            let answers = ours.as_ref().is_some_and(|ping| ping.answered.is_none());
            let (must_cut, may_cut) = match ours {
                Some(ping) => {
                    let first = ping.answered.is_none();
                    // A reset takes along what lies in the transport.
                    let late = match (self.evicted, took.reached(to)) {
                        (Some((evicted, ..)), Some((index, _))) => index > evicted,
                        _ => true,
                    };
                    if let (true, Some((_, at))) = (first, arrived) {
                        (ping.answered, ping.answer) = (Some(at), Some(to));
                    }
                    (first && !late && !closed, true)
                }
                None => (false, false),
            };
            closed |= opcode == CLOSE;
            let common = said.raw.len().min(read.len());
            let same = said.raw[..common] == read[..common];
            // The handler's last bytes may be the beginning of any pong. Of one that had to be cut
            // they are not, and of one that may have been, only if nothing later begins so too.
            let elsewhere = common < said.raw.len()
                && (must_cut || later.is_some_and(|later| later.raw.starts_with(read)));
            let kept = same && !(may_cut && (common == 0 || elsewhere));
            if kept && common == said.raw.len() && must_cut {
                return Err(format!(
                    "(d) the handler read the pong to a ping, {arrived:?}"
                ));
            }
            if !kept && !may_cut {
                return Err(format!(
                    "(d) the handler read something else than the frame {opcode:#x} at {from}, \
                     {arrived:?}, its own byte {offset}"
                ));
            }
            let read_from = kept.then_some(offset);
            self.said.push(Span {
                from,
                to,
                opcode,
                fin: said.raw[0] & 0x80 != 0,
                whole: true,
            });
            self.fates.push(Fate {
                from,
                to,
                opcode,
                answers,
                held: pong && said.payload.len() == OWN_PAYLOAD,
                read_from,
            });
            if kept {
                self.kept.push(self.fates.len() - 1);
                read = &read[common..];
                offset += said.raw.len();
            }
        }
        match read {
            [] => Ok(()),
            more => Err(format!(
                "(d) the handler read {} bytes that nobody sent",
                more.len()
            )),
        }
    }

    /// How many of the first `count` bytes of the peer are for the handler.
    pub(crate) fn kept(&self, count: usize) -> usize {
        self.kept_at_most(self.unheld(count))
    }

    /// `count`, less what may be held back until it is known whose it is.
    fn unheld(&self, count: usize) -> usize {
        let place = self.fates.partition_point(|fate| fate.to <= count);
        match self.fates.get(place) {
            Some(fate) if fate.from < count && fate.needs(0) > count => fate.from,
            _ => count,
        }
    }

    /// How many that would be if nothing was ever held back.
    pub(crate) fn kept_at_most(&self, count: usize) -> usize {
        let place = self.fates.partition_point(|fate| fate.to <= count);
        if let Some(fate) = self.fates.get(place).filter(|fate| fate.from < count) {
            if let Some(read_from) = fate.read_from {
                return read_from + count - fate.from;
            }
        }
        let before = self.kept.partition_point(|kept| *kept < place);
        let last = before
            .checked_sub(1)
            .map(|last| self.fates[self.kept[last]]);
        last.map_or(0, |fate| fate.read_from.unwrap_or(0) + fate.to - fate.from)
    }

    /// How many of the first `count` bytes of the peer waited for the handler when they were there.
    pub(crate) fn unread(&self, count: usize) -> usize {
        let arrived = Times::arrivals(self.world).reached(count);
        let until = arrived.map_or(self.world.log.len(), |(index, _)| index);
        let reads = self.world.log[..until].iter();
        let read: usize = reads
            .map(|entry| match entry.event {
                Event::Read(count) => count,
                _ => 0,
            })
            .sum();
        self.kept_at_most(count).saturating_sub(read)
    }

    /// When the byte that the handler read at `offset` could be read, in full if it is a pong's.
    pub(crate) fn came(&self, arrivals: &Times, offset: usize) -> Option<u64> {
        let place = self.kept.partition_point(|place| {
            self.fates[*place]
                .read_from
                .is_some_and(|from| from <= offset)
        });
        let fate = self.fates[*self.kept.get(place.checked_sub(1)?)?];
        let read_from = fate.read_from?;
        arrivals
            .reached(fate.needs(offset - read_from))
            .map(|(_, at)| at)
    }

    /// Whether the first `count` bytes that the handler wrote end within a message.
    pub(crate) fn is_half_sent(&self, count: usize) -> bool {
        let place = self.boundaries.partition_point(|end| *end <= count);
        let begun = self.boundaries[..place]
            .last()
            .is_none_or(|end| *end < count);
        let whole = self.sent[..place.min(self.sent.len())].iter().rev();
        begun && count > 0
            || whole
                .clone()
                .find(|frame| frame.is_data())
                .is_some_and(|frame| !frame.fin)
    }

    /// Whether the peer's first `count` bytes show that it is malformed.
    pub(crate) fn shows_malformed(&self, count: usize) -> bool {
        self.malformed.is_some_and(|from| count >= from + TELLING)
    }

    /// When a process looked that could have looked at `at`: not while it stood still.
    pub(crate) fn awake(&self, at: u64) -> u64 {
        self.jumps
            .iter()
            .fold(at, |at, (from, to)| match *from <= at {
                true => at.max(*to),
                false => at,
            })
    }

    /// When the standstill began that ended at `at`, if one did.
    pub(crate) fn standstill_to(&self, at: u64) -> Option<u64> {
        let jumps = self.jumps.iter().filter(|(_, to)| *to == at);
        jumps.map(|(from, _)| *from).min()
    }

    /// How long the process stood still between two times.
    pub(crate) fn jumped(&self, from: u64, to: u64) -> u64 {
        (self.jumps.iter())
            .map(|(begun, ended)| (*ended).min(to).saturating_sub(from.max(*begun)))
            .sum()
    }
}
