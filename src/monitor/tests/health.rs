//! Health: each threshold from below and from above, what is at once and what has to last, and the
//! deadline of what is told.

use proptest::prelude::*;

use super::random::{anything, gap, policies};
use super::*;

const NANO: Duration = Duration::from_nanos(1);

/// With this heartbeat an error counts for 140 s.
const MEMORY: u64 = 140_000;

impl Line {
    fn lasting(&self) -> Health {
        self.monitor.lasting_health(self.now, &self.policy)
    }

    fn next_news(&self) -> Moment {
        self.monitor.lasting_deadline(self.now, &self.policy)
    }

    /// What is told changes from the one to the other at that very nanosecond, as announced.
    #[track_caller]
    fn turns(&mut self, at: Moment, before: Health, after: Health) {
        self.now = just_before(at);
        assert_eq!(self.lasting(), before, "just before");
        assert_eq!(self.next_news(), at);
        self.now = at;
        assert_eq!(self.lasting(), after, "from then on");
    }
}

/// The same heartbeat as elsewhere, and pings are answered by nobody but the test.
fn patient(change: impl FnOnce(&mut HeartbeatPolicy)) -> Policy {
    heartbeat(|policy| {
        policy.missed_pings = 3;
        change(policy);
    })
}

#[test]
fn a_ping_is_news_when_half_its_timeout_is_over() {
    let mut line = Line::new(patient(|_| {}));
    line.run(10_000);
    assert_eq!(line.health(), Health::PeerSilent { missed: 0 }, "at once");
    line.turns(at(12_000), Health::Live, Health::PeerSilent { missed: 0 });
    line.run(14_000);
    assert_eq!(line.lasting(), Health::PeerSilent { missed: 1 });
    line.run(18_000);
    assert_eq!(line.lasting(), Health::PeerSilent { missed: 2 });
    line.hears();
    assert_eq!(line.lasting(), Health::Degraded);
}

#[test]
fn a_missed_ping_counts_for_ten_rounds() {
    let mut line = Line::new(patient(|_| {}));
    line.run(14_000);
    assert_eq!(line.monitor.stats().missed_pings(), 1);
    line.run(15_000).hears();
    assert_eq!(line.health(), Health::Degraded);
    line.turns(at(14_000 + MEMORY), Health::Degraded, Health::Live);
    assert_eq!(line.health(), Health::Live);
    assert_eq!(line.next_news(), Moment::NEVER);
    assert_eq!(line.monitor.stats().missed_pings(), 1, "counted for good");
}

#[test]
fn the_pings_that_end_a_connection_are_counted_as_well() {
    let mut line = Line::new(patient(|_| {}));
    line.run(22_000);
    assert_eq!(
        line.log.last().unwrap().1,
        Act::End(Reason::HeartbeatTimeout { missed: 3 })
    );
    assert_eq!(line.monitor.stats().missed_pings(), 3);
    assert_eq!(line.lasting(), Health::Ended);
    assert_eq!(line.next_news(), Moment::NEVER);
}

#[test]
fn a_standstill_of_the_runtime_is_no_missed_ping() {
    let mut line = Line::new(patient(|_| {}));
    line.run(10_000).sleep(600_000);
    assert_eq!(line.monitor.stats().missed_pings(), 0);
    line.hears();
    assert_eq!(line.health(), Health::Live);
}

#[test]
fn a_pong_is_slow_when_it_takes_more_than_half_the_timeout() {
    for (after, slow) in [(ms(2_000), false), (ms(2_000) + NANO, true)] {
        let mut line = Line::new(patient(|_| {}));
        line.run(10_000);
        line.now = line.now + after;
        assert!(line.pongs(0));
        assert_eq!(line.monitor.stats().slow_pongs(), u64::from(slow));
        let health = if slow { Health::Degraded } else { Health::Live };
        assert_eq!((line.health(), line.lasting()), (health, health));
        if slow {
            let over = line.now + ms(MEMORY);
            line.turns(over, Health::Degraded, Health::Live);
        }
    }
}

