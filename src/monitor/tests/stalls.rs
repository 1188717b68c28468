//! Tests of stalled writes, stalled handlers, and a full read-ahead buffer.

use super::Act::{End, Ping, Retry};
use super::*;

fn writing(change: impl FnOnce(&mut HeartbeatPolicy)) -> Policy {
    heartbeat(|policy| {
        policy.interval = ms(100_000);
        policy.write_timeout = Some(ms(5_000));
        change(policy);
    })
}

fn stalling(change: impl FnOnce(&mut HeartbeatPolicy)) -> Policy {
    heartbeat(|policy| {
        policy.handler_stall_timeout = Some(ms(7_000));
        change(policy);
    })
}

// ---- writes -------------------------------------------------------------------------------------

#[test]
fn a_stalled_write_is_probed_with_a_ping_before_the_eviction() {
    let mut sim = Simulation::new(writing(|_| {}));
    sim.refuse_writes = true;
    sim.run_until(1_000);
    sim.monitor.refused(sim.now);
    assert!(sim.monitor.take_moved());
    assert_eq!(sim.health(), Health::WriteStalled);
    sim.run_until(2_000);
    sim.monitor.refused(sim.now);
    assert!(!sim.monitor.take_moved(), "the first refusal counts");
    sim.run_until(6_000)
        .assert_log(&[(6_000, Ping), (6_000, End(Reason::WriteStalled))]);
}

#[test]
fn a_stalled_write_inside_a_frame_is_not_probed() {
    let mut sim = Simulation::new(writing(|_| {}));
    sim.io_state.can_inject = false;
    sim.refuse_writes = true;
    sim.run_until(1_000);
    sim.monitor.refused(sim.now);
    sim.run_until(6_000)
        .assert_log(&[(6_000, Retry), (6_000, End(Reason::WriteStalled))]);
}

#[test]
fn a_stalled_ping_is_not_probed_with_another_ping() {
    let mut sim = Simulation::new(writing(|policy| policy.interval = ms(3_000)));
    sim.refuse_writes = true;
    sim.run_until(3_000).assert_log(&[(3_000, Ping)]);
    sim.run_until(8_000).assert_log(&[
        (3_000, Ping),
        (8_000, Retry),
        (8_000, End(Reason::WriteStalled)),
    ]);
}

#[test]
fn an_abandoned_write_is_not_a_stall() {
    let mut sim = Simulation::new(writing(|_| {}));
    sim.io_state.can_inject = false;
    sim.run_until(1_000);
    sim.monitor.refused(sim.now);
    sim.run_until(6_099).assert_log(&[(6_000, Retry)]);
    assert_eq!(sim.health(), Health::WriteStalled);
    sim.run_until(6_100).assert_log(&[(6_000, Retry)]);
    assert_eq!(sim.health(), Health::Live);
    assert_eq!(sim.deadline(), at(100_000), "the next ping");
}

#[test]
fn a_second_refusal_ends_the_second_try_at_once() {
    let mut sim = Simulation::new(writing(|_| {}));
    sim.io_state.can_inject = false;
    sim.run_until(1_000);
    sim.monitor.refused(sim.now);
    sim.run_until(6_050);
    sim.monitor.take_moved();
    sim.monitor.refused(sim.now);
    assert!(sim.monitor.take_moved());
    sim.run_until(6_099)
        .assert_log(&[(6_000, Retry), (6_050, End(Reason::WriteStalled))]);
}

#[test]
fn a_probe_that_is_flushed_ends_the_write_stall() {
    let mut sim = Simulation::new(writing(|_| {}));
    sim.auto_flush = false;
    sim.run_until(1_000);
    sim.monitor.refused(sim.now);
    sim.run_until(5_999);
    sim.now = at(6_000);
    let Action::Ping(_) = sim.poll_once() else {
        panic!("a probe");
    };
    sim.flush_ping();
    sim.auto_flush = true;
    assert_eq!(sim.health(), Health::PeerSilent { missed: 0 });
    sim.run_until(10_000)
        .assert_log(&[(10_000, End(Reason::HeartbeatTimeout { missed: 1 }))]);
}

