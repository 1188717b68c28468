//! Draws the plan of a schedule from its seed.

use std::io::ErrorKind;

use tower_ws_liveness::Traffic;

use super::handle_calls::{self, HandleCall};
use super::plan::{
    ALL, Act, Answers, Config, Fault, Handler, Idle, Link, Malformed, Masks, Net, Peer, Plan,
    Spends, Step,
};
use super::rng::Rng;
use super::script::{CLOSE, PING, PONG};

impl Plan {
    pub(crate) fn draw(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let config = Config::draw(rng);
        let duration =
            config.silence_bound() * rng.range(2, 6) + config.timeout * rng.pick(&[1, 12]) + 100;
        let calm = rng.percent(30);
        let mut net = Net::draw(rng, &config, duration, calm);
        let standstills: Vec<_> = (0..rng.pick(&[0, 0, 0, 1, 1, 2]))
            .map(|_| {
                let most = 2 * config.silence_bound() + rng.pick(&[1, 300]);
                (rng.below(duration), 1 + rng.below(most))
            })
            .collect();
        if rng.percent(50) {
            // The whole machine is suspended, so that the network stalls, too.
            let stalls = standstills.iter();
            net.faults
                .extend(stalls.map(|(at, span)| (*at, Fault::StallBoth(*span + 1))));
        }
        let mut plan = Self {
            seed,
            peer: Peer::draw(rng, &config, duration, calm),
            handler: Handler::draw(rng, &config),
            handle_calls: handle_calls::draw(&mut Rng::new(!seed), &config, duration),
            config,
            net,
            standstills,
            duration,
        };
        if Rng::new(seed.rotate_left(32)).percent(4) {
            plan.use_slow_outbound_link(&mut Rng::new(seed ^ 0x5A5A));
        }
        let rng = &mut Rng::new(seed ^ 0x1D1E_1D1E);
        if rng.percent(25) {
            plan.add_idle_layer(rng);
            plan.vary_lifetime(&mut Rng::new(seed ^ 0x11FE_11FE));
        }
        let lifetimes = &mut Rng::new(seed ^ 0xE4B1_4E4B);
        let calls = handle_calls::draw_lifetimes(lifetimes, plan.duration);
        plan.handle_calls.extend(calls);
        plan.handle_calls.sort_by_key(|(at, _)| *at);
        plan.peer.answers_fin = Rng::new(seed ^ 0xF1F1_F1F1).percent(70);
        plan.add_rare_kinds(&mut Rng::new(seed ^ 0x0DD5_0DD5));
        if plan.config.idle.is_some() {
            // Faults begin after the opening handshake.
            for (at, _) in &mut plan.net.faults {
                *at = (*at).max(1);
            }
        }
        plan.limit_lengths();
        plan
    }

    /// Adds an idle layer beside or in place of the heartbeat, with messages that arrive slowly or
    /// exceed the read-ahead.
    fn add_idle_layer(&mut self, rng: &mut Rng) {
        let config = &mut self.config;
        let idle = Idle::draw(rng, config.silence_bound());
        config.idle = Some(idle);
        if rng.percent(20) {
            config.heartbeat = false;
            (config.write_timeout, config.stall_timeout) = (None, None);
            config.control_limit = None;
            let pings = |(_, call): &(u64, HandleCall)| {
                matches!(call, HandleCall::Ping { .. } | HandleCall::Often { .. })
            };
            self.handle_calls.retain(pings);
        }
        let mut send = |at, len, parts, pace| {
            let control = false;
            let message = Act::Message {
                len,
                parts,
                control,
                pace,
            };
            self.peer.acts.push((at, message));
        };
        if idle.message_timeout.is_some() && rng.percent(60) {
            let len = rng.range(126, 2_000) as usize;
            send(rng.below(self.duration / 2), len, rng.pick(&[1, 3]), 1);
        }
        if rng.percent(20) {
            send(rng.below(50), rng.range(10_000, 20_000) as usize, 2, ALL);
        }
        self.peer.acts.sort_by_key(|(at, _)| *at);
    }

    /// Gives some idle layers a jitter of the lifetime, or no idle timeout.
    fn vary_lifetime(&mut self, rng: &mut Rng) {
        if let Some(idle) = &mut self.config.idle {
            idle.lifetime_jitter = rng.pick(&[0.0, 0.1, 0.5, 1.0]);
            if rng.percent(15) {
                idle.timeout = None;
            }
        }
    }

