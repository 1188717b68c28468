//! Tests the promised verdicts and their times on random histories.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::random::{Event, data, gap, heartbeats, idles};
use super::*;

// ---- the verdict --------------------------------------------------------------------------------

/// The promised verdicts for a connection whose read-ahead buffer is never full and whose transport
/// accepts all writes: each deadline is a moment plus a duration, and the earliest one applies.
#[derive(Debug)]
struct ReferenceModel<'a> {
    heartbeat: &'a HeartbeatPolicy,
    idle: &'a IdlePolicy,
    last_proof: Moment,
    data_in: Moment,
    data_out: Moment,
    /// The start of an incomplete message.
    message_in: Option<Moment>,
    message_out: Option<Moment>,
    first_message: bool,
    backlog: Option<Moment>,
    closing: Option<Moment>,
}

impl ReferenceModel<'_> {
    fn next_verdict(&self) -> (Moment, Reason) {
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
        let first = if self.first_message {
            None
        } else {
            self.idle.first_message
        };
        let stall = self.heartbeat.handler_stall_timeout.unwrap_or(never);
        // Of equal deadlines, `min_by_key` returns the first.
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
            (
                data + self.idle.timeout.unwrap_or(never),
                Reason::IdleTimeout,
            ),
            (
                self.backlog.map_or(Moment::NEVER, |since| since + stall),
                Reason::HandlerStalled,
            ),
            (self.last_proof + bound, Reason::HeartbeatTimeout { missed }),
        ]
        .into_iter()
        .min_by_key(|(when, _)| *when)
        .unwrap()
    }

    /// Applies an event. Returns the reason if it ends the connection.
    fn apply(&mut self, now: Moment, event: Event) -> Option<Reason> {
        match event {
            Event::Bytes { .. } => self.last_proof = now,
            Event::DataIn(data) => {
                self.data_in = now;
                self.first_message |= data != Data::Part;
                let continues = data == Data::Part;
                self.message_in = self.message_in.or(Some(now)).filter(|_| continues);
            }
            Event::DataOut(data) => {
                self.data_out = now;
                let continues = data == Data::Part;
                self.message_out = self.message_out.or(Some(now)).filter(|_| continues);
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

fn simple_event() -> impl Strategy<Value = Event> {
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
    fn the_verdict_and_its_time_match_the_reference_model(
        mut heartbeat in heartbeats(),
        idle in idles(),
        history in prop::collection::vec((gap(), simple_event()), 0..60),
    ) {
        heartbeat.jitter = 0.0;
        heartbeat.proof_of_life = ProofOfLife::AnyBytes;
        let mut reference = ReferenceModel {
            heartbeat: &heartbeat,
            idle: &idle,
            last_proof: Moment::START,
            data_in: Moment::START,
            data_out: Moment::START,
            message_in: None,
            message_out: None,
            first_message: false,
            backlog: None,
            closing: None,
        };
        let mut sim = Simulation::new(Policy {
            heartbeat: Some(Arc::new(heartbeat.clone())),
            idle: Some(Arc::new(idle.clone())),
        });
        let mut now = Moment::START;
        let mut expected = None;
        let mut actual = None;
        for (gap, event) in history {
            now = now + Duration::from_nanos(gap);
            if expected.is_none() {
                let next = reference.next_verdict();
                expected = if next.0 < now {
                    Some(next)
                } else {
                    reference.apply(now, event).map(|reason| (now, reason))
                };
            }
            sim.run_before(now);
            sim.apply(event);
            // A verdict before `now` is taken late; the log has its time.
            let verdict = sim.monitor.lifecycle.take_unannounced_end();
            prop_assert!(actual.is_none() || verdict.is_none(), "two verdicts");
            actual = actual.or(verdict);
        }
        let (when, reason) = expected.unwrap_or_else(|| reference.next_verdict());
        sim.run_before(now.max(when) + Duration::from_nanos(1));
        let last = sim.monitor.lifecycle.take_unannounced_end();
        prop_assert!(actual.is_none() || last.is_none(), "two verdicts");
        prop_assert_eq!(actual.or(last), Some(reason));
        let logged = sim.log.iter().find(|(_, act)| matches!(act, Act::End(_)));
        if let Some(end) = logged {
            let millis = when.since_start().as_millis() as u64;
            prop_assert_eq!(end, &(millis, Act::End(reason)));
        }
    }
}

// ---- live and dead peers ------------------------------------------------------------------------

/// Which of several outstanding pings a peer answers.
#[derive(Clone, Copy, Debug)]
enum AnsweredPings {
    All,
    Oldest,
    Newest,
}

#[derive(Clone, Debug)]
struct SimulatedPeer {
    answers: AnsweredPings,
    /// The time from the first ping of a silence to the answer, as a fraction of the time allowed.
    delays: Vec<f64>,
    /// The peer is dead after this many answers.
    dies_after: usize,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 500 }, failure_persistence: None, ..Default::default() })]

    /// Also with a driver that is slightly late and a transport that flushes late.
    #[test]
    fn a_peer_that_answers_in_time_is_not_evicted_and_a_dead_peer_is_evicted_in_time(
        mut heartbeat in heartbeats(),
        random in 0.0..1.0_f32,
        peer in (
            prop_oneof![
                Just(AnsweredPings::All),
                Just(AnsweredPings::Oldest),
                Just(AnsweredPings::Newest),
            ],
            prop::collection::vec(0.0..0.999_f64, 1..20),
            0..20_usize,
        ).prop_map(|(answers, delays, dies_after)| SimulatedPeer { answers, delays, dies_after }),
        late in 0.0..1.0_f64,
        flush in 0..2_000_u64,
    ) {
        heartbeat.handler_stall_timeout = None;
        let (interval, timeout) = (heartbeat.interval, heartbeat.timeout);
        let missed = heartbeat.missed_pings;
        let mut sim = Simulation::jittered(
            Policy { heartbeat: Some(Arc::new(heartbeat)), idle: None },
            random,
        );
        sim.auto_flush = false;
        let tick = ms(sim.policy.step_millis().into()).mul_f64(late);
        let flush = ms(flush);
        let (mut alive, mut last_answer) = (peer.dies_after > 0, Moment::START);
        let mut answers = 0;
        let mut crossed = false;
        // The times of the next flush of a ping, and of the peer's next answer.
        let mut flushing: Option<Moment> = None;
        let mut answering: Option<Moment> = None;
        let mut in_flight = VecDeque::new();
        let mut queued = 0;
        for _ in 0..2_000 {
            let due = sim.deadline();
            let due = if due == Moment::NEVER { due } else { due + tick };
            let next = due
                .min(flushing.unwrap_or(Moment::NEVER))
                .min(answering.unwrap_or(Moment::NEVER));
            prop_assert!(next < Moment::NEVER, "no deadline and no event is left");
            sim.now = sim.now.max(next);
            if answering == Some(next) {
                let payloads: Vec<_> = match peer.answers {
                    AnsweredPings::All => in_flight.drain(..).collect(),
                    AnsweredPings::Oldest => in_flight.drain(..).take(1).collect(),
                    AnsweredPings::Newest => in_flight.drain(..).rev().take(1).collect(),
                };
                for payload in payloads {
                    prop_assert!(sim.monitor.pong(sim.now, Duration::ZERO, Duration::ZERO, payload, &sim.policy).is_some());
                }
                sim.receive_frame();
                last_answer = sim.now;
                // A ping that is being flushed now was queued before this sign of life.
                crossed = flushing.is_some();
                answering = None;
                answers += 1;
                alive = answers < peer.dies_after;
            } else if flushing == Some(next) {
                sim.flush_ping();
                in_flight.push_back(sim.payloads[sim.payloads.len() - 1]);
                flushing = None;
                if alive && answering.is_none() {
                    let allowed = timeout * missed;
                    let fraction = peer.delays[answers % peer.delays.len()];
                    answering = Some(sim.now + allowed.mul_f64(fraction));
                }
            } else {
                sim.poll();
                if sim.payloads.len() > queued {
                    queued = sim.payloads.len();
                    flushing = Some(sim.now + flush);
                }
            }
            if sim.monitor.has_ended() {
                break;
            }
        }
        prop_assert!(!alive, "a live peer was evicted");
        prop_assert!(sim.monitor.has_ended(), "the dead peer was not evicted");
        prop_assert_eq!(sim.monitor.lifecycle.take_unannounced_end(), Some(Reason::HeartbeatTimeout { missed }));
        let silence = sim.now.since(last_answer);
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