#[test]
fn a_slow_write_is_not_evicted() {
    let mut sim = Simulation::new(writing(|policy| policy.interval = ms(10_000_000)));
    sim.monitor.refused(sim.now);
    for turn in 1..100 {
        sim.run_until(turn * 4_999);
        sim.monitor.accepted(sim.now, true, &sim.policy);
        assert_eq!(sim.health(), Health::WriteStalled);
    }
    sim.assert_log(&[]);
    sim.monitor.accepted(sim.now, false, &sim.policy);
    assert_eq!(sim.health(), Health::Degraded);
    sim.run_until(9_999_999).assert_log(&[]);
}

#[test]
fn without_a_write_timeout_a_stalled_write_is_not_evicted() {
    let mut sim = Simulation::new(writing(|policy| policy.write_timeout = None));
    sim.monitor.refused(sim.now);
    sim.run_until(99_999).assert_log(&[]);
}

#[test]
fn bytes_accepted_after_a_long_refusal_restart_the_ping_timeout() {
    // (duration of the refusal in ms, time of the eviction in ms)
    for (refused, end) in [(None, 14_000), (Some(99), 14_000), (Some(100), 17_000)] {
        let mut sim = Simulation::new(heartbeat(|_| {}));
        if let Some(refused) = refused {
            sim.run_until(13_000 - refused);
            sim.monitor.refused(sim.now);
        }
        sim.run_until(13_000);
        sim.monitor.accepted(sim.now, false, &sim.policy);
        sim.run_until(end).assert_log(&[
            (10_000, Ping),
            (end, End(Reason::HeartbeatTimeout { missed: 1 })),
        ]);
    }
}

#[test]
fn after_a_pause_of_the_runtime_a_stalled_write_gets_its_whole_timeout_again() {
    // (lateness in ms, whether that counts as a pause)
    for (late, paused) in [(2_499, false), (2_500, true), (600_000, true)] {
        let mut sim = Simulation::new(writing(|policy| policy.interval = ms(10_000_000)));
        sim.io_state.can_inject = false;
        sim.refuse_writes = true;
        sim.monitor.refused(sim.now);
        let back = 5_000 + late;
        sim.pause_until(back);
        let end = if paused { back + 5_000 } else { back };
        sim.run_until(end)
            .assert_log(&[(end, Retry), (end, End(Reason::WriteStalled))]);
    }
}

#[test]
fn a_pause_postpones_the_verdict_on_a_write_only_once_per_stall() {
    let mut sim = Simulation::new(writing(|policy| policy.interval = ms(10_000_000)));
    sim.io_state.can_inject = false;
    sim.refuse_writes = true;
    sim.monitor.refused(sim.now);
    sim.pause_until(8_000).pause_until(16_000);
    sim.assert_log(&[(16_000, Retry), (16_000, End(Reason::WriteStalled))]);
    // Accepted bytes end the stall.
    let mut sim = Simulation::new(writing(|policy| policy.interval = ms(10_000_000)));
    sim.io_state.can_inject = false;
    sim.refuse_writes = true;
    sim.monitor.refused(sim.now);
    sim.pause_until(8_000);
    sim.monitor.accepted(sim.now, true, &sim.policy);
    sim.pause_until(16_000).assert_log(&[]);
    sim.pause_until(24_000)
        .assert_log(&[(24_000, Retry), (24_000, End(Reason::WriteStalled))]);
}

// ---- the handler --------------------------------------------------------------------------------

#[test]
fn a_handler_that_does_not_read_is_evicted() {
    let mut sim = Simulation::new(stalling(|_| {}));
    sim.run_until(1_000).receive_frame();
    sim.monitor.on_backlog(sim.now);
    assert!(sim.monitor.take_moved());
    assert_eq!(sim.health(), Health::HandlerStalled);
    sim.run_until(2_000).receive_frame();
    sim.monitor.on_backlog(sim.now);
    sim.run_until(8_000)
        .assert_log(&[(8_000, End(Reason::HandlerStalled))]);
}

