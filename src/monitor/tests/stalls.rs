//! Writes that stall, handlers that stall, and what is hidden behind them.

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

// ---- writes --------------------------------------------------------------------------------------

#[test]
fn a_stalled_write_is_probed_and_then_given_up() {
    let mut line = Line::new(writing(|_| {}));
    line.refuses = true;
    line.run(1_000);
    line.monitor.refused(line.now);
    assert!(line.monitor.take_moved());
    assert_eq!(line.health(), Health::WriteStalled);
    line.run(2_000);
    line.monitor.refused(line.now);
    assert!(!line.monitor.take_moved(), "the first refusal counts");
    line.run(6_000)
        .did(&[(6_000, Ping), (6_000, End(Reason::WriteStalled))]);
}

#[test]
fn a_stalled_write_inside_a_frame_cannot_be_probed() {
    let mut line = Line::new(writing(|_| {}));
    line.outlook.can_inject = false;
    line.refuses = true;
    line.run(1_000);
    line.monitor.refused(line.now);
    line.run(6_000)
        .did(&[(6_000, Retry), (6_000, End(Reason::WriteStalled))]);
}

#[test]
fn a_ping_that_is_stuck_itself_is_no_reason_for_another() {
    let mut line = Line::new(writing(|policy| policy.interval = ms(3_000)));
    line.refuses = true;
    line.run(3_000).did(&[(3_000, Ping)]);
    line.run(8_000).did(&[
        (3_000, Ping),
        (8_000, Retry),
        (8_000, End(Reason::WriteStalled)),
    ]);
}

#[test]
fn a_write_that_was_given_up_is_not_stalled() {
    let mut line = Line::new(writing(|_| {}));
    line.outlook.can_inject = false;
    line.run(1_000);
    line.monitor.refused(line.now);
    line.run(6_099).did(&[(6_000, Retry)]);
    assert_eq!(line.health(), Health::WriteStalled);
    line.run(6_100).did(&[(6_000, Retry)]);
    assert_eq!(line.health(), Health::Live);
    assert_eq!(line.deadline(), at(100_000), "the next ping");
}

#[test]
fn a_second_refusal_ends_the_second_try_at_once() {
    let mut line = Line::new(writing(|_| {}));
    line.outlook.can_inject = false;
    line.run(1_000);
    line.monitor.refused(line.now);
    line.run(6_050);
    line.monitor.take_moved();
    line.monitor.refused(line.now);
    assert!(line.monitor.take_moved());
    line.run(6_099)
        .did(&[(6_000, Retry), (6_050, End(Reason::WriteStalled))]);
}

#[test]
fn a_probe_that_goes_out_clears_the_peer() {
    let mut line = Line::new(writing(|_| {}));
    line.flushes = false;
    line.run(1_000);
    line.monitor.refused(line.now);
    line.run(5_999);
    line.now = at(6_000);
    let Action::Ping(_) = line.monitor.poll(line.now, &line.policy, line.outlook) else {
        panic!("a probe");
    };
    line.flush();
    line.flushes = true;
    assert_eq!(line.health(), Health::PeerSilent { missed: 0 });
    line.run(10_000)
        .did(&[(10_000, End(Reason::HeartbeatTimeout { missed: 1 }))]);
}

#[test]
fn a_write_that_goes_on_slowly_is_not_stalled() {
    let mut line = Line::new(writing(|policy| policy.interval = ms(10_000_000)));
    line.monitor.refused(line.now);
    for turn in 1..100 {
        line.run(turn * 4_999);
        line.monitor.accepted(line.now, true, &line.policy);
        assert_eq!(line.health(), Health::WriteStalled);
    }
    line.did(&[]);
    line.monitor.accepted(line.now, false, &line.policy);
    assert_eq!(line.health(), Health::Degraded);
    line.run(9_999_999).did(&[]);
}

#[test]
fn without_a_write_timeout_a_write_may_wait() {
    let mut line = Line::new(writing(|policy| policy.write_timeout = None));
    line.monitor.refused(line.now);
    line.run(99_999).did(&[]);
}

