//! Tests of momentary and lasting health at each threshold, and of the deadline of its changes.

use proptest::prelude::*;

use super::random::{any_event, gap, policies};
use super::*;

const NANO: Duration = Duration::from_nanos(1);

/// With this heartbeat an error counts for 140 s.
const ERROR_RETENTION_MS: u64 = 140_000;

impl Simulation {
    fn lasting(&self) -> Health {
        self.monitor.lasting_health(self.now, &self.policy)
    }

    fn next_change(&self) -> Moment {
        self.monitor.lasting_deadline(self.now, &self.policy)
    }

    /// The lasting health changes exactly at `at`, as `lasting_deadline` announces.
    #[track_caller]
    fn assert_changes_at(&mut self, at: Moment, before: Health, after: Health) {
        self.now = nanosecond_before(at);
        assert_eq!(self.lasting(), before, "just before");
        assert_eq!(self.next_change(), at);
        self.now = at;
        assert_eq!(self.lasting(), after, "at the deadline");
    }
}

/// The usual heartbeat, but three pings must be missed before an eviction.
fn three_pings(change: impl FnOnce(&mut HeartbeatPolicy)) -> Policy {
    heartbeat(|policy| {
        policy.missed_pings = 3;
        change(policy);
    })
}

#[test]
fn an_unanswered_ping_becomes_lasting_after_half_its_timeout() {
    let mut sim = Simulation::new(three_pings(|_| {}));
    sim.run_until(10_000);
    assert_eq!(sim.health(), Health::PeerSilent { missed: 0 }, "at once");
    sim.assert_changes_at(at(12_000), Health::Live, Health::PeerSilent { missed: 0 });
    sim.run_until(14_000);
    assert_eq!(sim.lasting(), Health::PeerSilent { missed: 1 });
    sim.run_until(18_000);
    assert_eq!(sim.lasting(), Health::PeerSilent { missed: 2 });
    sim.receive_frame();
    assert_eq!(sim.lasting(), Health::Degraded);
}

#[test]
fn a_missed_ping_degrades_health_for_ten_rounds() {
    let mut sim = Simulation::new(three_pings(|_| {}));
    sim.run_until(14_000);
    assert_eq!(sim.monitor.stats().missed_pings(), 1);
    sim.run_until(15_000).receive_frame();
    assert_eq!(sim.health(), Health::Degraded);
    sim.assert_changes_at(
        at(14_000 + ERROR_RETENTION_MS),
        Health::Degraded,
        Health::Live,
    );
    assert_eq!(sim.health(), Health::Live);
    assert_eq!(sim.next_change(), Moment::NEVER);
    assert_eq!(sim.monitor.stats().missed_pings(), 1, "still counted");
}

#[test]
fn the_missed_pings_that_end_a_connection_are_counted() {
    let mut sim = Simulation::new(three_pings(|_| {}));
    sim.run_until(22_000);
    assert_eq!(
        sim.log.last().unwrap().1,
        Act::End(Reason::HeartbeatTimeout { missed: 3 })
    );
    assert_eq!(sim.monitor.stats().missed_pings(), 3);
    assert_eq!(sim.lasting(), Health::Ended);
    assert_eq!(sim.next_change(), Moment::NEVER);
}

#[test]
fn a_paused_runtime_does_not_count_a_missed_ping() {
    let mut sim = Simulation::new(three_pings(|_| {}));
    sim.run_until(10_000).pause_until(600_000);
    assert_eq!(sim.monitor.stats().missed_pings(), 0);
    sim.receive_frame();
    assert_eq!(sim.health(), Health::Live);
}

#[test]
fn a_pong_is_slow_when_it_takes_more_than_half_the_timeout() {
    for (after, slow) in [(ms(2_000), false), (ms(2_000) + NANO, true)] {
        let mut sim = Simulation::new(three_pings(|_| {}));
        sim.run_until(10_000);
        sim.now = sim.now + after;
        assert!(sim.receive_pong(0));
        assert_eq!(sim.monitor.stats().slow_pongs(), u64::from(slow));
        let health = if slow { Health::Degraded } else { Health::Live };
        assert_eq!((sim.health(), sim.lasting()), (health, health));
        if slow {
            let over = sim.now + ms(ERROR_RETENTION_MS);
            sim.assert_changes_at(over, Health::Degraded, Health::Live);
        }
    }
}

