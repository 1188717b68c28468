//! When pings go out, what answers them, and when the peer is given up.

use super::Act::{End, Ping};
use super::*;

const DEAD: Act = End(Reason::HeartbeatTimeout { missed: 1 });

fn matching(change: impl FnOnce(&mut HeartbeatPolicy)) -> Policy {
    heartbeat(|policy| {
        policy.proof_of_life = ProofOfLife::MatchingPong;
        change(policy);
    })
}

#[test]
fn silence_brings_a_ping_exactly_at_the_interval() {
    for interval in [
        ms(1),
        ms(10_000),
        ms(33_300),
        Duration::from_nanos(30_000_000_001),
        ms(365 * 24 * 60 * 60 * 1000),
    ] {
        let policy = heartbeat(|policy| policy.interval = interval);
        // Without jitter, chance has no say.
        let mut line = Line::jittered(policy, 0.9);
        let due = Moment::START + interval;
        assert_eq!(line.deadline(), due, "{interval:?}");
        line.now = just_before(due);
        line.act();
        line.did(&[]);
        line.now = due;
        line.act();
        assert_eq!(line.log.len(), 1, "{interval:?}");
    }
}

#[test]
fn the_first_ping_lies_in_the_jittered_part_and_later_ones_at_the_interval() {
    for jitter in [0.0, 0.25, 0.5, 1.0] {
        for random in [0.0, 0.1, 0.5, 0.999_999_9] {
            let policy = heartbeat(|policy| policy.jitter = jitter);
            let mut line = Line::jittered(policy, random);
            let first = line.deadline().since(Moment::START);
            let expected = 10.0 * (1.0 - jitter * f64::from(random));
            assert!(
                (first.as_secs_f64() - expected).abs() < 1e-5,
                "jitter {jitter}, random {random}: {first:?}"
            );
            assert!(first > ms(10_000).mul_f64(1.0 - jitter) || random == 0.0 || jitter == 0.0);
            line.now = line.deadline();
            line.act();
            line.now = at(12_000);
            assert!(line.pongs(0));
            assert_eq!(line.deadline(), at(22_000), "the second one");
        }
    }
}

#[test]
fn traffic_before_the_first_ping_keeps_its_jittered_distance() {
    let mut line = Line::jittered(heartbeat(|policy| policy.jitter = 0.5), 0.5);
    line.run(7_499).hears().run(14_998).did(&[]);
    line.run(15_000).did(&[(14_999, Ping)]);
}

#[test]
fn traffic_suppresses_pings_for_ever() {
    let mut line = Line::new(heartbeat(|_| {}));
    for turn in 1..=1_000 {
        line.run(turn * 9_999).hears();
    }
    line.did(&[]);
    assert_eq!(line.health(), Health::Live);
    assert!(!line.monitor.expects_pongs());
}

#[test]
fn the_servers_own_bytes_neither_suppress_nor_answer_a_ping() {
    let mut line = Line::new(heartbeat(|_| {}));
    for second in 1..=14 {
        line.run(second * 1_000);
        line.monitor.accepted(line.now, false, &line.policy);
        line.data_out(Data::End);
    }
    line.did(&[(10_000, Ping), (14_000, DEAD)]);
}

#[test]
fn the_timeout_runs_from_the_flush() {
    let mut line = Line::new(heartbeat(|_| {}));
    line.flushes = false;
    line.run(3_600_000).did(&[(10_000, Ping)]);
    assert_eq!(line.health(), Health::HandlerStalled);
    assert_eq!(line.deadline(), Moment::NEVER);
    assert!(line.monitor.is_waiting(), "somebody has to see the end");
    line.flush();
    assert!(line.monitor.is_waiting());
    line.run(3_604_000)
        .did(&[(10_000, Ping), (3_604_000, DEAD)]);
}

#[test]
fn the_budget_of_missed_pings_bounds_a_silence_exactly() {
    for (interval, timeout, missed) in [(10, 4, 1), (10, 4, 3), (4, 10, 2), (1, 1, 255)] {
        let mut line = Line::new(heartbeat(|policy| {
            policy.interval = ms(interval * 1_000);
            policy.timeout = ms(timeout * 1_000);
            policy.missed_pings = missed;
        }));
        let bound = 1_000 * (interval + timeout * u64::from(missed));
        line.run(bound);
        let mut expected: Log = (0..u64::from(missed))
            .map(|ping| (1_000 * (interval + timeout * ping), Ping))
            .collect();
        expected.push((bound, End(Reason::HeartbeatTimeout { missed })));
        line.did(&expected);
        assert_eq!(line.monitor.stats().pings_sent(), u64::from(missed));
    }
}

#[test]
fn a_sign_of_life_at_the_last_moment_restores_the_whole_budget() {
    let mut line = Line::new(heartbeat(|policy| policy.missed_pings = 3));
    line.run(21_999);
    assert_eq!(line.health(), Health::PeerSilent { missed: 2 });
    line.hears();
    assert_eq!(line.health(), Health::Degraded);
    line.run(60_000);
    line.did(&[
        (10_000, Ping),
        (14_000, Ping),
        (18_000, Ping),
        (31_999, Ping),
        (35_999, Ping),
        (39_999, Ping),
        (43_999, End(Reason::HeartbeatTimeout { missed: 3 })),
        (44_999, Act::Cut),
    ]);
}