#[test]
fn what_a_peer_drains_puts_its_timeout_off() {
    // for how long the transport had refused before, and when the peer is given up
    for (refused, end) in [(None, 14_000), (Some(99), 14_000), (Some(100), 17_000)] {
        let mut line = Line::new(heartbeat(|_| {}));
        if let Some(refused) = refused {
            line.run(13_000 - refused);
            line.monitor.refused(line.now);
        }
        line.run(13_000);
        line.monitor.accepted(line.now, false, &line.policy);
        line.run(end).did(&[
            (10_000, Ping),
            (end, End(Reason::HeartbeatTimeout { missed: 1 })),
        ]);
    }
}

#[test]
fn after_a_pause_of_the_runtime_a_write_gets_another_chance() {
    // how late, and whether that is a pause
    for (late, paused) in [(2_499, false), (2_500, true), (600_000, true)] {
        let mut line = Line::new(writing(|policy| policy.interval = ms(10_000_000)));
        line.outlook.can_inject = false;
        line.refuses = true;
        line.monitor.refused(line.now);
        let back = 5_000 + late;
        line.sleep(back);
        let end = if paused { back + 5_000 } else { back };
        line.run(end)
            .did(&[(end, Retry), (end, End(Reason::WriteStalled))]);
    }
}

#[test]
fn a_pause_puts_the_verdict_on_a_write_off_only_once_in_a_stall() {
    let mut line = Line::new(writing(|policy| policy.interval = ms(10_000_000)));
    line.outlook.can_inject = false;
    line.refuses = true;
    line.monitor.refused(line.now);
    line.sleep(8_000).sleep(16_000);
    line.did(&[(16_000, Retry), (16_000, End(Reason::WriteStalled))]);
    // What the transport accepts ends the stall.
    let mut line = Line::new(writing(|policy| policy.interval = ms(10_000_000)));
    line.outlook.can_inject = false;
    line.refuses = true;
    line.monitor.refused(line.now);
    line.sleep(8_000);
    line.monitor.accepted(line.now, true, &line.policy);
    line.sleep(16_000).did(&[]);
    line.sleep(24_000)
        .did(&[(24_000, Retry), (24_000, End(Reason::WriteStalled))]);
}

// ---- the handler ---------------------------------------------------------------------------------

#[test]
fn a_handler_that_does_not_read_is_given_up() {
    let mut line = Line::new(stalling(|_| {}));
    line.run(1_000).hears();
    line.monitor.bytes_wait(line.now);
    assert!(line.monitor.take_moved());
    assert_eq!(line.health(), Health::HandlerStalled);
    line.run(2_000).hears();
    line.monitor.bytes_wait(line.now);
    line.run(8_000).did(&[(8_000, End(Reason::HandlerStalled))]);
}

#[test]
fn a_handler_that_reads_slowly_is_not_stalled() {
    let mut line = Line::new(stalling(|policy| policy.interval = ms(10_000_000)));
    line.monitor.bytes_wait(line.now);
    for turn in 1..100 {
        line.run(turn * 6_999);
        line.monitor.handler_read(line.now, true);
        assert_eq!(line.health(), Health::HandlerStalled);
    }
    line.monitor.handler_read(line.now, false);
    assert_eq!(line.health(), Health::Live);
    line.run(9_999_999).did(&[]);
}

#[test]
fn without_a_handler_stall_timeout_bytes_may_wait() {
    let mut line = Line::new(heartbeat(|_| {}));
    line.monitor.bytes_wait(line.now);
    line.run(9_999).did(&[]);
}

#[test]
fn a_frame_that_the_handler_does_not_finish_is_its_stall() {
    let mut line = Line::new(stalling(|_| {}));
    line.flushes = false;
    line.run(17_000)
        .did(&[(10_000, Ping), (17_000, End(Reason::HandlerStalled))]);
}

#[test]
fn of_two_stalls_of_the_handler_the_older_counts() {
    for (waits, end) in [(9_000, 16_000), (12_000, 17_000)] {
        let mut line = Line::new(stalling(|_| {}));
        line.flushes = false;
        line.run(waits);
        line.monitor.bytes_wait(line.now);
        line.run(end);
        assert_eq!(line.log.last(), Some(&(end, End(Reason::HandlerStalled))));
    }
}