#[test]
fn a_handler_that_reads_slowly_is_not_evicted() {
    let mut sim = Simulation::new(stalling(|policy| policy.interval = ms(10_000_000)));
    sim.monitor.on_backlog(sim.now);
    for turn in 1..100 {
        sim.run_until(turn * 6_999);
        sim.monitor.handler_read(sim.now, true);
        assert_eq!(sim.health(), Health::HandlerStalled);
    }
    sim.monitor.handler_read(sim.now, false);
    assert_eq!(sim.health(), Health::Live);
    sim.run_until(9_999_999).assert_log(&[]);
}

#[test]
fn without_a_handler_stall_timeout_unread_bytes_do_not_cause_an_eviction() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.monitor.on_backlog(sim.now);
    sim.run_until(9_999).assert_log(&[]);
}

#[test]
fn a_handler_that_does_not_finish_a_frame_is_evicted() {
    let mut sim = Simulation::new(stalling(|_| {}));
    sim.auto_flush = false;
    sim.run_until(17_000)
        .assert_log(&[(10_000, Ping), (17_000, End(Reason::HandlerStalled))]);
}

#[test]
fn of_two_handler_stalls_the_older_sets_the_deadline() {
    for (bytes_at, end) in [(9_000, 16_000), (12_000, 17_000)] {
        let mut sim = Simulation::new(stalling(|_| {}));
        sim.auto_flush = false;
        sim.run_until(bytes_at);
        sim.monitor.on_backlog(sim.now);
        sim.run_until(end);
        assert_eq!(sim.log.last(), Some(&(end, End(Reason::HandlerStalled))));
    }
}

#[test]
fn after_a_pause_of_the_runtime_an_unfinished_frame_gets_its_whole_timeout_again() {
    let mut sim = Simulation::new(stalling(|_| {}));
    sim.auto_flush = false;
    sim.run_until(10_000)
        .pause_until(60_000)
        .assert_log(&[(10_000, Ping)]);
    sim.run_until(67_000)
        .assert_log(&[(10_000, Ping), (67_000, End(Reason::HandlerStalled))]);
}

#[test]
fn a_frame_that_the_transport_blocks_is_not_a_handler_stall() {
    let mut sim = Simulation::new(stalling(|policy| {
        policy.interval = ms(3_000);
        policy.write_timeout = Some(ms(100_000));
    }));
    sim.refuse_writes = true;
    sim.run_until(3_000).assert_log(&[(3_000, Ping)]);
    sim.run_until(40_000).assert_log(&[(3_000, Ping)]);
    sim.monitor.take_moved();
    sim.monitor.accepted(sim.now, false, &sim.policy);
    assert!(sim.monitor.take_moved());
    assert_eq!(sim.deadline(), at(47_000), "the handler's timeout starts");
}

#[test]
fn a_frame_whose_write_is_abandoned_is_a_handler_stall_from_then_on() {
    let mut sim = Simulation::new(stalling(|policy| policy.write_timeout = Some(ms(20_000))));
    sim.refuse_writes = true;
    sim.run_until(10_000);
    sim.refuse_writes = false;
    sim.run_until(37_099)
        .assert_log(&[(10_000, Ping), (30_000, Retry)]);
    sim.run_until(37_100);
    assert_eq!(sim.log.last(), Some(&(37_100, End(Reason::HandlerStalled))));
}

#[test]
fn after_a_pause_of_the_runtime_the_handler_gets_its_whole_timeout_again() {
    for (late, paused) in [(3_499, false), (3_500, true), (600_000, true)] {
        let mut sim = Simulation::new(stalling(|policy| policy.interval = ms(10_000_000)));
        sim.monitor.on_backlog(sim.now);
        let back = 7_000 + late;
        sim.pause_until(back);
        let end = if paused { back + 7_000 } else { back };
        sim.run_until(end)
            .assert_log(&[(end, End(Reason::HandlerStalled))]);
    }
}