#[test]
fn a_sign_of_life_may_bring_the_deadline_nearer_and_says_so() {
    let mut line = Line::new(heartbeat(|policy| {
        policy.interval = ms(1_000);
        policy.timeout = ms(60_000);
    }));
    line.run(1_000);
    assert!(line.monitor.take_moved(), "the ping was flushed");
    assert!(!line.monitor.take_moved());
    line.run(2_000).hears();
    assert!(line.monitor.take_moved());
    assert_eq!(line.deadline(), at(3_000));
    line.run(2_500).hears();
    assert!(!line.monitor.take_moved(), "no ping was out");
}

#[test]
fn one_pong_for_any_outstanding_ping_is_life() {
    for policy in [heartbeat as fn(_) -> _, matching as fn(_) -> _] {
        for answered in 0..3 {
            let mut line = Line::new(policy(|policy: &mut HeartbeatPolicy| {
                policy.missed_pings = 3;
            }));
            line.run(21_999);
            assert!(line.pongs(answered));
            assert_eq!(line.health(), Health::Degraded, "alive, though late");
            assert_eq!(line.deadline(), at(31_999), "ping {answered}");
            assert_eq!(line.monitor.stats().pongs_received(), 1);
            line.run(31_998);
            assert_eq!(line.log.len(), 3);
        }
    }
}

#[test]
fn a_pong_brings_the_deadline_nearer_and_says_so() {
    let mut line = Line::new(matching(|policy| {
        policy.interval = ms(1_000);
        policy.timeout = ms(60_000);
    }));
    line.run(1_500);
    assert!(line.monitor.take_moved());
    assert!(line.pongs(0));
    assert!(line.monitor.take_moved());
    assert_eq!(line.deadline(), at(2_500));
}

#[test]
fn a_pong_that_comes_again_is_ours_and_proves_nothing() {
    let mut line = Line::new(matching(|_| {}));
    line.run(11_000);
    assert!(line.pongs(0));
    line.run(21_000);
    assert!(line.pongs(0), "it is kept from the handler");
    assert_eq!(line.monitor.stats().pongs_received(), 1);
    line.run(25_000)
        .did(&[(10_000, Ping), (21_000, Ping), (25_000, DEAD)]);
}

#[test]
fn only_a_pong_answers_where_a_pong_is_asked_for() {
    let mut line = Line::new(matching(|_| {}));
    for half_second in 1..28 {
        line.run(half_second * 500).hears();
    }
    line.run(14_000).did(&[(10_000, Ping), (14_000, DEAD)]);
}

#[test]
fn where_a_pong_is_asked_for_the_interval_runs_from_it() {
    let mut line = Line::new(matching(|_| {}));
    line.run(12_000);
    assert!(line.pongs(0));
    line.run(21_000).hears();
    line.run(22_000).did(&[(10_000, Ping), (22_000, Ping)]);
}

#[test]
fn a_frame_that_is_still_arriving_excuses_the_pong() {
    let mut line = Line::new(matching(|_| {}));
    for turn in 0..100 {
        line.run(10_000 + turn * 3_999).hears_part_of_a_frame();
    }
    line.did(&[(10_000, Ping)]);
    assert_eq!(
        line.health(),
        Health::PeerSilent { missed: 0 },
        "it is excused, and yet unanswered"
    );
    // The frame ends, the pong does not come.
    line.run(405_901 + 1_000).hears();
    line.run(409_901).did(&[(10_000, Ping), (409_901, DEAD)]);
}

#[test]
fn a_frame_that_is_still_arriving_does_not_put_the_ping_off() {
    let mut line = Line::new(matching(|_| {}));
    line.run(9_000).hears_part_of_a_frame();
    line.run(10_000).did(&[(10_000, Ping)]);
}

#[test]
fn forged_pongs_prove_nothing() {
    let mut line = Line::new(matching(|_| {}));
    line.run(12_000);
    let payload = line.payloads[0];
    for index in 0..8 {
        let mut forged = payload;
        forged[index] ^= 0x10;
        assert_eq!(
            line.monitor.pong(
                line.now,
                Duration::ZERO,
                Duration::ZERO,
                forged,
                &line.policy
            ),
            None
        );
    }
    assert_eq!(
        line.monitor.pong(
            line.now,
            Duration::ZERO,
            Duration::ZERO,
            [0; 8],
            &line.policy
        ),
        None
    );
    assert_eq!(line.monitor.stats().pongs_received(), 0);
    assert_eq!(line.monitor.rtt(), None);
    line.run(14_000).did(&[(10_000, Ping), (14_000, DEAD)]);
}

#[test]
fn no_heartbeat_layer_no_pings() {
    let mut line = Line::new(Policy::default());
    assert_eq!(line.deadline(), Moment::NEVER);
    line.monitor.refused(line.now);
    line.monitor.bytes_wait(line.now);
    assert_eq!(line.deadline(), Moment::NEVER);
    line.sleep(1_000_000_000).did(&[]);
}