#[test]
fn after_a_pause_of_the_runtime_a_half_written_frame_gets_another_chance() {
    let mut line = Line::new(stalling(|_| {}));
    line.flushes = false;
    line.run(10_000).sleep(60_000).did(&[(10_000, Ping)]);
    line.run(67_000)
        .did(&[(10_000, Ping), (67_000, End(Reason::HandlerStalled))]);
}

#[test]
fn a_frame_that_the_transport_held_up_is_not_the_handlers_stall() {
    let mut line = Line::new(stalling(|policy| {
        policy.interval = ms(3_000);
        policy.write_timeout = Some(ms(100_000));
    }));
    line.refuses = true;
    line.run(3_000).did(&[(3_000, Ping)]);
    line.run(40_000).did(&[(3_000, Ping)]);
    line.monitor.take_moved();
    line.monitor.accepted(line.now, false, &line.policy);
    assert!(line.monitor.take_moved());
    assert_eq!(line.deadline(), at(47_000), "the handler's time begins");
}

#[test]
fn a_frame_that_is_given_up_half_written_is_the_handlers_from_then_on() {
    let mut line = Line::new(stalling(|policy| policy.write_timeout = Some(ms(20_000))));
    line.refuses = true;
    line.run(10_000);
    line.refuses = false;
    line.run(37_099).did(&[(10_000, Ping), (30_000, Retry)]);
    line.run(37_100);
    assert_eq!(
        line.log.last(),
        Some(&(37_100, End(Reason::HandlerStalled)))
    );
}

#[test]
fn after_a_pause_of_the_runtime_the_handler_gets_another_chance() {
    for (late, paused) in [(3_499, false), (3_500, true), (600_000, true)] {
        let mut line = Line::new(stalling(|policy| policy.interval = ms(10_000_000)));
        line.monitor.bytes_wait(line.now);
        let back = 7_000 + late;
        line.sleep(back);
        let end = if paused { back + 7_000 } else { back };
        line.run(end).did(&[(end, End(Reason::HandlerStalled))]);
    }
}

#[test]
fn a_pause_puts_the_verdict_on_the_handler_off_only_once_in_a_stall() {
    type Goes = fn(&mut Line);
    let goes_on: [(bool, bool, Option<Goes>); 6] = [
        // whether bytes wait, whether a frame is half-written, and what ends the stall
        (true, false, None),
        (false, true, None),
        (true, true, None),
        (true, false, Some(reads)),
        (false, true, Some(writes)),
        // The frame that it does not finish is still the same.
        (true, true, Some(reads)),
    ];
    for (waits, half_written, goes_on) in goes_on {
        let mut line = Line::new(stalling(|policy| policy.interval = ms(1_000)));
        line.flushes = false;
        line.monitor.passive = !half_written;
        if waits {
            line.monitor.bytes_wait(line.now);
        }
        line.run(1_000).sleep(12_000);
        assert!(!line.monitor.is_over());
        line.run(13_000);
        let ends = goes_on.is_some() && waits != half_written;
        if let Some(goes_on) = goes_on {
            goes_on(&mut line);
        }
        line.sleep(24_000);
        assert_eq!(line.monitor.is_over(), !ends, "{waits} {half_written}");
        line.run(25_000).sleep(36_000);
        let mut acts = line.log.iter().map(|(_, act)| *act);
        assert!(acts.any(|act| act == End(Reason::HandlerStalled)));
    }

    fn reads(line: &mut Line) {
        line.monitor.handler_read(line.now, true);
    }

    fn writes(line: &mut Line) {
        line.monitor.accepted(line.now, true, &line.policy);
    }
}