    /// Gives some schedules less usual transports, peers and handlers.
    fn add_rare_kinds(&mut self, rng: &mut Rng) {
        if rng.percent(12) {
            (self.net.claims, self.net.vectored, self.net.buffered) = (true, false, None);
        }
        if rng.percent(25) {
            self.net.cooperative = rng.percent(50);
            self.handler.spends = match self.net.cooperative {
                true => Spends::Once,
                false => rng.pick(&[Spends::Once, Spends::Often]),
            };
        }
        if rng.percent(12) {
            self.peer.masks = rng.pick(&[Masks::Some, Masks::None]);
        }
        if rng.percent(8) {
            for _ in 0..rng.pick(&[1, 1, 3]) {
                let malformed = Malformed::draw(rng);
                let act = (rng.below(self.duration), Act::Malformed(malformed));
                self.peer.acts.push(act);
            }
            self.peer.acts.sort_by_key(|(at, _)| *at);
        }
    }

    /// Makes the outbound link so slow that a ping waits in it for longer than its timeout. The
    /// only sign of life is that the peer drains bytes.
    fn use_slow_outbound_link(&mut self, rng: &mut Rng) {
        let rate = rng.pick(&[10, 20, 40]);
        self.net.outbound = Link {
            latency: rng.pick(&[0, 3]),
            rate,
            burst: rng.pick(&[30, 40, 60]),
            capacity: self.config.timeout as usize * rate * 3,
            step: ALL,
        };
        self.net.buffered = None;
        self.config.write_timeout = None;
        self.peer.answers = Answers::All;
        self.peer.acts.retain(|_| rng.percent(10));
        let steady = Step::Steady {
            every: rng.pick(&[1, 5, 20]),
            len: rng.range(100, 2_000) as usize,
        };
        self.handler.tasks = vec![vec![Step::ReadOn { size: 4_096 }], vec![steady]];
        self.duration += 8 * self.config.timeout;
    }

    /// Limits lengths where reads or writes are small: many small steps cost time and test nothing
    /// new.
    fn limit_lengths(&mut self) {
        let net = &self.net;
        let steps = self.handler.tasks.iter_mut().flatten();
        let smallest = steps.filter_map(|step| match step {
            Step::Read { size, .. } | Step::ReadOnce { size } | Step::ReadOn { size } => {
                Some(*size)
            }
            _ => None,
        });
        let small = net
            .inbound
            .step
            .min(net.inbound.capacity)
            .min(smallest.min().unwrap_or(ALL));
        for (_, act) in &mut self.peer.acts {
            match act {
                Act::Message { len, pace, .. } => {
                    *len = (*len).min(small.min(*pace).saturating_mul(30))
                }
                Act::Steady { len, .. } => *len = (*len).min(small.saturating_mul(10)),
                Act::Flood(count) => *count = (*count).min(small.saturating_mul(10)),
                _ => {}
            }
        }
        let small = net.outbound.step.min(net.outbound.capacity);
        for step in self.handler.tasks.iter_mut().flatten() {
            match step {
                Step::Write { len, piece, .. } => {
                    *len = (*len).min(small.min(*piece).saturating_mul(60));
                }
                Step::TryWrite { len, .. } | Step::Begin { len, .. } => {
                    *len = (*len).min(small.saturating_mul(60));
                }
                Step::Steady { len, every } => {
                    *len = (*len).min(small.saturating_mul(*every as usize))
                }
                _ => {}
            }
        }
    }
}

impl Config {
    fn draw(rng: &mut Rng) -> Self {
        let stall_on = rng.percent(40);
        let write_on = rng.percent(80);
        Self {
            interval: Self::interval(rng),
            timeout: Self::timeout(rng),
            missed: rng.pick(&[1, 1, 1, 2, 3]),
            matching: rng.percent(35),
            write_timeout: write_on.then(|| rng.pick(&[20, 60, 150, 400])),
            stall_timeout: stall_on.then(|| rng.pick(&[20, 60, 200, 500])),
            close_timeout: rng.pick(&[10, 50, 200]),
            jitter: rng.pick(&[0.0, 0.0, 0.5, 1.0]),
            control_limit: rng.pick(&[None, None, None, None, Some(4), Some(20)]),
            heartbeat: true,
            idle: None,
        }
    }

    pub(crate) fn interval(rng: &mut Rng) -> u64 {
        rng.pick(&[8, 20, 50, 100, 200, 400]) + rng.below(7)
    }

    pub(crate) fn timeout(rng: &mut Rng) -> u64 {
        rng.pick(&[8, 25, 50, 100, 200]) + rng.below(7)
    }

    /// Time from the last sign of life to the eviction.
    pub(crate) fn silence_bound(&self) -> u64 {
        self.interval + self.timeout * self.missed
    }
}

