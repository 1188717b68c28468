//! Tests of when pings are sent, what answers them, and when a silent peer is evicted.

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
fn a_silent_peer_is_pinged_exactly_at_the_interval() {
    for interval in [
        ms(1),
        ms(10_000),
        ms(33_300),
        Duration::from_nanos(30_000_000_001),
        ms(365 * 24 * 60 * 60 * 1000),
    ] {
        let policy = heartbeat(|policy| policy.interval = interval);
        // Without jitter the random number has no effect.
        let mut sim = Simulation::jittered(policy, 0.9);
        let due = Moment::START + interval;
        assert_eq!(sim.deadline(), due, "{interval:?}");
        sim.now = nanosecond_before(due);
        sim.poll();
        sim.assert_log(&[]);
        sim.now = due;
        sim.poll();
        assert_eq!(sim.log.len(), 1, "{interval:?}");
    }
}

#[test]
fn jitter_shortens_only_the_first_interval() {
    for jitter in [0.0, 0.25, 0.5, 1.0] {
        for random in [0.0, 0.1, 0.5, 0.999_999_9] {
            let policy = heartbeat(|policy| policy.jitter = jitter);
            let mut sim = Simulation::jittered(policy, random);
            let first = sim.deadline().since(Moment::START);
            let expected = 10.0 * (1.0 - jitter * f64::from(random));
            assert!(
                (first.as_secs_f64() - expected).abs() < 1e-5,
                "jitter {jitter}, random {random}: {first:?}"
            );
            assert!(first > ms(10_000).mul_f64(1.0 - jitter) || random == 0.0 || jitter == 0.0);
            sim.now = sim.deadline();
            sim.poll();
            sim.now = at(12_000);
            assert!(sim.receive_pong(0));
            assert_eq!(sim.deadline(), at(22_000), "the second one");
        }
    }
}

#[test]
fn traffic_before_the_first_ping_restarts_the_jittered_interval() {
    let mut sim = Simulation::jittered(heartbeat(|policy| policy.jitter = 0.5), 0.5);
    sim.run_until(7_499)
        .receive_frame()
        .run_until(14_998)
        .assert_log(&[]);
    sim.run_until(15_000).assert_log(&[(14_999, Ping)]);
}

#[test]
fn traffic_suppresses_pings_for_ever() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    for turn in 1..=1_000 {
        sim.run_until(turn * 9_999).receive_frame();
    }
    sim.assert_log(&[]);
    assert_eq!(sim.health(), Health::Live);
    assert!(!sim.monitor.expects_pongs());
}

#[test]
fn the_servers_own_bytes_neither_suppress_nor_answer_a_ping() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    for second in 1..=14 {
        sim.run_until(second * 1_000);
        sim.monitor.accepted(sim.now, false, &sim.policy);
        sim.data_out(Data::End);
    }
    sim.assert_log(&[(10_000, Ping), (14_000, DEAD)]);
}

#[test]
fn the_timeout_runs_from_the_flush() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.auto_flush = false;
    sim.run_until(3_600_000).assert_log(&[(10_000, Ping)]);
    assert_eq!(sim.health(), Health::HandlerStalled);
    assert_eq!(sim.deadline(), Moment::NEVER);
    assert!(sim.monitor.awaits_answer(), "the end must be detected");
    sim.flush_ping();
    assert!(sim.monitor.awaits_answer());
    sim.run_until(3_604_000)
        .assert_log(&[(10_000, Ping), (3_604_000, DEAD)]);
}

#[test]
fn a_silent_peer_is_evicted_exactly_after_the_allowed_missed_pings() {
    for (interval, timeout, missed) in [(10, 4, 1), (10, 4, 3), (4, 10, 2), (1, 1, 255)] {
        let mut sim = Simulation::new(heartbeat(|policy| {
            policy.interval = ms(interval * 1_000);
            policy.timeout = ms(timeout * 1_000);
            policy.missed_pings = missed;
        }));
        let bound = 1_000 * (interval + timeout * u64::from(missed));
        sim.run_until(bound);
        let mut expected: Log = (0..u64::from(missed))
            .map(|ping| (1_000 * (interval + timeout * ping), Ping))
            .collect();
        expected.push((bound, End(Reason::HeartbeatTimeout { missed })));
        sim.assert_log(&expected);
        assert_eq!(sim.monitor.stats().pings_sent(), u64::from(missed));
    }
}