#[test]
fn a_pong_without_a_round_trip_sample_is_not_slow() {
    let mut sim = Simulation::new(three_pings(|_| {}));
    sim.run_until(13_000);
    let payload = sim.payloads[0];
    let (unseen, unread) = (Duration::ZERO, ms(1_000));
    let answer = sim
        .monitor
        .pong(sim.now, unseen, unread, payload, &sim.policy);
    assert!(answer.is_some());
    assert_eq!(sim.monitor.stats().slow_pongs(), 0);
    assert_eq!(sim.health(), Health::Live);
}

#[test]
fn a_write_stall_of_half_the_write_timeout_counts_when_it_ends() {
    // (write_timeout, half of it)
    for (write_timeout, half) in [(Some(ms(5_000)), ms(2_500)), (None, ms(15_000))] {
        for (refused, stalled) in [(half, true), (half - NANO, false)] {
            for flush in [false, true] {
                let mut sim = Simulation::new(three_pings(|policy| {
                    policy.interval = ms(100_000);
                    policy.write_timeout = write_timeout;
                }));
                sim.run_until(1_000);
                if flush {
                    sim.monitor.unflushed(sim.now);
                } else {
                    sim.monitor.refused(sim.now);
                }
                assert_eq!(sim.health(), Health::WriteStalled, "at once");
                assert_eq!(sim.lasting(), Health::Live);
                sim.now = sim.now + refused;
                let before = if stalled {
                    Health::WriteStalled
                } else {
                    Health::Live
                };
                assert_eq!(sim.lasting(), before, "{refused:?}");
                if flush {
                    sim.monitor.flushed(sim.now, &sim.policy);
                } else {
                    sim.monitor.accepted(sim.now, false, &sim.policy);
                }
                assert_eq!(sim.monitor.stats().write_stalls(), u64::from(stalled));
                let after = if stalled {
                    Health::Degraded
                } else {
                    Health::Live
                };
                assert_eq!((sim.health(), sim.lasting()), (after, after));
            }
        }
    }
}

#[test]
fn a_handler_stall_becomes_lasting_after_half_its_timeout_or_an_interval() {
    for (limit, half) in [(Some(ms(6_000)), 3_000), (None, 100_000)] {
        let with = |policy: &mut HeartbeatPolicy| {
            policy.interval = ms(100_000);
            policy.timeout = ms(60_000);
            policy.handler_stall_timeout = limit;
        };
        // The handler does not read.
        let mut sim = Simulation::new(three_pings(with));
        sim.monitor.on_backlog(sim.now);
        assert_eq!(sim.health(), Health::HandlerStalled, "at once");
        sim.assert_changes_at(at(half), Health::Live, Health::HandlerStalled);
        // A slow handler is not stalled.
        sim.monitor.handler_read(sim.now, true);
        assert_eq!(sim.health(), Health::HandlerStalled);
        assert_eq!(sim.lasting(), Health::Live);

        // The handler does not finish its frame, and a ping waits for its end.
        let mut sim = Simulation::new(three_pings(with));
        sim.auto_flush = false;
        sim.run_until(100_000);
        assert_eq!(sim.health(), Health::HandlerStalled, "at once");
        sim.assert_changes_at(at(100_000 + half), Health::Live, Health::HandlerStalled);
    }
}

#[test]
fn malformed_framing_degrades_health_for_ever() {
    let mut sim = Simulation::new(both(heartbeat(|_| {}), idle(|_| {})));
    sim.run_until(1_000);
    sim.monitor.go_passive();
    assert_eq!(
        (sim.health(), sim.lasting()),
        (Health::Degraded, Health::Degraded)
    );
    sim.now = at(50_000_000);
    assert_eq!(
        (sim.health(), sim.lasting()),
        (Health::Degraded, Health::Degraded)
    );
}

#[test]
fn health_is_idle_after_half_the_idle_timeout_in_the_watched_direction() {
    for (watch, counts_in, counts_out) in [
        (Traffic::Inbound, true, false),
        (Traffic::Outbound, false, true),
        (Traffic::Either, true, true),
    ] {
        for (counts, pass) in [
            (
                counts_in,
                Simulation::data_in as fn(&mut Simulation, Data) -> &mut Simulation,
            ),
            (counts_out, Simulation::data_out),
        ] {
            let mut sim = Simulation::new(idle(|policy| policy.watch = watch));
            sim.assert_changes_at(at(30_000), Health::Live, Health::Idle);
            assert_eq!(sim.health(), Health::Idle);
            sim.now = at(40_000);
            pass(&mut sim, Data::Part);
            if counts {
                assert_eq!((sim.health(), sim.lasting()), (Health::Live, Health::Live));
                sim.assert_changes_at(at(70_000), Health::Live, Health::Idle);
            } else {
                assert_eq!((sim.health(), sim.lasting()), (Health::Idle, Health::Idle));
            }
        }
    }
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.now = at(50_000_000);
    assert_eq!(sim.health(), Health::Live, "no idle layer");
}