impl Idle {
    /// Times close to the `silence_bound` of the heartbeat, so that either layer may find a silence
    /// first.
    fn draw(rng: &mut Rng, silence_bound: u64) -> Self {
        let time = |rng: &mut Rng| {
            rng.pick(&[
                silence_bound / 4,
                silence_bound / 2,
                silence_bound,
                silence_bound * 2,
            ]) + 4
                + rng.below(7)
        };
        Self {
            timeout: Some(time(rng) * rng.pick(&[1, 2, 4])),
            watch: rng.pick(&[Traffic::Either, Traffic::Inbound, Traffic::Outbound]),
            first_message: rng.percent(25).then(|| time(rng)),
            message_timeout: (rng.percent(60))
                .then(|| rng.pick(&[10, 30, 60, silence_bound]) + rng.below(7)),
            max_lifetime: rng.percent(25).then(|| time(rng) * 2),
            lifetime_jitter: 0.0,
            outside: rng.percent(50),
        }
    }
}

impl Net {
    fn draw(rng: &mut Rng, config: &Config, duration: u64, calm: bool) -> Self {
        let count = if calm { 0 } else { rng.pick(&[0, 1, 1, 1, 2]) };
        let mut faults: Vec<_> = (0..count)
            .map(|_| (rng.below(duration), Fault::draw(rng, config)))
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            inbound: Link::draw(rng, config, calm),
            outbound: Link::draw(rng, config, calm),
            vectored: rng.percent(50),
            buffered: rng.percent(25).then(|| rng.pick(&[0, 0, 1, 5])),
            shutdown_waits: rng.percent(15),
            claims: false,
            cooperative: false,
            faults,
        }
    }
}

impl Link {
    fn draw(rng: &mut Rng, config: &Config, calm: bool) -> Self {
        let near = config.timeout / 4;
        let slow = if calm { near } else { config.timeout + 5 };
        Self {
            latency: rng.pick(&[0, 0, 1, 3, near, near, near, slow]),
            rate: rng.pick(&[ALL, ALL, ALL, 1_000, 200, 20]),
            burst: rng.pick(&[4, 4, 30]),
            capacity: rng.pick(&[1 << 16, 1 << 16, 1 << 20, 4_096, 64, 10]),
            step: rng.pick(&[ALL, ALL, ALL, 1, 3, 100, 1_500]),
        }
    }
}

impl Fault {
    fn draw(rng: &mut Rng, config: &Config) -> Self {
        let span = 1 + rng.below(config.silence_bound() * 3 / 2);
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::TimedOut];
        match rng.below(14) {
            0 => Self::StallIn(span),
            1 => Self::StallOut(span),
            2 | 3 => Self::StallBoth(span),
            4 | 5 => Self::BlackholeIn,
            6 | 7 => Self::BlackholeOut,
            8..=10 => Self::BlackholeBoth,
            11 => Self::Kill,
            12 => Self::HalfClose,
            _ => Self::Reset(rng.pick(&kinds)),
        }
    }
}

fn len(rng: &mut Rng) -> usize {
    let (low, high) = rng.pick(&[
        (0, 5),
        (1, 125),
        (1, 125),
        (1, 125),
        (120, 130),
        (126, 2_000),
        (126, 2_000),
        (2_000, 20_000),
    ]);
    let (low, high) = if rng.percent(1) {
        (65_530, 65_600)
    } else {
        (low, high)
    };
    rng.range(low, high) as usize
}

impl Peer {
    fn draw(rng: &mut Rng, config: &Config, duration: u64, calm: bool) -> Self {
        use Answers::{All, Backwards, BehindData, Dribbled, Forged, Never, Newest, Oldest, Twice};
        let count = rng.pick(&[0, 0, 1, 3, 10, 25]);
        let mut acts: Vec<_> = (0..count)
            .map(|_| (rng.below(duration), Act::draw(rng, config, calm)))
            .collect();
        acts.sort_by_key(|(at, _)| *at);
        let odd = !calm && rng.percent(15);
        let kind = rng.pick(&[
            All, All, All, Backwards, Newest, Oldest, Twice, Dribbled, BehindData,
        ]);
        Self {
            answers: if odd {
                rng.pick(&[Forged, Never])
            } else {
                kind
            },
            reaction: rng.pick(&[0, 0, 1, config.timeout / 4]),
            answers_close: rng.percent(75),
            answers_fin: false,
            masks: Masks::All,
            acts,
        }
    }
}