#[test]
fn a_pause_postpones_the_verdict_on_the_handler_only_once_per_stall() {
    type Progress = fn(&mut Simulation);
    let table: [(bool, bool, Option<Progress>); 6] = [
        // (whether bytes wait, whether a frame is unfinished, the progress that the handler makes)
        (true, false, None),
        (false, true, None),
        (true, true, None),
        (true, false, Some(reads)),
        (false, true, Some(writes)),
        // The handler reads, but does not finish its frame.
        (true, true, Some(reads)),
    ];
    for (on_backlog, unfinished, progress) in table {
        let mut sim = Simulation::new(stalling(|policy| policy.interval = ms(1_000)));
        sim.auto_flush = false;
        sim.monitor.passive = !unfinished;
        if on_backlog {
            sim.monitor.on_backlog(sim.now);
        }
        sim.run_until(1_000).pause_until(12_000);
        assert!(!sim.monitor.has_ended());
        sim.run_until(13_000);
        let ends = progress.is_some() && on_backlog != unfinished;
        if let Some(progress) = progress {
            progress(&mut sim);
        }
        sim.pause_until(24_000);
        assert_eq!(sim.monitor.has_ended(), !ends, "{on_backlog} {unfinished}");
        sim.run_until(25_000).pause_until(36_000);
        let mut acts = sim.log.iter().map(|(_, act)| *act);
        assert!(acts.any(|act| act == End(Reason::HandlerStalled)));
    }

    fn reads(sim: &mut Simulation) {
        sim.monitor.handler_read(sim.now, true);
    }

    fn writes(sim: &mut Simulation) {
        sim.monitor.accepted(sim.now, true, &sim.policy);
    }
}

#[test]
fn a_full_read_ahead_buffer_suspends_the_peers_timeouts() {
    let policies = [
        heartbeat(|_| {}),
        idle(|policy| {
            policy.timeout = Some(ms(10_000_000));
            policy.first_message = Some(ms(10_000));
        }),
        idle(|policy| {
            policy.timeout = Some(ms(10_000_000));
            policy.message_timeout = Some(ms(10_000));
        }),
    ];
    for policy in policies {
        let mut sim = Simulation::new(policy);
        sim.data_in(Data::Part);
        sim.io_state.read_ahead_full = true;
        sim.monitor.on_backlog(sim.now);
        // `poll` asserts progress at every deadline.
        sim.poll();
        sim.run_until(1_000_000);
        assert!(!sim.monitor.has_ended(), "{:?}", sim.policy);
        // The handler reads and makes room, and no more bytes are received.
        sim.monitor.take_moved();
        sim.io_state.read_ahead_full = false;
        sim.monitor.handler_read(sim.now, false);
        assert!(sim.monitor.take_moved(), "the timeouts run again");
        sim.poll();
        sim.run_until(1_020_000);
        assert!(sim.monitor.has_ended(), "{:?}", sim.policy);
    }
}

#[test]
fn a_read_ahead_buffer_that_fills_just_before_the_deadline_causes_no_busy_loop() {
    let mut sim = Simulation::new(idle(|policy| {
        policy.timeout = Some(ms(10_000_000));
        policy.first_message = Some(ms(50_000));
    }));
    sim.monitor.on_backlog(sim.now);
    sim.run_until(49_999);
    sim.io_state.read_ahead_full = true;
    sim.run_until(1_000_000).assert_log(&[]);
    assert_eq!(sim.deadline(), at(10_000_000), "that of an idle connection");
    sim.monitor.handler_read(sim.now, true);
    assert!(sim.deadline() <= sim.now, "to poll at once");
    sim.poll();
    sim.assert_log(&[]);
    assert_eq!(sim.deadline(), at(10_000_000), "still full");
    sim.monitor.handler_read(sim.now, false);
    sim.data_in(Data::End);
    sim.io_state.read_ahead_full = false;
    sim.run_until(11_000_000)
        .assert_log(&[(11_000_000, End(Reason::IdleTimeout))]);
}

