//! The promises against random histories.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::random::{Event, data, gap, heartbeats, idles};
use super::*;

// ---- the verdict ---------------------------------------------------------------------------------

/// What a pencil and the promises say of a connection that nobody is blind to and whose transport
/// takes everything: every clock is a moment plus a duration, and the earliest one strikes.
#[derive(Debug)]
struct Pencil<'a> {
    heartbeat: &'a HeartbeatPolicy,
    idle: &'a IdlePolicy,
    life: Moment,
    data_in: Moment,
    data_out: Moment,
    /// Since when a message goes on.
    message_in: Option<Moment>,
    message_out: Option<Moment>,
    spoken: bool,
    backlog: Option<Moment>,
    closing: Option<Moment>,
}

impl Pencil<'_> {
    fn strikes(&self) -> (Moment, Reason) {
        if let Some(since) = self.closing {
            return (since + self.heartbeat.close_timeout, Reason::CloseTimeout);
        }
        let missed = self.heartbeat.missed_pings;
        let bound = self.heartbeat.interval + self.heartbeat.timeout * missed;
        let never = Duration::MAX;
        let within = self.idle.message_timeout.unwrap_or(never);
        let ends = |message: Option<Moment>| message.map_or(Moment::NEVER, |since| since + within);
        let (data, message) = match self.idle.watch {
            Traffic::Inbound => (self.data_in, ends(self.message_in)),
            Traffic::Outbound => (self.data_out, ends(self.message_out)),
            Traffic::Either => (
                self.data_in.max(self.data_out),
                ends(self.message_in).min(ends(self.message_out)),
            ),
        };
        let first = if self.spoken {
            None
        } else {
            self.idle.first_message
        };
        let stall = self.heartbeat.handler_stall_timeout.unwrap_or(never);
        // Of equal ones, `min_by_key` takes the first.
        [
            (
                Moment::START + self.idle.max_lifetime.unwrap_or(never),
                Reason::MaxLifetime,
            ),
            (
                Moment::START + first.unwrap_or(never),
                Reason::FirstMessageTimeout,
            ),
            (message, Reason::MessageTimeout),
            (data + self.idle.timeout, Reason::IdleTimeout),
            (
                self.backlog.map_or(Moment::NEVER, |since| since + stall),
                Reason::HandlerStalled,
            ),
            (self.life + bound, Reason::HeartbeatTimeout { missed }),
        ]
        .into_iter()
        .min_by_key(|(when, _)| *when)
        .unwrap()
    }

    /// Report an event; `Some` if it ends the connection.
    fn meets(&mut self, now: Moment, event: Event) -> Option<Reason> {
        match event {
            Event::Bytes { .. } => self.life = now,
            Event::DataIn(data) => {
                self.data_in = now;
                self.spoken |= data != Data::Part;
                let goes_on = data == Data::Part;
                self.message_in = self.message_in.or(Some(now)).filter(|_| goes_on);
            }
            Event::DataOut(data) => {
                self.data_out = now;
                let goes_on = data == Data::Part;
                self.message_out = self.message_out.or(Some(now)).filter(|_| goes_on);
            }
            Event::BytesWait => self.backlog = self.backlog.or(Some(now)),
            Event::HandlerRead { rest } => {
                self.backlog = self.backlog.and(rest.then_some(now));
            }
            Event::ServerClosed => self.closing = self.closing.or(Some(now)),
            Event::Ends(reason @ Reason::Kicked { .. }) => return Some(reason),
            Event::Ends(_) if self.closing.is_some() => {
                return Some(Reason::ServerClosed { code: Some(1000) });
            }
            Event::Ends(reason) => return Some(reason),
            _ => {}
        }
        None
    }
}

