//! Random policies and histories, and a test of the deadline on them.

use proptest::prelude::*;

use super::*;

/// An event of a connection.
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
    /// Sets whether the transport refuses all writes from now on.
    RefuseWrites(bool),
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

/// A time in nanoseconds. Often a multiple of 250 ms, so that events and deadlines coincide.
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

fn maybe_seconds() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of(seconds())
}

pub(super) fn heartbeats() -> impl Strategy<Value = HeartbeatPolicy> {
    (
        (seconds(), seconds(), 1..4_u32, any::<bool>()),
        (maybe_seconds(), maybe_seconds(), seconds()),
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
    let bounds = (maybe_seconds(), maybe_seconds(), maybe_seconds());
    (seconds(), watch, bounds, seconds()).prop_map(
        |(timeout, watch, (first_message, message_timeout, max_lifetime), close_timeout)| {
            IdlePolicy {
                // Longer than the other timeouts, which would otherwise never expire first.
                timeout: Some(timeout * 4),
                watch,
                first_message: first_message.map(|within| within * 4),
                message_timeout: message_timeout.map(|within| within * 4),
                max_lifetime: max_lifetime.map(|lifetime| lifetime * 16),
                max_lifetime_jitter: 0.0,
                close_timeout,
                ..IdlePolicy::default()
            }
        },
    )
}

/// Rarely bytes of a malformed stream.
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

/// Views whose moments are ages, for [`KernelView::aged`].
pub(super) fn kernel_views() -> impl Strategy<Value = KernelView> {
    (
        0..20_u32,
        any::<[bool; 3]>(),
        0..6_000_u64,
        0..6_000_u64,
        0..5_000_000_u32,
        0..2_u32,
    )
        .prop_map(
            |(unacknowledged, flags, last_ack, last_data, rtt_micros, data_segments)| {
                let [awaits_ack, retransmitting, peer_may_send] = flags;
                KernelView {
                    unacknowledged,
                    received_behind_gap: unacknowledged / 2,
                    awaits_ack,
                    retransmitting,
                    last_ack: at(last_ack),
                    last_data: at(last_data),
                    data_segments,
                    rtt_micros: Some(rtt_micros),
                    peer_may_send,
                }
            },
        )
}

impl KernelView {
    /// The view at `now` of which this one has the ages.
    pub(super) fn aged(self, now: Moment) -> Self {
        Self {
            last_ack: now.before(self.last_ack.since_start()),
            last_data: now.before(self.last_data.since_start()),
            ..self
        }
    }
}

// ---- the deadline -------------------------------------------------------------------------------

pub(super) fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<bool>().prop_map(|mid_frame| Event::Bytes { mid_frame }),
        2 => data().prop_map(Event::DataIn),
        1 => data().prop_map(Event::DataOut),
        2 => any::<bool>().prop_map(|rest| Event::Accepted { rest }),
        2 => Just(Event::Refused),
        1 => any::<bool>().prop_map(Event::RefuseWrites),
        1 => Just(Event::BytesWait),
        2 => any::<bool>().prop_map(|rest| Event::HandlerRead { rest }),
        1 => any::<bool>().prop_map(Event::Blind),
        1 => any::<bool>().prop_map(Event::CanInject),
        4 => Just(Event::Flushed),
        2 => (0..3_usize).prop_map(|back| Event::Pong { back }),
    ]
}

impl Simulation {
    /// Like [`run_until`](Self::run_until), but excludes `until`.
    pub(super) fn run_before(&mut self, until: Moment) {
        while self.deadline() < until && !matches!(self.log.last(), Some((_, Act::Cut))) {
            self.run_one();
        }
        self.now = until;
    }

    /// Advances to the next deadline and polls.
    fn run_one(&mut self) {
        self.now = self.now.max(self.deadline());
        self.poll();
    }