#[test]
fn a_full_read_ahead_buffer_suspends_no_other_verdicts() {
    let watching = |watch| idle(|policy| policy.watch = watch);
    let lifetime = idle(|policy| {
        policy.watch = Traffic::Inbound;
        policy.max_lifetime = Some(ms(60_000));
    });
    let dribbling = idle(|policy| {
        policy.timeout = Some(ms(10_000_000));
        policy.message_timeout = Some(ms(60_000));
    });
    let write = writing(|policy| policy.write_timeout = Some(ms(60_000)));
    for (policy, reason) in [
        (watching(Traffic::Inbound), Reason::IdleTimeout),
        (watching(Traffic::Outbound), Reason::IdleTimeout),
        (watching(Traffic::Either), Reason::IdleTimeout),
        (dribbling, Reason::MessageTimeout),
        (lifetime, Reason::MaxLifetime),
        (write, Reason::WriteStalled),
        (
            stalling(|policy| policy.handler_stall_timeout = Some(ms(60_000))),
            Reason::HandlerStalled,
        ),
    ] {
        let mut sim = Simulation::new(policy);
        sim.io_state = IoState {
            can_inject: false,
            mid_message: false,
            claimed: false,
            read_ahead_full: true,
        };
        sim.refuse_writes = true;
        sim.monitor.on_backlog(sim.now);
        sim.monitor.refused(sim.now);
        sim.data_out(Data::Part);
        sim.run_until(60_000);
        assert_eq!(sim.log.last(), Some(&(60_000, End(reason))));
    }
}

#[test]
fn a_message_gets_its_whole_timeout_again_when_the_handler_makes_room() {
    for rest in [false, true] {
        let mut sim = Simulation::new(idle(|policy| {
            policy.timeout = Some(ms(10_000_000));
            policy.message_timeout = Some(ms(20_000));
        }));
        sim.data_in(Data::Part);
        sim.monitor.on_backlog(sim.now);
        sim.io_state.read_ahead_full = true;
        sim.poll();
        sim.run_until(50_000).assert_log(&[]);
        sim.io_state.read_ahead_full = false;
        sim.monitor.handler_read(sim.now, rest);
        // A read while the buffer is not full does not extend the timeout.
        sim.run_until(60_000);
        sim.monitor.handler_read(sim.now, false);
        sim.data_in(Data::Part);
        sim.run_until(70_000)
            .assert_log(&[(70_000, End(Reason::MessageTimeout))]);
    }
}

#[test]
fn a_write_that_makes_progress_in_its_second_try_gets_its_whole_timeout_again() {
    let mut sim = Simulation::new(heartbeat(|policy| policy.write_timeout = Some(ms(20))));
    sim.auto_flush = false;
    sim.monitor.refused(sim.now);
    sim.run_until(30);
    assert_eq!(sim.deadline(), at(120), "the second try");
    sim.monitor.take_moved();
    sim.monitor.accepted(sim.now, true, &sim.policy);
    assert_eq!(sim.deadline(), at(50));
    assert!(sim.monitor.take_moved(), "nearer than before");
}

#[test]
fn a_first_message_that_the_handler_delayed_gets_its_whole_timeout_again() {
    let mut sim = Simulation::new(idle(|policy| policy.first_message = Some(ms(1_000))));
    sim.monitor.data_in(sim.now, Data::Part, &sim.policy);
    sim.io_state.read_ahead_full = true;
    sim.run_until(3_000).assert_log(&[]);
    sim.io_state.read_ahead_full = false;
    sim.monitor.handler_read(sim.now, true);
    sim.run_until(4_000)
        .assert_log(&[(4_000, End(Reason::FirstMessageTimeout))]);
}