#[test]
fn a_sign_of_life_at_the_last_moment_resets_the_missed_pings() {
    let mut sim = Simulation::new(heartbeat(|policy| policy.missed_pings = 3));
    sim.run_until(21_999);
    assert_eq!(sim.health(), Health::PeerSilent { missed: 2 });
    sim.receive_frame();
    assert_eq!(sim.health(), Health::Degraded);
    sim.run_until(60_000);
    sim.assert_log(&[
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
fn a_sign_of_life_that_moves_the_deadline_nearer_reports_the_move() {
    let mut sim = Simulation::new(heartbeat(|policy| {
        policy.interval = ms(1_000);
        policy.timeout = ms(60_000);
    }));
    sim.run_until(1_000);
    assert!(sim.monitor.take_moved(), "the ping was flushed");
    assert!(!sim.monitor.take_moved());
    sim.run_until(2_000).receive_frame();
    assert!(sim.monitor.take_moved());
    assert_eq!(sim.deadline(), at(3_000));
    sim.run_until(2_500).receive_frame();
    assert!(!sim.monitor.take_moved(), "no ping was in flight");
}

#[test]
fn a_pong_to_any_outstanding_ping_ends_the_silence() {
    for policy in [heartbeat as fn(_) -> _, matching as fn(_) -> _] {
        for answered in 0..3 {
            let mut sim = Simulation::new(policy(|policy: &mut HeartbeatPolicy| {
                policy.missed_pings = 3;
            }));
            sim.run_until(21_999);
            assert!(sim.receive_pong(answered));
            assert_eq!(sim.health(), Health::Degraded, "alive, though late");
            assert_eq!(sim.deadline(), at(31_999), "ping {answered}");
            assert_eq!(sim.monitor.stats().pongs_received(), 1);
            sim.run_until(31_998);
            assert_eq!(sim.log.len(), 3);
        }
    }
}

#[test]
fn a_pong_that_moves_the_deadline_nearer_reports_the_move() {
    let mut sim = Simulation::new(matching(|policy| {
        policy.interval = ms(1_000);
        policy.timeout = ms(60_000);
    }));
    sim.run_until(1_500);
    assert!(sim.monitor.take_moved());
    assert!(sim.receive_pong(0));
    assert!(sim.monitor.take_moved());
    assert_eq!(sim.deadline(), at(2_500));
}

#[test]
fn a_repeated_pong_is_recognised_but_does_not_prove_life() {
    let mut sim = Simulation::new(matching(|_| {}));
    sim.run_until(11_000);
    assert!(sim.receive_pong(0));
    sim.run_until(21_000);
    assert!(sim.receive_pong(0), "recognised as ours");
    assert_eq!(sim.monitor.stats().pongs_received(), 1);
    sim.run_until(25_000)
        .assert_log(&[(10_000, Ping), (21_000, Ping), (25_000, DEAD)]);
}

#[test]
fn with_matching_pong_only_a_pong_answers_a_ping() {
    let mut sim = Simulation::new(matching(|_| {}));
    for half_second in 1..28 {
        sim.run_until(half_second * 500).receive_frame();
    }
    sim.run_until(14_000)
        .assert_log(&[(10_000, Ping), (14_000, DEAD)]);
}

#[test]
fn with_matching_pong_the_interval_runs_from_the_pong() {
    let mut sim = Simulation::new(matching(|_| {}));
    sim.run_until(12_000);
    assert!(sim.receive_pong(0));
    sim.run_until(21_000).receive_frame();
    sim.run_until(22_000)
        .assert_log(&[(10_000, Ping), (22_000, Ping)]);
}

#[test]
fn with_matching_pong_bytes_of_an_incomplete_frame_extend_the_deadline() {
    let mut sim = Simulation::new(matching(|_| {}));
    for turn in 0..100 {
        sim.run_until(10_000 + turn * 3_999).receive_partial_frame();
    }
    sim.assert_log(&[(10_000, Ping)]);
    assert_eq!(
        sim.health(),
        Health::PeerSilent { missed: 0 },
        "the ping is still unanswered"
    );
    // The frame ends, and no pong follows.
    sim.run_until(405_901 + 1_000).receive_frame();
    sim.run_until(409_901)
        .assert_log(&[(10_000, Ping), (409_901, DEAD)]);
}

#[test]
fn with_matching_pong_bytes_of_an_incomplete_frame_do_not_postpone_a_ping() {
    let mut sim = Simulation::new(matching(|_| {}));
    sim.run_until(9_000).receive_partial_frame();
    sim.run_until(10_000).assert_log(&[(10_000, Ping)]);
}

#[test]
fn forged_pongs_do_not_prove_life() {
    let mut sim = Simulation::new(matching(|_| {}));
    sim.run_until(12_000);
    let payload = sim.payloads[0];
    for index in 0..8 {
        let mut forged = payload;
        forged[index] ^= 0x10;
        assert_eq!(
            sim.monitor
                .pong(sim.now, Duration::ZERO, Duration::ZERO, forged, &sim.policy),
            None
        );
    }
    assert_eq!(
        sim.monitor
            .pong(sim.now, Duration::ZERO, Duration::ZERO, [0; 8], &sim.policy),
        None
    );
    assert_eq!(sim.monitor.stats().pongs_received(), 0);
    assert_eq!(sim.monitor.rtt(), None);
    sim.run_until(14_000)
        .assert_log(&[(10_000, Ping), (14_000, DEAD)]);
}

#[test]
fn without_a_heartbeat_layer_no_pings_are_sent() {
    let mut sim = Simulation::new(Policy::default());
    assert_eq!(sim.deadline(), Moment::NEVER);
    sim.monitor.refused(sim.now);
    sim.monitor.on_backlog(sim.now);
    assert_eq!(sim.deadline(), Moment::NEVER);
    sim.pause_until(1_000_000_000).assert_log(&[]);
}

#[test]
fn after_a_pause_of_the_runtime_the_peer_is_pinged_again_before_a_verdict() {
    // (timeout, lateness of the driver, whether that counts as a pause)
    for (timeout, late, paused) in [
        (4_000, 1_999, false),
        (4_000, 2_000, true),
        (4_000, 3_600_000, true),
        (100, 99, false),
        (100, 100, true),
        (1, 99, false),
    ] {
        let mut sim = Simulation::new(heartbeat(|policy| policy.timeout = ms(timeout)));
        sim.run_until(10_000);
        let back = 10_000 + timeout + late;
        sim.pause_until(back);
        if paused {
            sim.assert_log(&[(10_000, Ping), (back, Ping)]);
            assert_eq!(sim.health(), Health::PeerSilent { missed: 0 });
            sim.run_until(back + timeout).assert_log(&[
                (10_000, Ping),
                (back, Ping),
                (back + timeout, DEAD),
            ]);
        } else {
            sim.assert_log(&[(10_000, Ping), (back, DEAD)]);
        }
    }
}

#[test]
fn a_pause_of_the_runtime_does_not_change_the_number_of_missed_pings() {
    let mut sim = Simulation::new(heartbeat(|policy| policy.missed_pings = 2));
    sim.run_until(14_000);
    assert_eq!(sim.health(), Health::PeerSilent { missed: 1 });
    sim.pause_until(60_000);
    assert_eq!(sim.health(), Health::PeerSilent { missed: 1 });
    sim.run_until(64_000);
    assert_eq!(
        sim.log.last(),
        Some(&(64_000, End(Reason::HeartbeatTimeout { missed: 2 })))
    );
}

#[test]
fn a_repeated_ping_replaces_the_one_in_flight() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.run_until(10_000);
    sim.auto_flush = false;
    // The runtime resumes after a pause, and the transport flushes late.
    sim.pause_until(60_000)
        .assert_log(&[(10_000, Ping), (60_000, Ping)]);
    assert_eq!(
        sim.deadline(),
        at(64_000),
        "the ping stops waiting for the end of a message"
    );
    sim.run_until(64_000);
    assert_eq!(
        sim.deadline(),
        Moment::NEVER,
        "nothing is due before the flush"
    );
    sim.run_until(90_000).flush_ping();
    sim.run_until(94_000)
        .assert_log(&[(10_000, Ping), (60_000, Ping), (94_000, DEAD)]);
}

#[test]
fn a_pause_postpones_a_verdict_only_once_per_silence() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.run_until(10_000)
        .pause_until(60_000)
        .pause_until(120_000);
    sim.assert_log(&[(10_000, Ping), (60_000, Ping), (120_000, DEAD)]);
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.run_until(10_000).pause_until(60_000).receive_frame();
    sim.run_until(70_000).pause_until(120_000);
    assert_eq!(sim.log.last(), Some(&(120_000, Ping)), "a new silence");
}

#[test]
fn the_interval_runs_from_the_earliest_possible_arrival_of_bytes() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.run_until(9_000);
    sim.monitor
        .received(sim.now, ms(4_000), 10, false, &sim.policy);
    assert_eq!(sim.deadline(), at(15_000));
    // A later read with an earlier possible arrival does not move the deadline back.
    sim.monitor
        .received(sim.now, ms(6_000), 10, false, &sim.policy);
    assert_eq!(sim.deadline(), at(15_000));
}