#[test]
fn a_pong_whose_round_trip_nobody_knows_is_not_slow() {
    let mut line = Line::new(patient(|_| {}));
    line.run(13_000);
    let payload = line.payloads[0];
    let (unseen, unread) = (Duration::ZERO, ms(1_000));
    let answer = line
        .monitor
        .pong(line.now, unseen, unread, payload, &line.policy);
    assert!(answer.is_some());
    assert_eq!(line.monitor.stats().slow_pongs(), 0);
    assert_eq!(line.health(), Health::Live);
}

#[test]
fn a_write_stall_counts_when_it_has_ended_after_half_its_time() {
    // the bound, and what half of it is
    for (write_timeout, half) in [(Some(ms(5_000)), ms(2_500)), (None, ms(15_000))] {
        for (refused, stalled) in [(half, true), (half - NANO, false)] {
            for flush in [false, true] {
                let mut line = Line::new(patient(|policy| {
                    policy.interval = ms(100_000);
                    policy.write_timeout = write_timeout;
                }));
                line.run(1_000);
                if flush {
                    line.monitor.unflushed(line.now);
                } else {
                    line.monitor.refused(line.now);
                }
                assert_eq!(line.health(), Health::WriteStalled, "at once");
                assert_eq!(line.lasting(), Health::Live);
                line.now = line.now + refused;
                let before = if stalled {
                    Health::WriteStalled
                } else {
                    Health::Live
                };
                assert_eq!(line.lasting(), before, "{refused:?}");
                if flush {
                    line.monitor.flushed(line.now, &line.policy);
                } else {
                    line.monitor.accepted(line.now, false, &line.policy);
                }
                assert_eq!(line.monitor.stats().write_stalls(), u64::from(stalled));
                let after = if stalled {
                    Health::Degraded
                } else {
                    Health::Live
                };
                assert_eq!((line.health(), line.lasting()), (after, after));
            }
        }
    }
}

#[test]
fn a_handler_is_told_of_after_half_its_time_or_an_interval() {
    for (limit, half) in [(Some(ms(6_000)), 3_000), (None, 100_000)] {
        let with = |policy: &mut HeartbeatPolicy| {
            policy.interval = ms(100_000);
            policy.timeout = ms(60_000);
            policy.handler_stall_timeout = limit;
        };
        // It does not read.
        let mut line = Line::new(patient(with));
        line.monitor.bytes_wait(line.now);
        assert_eq!(line.health(), Health::HandlerStalled, "at once");
        line.turns(at(half), Health::Live, Health::HandlerStalled);
        // Slow is not stalled.
        line.monitor.handler_read(line.now, true);
        assert_eq!(line.health(), Health::HandlerStalled);
        assert_eq!(line.lasting(), Health::Live);

        // It does not finish its frame, and a ping waits.
        let mut line = Line::new(patient(with));
        line.flushes = false;
        line.run(100_000);
        assert_eq!(line.health(), Health::HandlerStalled, "at once");
        line.turns(at(100_000 + half), Health::Live, Health::HandlerStalled);
    }
}

#[test]
fn malformed_framing_counts_for_ever() {
    let mut line = Line::new(both(heartbeat(|_| {}), idle(|_| {})));
    line.run(1_000);
    line.monitor.go_passive();
    assert_eq!(
        (line.health(), line.lasting()),
        (Health::Degraded, Health::Degraded)
    );
    line.now = at(50_000_000);
    assert_eq!(
        (line.health(), line.lasting()),
        (Health::Degraded, Health::Degraded)
    );
}

#[test]
fn idle_is_half_the_idle_timeout_in_the_watched_direction() {
    for (watch, counts_in, counts_out) in [
        (Traffic::Inbound, true, false),
        (Traffic::Outbound, false, true),
        (Traffic::Either, true, true),
    ] {
        for (counts, passes) in [
            (counts_in, Line::data_in as fn(&mut Line, Data) -> &mut Line),
            (counts_out, Line::data_out),
        ] {
            let mut line = Line::new(idle(|policy| policy.watch = watch));
            line.turns(at(30_000), Health::Live, Health::Idle);
            assert_eq!(line.health(), Health::Idle);
            line.now = at(40_000);
            passes(&mut line, Data::Part);
            if counts {
                assert_eq!(
                    (line.health(), line.lasting()),
                    (Health::Live, Health::Live)
                );
                line.turns(at(70_000), Health::Live, Health::Idle);
            } else {
                assert_eq!(
                    (line.health(), line.lasting()),
                    (Health::Idle, Health::Idle)
                );
            }
        }
    }
    let mut line = Line::new(heartbeat(|_| {}));
    line.now = at(50_000_000);
    assert_eq!(line.health(), Health::Live, "no idle layer");
}