    pub(super) fn apply(&mut self, event: Event) {
        let now = self.now;
        let monitor = &mut self.monitor;
        match event {
            Event::Bytes { mid_frame } => {
                monitor.received(now, Duration::ZERO, 1, mid_frame, &self.policy)
            }
            Event::DataIn(data) => monitor.data_in(now, data, &self.policy),
            Event::DataOut(data) => monitor.data_out(now, data, &self.policy),
            Event::Accepted { rest } => monitor.accepted(now, rest, &self.policy),
            Event::RefuseWrites(refuse) => self.refuse_writes = refuse,
            Event::Refused => monitor.refused(now),
            Event::BytesWait => {
                self.bytes_unread = true;
                monitor.on_backlog(now);
            }
            // A read of the handler has an effect only if bytes wait, and it makes room in the
            // buffer.
            Event::HandlerRead { rest } if self.bytes_unread => {
                self.bytes_unread = rest;
                self.io_state.read_ahead_full = false;
                monitor.handler_read(now, rest);
            }
            Event::HandlerRead { .. } => {}
            Event::Blind(true) => {
                self.io_state.read_ahead_full = true;
                self.apply(Event::BytesWait);
            }
            Event::Blind(false) => self.apply(Event::HandlerRead { rest: false }),
            Event::CanInject(can) => self.io_state.can_inject = can,
            Event::Flushed if monitor.stats().pings_sent() < self.payloads.len() as u64 => {
                self.flush_ping();
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
            Event::ServerClosed => monitor.handler_closed(now, Some(1000)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    /// The driver's timer wheel is updated only for deadlines that move nearer. So a deadline must
    /// never be late, a move to an earlier time must be reported, and a poll at the deadline must
    /// have an effect.
    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn a_deadline_is_never_late_and_a_move_to_an_earlier_time_is_reported(
        policy in policies(),
        random in 0.0..1.0_f32,
        flushes in any::<bool>(),
        kernel in prop::option::of(kernel_views()),
        history in prop::collection::vec((gap(), any_event(), 0..1_000_u64), 0..60),
    ) {
        let mut sim = Simulation::jittered(policy, random);
        sim.auto_flush = flushes;
        let mut verdicts = Vec::new();
        for (gap, event, early) in history {
            let until = sim.now + Duration::from_nanos(gap);
            // At most two actions are due per timeout and second.
            for _ in 0..2_000 {
                if sim.deadline() >= until || matches!(sim.log.last(), Some((_, Act::Cut))) {
                    break;
                }
                // Before the deadline no action is due.
                let way = sim.deadline().since(sim.now).mul_f64(early as f64 / 1_000.0);
                if sim.now + way < sim.deadline() {
                    let never = || panic!("the kernel is asked before the deadline");
                    let kernel = &mut Kernel::new(&never, &|| ());
                    let early = sim.now + way;
                    let action = sim.monitor.clone().poll(early, &sim.policy, sim.io_state, kernel);
                    prop_assert_eq!(action, Action::Wait);
                }
                sim.kernel = kernel.map(|kernel| kernel.aged(sim.now.max(sim.deadline())));
                sim.run_one();
                verdicts.extend(sim.monitor.lifecycle.take_unannounced_end());
            }
            prop_assert!(sim.deadline() >= until || matches!(sim.log.last(), Some((_, Act::Cut))), "no progress");
            sim.now = until;
            sim.monitor.take_moved();
            let before = sim.deadline();
            sim.apply(event);
            prop_assert!(
                sim.deadline() >= before || sim.monitor.take_moved(),
                "{:?} moved the deadline nearer without a report", event
            );
            verdicts.extend(sim.monitor.lifecycle.take_unannounced_end());
        }
        let ends: Vec<_> = sim.log.iter().filter_map(|(_, act)| match act {
            Act::End(reason) => Some(*reason),
            Act::Ping | Act::Retry | Act::Cut => None,
        }).collect();
        prop_assert!(ends.len() <= 1);
        prop_assert_eq!(verdicts, ends);
    }
}