#[test]
fn what_cannot_be_looked_at_is_not_held_against_the_peer() {
    let policies = [
        heartbeat(|_| {}),
        idle(|policy| {
            policy.timeout = ms(10_000_000);
            policy.first_message = Some(ms(10_000));
        }),
        idle(|policy| {
            policy.timeout = ms(10_000_000);
            policy.message_timeout = Some(ms(10_000));
        }),
    ];
    for policy in policies {
        let mut line = Line::new(policy);
        line.data_in(Data::Part);
        line.outlook.blind = true;
        line.monitor.bytes_wait(line.now);
        // Asks for progress at every deadline, too.
        line.act();
        line.run(1_000_000);
        assert!(!line.monitor.is_over(), "{:?}", line.policy);
        // The handler goes on and makes room, and nothing else turns out to have come.
        line.monitor.take_moved();
        line.outlook.blind = false;
        line.monitor.handler_read(line.now, false);
        assert!(line.monitor.take_moved(), "the clocks run again");
        line.act();
        line.run(1_020_000);
        assert!(line.monitor.is_over(), "{:?}", line.policy);
    }
}

#[test]
fn blindness_that_begins_at_the_deadline_keeps_nobody_busy() {
    let mut line = Line::new(idle(|policy| {
        policy.timeout = ms(10_000_000);
        policy.first_message = Some(ms(50_000));
    }));
    line.monitor.bytes_wait(line.now);
    line.run(49_999);
    line.outlook.blind = true;
    line.run(1_000_000).did(&[]);
    assert_eq!(
        line.deadline(),
        at(10_000_000),
        "that of an idle connection"
    );
    line.monitor.handler_read(line.now, true);
    assert!(line.deadline() <= line.now, "to look at once");
    line.act();
    line.did(&[]);
    assert_eq!(line.deadline(), at(10_000_000), "still full");
    line.monitor.handler_read(line.now, false);
    line.data_in(Data::End);
    line.outlook.blind = false;
    line.run(11_000_000)
        .did(&[(11_000_000, End(Reason::IdleTimeout))]);
}

#[test]
fn blindness_hides_nothing_else() {
    let watching = |watch| idle(|policy| policy.watch = watch);
    let lifetime = idle(|policy| {
        policy.watch = Traffic::Inbound;
        policy.max_lifetime = Some(ms(60_000));
    });
    let dribbling = idle(|policy| {
        policy.timeout = ms(10_000_000);
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
        let mut line = Line::new(policy);
        line.outlook = Outlook {
            can_inject: false,
            mid_message: false,
            claimed: false,
            blind: true,
        };
        line.refuses = true;
        line.monitor.bytes_wait(line.now);
        line.monitor.refused(line.now);
        line.data_out(Data::Part);
        line.run(60_000);
        assert_eq!(line.log.last(), Some(&(60_000, End(reason))));
    }
}

#[test]
fn a_message_has_its_time_anew_when_the_handler_has_made_room() {
    for rest in [false, true] {
        let mut line = Line::new(idle(|policy| {
            policy.timeout = ms(10_000_000);
            policy.message_timeout = Some(ms(20_000));
        }));
        line.data_in(Data::Part);
        line.monitor.bytes_wait(line.now);
        line.outlook.blind = true;
        line.act();
        line.run(50_000).did(&[]);
        line.outlook.blind = false;
        line.monitor.handler_read(line.now, rest);
        // Reads that do not make room where there was none give no time.
        line.run(60_000);
        line.monitor.handler_read(line.now, false);
        line.data_in(Data::Part);
        line.run(70_000)
            .did(&[(70_000, End(Reason::MessageTimeout))]);
    }
}

#[test]
fn a_write_that_goes_on_in_its_second_try_is_waited_for_anew_and_says_so() {
    let mut line = Line::new(heartbeat(|policy| policy.write_timeout = Some(ms(20))));
    line.flushes = false;
    line.monitor.refused(line.now);
    line.run(30);
    assert_eq!(line.deadline(), at(120), "the second try");
    line.monitor.take_moved();
    line.monitor.accepted(line.now, true, &line.policy);
    assert_eq!(line.deadline(), at(50));
    assert!(line.monitor.take_moved(), "nearer than before");
}

#[test]
fn a_first_message_that_the_handler_held_up_has_its_time_anew() {
    let mut line = Line::new(idle(|policy| policy.first_message = Some(ms(1_000))));
    line.monitor.data_in(line.now, Data::Part, &line.policy);
    line.outlook.blind = true;
    line.run(3_000).did(&[]);
    line.outlook.blind = false;
    line.monitor.handler_read(line.now, true);
    line.run(4_000)
        .did(&[(4_000, End(Reason::FirstMessageTimeout))]);
}