fn something() -> impl Strategy<Value = Event> {
    let end = prop_oneof![
        Just(Reason::PeerClosed { code: Some(1001) }),
        Just(Reason::PeerVanished),
        Just(Reason::Transport(std::io::ErrorKind::BrokenPipe)),
        Just(Reason::HandlerDropped),
        Just(Reason::Kicked { code: 4000 }),
    ];
    prop_oneof![
        12 => any::<bool>().prop_map(|mid_frame| Event::Bytes { mid_frame }),
        8 => data().prop_map(Event::DataIn),
        8 => data().prop_map(Event::DataOut),
        8 => Just(Event::Accepted { rest: true }),
        2 => Just(Event::BytesWait),
        4 => any::<bool>().prop_map(|rest| Event::HandlerRead { rest }),
        1 => end.prop_map(Event::Ends),
        1 => Just(Event::ServerClosed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn the_verdict_is_what_a_pencil_says(
        mut heartbeat in heartbeats(),
        idle in idles(),
        history in prop::collection::vec((gap(), something()), 0..60),
    ) {
        heartbeat.jitter = 0.0;
        heartbeat.proof_of_life = ProofOfLife::AnyBytes;
        let mut pencil = Pencil {
            heartbeat: &heartbeat,
            idle: &idle,
            life: Moment::START,
            data_in: Moment::START,
            data_out: Moment::START,
            message_in: None,
            message_out: None,
            spoken: false,
            backlog: None,
            closing: None,
        };
        let mut line = Line::new(Policy {
            heartbeat: Some(Arc::new(heartbeat.clone())),
            idle: Some(Arc::new(idle.clone())),
        });
        let mut now = Moment::START;
        let mut expected = None;
        let mut actual = None;
        for (gap, event) in history {
            now = now + Duration::from_nanos(gap);
            if expected.is_none() {
                let strike = pencil.strikes();
                expected = if strike.0 < now {
                    Some(strike)
                } else {
                    pencil.meets(now, event).map(|reason| (now, reason))
                };
            }
            line.run_before(now);
            line.meets(event);
            // A verdict within the run is taken late, and its own time is in the log.
            let verdict = line.monitor.lifecycle.take_verdict();
            prop_assert!(actual.is_none() || verdict.is_none(), "two verdicts");
            actual = actual.or(verdict);
        }
        let (when, reason) = expected.unwrap_or_else(|| pencil.strikes());
        line.run_before(now.max(when) + Duration::from_nanos(1));
        let last = line.monitor.lifecycle.take_verdict();
        prop_assert!(actual.is_none() || last.is_none(), "two verdicts");
        prop_assert_eq!(actual.or(last), Some(reason));
        let logged = line.log.iter().find(|(_, act)| matches!(act, Act::End(_)));
        if let Some(end) = logged {
            let millis = when.since_start().as_millis() as u64;
            prop_assert_eq!(end, &(millis, Act::End(reason)));
        }
    }
}

// ---- life and death ------------------------------------------------------------------------------

/// How a peer answers when it comes to it.
#[derive(Clone, Copy, Debug)]
enum Answers {
    All,
    Oldest,
    Newest,
}

#[derive(Clone, Debug)]
struct Peer {
    answers: Answers,
    /// From the first ping of a silence to the answer, as a share of the patience it meets.
    delays: Vec<f64>,
    /// It dies after so many answers.
    dies_after: usize,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 500 }, failure_persistence: None, ..Default::default() })]

    /// With any driver that is a little late and any transport that takes its time, a peer that
    /// answers in time lives, and one that has died is evicted in time.
    #[test]
    fn the_living_live_and_the_dead_are_found(
        mut heartbeat in heartbeats(),
        random in 0.0..1.0_f32,
        peer in (
            prop_oneof![Just(Answers::All), Just(Answers::Oldest), Just(Answers::Newest)],
            prop::collection::vec(0.0..0.999_f64, 1..20),
            0..20_usize,
        ).prop_map(|(answers, delays, dies_after)| Peer { answers, delays, dies_after }),
        late in 0.0..1.0_f64,
        flush in 0..2_000_u64,
    ) {
        heartbeat.handler_stall_timeout = None;
        let (interval, timeout) = (heartbeat.interval, heartbeat.timeout);
        let missed = heartbeat.missed_pings;
        let mut line = Line::jittered(
            Policy { heartbeat: Some(Arc::new(heartbeat)), idle: None },
            random,
        );
        line.flushes = false;
        let tick = ms(line.policy.step_millis().into()).mul_f64(late);
        let flush = ms(flush);
        let (mut alive, mut life) = (peer.dies_after > 0, Moment::START);
        let mut answers = 0;
        let mut crossed = false;
        // What is on its way: the flush of a ping, and the peer's answer to what is out.
        let mut flushing: Option<Moment> = None;
        let mut answering: Option<Moment> = None;
        let mut out = VecDeque::new();
        let mut shown = 0;
        for _ in 0..2_000 {
            let due = line.deadline();
            let due = if due == Moment::NEVER { due } else { due + tick };
            let next = due
                .min(flushing.unwrap_or(Moment::NEVER))
                .min(answering.unwrap_or(Moment::NEVER));
            prop_assert!(next < Moment::NEVER, "everybody waits for ever");
            line.now = line.now.max(next);
            if answering == Some(next) {
                let payloads: Vec<_> = match peer.answers {
                    Answers::All => out.drain(..).collect(),
                    Answers::Oldest => out.drain(..).take(1).collect(),
                    Answers::Newest => out.drain(..).rev().take(1).collect(),
                };
                for payload in payloads {
                    prop_assert!(line.monitor.pong(line.now, Duration::ZERO, Duration::ZERO, payload, &line.policy).is_some());
                }
                line.hears();
                life = line.now;
                // A ping that goes out now was asked for before this sign of life.
                crossed = flushing.is_some();
                answering = None;
                answers += 1;
                alive = answers < peer.dies_after;
            } else if flushing == Some(next) {
                line.flush();
                out.push_back(line.payloads[line.payloads.len() - 1]);
                flushing = None;
                if alive && answering.is_none() {
                    let patience = timeout * missed;
                    let share = peer.delays[answers % peer.delays.len()];
                    answering = Some(line.now + patience.mul_f64(share));
                }
            } else {
                line.act();
                if line.payloads.len() > shown {
                    shown = line.payloads.len();
                    flushing = Some(line.now + flush);
                }
            }
            if line.monitor.is_over() {
                break;
            }
        }
        prop_assert!(!alive, "a living peer was declared dead");
        prop_assert!(line.monitor.is_over(), "the dead peer was never found");
        prop_assert_eq!(line.monitor.lifecycle.take_verdict(), Some(Reason::HeartbeatTimeout { missed }));
        let silence = line.now.since(life);
        let bound = interval + timeout * missed;
        let delay = (tick + flush) * (missed + 1);
        prop_assert!(silence <= bound + delay, "{:?} > {:?} + {:?}", silence, bound, delay);
        let least = match answers {
            _ if crossed => timeout * missed,
            0 => bound - interval / 2,
            _ => bound,
        };
        prop_assert!(silence + ms(1) > least, "{:?} < {:?}", silence, least);
    }
}
