//! Facts about a run that all rules share, and rule (d): bytes pass unchanged.

use std::collections::HashMap;

use super::log::{Event, Report, ended_by_layer};
use super::peer::{MALFORMED, frame_len};
use super::plan::Config;
use super::script::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, parse};
use super::times::Times;
use super::world::World;

/// `Ok`, or the message of the rule that does not hold.
pub(crate) type Check<T = ()> = Result<T, String>;

/// Payload length of the layer's pings.
const PING_PAYLOAD_BYTES: usize = 8;

/// From this many bytes of its header on, a frame can be known to be malformed.
pub(crate) const MALFORMED_HEADER_BYTES: usize = 3;

/// What happened in a run, in terms of frames, pings and standstills.
pub(crate) struct Facts<'a> {
    pub(crate) world: &'a World,
    /// The settings, with the smallest interval and timeout that were ever set: no eviction may be
    /// earlier than these allow.
    pub(crate) fast: Config,
    /// The settings, with the largest interval and timeout that were ever set: no eviction may be
    /// later than these allow.
    pub(crate) slow: Config,
    /// Begin and end of each standstill of the process.
    standstills: Vec<(u64, u64)>,
    /// Index of the log entry, time and arguments of the eviction hook's call.
    pub(crate) evicted: Option<(usize, u64, Report)>,
    /// The layer's pings, in order.
    pub(crate) pings: Vec<LayerPing>,
    /// Ends of the handler's frames, as offsets into the bytes that it wrote.
    pub(crate) boundaries: Vec<usize>,
    /// The peer's frames, and what the wrapper did with each.
    pub(crate) peer_frames: Vec<PeerFrame>,
    /// Indices in `peer_frames` of the frames that the handler read.
    for_handler: Vec<usize>,
    /// All bytes that the peer sent, by frame.
    pub(crate) inbound_frames: Vec<Span>,
    /// All bytes of the handler that the transport accepted, by frame.
    pub(crate) outbound_frames: Vec<Span>,
    /// Offset of the peer's first malformed frame. No frame boundary is known from there on, and
    /// all bytes are for the handler.
    pub(crate) malformed: Option<usize>,
}

/// A ping of the layer.
pub(crate) struct LayerPing {
    pub(crate) payload: Vec<u8>,
    /// Whether it was sent between two fragments of a message.
    pub(crate) in_message: bool,
    /// Index of the entry that accepted its first byte.
    pub(crate) first_accepted: usize,
    /// Time at which its last byte was accepted.
    pub(crate) at: u64,
    /// Index and time of the entry by which it was flushed.
    pub(crate) flushed: Option<(usize, u64)>,
    /// Index of the entry in which that flush returned to its caller.
    pub(crate) flush_returned: Option<usize>,
    /// Time at which the last byte of its first pong became readable.
    pub(crate) pong_arrived: Option<u64>,
    /// End of that pong, as an offset into the peer's bytes.
    pub(crate) pong_end: Option<usize>,
}

/// A frame of the peer. `from` and `to` are offsets into all bytes that the peer sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerFrame {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// [`MALFORMED`] for the first malformed frame and all that follow.
    pub(crate) opcode: u8,
    /// Whether it may be a pong to a ping of the layer, by its length.
    pub(crate) maybe_pong_to_layer: bool,
    /// Whether it is the first pong to a ping of the layer.
    pub(crate) answers_ping: bool,
    /// Its offset in the bytes that the handler read. `None`: the wrapper removed it.
    pub(crate) read_from: Option<usize>,
}

/// One frame of a direction, or the part of it that exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// [`MALFORMED`] for the first malformed frame and all that follow.
    pub(crate) opcode: u8,
    pub(crate) fin: bool,
    /// Whether the frame is complete.
    pub(crate) complete: bool,
}

impl Span {
    pub(crate) fn is_data(&self) -> bool {
        matches!(self.opcode, CONTINUATION | TEXT | BINARY)
    }
}

impl PeerFrame {
    /// How many of the peer's bytes must have arrived before the handler can read the byte at
    /// offset `part` of this frame. The wrapper holds a pong back until its payload shows whether
    /// it answers a ping of the layer; a pong of another length, until its length is known.
    pub(crate) fn needs(&self, part: usize) -> usize {
        let known = match self.opcode {
            PONG if self.maybe_pong_to_layer => self.to,
            PONG => self.from + 2,
            _ => self.from,
        };
        known.max(self.from + part + 1)
    }
}

