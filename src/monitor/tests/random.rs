//! Random policies and histories, and what must hold of the deadline in all of them.

use proptest::prelude::*;

use super::*;

/// Something that happens to a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Bytes {
        mid_frame: bool,
    },
    DataIn(Data),
    DataOut(Data),
    Accepted {
        rest: bool,
    },
    Refused,
    /// From now on, or no longer.
    Refuses(bool),
    BytesWait,
    HandlerRead {
        rest: bool,
    },
    Blind(bool),
    CanInject(bool),
    Flushed,
    Pong {
        back: usize,
    },
    Ends(Reason),
    ServerClosed,
}

/// Often a round number of quarters of a second, so that things happen at the very same moment.
pub(super) fn gap() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0..16_u64).prop_map(|quarters| quarters * 250_000_000),
        2 => 0..4_000_000_000_u64,
        1 => 0..60_000_000_000_u64,
    ]
}

fn seconds() -> impl Strategy<Value = Duration> {
    (1..24_u64).prop_map(|quarters| ms(quarters * 250))
}

fn perhaps() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of(seconds())
}

pub(super) fn heartbeats() -> impl Strategy<Value = HeartbeatPolicy> {
    (
        (seconds(), seconds(), 1..4_u32, any::<bool>()),
        (perhaps(), perhaps(), seconds()),
    )
        .prop_map(
            |((interval, timeout, missed_pings, pongs), (write, handler, close))| HeartbeatPolicy {
                interval,
                timeout,
                missed_pings,
                proof_of_life: match pongs {
                    true => ProofOfLife::MatchingPong,
                    false => ProofOfLife::AnyBytes,
                },
                jitter: 0.5,
                write_timeout: write,
                handler_stall_timeout: handler,
                close_timeout: close,
                ..HeartbeatPolicy::default()
            },
        )
}

pub(super) fn idles() -> impl Strategy<Value = IdlePolicy> {
    let watch = prop_oneof![
        Just(Traffic::Inbound),
        Just(Traffic::Outbound),
        Just(Traffic::Either)
    ];
    let bounds = (perhaps(), perhaps(), perhaps());
    (seconds(), watch, bounds, seconds()).prop_map(
        |(timeout, watch, (first_message, message_timeout, max_lifetime), close_timeout)| {
            IdlePolicy {
                // Longer than the others, or nothing else would ever be seen.
                timeout: timeout * 4,
                watch,
                first_message: first_message.map(|within| within * 4),
                message_timeout: message_timeout.map(|within| within * 4),
                max_lifetime: max_lifetime.map(|lifetime| lifetime * 16),
                close_timeout,
                ..IdlePolicy::default()
            }
        },
    )
}

/// Rarely bytes that are no frames.
pub(super) fn data() -> impl Strategy<Value = Data> {
    prop_oneof![
        8 => Just(Data::Part),
        8 => Just(Data::End),
        1 => Just(Data::Unframed),
    ]
}

pub(super) fn policies() -> impl Strategy<Value = Policy> {
    (
        proptest::option::weighted(0.9, heartbeats()),
        proptest::option::of(idles()),
    )
        .prop_map(|(heartbeat, idle)| Policy {
            heartbeat: heartbeat.map(Arc::new),
            idle: idle.map(Arc::new),
        })
}

// ---- the deadline --------------------------------------------------------------------------------

pub(super) fn anything() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<bool>().prop_map(|mid_frame| Event::Bytes { mid_frame }),
        2 => data().prop_map(Event::DataIn),
        1 => data().prop_map(Event::DataOut),
        2 => any::<bool>().prop_map(|rest| Event::Accepted { rest }),
        2 => Just(Event::Refused),
        1 => any::<bool>().prop_map(Event::Refuses),
        1 => Just(Event::BytesWait),
        2 => any::<bool>().prop_map(|rest| Event::HandlerRead { rest }),
        1 => any::<bool>().prop_map(Event::Blind),
        1 => any::<bool>().prop_map(Event::CanInject),
        4 => Just(Event::Flushed),
        2 => (0..3_usize).prop_map(|back| Event::Pong { back }),
    ]
}

impl Line {
    /// As `run`, in nanoseconds, and short of `until`.
    pub(super) fn run_before(&mut self, until: Moment) {
        while self.deadline() < until && !matches!(self.log.last(), Some((_, Act::Cut))) {
            self.run_one();
        }
        self.now = until;
    }

