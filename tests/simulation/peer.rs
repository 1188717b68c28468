//! The scripted peer: what it sends by itself, and how it answers pings.

use std::mem::take;

use super::log::Event;
use super::plan::{self, ALL, Act, Answers, Malformed, Masks, Plan};
use super::script::{BINARY, CLOSE, CONTINUATION, PING, PONG, Parsed, TEXT, frame, parse};
use super::world::{Timer, World};

/// The opcode of what is no frame.
pub(crate) const MALFORMED: u8 = u8::MAX;

/// A frame that the peer sent, or what it sent in place of one.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
    pub(crate) raw: Vec<u8>,
}

pub(crate) struct Peer {
    plan: plan::Peer,
    heard: Vec<u8>,
    /// So many bytes are needed before `heard` holds a whole frame.
    wants: usize,
    pings: Vec<Vec<u8>>,
    answers_soon: bool,
    /// Whether the program is stopped, and what it would have done meanwhile.
    frozen: Option<Vec<Timer>>,
    closed: bool,
    /// The newest ping of all, for those who answer it again.
    spare: Option<Vec<u8>>,
}

impl Peer {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.peer.clone(),
            heard: Vec::new(),
            wants: 2,
            pings: Vec::new(),
            answers_soon: false,
            frozen: None,
            closed: false,
            spare: None,
        }
    }

    pub(crate) fn frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub(crate) fn fire(&mut self, world: &mut World, timer: Timer) {
        if let Timer::Thaw = timer {
            world.log(Event::PeerGoesOn);
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
                self.say(world, 0x80 | TEXT, &payload, ALL);
                if left > 1 {
                    let left = left - 1;
                    world.set(world.clock + every, Timer::Steady { every, len, left });
                }
            }
            Timer::Answer => self.answer(world),
            Timer::CloseBack => {
                self.say(world, 0x80 | CLOSE, &1000_u16.to_be_bytes(), ALL);
                self.closed = true;
                world.hang_up();
            }
            Timer::HangUp => world.hang_up(),
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
                    // A whole message, and so one with RSV1, as of permessage-deflate.
                    let rsv = if parts == 1 && len % 3 == 0 { 0x40 } else { 0 };
                    self.say(world, fin | rsv | opcode, &payload, pace);
                    if control && part + 1 < parts {
                        let opcode = world.rng.pick(&[PING, PONG]);
                        let len = world.rng.pick(&[0, 8, 8, 125]);
                        let payload = world.rng.bytes(len);
                        self.say(world, 0x80 | opcode, &payload, pace);
                    }
                }
            }
            Act::Steady { every, len, times } => {
                let left = times;
                world.set(world.clock, Timer::Steady { every, len, left });
            }
            Act::Ping => self.say(world, 0x80 | PING, b"are you?", ALL),
            Act::Pong => {
                let forged = world.rng.bytes(8);
                self.say(world, 0x80 | PONG, &forged, ALL);
            }
            Act::Flood(count) => {
                for n in 0..count {
                    let opcode = if n % 3 == 0 { PING } else { PONG };
                    let payload = world.rng.bytes(n % 10);
                    self.say(world, 0x80 | opcode, &payload, ALL);
                }
            }
            Act::Close { code, fin } => {
                let body = code.map(u16::to_be_bytes);
                self.say(
                    world,
                    0x80 | CLOSE,
                    body.as_ref().map_or(&[], |body| body),
                    ALL,
                );
                self.closed = true;
                if fin {
                    world.hang_up();
                }
            }
            Act::Malformed(malformed) => self.babble(world, malformed),
            Act::Freeze(span) => {
                world.log(Event::PeerStops);
                self.frozen = Some(Vec::new());
                if let Some(span) = span {
                    world.set(world.clock + span, Timer::Thaw);
                }
            }
        }
    }

    pub(crate) fn hear(&mut self, world: &mut World, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        while self.heard.len() >= self.wants {
            self.wants = whole(&self.heard);
            if self.heard.len() < self.wants {
                break;
            }
            let rest = self.heard.split_off(self.wants);
            let bytes = std::mem::replace(&mut self.heard, rest);
            self.wants = 2;
            for heard in parse(&bytes).0 {
                self.heard(world, heard);
            }
        }
    }

    fn heard(&mut self, world: &mut World, heard: Parsed) {
        world.log(Event::PeerHears(heard.opcode(), heard.payload.len()));
        match heard.opcode() {
            PING => {
                self.pings.push(heard.payload);
                if !self.answers_soon {
                    self.answers_soon = true;
                    world.set(world.clock + self.plan.reaction, Timer::Answer);
                }
            }
            CLOSE if self.plan.closes_back && !self.closed => {
                world.set(world.clock + self.plan.reaction, Timer::CloseBack);
            }
            _ => {}
        }
    }

    fn answer(&mut self, world: &mut World) {
        self.answers_soon = false;
        let mut pings = take(&mut self.pings);
        let newest = pings.last().cloned();
        match self.plan.answers {
            Answers::Never => pings.clear(),
            Answers::Newest => pings.drain(..pings.len().saturating_sub(1)).for_each(drop),
            Answers::Oldest => pings.truncate(1),
            Answers::Backwards => pings.reverse(),
            Answers::Twice => pings.extend(self.spare.take()),
            Answers::BehindData => {
                let payload = world.rng.bytes(30);
                self.say(world, 0x80 | TEXT, &payload, ALL);
            }
            Answers::Forged => pings.iter_mut().flatten().for_each(|byte| *byte ^= 1),
            Answers::All | Answers::Dribbled => {}
        }
        self.spare = newest;
        let pace = if self.plan.answers == Answers::Dribbled {
            1
        } else {
            ALL
        };
        for payload in pings {
            self.say(world, 0x80 | PONG, &payload, pace);
        }
    }

    fn say(&mut self, world: &mut World, first: u8, payload: &[u8], pace: usize) {
        if self.closed || world.hung_up() {
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
            Said {
                opcode,
                payload,
                raw,
            },
            pace,
        );
    }

    /// Something behind which no frame boundary can be known.
    fn babble(&mut self, world: &mut World, malformed: Malformed) {
        if self.closed || world.hung_up() {
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
            "nonsense",
            Said {
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

    fn send(&mut self, world: &mut World, name: &'static str, said: Said, pace: usize) {
        world.log(Event::PeerSends(name, said.raw.len()));
        world.post(&said.raw, pace);
        world.said.push(said);
    }
}

/// The length of the frame that `bytes` begin with, or of as much as tells it.
pub(crate) fn whole(bytes: &[u8]) -> usize {
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