impl<'a> Facts<'a> {
    pub(crate) fn gather(world: &'a World) -> Check<Self> {
        let mut evictions = world.log.iter().enumerate().filter_map(|(index, entry)| {
            let Event::Evicted(report) = entry.event else {
                return None;
            };
            Some((index, entry.at, report))
        });
        let evicted = evictions.next();
        if let Some(again) = evictions.next() {
            return Err(format!(
                "(c) the eviction hook was called again at {} ms",
                again.1
            ));
        }
        if evicted.is_none() {
            return Err("(c) the handler was dropped and the eviction hook was not called".into());
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
                Event::SetsMaxLifetime(lifetime) => {
                    // Without a lifetime the tick of the timer may be longer.
                    if let Some(idle) = &mut slow.idle {
                        idle.max_lifetime = idle.max_lifetime.zip(lifetime).map(|(a, b)| a.max(b));
                    }
                }
                _ => {}
            }
        }
        let standstills = world.log.iter().filter_map(|entry| match entry.event {
            Event::Standstill(span) => Some((entry.at, entry.at + span)),
            _ => None,
        });
        let standstills = standstills.collect();
        let mut facts = Self {
            world,
            fast,
            slow,
            standstills,
            evicted,
            pings: Vec::new(),
            boundaries: Vec::new(),
            peer_frames: Vec::new(),
            for_handler: Vec::new(),
            inbound_frames: Vec::new(),
            outbound_frames: Vec::new(),
            malformed: None,
        };
        facts.check_outbound()?;
        facts.check_inbound()?;
        Ok(facts)
    }

    /// (d) The peer receives the handler's bytes, with whole control frames between frames.
    fn check_outbound(&mut self) -> Check {
        let (mut sent, mut wrote) = (&self.world.accepted[..], &self.world.wrote[..]);
        let times = Times::of(self.world, |event| match event {
            Event::Accepted(count, _) => Some(count),
            _ => None,
        });
        let mut closed = false;
        while !sent.is_empty() {
            if closed {
                return Err("(d) bytes were sent after a Close frame".into());
            }
            let offset = self.world.accepted.len() - sent.len();
            let frame = frame_len(wrote).min(wrote.len());
            let common = frame.min(sent.len());
            if common > 0 && sent[..common] == wrote[..common] {
                let finished = frame_len(wrote) <= common;
                if !finished && sent.len() > common {
                    let at = times.reached(offset + common + 1);
                    return Err(format!(
                        "(d) bytes were inserted into a frame of the handler at {at:?}"
                    ));
                }
                closed = finished && wrote[0] & 0xF == CLOSE;
                self.outbound_frames.push(Span {
                    from: offset,
                    to: offset + common,
                    opcode: wrote[0] & 0xF,
                    fin: wrote[0] & 0x80 != 0,
                    complete: finished,
                });
                sent = &sent[common..];
                wrote = &wrote[common..];
                if finished {
                    self.boundaries.push(self.world.wrote.len() - wrote.len());
                }
                continue;
            }
            let len = frame_len(sent);
            let Some(bytes) = sent.get(..len) else {
                // Cut off by the end of the connection, which the bounds check.
                break;
            };
            let (index, at) = times.reached(offset + len).unwrap_or_default();
            let begun = times.reached(offset + 1).unwrap_or_default().0;
            let early = self
                .evicted
                .is_none_or(|(evicted, _, report)| begun < evicted || !ended_by_layer(report))
                || self.was_claimed();
            let (frames, _) = parse(bytes);
            match frames.first() {
                Some(ping) if ping.first == 0x80 | PING && !ping.masked && len < 128 => {
                    if !early {
                        return Err(format!(
                            "(d) a ping was sent after the eviction, at {at} ms"
                        ));
                    }
                    let payload = ping.payload.clone();
                    let data = self
                        .outbound_frames
                        .iter()
                        .rev()
                        .find(|frame| frame.is_data());
                    self.pings.push(LayerPing {
                        payload,
                        in_message: data.is_some_and(|frame| !frame.fin),
                        first_accepted: begun,
                        at,
                        flushed: self.flushed(index),
                        flush_returned: self.flush_returned(index),
                        pong_arrived: None,
                        pong_end: None,
                    });
                }
                Some(close) if close.first == 0x80 | CLOSE && !close.masked => {
                    if self.evicted.is_none_or(|(evicted, ..)| begun < evicted) {
                        return Err(format!(
                            "(d) the layer sent a Close frame before the eviction, at {at} ms"
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
                "(d) the transport never got {} bytes that the handler wrote",
                lost.len()
            )),
        }
    }

    /// Whether at the eviction a refused write had kept bytes, which must be written again first.
    fn was_claimed(&self) -> bool {
        let evicted = self.evicted.map_or(0, |(index, ..)| index);
        let mut before = self.world.log[..evicted].iter().rev();
        let last =
            before.find(|entry| matches!(entry.event, Event::Claimed(_) | Event::Accepted(..)));
        last.is_some_and(|entry| matches!(entry.event, Event::Claimed(_)))
    }

    /// Index and time of the flush of the bytes that the entry at `index` accepted.
    fn flushed(&self, index: usize) -> Option<(usize, u64)> {
        let log = &self.world.log;
        if self.world.plan.net.buffered.unwrap_or(0) == 0 {
            return Some((index, log[index].at));
        }
        let after = log.iter().enumerate().skip(index);
        let mut flushed = after.filter(|(_, entry)| entry.event == Event::Flushed);
        flushed.next().map(|(index, entry)| (index, entry.at))
    }

    fn flush_returned(&self, index: usize) -> Option<usize> {
        let mut after = self.world.log.iter().enumerate().skip(index);
        after
            .find(|(_, entry)| entry.event == Event::FlushReturned)
            .map(|(index, _)| index)
    }

    /// (d) The handler reads the peer's bytes, less the pongs to the layer's pings.
    fn check_inbound(&mut self) -> Check {
        let arrivals = Times::arrivals(self.world);
        let took = Times::of(self.world, |event| match event {
            Event::Took(count, _) => Some(count),
            _ => None,
        });
        let mut read = &self.world.read[..];
        let places = self.pings.iter().enumerate();
        let by_payload: HashMap<_, _> = places.map(|(n, ping)| (ping.payload.clone(), n)).collect();
        let (mut offset, mut to, mut closed) = (0, 0, false);
        for (n, peer_frame) in self.world.peer_sent.iter().enumerate() {
            let mut later = self.world.peer_sent[n + 1..].iter();
            let later = later.find(|later| !by_payload.contains_key(&later.payload));
            let from = to;
            to += peer_frame.raw.len();
            let arrived = arrivals.reached(to);
            if peer_frame.opcode == MALFORMED {
                self.malformed = self.malformed.or(Some(from));
            }
            let opcode = match self.malformed {
                Some(_) => MALFORMED,
                None => peer_frame.opcode,
            };
            let pong = opcode == PONG;
            let place = by_payload.get(&peer_frame.payload).filter(|_| pong);
            let layer_ping = place.map(|place| &mut self.pings[*place]);
            // The first pong to a ping answers it. A second pong to the same ping, or one that is
            // read after the eviction, may be removed or passed on: no promise says which.
            let answers = layer_ping
                .as_ref()
                .is_some_and(|ping| ping.pong_arrived.is_none());
            let (must_cut, may_cut) = match layer_ping {
                Some(ping) => {
                    let first = ping.pong_arrived.is_none();
                    // A reset discards the bytes that are still in the transport.
                    let late = match (self.evicted, took.reached(to)) {
                        (Some((evicted, ..)), Some((index, _))) => index > evicted,
                        _ => true,
                    };
                    if let (true, Some((_, at))) = (first, arrived) {
                        (ping.pong_arrived, ping.pong_end) = (Some(at), Some(to));
                    }
                    (first && !late && !closed, true)
                }
                None => (false, false),
            };
            closed |= opcode == CLOSE;
            let common = peer_frame.raw.len().min(read.len());
            let same = peer_frame.raw[..common] == read[..common];
            // The run may end while the handler reads a pong. If the pong must be removed, those
            // bytes are not its beginning. If it may be removed, they are not if a later frame
            // begins with the same bytes.
            let elsewhere = common < peer_frame.raw.len()
                && (must_cut || later.is_some_and(|later| later.raw.starts_with(read)));
            let is_read = same && !(may_cut && (common == 0 || elsewhere));
            if is_read && common == peer_frame.raw.len() && must_cut {
                return Err(format!(
                    "(d) the handler read a pong to the layer's ping, arrived {arrived:?}"
                ));
            }
            if !is_read && !may_cut {
                return Err(format!(
                    "(d) the handler did not read the peer's frame {opcode:#x} at {from}, \
                     arrived {arrived:?}, at byte {offset} of its input"
                ));
            }
            let read_from = is_read.then_some(offset);
            self.inbound_frames.push(Span {
                from,
                to,
                opcode,
                fin: peer_frame.raw[0] & 0x80 != 0,
                complete: true,
            });
            self.peer_frames.push(PeerFrame {
                from,
                to,
                opcode,
                answers_ping: answers,
                maybe_pong_to_layer: pong && peer_frame.payload.len() == PING_PAYLOAD_BYTES,
                read_from,
            });
            if is_read {
                self.for_handler.push(self.peer_frames.len() - 1);
                read = &read[common..];
                offset += peer_frame.raw.len();
            }
        }
        match read {
            [] => Ok(()),
            more => Err(format!(
                "(d) the handler read {} bytes that the peer did not send",
                more.len()
            )),
        }
    }

    /// How many of the peer's first `count` bytes the handler can read when they have arrived.
    pub(crate) fn handler_bytes(&self, count: usize) -> usize {
        self.handler_bytes_at_most(self.released(count))
    }

    /// `count`, less the bytes of a pong that is held back until it is known whose ping it answers.
    fn released(&self, count: usize) -> usize {
        let place = self.peer_frames.partition_point(|frame| frame.to <= count);
        match self.peer_frames.get(place) {
            Some(frame) if frame.from < count && frame.needs(0) > count => frame.from,
            _ => count,
        }
    }

    /// As [`handler_bytes`](Self::handler_bytes), if the wrapper held nothing back.
    pub(crate) fn handler_bytes_at_most(&self, count: usize) -> usize {
        let place = self.peer_frames.partition_point(|frame| frame.to <= count);
        if let Some(frame) = self
            .peer_frames
            .get(place)
            .filter(|frame| frame.from < count)
        {
            if let Some(read_from) = frame.read_from {
                return read_from + count - frame.from;
            }
        }
        let before = self.for_handler.partition_point(|index| *index < place);
        let last = before
            .checked_sub(1)
            .map(|last| self.peer_frames[self.for_handler[last]]);
        last.map_or(0, |frame| {
            frame.read_from.unwrap_or(0) + frame.to - frame.from
        })
    }

    /// How many of the peer's first `count` bytes the handler had not read when the last one
    /// arrived.
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
        self.handler_bytes_at_most(count).saturating_sub(read)
    }

    /// When the byte at `offset` of the handler's input became readable. A pong is readable once it
    /// is complete.
    pub(crate) fn arrival_of(&self, arrivals: &Times, offset: usize) -> Option<u64> {
        let place = self.for_handler.partition_point(|place| {
            self.peer_frames[*place]
                .read_from
                .is_some_and(|from| from <= offset)
        });
        let frame = self.peer_frames[*self.for_handler.get(place.checked_sub(1)?)?];
        let read_from = frame.read_from?;
        arrivals
            .reached(frame.needs(offset - read_from))
            .map(|(_, at)| at)
    }

    /// Whether the first `count` bytes that the handler wrote end inside a message.
    pub(crate) fn is_half_sent(&self, count: usize) -> bool {
        let place = self.boundaries.partition_point(|end| *end <= count);
        let begun = self.boundaries[..place]
            .last()
            .is_none_or(|end| *end < count);
        let whole = self.outbound_frames[..place.min(self.outbound_frames.len())]
            .iter()
            .rev();
        begun && count > 0
            || whole
                .clone()
                .find(|frame| frame.is_data())
                .is_some_and(|frame| !frame.fin)
    }

    /// Whether the peer's first `count` bytes show that a frame is malformed.
    pub(crate) fn shows_malformed(&self, count: usize) -> bool {
        self.malformed
            .is_some_and(|from| count >= from + MALFORMED_HEADER_BYTES)
    }

    /// The earliest time from `at` on at which the process is not in a standstill.
    pub(crate) fn observed_at(&self, at: u64) -> u64 {
        self.standstills
            .iter()
            .fold(at, |at, (from, to)| match *from <= at {
                true => at.max(*to),
                false => at,
            })
    }

    /// Begin of the standstill that ended at `at`, if one did.
    pub(crate) fn standstill_ending_at(&self, at: u64) -> Option<u64> {
        let standstills = self.standstills.iter().filter(|(_, to)| *to == at);
        standstills.map(|(from, _)| *from).min()
    }

    /// Total duration of the standstills between two times.
    pub(crate) fn standstill_between(&self, from: u64, to: u64) -> u64 {
        (self.standstills.iter())
            .map(|(begun, ended)| (*ended).min(to).saturating_sub(from.max(*begun)))
            .sum()
    }
}