    /// Goes on to the next deadline.
    fn run_one(&mut self) {
        self.now = self.now.max(self.deadline());
        self.act();
    }

    pub(super) fn meets(&mut self, event: Event) {
        let now = self.now;
        let monitor = &mut self.monitor;
        match event {
            Event::Bytes { mid_frame } => {
                monitor.received(now, Duration::ZERO, 1, mid_frame, &self.policy)
            }
            Event::DataIn(data) => monitor.data_in(now, data, &self.policy),
            Event::DataOut(data) => monitor.data_out(now, data, &self.policy),
            Event::Accepted { rest } => monitor.accepted(now, rest, &self.policy),
            Event::Refuses(refuses) => self.refuses = refuses,
            Event::Refused => monitor.refused(now),
            Event::BytesWait => {
                self.waits = true;
                monitor.bytes_wait(now);
            }
            // Only a handler for whom something waits can take some of it, and it makes room.
            Event::HandlerRead { rest } if self.waits => {
                self.waits = rest;
                self.outlook.blind = false;
                monitor.handler_read(now, rest);
            }
            Event::HandlerRead { .. } => {}
            Event::Blind(true) => {
                self.outlook.blind = true;
                self.meets(Event::BytesWait);
            }
            Event::Blind(false) => self.meets(Event::HandlerRead { rest: false }),
            Event::CanInject(can) => self.outlook.can_inject = can,
            Event::Flushed if monitor.stats().pings_sent() < self.payloads.len() as u64 => {
                self.flush();
            }
            Event::Flushed => {}
            Event::Pong { back } => {
                let index = self.payloads.len().checked_sub(1 + back);
                if let Some(payload) = index.map(|index| self.payloads[index]) {
                    assert!(
                        monitor
                            .pong(now, Duration::ZERO, Duration::ZERO, payload, &self.policy)
                            .is_some()
                    );
                }
            }
            Event::Ends(Reason::PeerClosed { code }) => monitor.peer_closed(now, code),
            Event::Ends(Reason::PeerVanished) => monitor.eof(now),
            Event::Ends(Reason::Transport(kind)) => monitor.failed(now, kind),
            Event::Ends(Reason::HandlerDropped) => monitor.dropped(now),
            Event::Ends(reason) => monitor.end(now, reason),
            Event::ServerClosed => monitor.server_closed(now, Some(1000)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    /// The wheel forgets whom it has woken and is told only of deadlines that come nearer. So a
    /// deadline must never be late, must say when it comes nearer, and must not be met in vain.
    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn a_deadline_can_be_relied_on(
        policy in policies(),
        random in 0.0..1.0_f32,
        flushes in any::<bool>(),
        history in prop::collection::vec((gap(), anything(), 0..1_000_u64), 0..60),
    ) {
        let mut line = Line::jittered(policy, random);
        line.flushes = flushes;
        let mut verdicts = Vec::new();
        for (gap, event, early) in history {
            let until = line.now + Duration::from_nanos(gap);
            // At most two things are due per clock and second.
            for _ in 0..2_000 {
                if line.deadline() >= until || matches!(line.log.last(), Some((_, Act::Cut))) {
                    break;
                }
                // Somewhere on the way, nothing is to be done yet.
                let way = line.deadline().since(line.now).mul_f64(early as f64 / 1_000.0);
                if line.now + way < line.deadline() {
                    let action = line.monitor.clone().poll(line.now + way, &line.policy, line.outlook);
                    prop_assert_eq!(action, Action::Wait);
                }
                line.run_one();
                verdicts.extend(line.monitor.lifecycle.take_verdict());
            }
            prop_assert!(line.deadline() >= until || matches!(line.log.last(), Some((_, Act::Cut))), "kept busy");
            line.now = until;
            line.monitor.take_moved();
            let before = line.deadline();
            line.meets(event);
            prop_assert!(
                line.deadline() >= before || line.monitor.take_moved(),
                "{:?} brought the deadline nearer without a word", event
            );
            verdicts.extend(line.monitor.lifecycle.take_verdict());
        }
        let ends: Vec<_> = line.log.iter().filter_map(|(_, act)| match act {
            Act::End(reason) => Some(*reason),
            Act::Ping | Act::Retry | Act::Cut => None,
        }).collect();
        prop_assert!(ends.len() <= 1);
        prop_assert_eq!(verdicts, ends);
    }
}