#[test]
fn what_waits_behind_a_full_read_ahead_does_not_keep_a_connection_from_being_idle() {
    for watch in [Traffic::Inbound, Traffic::Outbound, Traffic::Either] {
        let mut line = Line::new(idle(|policy| policy.watch = watch));
        line.outlook.blind = true;
        line.act();
        line.turns(at(30_000), Health::Live, Health::Idle);
        assert_eq!(line.health(), Health::Idle, "{watch:?}");
    }
}

#[test]
fn errors_come_before_idleness() {
    let mut line = Line::new(both(
        patient(|policy| policy.interval = ms(1_000)),
        idle(|policy| policy.timeout = ms(1_000_000)),
    ));
    line.run(5_000).hears();
    assert_eq!(line.monitor.stats().missed_pings(), 1);
    // It answers by something that is no message, from now on.
    line.now = at(54_999);
    assert_eq!(line.lasting(), Health::Degraded);
    line.now = at(55_000);
    assert_eq!(line.lasting(), Health::Live, "ten times five seconds");
    line.now = at(499_000);
    line.monitor.unflushed(line.now);
    line.now = at(520_000);
    line.monitor.flushed(line.now, &line.policy);
    assert_eq!(
        (line.health(), line.lasting()),
        (Health::Degraded, Health::Degraded)
    );
    line.turns(at(570_000), Health::Degraded, Health::Idle);
}

#[test]
fn without_a_heartbeat_its_defaults_hold() {
    let mut line = Line::new(idle(|policy| policy.timeout = ms(10_000_000)));
    line.monitor.refused(line.now);
    line.turns(at(15_000), Health::Live, Health::WriteStalled);
    line.monitor.accepted(line.now, false, &line.policy);
    line.turns(at(465_000), Health::Degraded, Health::Live);
    line.monitor.bytes_wait(line.now);
    line.turns(at(495_000), Health::Live, Health::HandlerStalled);
}

#[test]
fn closing_is_told_at_once_and_the_last() {
    let mut line = Line::new(both(patient(|_| {}), idle(|_| {})));
    line.run(12_000);
    line.monitor.server_closed(line.now, None);
    assert_eq!(line.lasting(), Health::Closing);
    assert_eq!(line.next_news(), Moment::NEVER);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..Default::default() })]

    /// Between two events what is told changes at the announced moments alone; and what has lasted is
    /// also so at this moment.
    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn news_come_at_their_deadline(
        policy in policies(),
        random in 0.0..1.0_f32,
        flushes in any::<bool>(),
        history in prop::collection::vec((gap(), anything(), 0..1_000_u64), 0..60),
    ) {
        let mut line = Line::jittered(policy, random);
        line.flushes = flushes;
        for (gap, event, early) in history {
            let until = line.now + Duration::from_nanos(gap);
            for _ in 0..20 {
                let next = line.next_news();
                prop_assert!(next > line.now, "in vain");
                let before = line.lasting();
                let here = line.health();
                if matches!(before, Health::PeerSilent { .. } | Health::HandlerStalled | Health::WriteStalled) {
                    prop_assert!(!matches!(here, Health::Live | Health::Idle | Health::Degraded), "{here:?}, {before:?}");
                } else {
                    prop_assert!(before == here || matches!(
                        here,
                        Health::PeerSilent { missed: 0 } | Health::HandlerStalled | Health::WriteStalled
                    ), "{here:?}, {before:?}");
                }
                let end = until.min(next);
                let way = end.since(line.now).mul_f64(early as f64 / 1_000.0);
                let between = line.now + way;
                if between < next {
                    prop_assert_eq!(line.monitor.lasting_health(between, &line.policy), before);
                }
                if next >= until {
                    break;
                }
                line.now = next;
            }
            // What the driver does is an event like others.
            line.now = until;
            if line.deadline() <= until && !matches!(line.log.last(), Some((_, Act::Cut))) {
                line.act();
            }
            line.meets(event);
        }
    }
}