#[test]
fn a_full_read_ahead_buffer_does_not_postpone_idle() {
    for watch in [Traffic::Inbound, Traffic::Outbound, Traffic::Either] {
        let mut sim = Simulation::new(idle(|policy| policy.watch = watch));
        sim.io_state.read_ahead_full = true;
        sim.poll();
        sim.assert_changes_at(at(30_000), Health::Live, Health::Idle);
        assert_eq!(sim.health(), Health::Idle, "{watch:?}");
    }
}

#[test]
fn degraded_takes_precedence_over_idle() {
    let mut sim = Simulation::new(both(
        three_pings(|policy| policy.interval = ms(1_000)),
        idle(|policy| policy.timeout = Some(ms(1_000_000))),
    ));
    sim.run_until(5_000).receive_frame();
    assert_eq!(sim.monitor.stats().missed_pings(), 1);
    // From now on the peer answers every ping.
    sim.now = at(54_999);
    assert_eq!(sim.lasting(), Health::Degraded);
    sim.now = at(55_000);
    assert_eq!(sim.lasting(), Health::Live, "ten times five seconds");
    sim.now = at(499_000);
    sim.monitor.unflushed(sim.now);
    sim.now = at(520_000);
    sim.monitor.flushed(sim.now, &sim.policy);
    assert_eq!(
        (sim.health(), sim.lasting()),
        (Health::Degraded, Health::Degraded)
    );
    sim.assert_changes_at(at(570_000), Health::Degraded, Health::Idle);
}

#[test]
fn without_a_heartbeat_its_default_thresholds_apply() {
    let mut sim = Simulation::new(idle(|policy| policy.timeout = Some(ms(10_000_000))));
    sim.monitor.refused(sim.now);
    sim.assert_changes_at(at(15_000), Health::Live, Health::WriteStalled);
    sim.monitor.accepted(sim.now, false, &sim.policy);
    sim.assert_changes_at(at(465_000), Health::Degraded, Health::Live);
    sim.monitor.on_backlog(sim.now);
    sim.assert_changes_at(at(495_000), Health::Live, Health::HandlerStalled);
}

#[test]
fn closing_is_lasting_at_once_and_has_no_further_deadline() {
    let mut sim = Simulation::new(both(three_pings(|_| {}), idle(|_| {})));
    sim.run_until(12_000);
    sim.monitor.handler_closed(sim.now, None);
    assert_eq!(sim.lasting(), Health::Closing);
    assert_eq!(sim.next_change(), Moment::NEVER);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    /// Between two events the lasting health changes only at the announced deadlines, and it agrees
    /// with the momentary health.
    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn lasting_health_changes_only_at_its_deadline(
        policy in policies(),
        random in 0.0..1.0_f32,
        flushes in any::<bool>(),
        history in prop::collection::vec((gap(), any_event(), 0..1_000_u64), 0..60),
    ) {
        let mut sim = Simulation::jittered(policy, random);
        sim.auto_flush = flushes;
        for (gap, event, early) in history {
            let until = sim.now + Duration::from_nanos(gap);
            for _ in 0..20 {
                let next = sim.next_change();
                prop_assert!(next > sim.now, "the deadline is not in the future");
                let before = sim.lasting();
                let here = sim.health();
                let agrees = match before {
                    Health::PeerSilent { .. } | Health::HandlerStalled | Health::WriteStalled => {
                        !matches!(here, Health::Live | Health::Idle | Health::Degraded)
                    }
                    _ => before == here || matches!(
                        here,
                        Health::PeerSilent { missed: 0 }
                            | Health::HandlerStalled
                            | Health::WriteStalled
                    ),
                };
                prop_assert!(agrees, "{here:?}, {before:?}");
                let end = until.min(next);
                let way = end.since(sim.now).mul_f64(early as f64 / 1_000.0);
                let between = sim.now + way;
                if between < next {
                    prop_assert_eq!(sim.monitor.lasting_health(between, &sim.policy), before);
                }
                if next >= until {
                    break;
                }
                sim.now = next;
            }
            // A poll of the driver is an event too.
            sim.now = until;
            if sim.deadline() <= until && !matches!(sim.log.last(), Some((_, Act::Cut))) {
                sim.poll();
            }
            sim.apply(event);
        }
    }
}