#[test]
fn after_malformed_framing_the_peer_is_neither_pinged_nor_evicted_for_silence() {
    for ping_in_flight in [false, true] {
        let mut sim = Simulation::new(heartbeat(|policy| {
            policy.handler_stall_timeout = Some(ms(7_000));
        }));
        sim.run_until(if ping_in_flight { 11_000 } else { 9_000 });
        let log = sim.log.clone();
        sim.monitor.go_passive();
        assert_eq!(sim.deadline(), at(10_000), "to poll the transport");
        sim.run_until(1_000_000).assert_log(&log);
        sim.monitor.on_backlog(sim.now);
        sim.run_until(1_007_000);
        assert_eq!(
            sim.log.last(),
            Some(&(1_007_000, End(Reason::HandlerStalled)))
        );
    }
}

#[test]
fn a_pong_that_may_have_waited_unread_gives_no_round_trip_sample() {
    let never = Duration::ZERO;
    let table = [
        (never, never, true),
        (ms(100), ms(100), true),
        (ms(101), never, false),
        (never, ms(101), false),
    ];
    for (unseen, unread, sampled) in table {
        let mut sim = Simulation::new(heartbeat(|_| {}));
        sim.run_until(10_800);
        assert!(
            sim.monitor
                .pong(sim.now, unseen, unread, sim.payloads[0], &sim.policy)
                .is_some()
        );
        let rtt = sim.monitor.rtt().map(|rtt| rtt.last());
        assert_eq!(rtt, sampled.then_some(ms(800)), "{unseen:?}, {unread:?}");
        assert_eq!(sim.monitor.stats().pongs_received(), 1, "still counted");
    }
}