#[test]
fn a_runtime_that_was_away_asks_again_before_it_judges() {
    // timeout, how late the driver comes by, whether that is a pause
    for (timeout, late, paused) in [
        (4_000, 1_999, false),
        (4_000, 2_000, true),
        (4_000, 3_600_000, true),
        (100, 99, false),
        (100, 100, true),
        (1, 99, false),
    ] {
        let mut line = Line::new(heartbeat(|policy| policy.timeout = ms(timeout)));
        line.run(10_000);
        let back = 10_000 + timeout + late;
        line.sleep(back);
        if paused {
            line.did(&[(10_000, Ping), (back, Ping)]);
            assert_eq!(line.health(), Health::PeerSilent { missed: 0 });
            line.run(back + timeout)
                .did(&[(10_000, Ping), (back, Ping), (back + timeout, DEAD)]);
        } else {
            line.did(&[(10_000, Ping), (back, DEAD)]);
        }
    }
}

#[test]
fn a_pause_does_not_count_against_the_budget_nor_for_it() {
    let mut line = Line::new(heartbeat(|policy| policy.missed_pings = 2));
    line.run(14_000);
    assert_eq!(line.health(), Health::PeerSilent { missed: 1 });
    line.sleep(60_000);
    assert_eq!(line.health(), Health::PeerSilent { missed: 1 });
    line.run(64_000);
    assert_eq!(
        line.log.last(),
        Some(&(64_000, End(Reason::HeartbeatTimeout { missed: 2 })))
    );
}

#[test]
fn a_ping_that_is_asked_for_again_takes_the_place_of_the_one_that_is_out() {
    let mut line = Line::new(heartbeat(|_| {}));
    line.run(10_000);
    line.flushes = false;
    // It comes by after a pause, and the transport takes its time.
    line.sleep(60_000).did(&[(10_000, Ping), (60_000, Ping)]);
    assert_eq!(
        line.deadline(),
        at(64_000),
        "the ping waits no longer for the end of a message"
    );
    line.run(64_000);
    assert_eq!(
        line.deadline(),
        Moment::NEVER,
        "nothing to do until the flush"
    );
    line.run(90_000).flush();
    line.run(94_000)
        .did(&[(10_000, Ping), (60_000, Ping), (94_000, DEAD)]);
}

#[test]
fn a_pause_puts_a_verdict_off_only_once_in_a_silence() {
    let mut line = Line::new(heartbeat(|_| {}));
    line.run(10_000).sleep(60_000).sleep(120_000);
    line.did(&[(10_000, Ping), (60_000, Ping), (120_000, DEAD)]);
    let mut line = Line::new(heartbeat(|_| {}));
    line.run(10_000).sleep(60_000).hears();
    line.run(70_000).sleep(120_000);
    assert_eq!(line.log.last(), Some(&(120_000, Ping)), "a new silence");
}

#[test]
fn the_interval_runs_from_when_bytes_may_have_come() {
    let mut line = Line::new(heartbeat(|_| {}));
    line.run(9_000);
    line.monitor
        .received(line.now, ms(4_000), 10, false, &line.policy);
    assert_eq!(line.deadline(), at(15_000));
    // What is known from before does not get lost over it.
    line.monitor
        .received(line.now, ms(6_000), 10, false, &line.policy);
    assert_eq!(line.deadline(), at(15_000));
}

#[test]
fn where_boundaries_are_lost_nobody_is_pinged_or_blamed() {
    for ping_is_out in [false, true] {
        let mut line = Line::new(heartbeat(|policy| {
            policy.handler_stall_timeout = Some(ms(7_000));
        }));
        line.run(if ping_is_out { 11_000 } else { 9_000 });
        let log = line.log.clone();
        line.monitor.go_passive();
        assert_eq!(line.deadline(), at(10_000), "to look at the transport");
        line.run(1_000_000).did(&log);
        line.monitor.bytes_wait(line.now);
        line.run(1_007_000);
        assert_eq!(
            line.log.last(),
            Some(&(1_007_000, End(Reason::HandlerStalled)))
        );
    }
}

#[test]
fn a_round_trip_that_may_include_waiting_unread_is_no_sample() {
    let never = Duration::ZERO;
    let table = [
        (never, never, true),
        (ms(100), ms(100), true),
        (ms(101), never, false),
        (never, ms(101), false),
    ];
    for (unseen, unread, sampled) in table {
        let mut line = Line::new(heartbeat(|_| {}));
        line.run(10_800);
        assert!(
            line.monitor
                .pong(line.now, unseen, unread, line.payloads[0], &line.policy)
                .is_some()
        );
        let rtt = line.monitor.rtt().map(|rtt| rtt.last());
        assert_eq!(rtt, sampled.then_some(ms(800)), "{unseen:?}, {unread:?}");
        assert_eq!(line.monitor.stats().pongs_received(), 1, "life it is");
    }
}
