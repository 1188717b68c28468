//! The scripted peer: its own frames, and its pongs.

use std::mem::take;

use super::log::Event;
use super::plan::{self, ALL, Act, Answers, Malformed, Masks, Plan};
use super::script::{BINARY, CLOSE, CONTINUATION, PING, PONG, Parsed, TEXT, frame, parse};
use super::world::{Timer, World};

/// Pseudo-opcode of bytes that are no valid frame.
pub(crate) const MALFORMED: u8 = u8::MAX;

/// A frame that the peer sent, possibly malformed.
#[derive(Clone, Debug)]
pub(crate) struct SentFrame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
    pub(crate) raw: Vec<u8>,
}

pub(crate) struct Peer {
    plan: plan::Peer,
    received: Vec<u8>,
    /// Number of bytes that `received` needs for its first whole frame.
    needed: usize,
    pings: Vec<Vec<u8>>,
    answer_scheduled: bool,
    /// While the program is stopped: the timers that fired meanwhile.
    frozen: Option<Vec<Timer>>,
    closed: bool,
    /// The newest ping, for peers that answer it again.
    last_ping: Option<Vec<u8>>,
}

impl Peer {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.peer.clone(),
            received: Vec::new(),
            needed: 2,
            pings: Vec::new(),
            answer_scheduled: false,
            frozen: None,
            closed: false,
            last_ping: None,
        }
    }

    pub(crate) fn frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub(crate) fn fire(&mut self, world: &mut World, timer: Timer) {
        if let Timer::Thaw = timer {
            world.log(Event::PeerResumes);
            for timer in self.frozen.take().into_iter().flatten() {
                self.fire(world, timer);
            }
            return;
        }
        if let Some(missed) = &mut self.frozen {
            return missed.push(timer);
        }
        match timer {
            Timer::Act(n) => self.act(world, self.plan.acts[n].1),
            Timer::Steady { every, len, left } => {
                let payload = world.rng.bytes(len);
                self.send_frame(world, 0x80 | TEXT, &payload, ALL);
                if left > 1 {
                    let left = left - 1;
                    world.set(world.clock + every, Timer::Steady { every, len, left });
                }
            }
            Timer::Answer => self.answer(world),
            Timer::AnswerClose => {
                self.send_frame(world, 0x80 | CLOSE, &1000_u16.to_be_bytes(), ALL);
                self.closed = true;
                world.send_fin();
            }
            Timer::SendFin => world.send_fin(),
            Timer::Thaw | Timer::Fault(_) | Timer::Flushed | Timer::Reset => {}
        }
    }

    fn act(&mut self, world: &mut World, act: Act) {
        match act {
            Act::Message {
                len,
                parts,
                control,
                pace,
            } => {
                for part in 0..parts {
                    let opcode = if part == 0 { BINARY } else { CONTINUATION };
                    let fin = if part + 1 == parts { 0x80 } else { 0 };
                    let payload = world.rng.bytes(len);
                    // An unfragmented message, some with RSV1 as under permessage-deflate.
                    let rsv = if parts == 1 && len % 3 == 0 { 0x40 } else { 0 };
                    self.send_frame(world, fin | rsv | opcode, &payload, pace);
                    if control && part + 1 < parts {
                        let opcode = world.rng.pick(&[PING, PONG]);
                        let len = world.rng.pick(&[0, 8, 8, 125]);
                        let payload = world.rng.bytes(len);
                        self.send_frame(world, 0x80 | opcode, &payload, pace);
                    }
                }
            }
            Act::Steady { every, len, times } => {
                let left = times;
                world.set(world.clock, Timer::Steady { every, len, left });
            }
            Act::Ping => self.send_frame(world, 0x80 | PING, b"are you?", ALL),
            Act::Pong => {
                let forged = world.rng.bytes(8);
                self.send_frame(world, 0x80 | PONG, &forged, ALL);
            }
            Act::Flood(count) => {
                for n in 0..count {
                    let opcode = if n % 3 == 0 { PING } else { PONG };
                    let payload = world.rng.bytes(n % 10);
                    self.send_frame(world, 0x80 | opcode, &payload, ALL);
                }
            }
            Act::Close { code, fin } => {
                let body = code.map(u16::to_be_bytes);
                self.send_frame(
                    world,
                    0x80 | CLOSE,
                    body.as_ref().map_or(&[], |body| body),
                    ALL,
                );
                self.closed = true;
                if fin {
                    world.send_fin();
                }
            }
            Act::Malformed(malformed) => self.send_malformed(world, malformed),
            Act::Freeze(span) => {
                world.log(Event::PeerStops);
                self.frozen = Some(Vec::new());
                if let Some(span) = span {
                    world.set(world.clock + span, Timer::Thaw);
                }
            }
        }
    }

    pub(crate) fn receive(&mut self, world: &mut World, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        while self.received.len() >= self.needed {
            self.needed = frame_len(&self.received);
            if self.received.len() < self.needed {
                break;
            }
            let rest = self.received.split_off(self.needed);
            let bytes = std::mem::replace(&mut self.received, rest);
            self.needed = 2;
            for frame in parse(&bytes).0 {
                self.on_frame(world, frame);
            }
        }
    }

    fn on_frame(&mut self, world: &mut World, frame: Parsed) {
        world.log(Event::PeerReceives(frame.opcode(), frame.payload.len()));
        match frame.opcode() {
            PING => {
                self.pings.push(frame.payload);
                if !self.answer_scheduled {
                    self.answer_scheduled = true;
                    world.set(world.clock + self.plan.reaction, Timer::Answer);
                }
            }
            CLOSE if self.plan.answers_close && !self.closed => {
                world.set(world.clock + self.plan.reaction, Timer::AnswerClose);
            }
            _ => {}
        }
    }

    fn answer(&mut self, world: &mut World) {
        self.answer_scheduled = false;
        let mut pings = take(&mut self.pings);
        let newest = pings.last().cloned();
        match self.plan.answers {
            Answers::Never => pings.clear(),
            Answers::Newest => pings.drain(..pings.len().saturating_sub(1)).for_each(drop),
            Answers::Oldest => pings.truncate(1),
            Answers::Backwards => pings.reverse(),
            Answers::Twice => pings.extend(self.last_ping.take()),
            Answers::BehindData => {
                let payload = world.rng.bytes(30);
                self.send_frame(world, 0x80 | TEXT, &payload, ALL);
            }
            Answers::Forged => pings.iter_mut().flatten().for_each(|byte| *byte ^= 1),
            Answers::All | Answers::Dribbled => {}
        }
        self.last_ping = newest;
        let pace = if self.plan.answers == Answers::Dribbled {
            1
        } else {
            ALL
        };
        for payload in pings {
            self.send_frame(world, 0x80 | PONG, &payload, pace);
        }
    }

    fn send_frame(&mut self, world: &mut World, first: u8, payload: &[u8], pace: usize) {
        if self.closed || world.has_sent_fin() {
            return;
        }
        let opcode = first & 0xF;
        let raw = frame(first, self.key(world), payload);
        let name = match opcode {
            CONTINUATION => "a continuation",
            TEXT => "a text",
            BINARY => "a binary",
            CLOSE => "a Close",
            PING => "a ping",
            _ => "a pong",
        };
        let payload = payload.to_vec();
        self.send(
            world,
            name,
            SentFrame {
                opcode,
                payload,
                raw,
            },
            pace,
        );
    }

    /// Sends a malformed frame, after which no frame boundary can be known.
    fn send_malformed(&mut self, world: &mut World, malformed: Malformed) {
        if self.closed || world.has_sent_fin() {
            return;
        }
        let (first, len) = match malformed {
            Malformed::ReservedOpcode(opcode) => (0x80 | opcode, world.rng.range(0, 20)),
            Malformed::OversizedControl(opcode) => (0x80 | opcode, world.rng.range(126, 300)),
            Malformed::FragmentedControl(opcode) => (opcode, world.rng.range(0, 20)),
            Malformed::LengthTopBit => (0x82, world.rng.range(300, 600)),
        };
        let payload = world.rng.bytes(len as usize);
        let mut raw = frame(first, self.key(world), &payload);
        if malformed == Malformed::LengthTopBit {
            raw[1] |= 127;
            raw[2] |= 0x80;
        }
        let opcode = MALFORMED;
        self.send(
            world,
            "a malformed frame",
            SentFrame {
                opcode,
                payload,
                raw,
            },
            ALL,
        );
    }

    fn key(&self, world: &mut World) -> Option<[u8; 4]> {
        let key = world.rng.key();
        let masks = match self.plan.masks {
            Masks::All => true,
            Masks::Some => key[0] < 0x80,
            Masks::None => false,
        };
        masks.then_some(key)
    }

    fn send(&mut self, world: &mut World, name: &'static str, sent: SentFrame, pace: usize) {
        world.log(Event::PeerSends(name, sent.raw.len()));
        world.send_inbound(&sent.raw, pace);
        world.peer_sent.push(sent);
    }
}

/// Length of the first frame of `bytes`, or of the part that is needed to compute it.
pub(crate) fn frame_len(bytes: &[u8]) -> usize {
    let number = |count: usize| {
        let digits = bytes.get(2..2 + count)?;
        Some(digits.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)))
    };
    let Some(second) = bytes.get(1) else {
        return 2;
    };
    let (digits, len) = match second & 0x7F {
        126 => (2, number(2)),
        127 => (8, number(8)),
        short => (0, Some(usize::from(short))),
    };
    let key = if second & 0x80 != 0 { 4 } else { 0 };
    2 + digits + key + len.unwrap_or(0)
}