impl Act {
    fn draw(rng: &mut Rng, config: &Config, calm: bool) -> Self {
        match rng.below(if calm { 80 } else { 100 }) {
            0..50 => Self::Message {
                len: len(rng),
                parts: rng.pick(&[1, 1, 2, 5]),
                control: rng.percent(50),
                pace: rng.pick(&[ALL, ALL, ALL, 1, 10, 100]),
            },
            50..58 => Self::Steady {
                every: 1 + rng.below(config.timeout),
                len: rng.below(200) as usize,
                times: rng.range(2, 30),
            },
            58..68 => Self::Ping,
            68..75 => Self::Pong,
            75..80 => Self::Flood(rng.range(10, 200) as usize),
            80..88 => Self::Close {
                code: rng.pick(&[None, Some(1000), Some(4321)]),
                fin: rng.percent(50),
            },
            88..96 => Self::Freeze(Some(1 + rng.below(config.silence_bound() * 2))),
            _ => Self::Freeze(None),
        }
    }
}

impl Malformed {
    fn draw(rng: &mut Rng) -> Self {
        let control = rng.pick(&[CLOSE, PING, PONG]);
        match rng.below(4) {
            0 => Self::ReservedOpcode(rng.pick(&[0x3, 0x7, 0xB, 0xF])),
            1 => Self::OversizedControl(control),
            2 => Self::FragmentedControl(control),
            _ => Self::LengthTopBit,
        }
    }
}

impl Handler {
    fn draw(rng: &mut Rng, config: &Config) -> Self {
        let mut reads = match rng.percent(40) {
            true => Vec::new(),
            false => (0..rng.below(6))
                .map(|_| Step::draw_read(rng, config))
                .collect(),
        };
        let mut writes: Vec<_> = match rng.percent(30) {
            true => Vec::new(),
            false => (0..rng.below(8))
                .map(|_| Step::draw_write(rng, config))
                .collect(),
        };
        let reads_last = match rng.below(10) {
            0 => Step::Stop,
            1 => Step::Drop,
            _ => Step::ReadOn { size: size(rng) },
        };
        let tasks = if rng.percent(55) {
            writes.push(match rng.percent(30) {
                true => Step::Steady {
                    every: rng.pick(&[5, 30, 100]),
                    len: rng.below(300) as usize,
                },
                false => Step::Stop,
            });
            reads.push(reads_last);
            vec![reads, writes]
        } else {
            let mut steps = Vec::new();
            while !reads.is_empty() || !writes.is_empty() {
                let from = if rng.percent(50) {
                    &mut reads
                } else {
                    &mut writes
                };
                if !from.is_empty() {
                    steps.push(from.remove(0));
                }
            }
            steps.push(reads_last);
            vec![steps]
        };
        Self {
            tasks,
            linger_ms: rng.pick(&[0, 0, 0, 30, 1_000]),
            spends: Spends::Never,
        }
    }
}

fn size(rng: &mut Rng) -> usize {
    rng.pick(&[1, 5, 100, 4_096, 4_096, 1 << 16])
}

impl Step {
    fn draw_read(rng: &mut Rng, config: &Config) -> Self {
        match rng.below(10) {
            0..3 => Self::Read {
                span: 1 + rng.below(config.silence_bound()),
                size: size(rng),
            },
            3..5 => Self::ReadOnce { size: size(rng) },
            5..9 => Self::Busy(busy(rng, config)),
            _ => Self::Stop,
        }
    }

    fn draw_write(rng: &mut Rng, config: &Config) -> Self {
        match rng.below(100) {
            0..45 => Self::Write {
                len: len(rng),
                parts: rng.pick(&[1, 1, 1, 3]),
                piece: rng.pick(&[ALL, ALL, 1 << 10, 100]),
                gap: rng.pick(&[0, 0, 1, 7]),
            },
            45..55 => Self::TryWrite {
                len: len(rng),
                cancel_after: 1 + rng.below(20),
            },
            55..62 => Self::Begin {
                len: len(rng) + 1,
                cut: rng.range(1, 3) as usize,
            },
            62..87 => Self::Busy(busy(rng, config)),
            87..92 => Self::Kick(rng.pick(&[1001, 4000, 999])),
            92..96 => Self::Close(rng.pick(&[None, Some(1000), Some(3999)])),
            96..97 => Self::Shutdown,
            97..99 => Self::Stop,
            _ => Self::Drop,
        }
    }
}

fn busy(rng: &mut Rng, config: &Config) -> u64 {
    let most = rng.pick(&[
        5,
        config.interval,
        config.silence_bound(),
        10 * config.timeout,
    ]);
    1 + rng.below(most)
}