// ---- messages ------------------------------------------------------------------------------------

/// The short way records what the long way does, in every state in which it may be taken.
#[test]
fn a_routine_message_is_recorded_like_any_other() {
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        let heartbeat = heartbeat(|policy| policy.proof_of_life = proof);
        let idle = idle(|policy| policy.message_timeout = Some(ms(5_000)));
        let new = || Simulation::new(both(heartbeat.clone(), idle.clone()));
        let mut fragmented = new();
        fragmented.run_until(1_000).data_in(Data::Part);
        let mut answered = new();
        answered.run_until(10_100);
        assert!(answered.receive_pong(0));
        let mut unread = new();
        unread.monitor.on_backlog(at(0));
        for mut sim in [new(), fragmented, answered, unread] {
            sim.monitor.take_moved();
            let now = sim.now + ms(3_000);
            for arrived in [at(0), sim.now, now] {
                assert!(sim.monitor.is_routine());
                let (mut short, mut long) = (sim.monitor.clone(), sim.monitor.clone());
                short.message_in(now, arrived, 131, &sim.policy);
                long.data_in(now, Data::End, &sim.policy);
                long.received(now, now.since(arrived), 131, false, &sim.policy);
                assert_eq!(format!("{short:?}"), format!("{long:?}"));
            }
        }
    }
}
