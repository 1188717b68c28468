//! The idle layer's verdicts, the order of all, and the end itself.

use std::io::ErrorKind;

use super::Act::{Cut, End, Ping};
use super::*;

// ---- the idle timeout ----------------------------------------------------------------------------

/// Has data pass in one direction.
type Passes = fn(&mut Line, Data);

const INBOUND: Passes = |line, data| {
    line.data_in(data);
};
const OUTBOUND: Passes = |line, data| {
    line.data_out(data);
};

#[test]
fn only_data_in_the_watched_direction_counts() {
    let watched = [Traffic::Inbound, Traffic::Outbound, Traffic::Either];
    let passes: [(Passes, [bool; 3]); 4] = [
        (INBOUND, [true, false, true]),
        (OUTBOUND, [false, true, true]),
        // Bytes that are no data.
        (
            |line, _| {
                line.hears_part_of_a_frame();
            },
            [false; 3],
        ),
        (
            |line, _| line.monitor.accepted(line.now, true, &line.policy),
            [false; 3],
        ),
    ];
    for data in [Data::Part, Data::End, Data::Unframed] {
        for (passes, counts) in passes {
            for (watch, counts) in watched.into_iter().zip(counts) {
                let mut line = Line::new(idle(|policy| policy.watch = watch));
                line.run(59_999);
                passes(&mut line, data);
                let last = if counts { 59_999 } else { 0 };
                assert_eq!(line.monitor.last_active(&line.policy), at(last));
                line.run(last + 60_000)
                    .did(&[(last + 60_000, End(Reason::IdleTimeout))]);
            }
        }
    }
}

#[test]
fn pings_and_pongs_do_not_keep_a_connection_busy() {
    let mut line = Line::new(both(heartbeat(|_| {}), idle(|_| {})));
    for ping in 0..5 {
        line.run(10_000 * (ping as u64 + 1));
        assert!(line.pongs(ping));
    }
    assert_eq!(line.monitor.last_inbound(), at(50_000));
    line.run(60_000);
    assert_eq!(line.log.last(), Some(&(60_000, End(Reason::IdleTimeout))));
}

#[test]
fn the_first_message_has_to_come_in_time_and_only_from_the_peer() {
    for (peer, server, end) in [
        (None, None, (20_000, Reason::FirstMessageTimeout)),
        (None, Some(19_000), (20_000, Reason::FirstMessageTimeout)),
        (Some(19_999), None, (79_999, Reason::IdleTimeout)),
    ] {
        let mut line = Line::new(idle(|policy| policy.first_message = Some(ms(20_000))));
        if let Some(when) = server {
            line.run(when);
            line.data_out(Data::End);
        }
        if let Some(when) = peer {
            line.run(when);
            line.data_in(Data::End);
        }
        line.run(end.0).did(&[(end.0, End(end.1))]);
    }
}

#[test]
fn without_frame_boundaries_any_byte_is_the_first_message() {
    let mut line = Line::new(idle(|policy| policy.first_message = Some(ms(20_000))));
    line.run(19_999).data_in(Data::Part).data_in(Data::Unframed);
    line.run(79_999).did(&[(79_999, End(Reason::IdleTimeout))]);
}

// ---- the bound on one message --------------------------------------------------------------------

/// 20 s for a message, 60 s for a connection that is idle.
fn bounded(watch: Traffic) -> Policy {
    idle(|policy| {
        policy.message_timeout = Some(ms(20_000));
        policy.watch = watch;
    })
}

#[test]
fn a_message_that_dribbles_ends_at_its_bound_in_the_watched_directions() {
    for (passes, watches) in [
        (INBOUND, [Traffic::Inbound, Traffic::Either]),
        (OUTBOUND, [Traffic::Outbound, Traffic::Either]),
    ] {
        for watch in [Traffic::Inbound, Traffic::Outbound, Traffic::Either] {
            let mut line = Line::new(bounded(watch));
            line.run(5_000);
            line.monitor.take_moved();
            passes(&mut line, Data::Part);
            assert!(line.monitor.take_moved(), "there is a new deadline");
            for second in 6..60 {
                // What else passes, pongs and the like, changes nothing.
                line.run(second * 1_000).hears();
                passes(&mut line, Data::Part);
                assert!(!line.monitor.take_moved() || line.monitor.is_over());
            }
            if watches.contains(&watch) {
                line.did(&[(25_000, End(Reason::MessageTimeout)), (28_000, Cut)]);
            } else {
                line.did(&[]);
                line.run(60_000).did(&[(60_000, End(Reason::IdleTimeout))]);
            }
        }
    }
}

#[test]
fn each_message_has_its_own_time() {
    for passes in [INBOUND, OUTBOUND] {
        let mut line = Line::new(bounded(Traffic::Either));
        for turn in 0..10 {
            line.run(turn * 20_000);
            passes(&mut line, Data::Part);
            line.run(turn * 20_000 + 19_999);
            passes(&mut line, Data::End);
        }
        line.did(&[]);
        // A whole message is none that goes on.
        line.run(259_998).did(&[]);
        line.run(259_999)
            .did(&[(259_999, End(Reason::IdleTimeout))]);
    }
}

#[test]
fn the_older_of_two_messages_decides() {
    for (first, second) in [(INBOUND, OUTBOUND), (OUTBOUND, INBOUND)] {
        let mut line = Line::new(bounded(Traffic::Either));
        line.run(1_000);
        first(&mut line, Data::Part);
        line.run(2_000);
        second(&mut line, Data::Part);
        line.run(3_000);
        first(&mut line, Data::End);
        line.run(22_000)
            .did(&[(22_000, End(Reason::MessageTimeout))]);
    }
}

#[test]
fn without_frame_boundaries_there_is_no_message_that_goes_on() {
    for passes in [INBOUND, OUTBOUND] {
        let mut line = Line::new(bounded(Traffic::Either));
        passes(&mut line, Data::Part);
        line.run(10_000);
        for data in [Data::Unframed, Data::Unframed] {
            passes(&mut line, data);
        }
        line.run(70_000).did(&[(70_000, End(Reason::IdleTimeout))]);
    }
}

#[test]
fn without_the_bound_a_message_has_all_the_time() {
    let mut line = Line::new(idle(|_| {}));
    for second in 0..1_000 {
        line.run(second * 1_000);
        line.data_in(Data::Part).data_out(Data::Part);
        assert!(!line.monitor.take_moved(), "nothing follows from it");
    }
    line.did(&[]);
}

#[test]
fn nothing_prolongs_a_lifetime() {
    let mut line = Line::new(both(
        heartbeat(|_| {}),
        idle(|policy| policy.max_lifetime = Some(ms(100_000))),
    ));
    for second in 1..=100 {
        line.run(second * 1_000).hears();
        line.data_in(Data::End);
        line.data_out(Data::End);
    }
    line.did(&[(100_000, End(Reason::MaxLifetime))]);
}

// ---- precedence ----------------------------------------------------------------------------------

/// What is due at the same moment is reported in this order.
#[test]
fn of_several_verdicts_the_peer_is_blamed_last() {
    let order = [
        Reason::MaxLifetime,
        Reason::FirstMessageTimeout,
        Reason::MessageTimeout,
        Reason::IdleTimeout,
        Reason::HandlerStalled,
        Reason::WriteStalled,
        Reason::HeartbeatTimeout { missed: 1 },
    ];
    let due = ms(14_000);
    for (first, &reason) in order.iter().enumerate() {
        // Everything that would come before is left out.
        let has = |index| first <= index;
        let mut line = Line::new(both(
            heartbeat(|policy| {
                policy.handler_stall_timeout = has(4).then_some(due);
                policy.write_timeout = has(5).then_some(ms(4_000));
            }),
            idle(|policy| {
                policy.max_lifetime = has(0).then_some(due);
                policy.first_message = has(1).then_some(due);
                policy.message_timeout = has(2).then_some(due);
                policy.timeout = if has(3) { due } else { ms(1_000_000) };
            }),
        ));
        line.data_in(Data::Part);
        line.outlook.can_inject = false;
        line.monitor.bytes_wait(line.now);
        line.run(10_000);
        line.monitor.refused(line.now);
        line.refuses = true;
        line.run(14_000);
        line.log.retain(|(_, act)| *act != Act::Retry);
        line.did(&[(10_000, Ping), (14_000, End(reason))]);
    }
}

// ---- closing -------------------------------------------------------------------------------------

type Event = fn(&mut Line);

const PEER_CLOSES: Event = |line| line.monitor.peer_closed(line.now, Some(1001));
const SERVER_CLOSES: Event = |line| line.monitor.server_closed(line.now, Some(1000));
const EOF: Event = |line| line.monitor.eof(line.now);
const FAILS: Event = |line| line.monitor.failed(line.now, ErrorKind::ConnectionReset);
const DROPS: Event = |line| line.monitor.dropped(line.now);
const KICKS: Event = |line| line.monitor.end(line.now, Reason::Kicked { code: 4000 });

#[test]
fn the_first_end_is_the_reason_and_the_only_one() {
    let server_closed = Reason::ServerClosed { code: Some(1000) };
    let table: [(&[Event], Reason); 10] = [
        (&[PEER_CLOSES], Reason::PeerClosed { code: Some(1001) }),
        (&[EOF], Reason::PeerVanished),
        (&[FAILS], Reason::Transport(ErrorKind::ConnectionReset)),
        (&[DROPS], Reason::HandlerDropped),
        (&[KICKS], Reason::Kicked { code: 4000 }),
        (&[SERVER_CLOSES, PEER_CLOSES], server_closed),
        (&[SERVER_CLOSES, EOF], server_closed),
        (&[SERVER_CLOSES, FAILS], server_closed),
        (&[SERVER_CLOSES, DROPS], server_closed),
        (&[SERVER_CLOSES, KICKS], Reason::Kicked { code: 4000 }),
    ];
    for (events, reason) in table {
        for later in [PEER_CLOSES, SERVER_CLOSES, EOF, FAILS, DROPS, KICKS] {
            let mut line = Line::new(heartbeat(|_| {}));
            line.run(2_000);
            for event in events {
                assert_eq!(line.monitor.lifecycle.take_verdict(), None);
                assert_eq!(line.monitor.reason(), None);
                line.monitor.take_moved();
                event(&mut line);
                assert!(line.monitor.take_moved(), "{reason}");
                line.run(line.millis() + 500);
            }
            assert!(line.monitor.is_over());
            assert_eq!(line.health(), Health::Ended);
            later(&mut line);
            assert_eq!(line.monitor.lifecycle.take_verdict(), Some(reason));
            later(&mut line);
            assert_eq!(line.monitor.lifecycle.take_verdict(), None, "once");
            assert_eq!(line.monitor.reason(), Some(reason), "for good");
            line.run(60_000);
            let over = 2_000 + 500 * (events.len() as u64 - 1);
            line.did(&[(over + 1_000, Cut)]);
        }
    }
}

#[test]
fn a_closing_handshake_is_bounded_and_stops_all_other_clocks() {
    let mut line = Line::new(both(
        heartbeat(|policy| policy.close_timeout = ms(100_000)),
        idle(|policy| policy.max_lifetime = Some(ms(50_000))),
    ));
    line.run(10_000);
    assert!(line.monitor.is_waiting());
    SERVER_CLOSES(&mut line);
    assert_eq!(line.health(), Health::Closing);
    assert!(!line.monitor.is_waiting());
    line.run(20_000);
    SERVER_CLOSES(&mut line);
    line.run(300_000).did(&[
        (10_000, Ping),
        (110_000, End(Reason::CloseTimeout)),
        (210_000, Cut),
    ]);
    assert_eq!(
        line.monitor.lifecycle.take_verdict(),
        Some(Reason::CloseTimeout)
    );
}

#[test]
fn a_cut_comes_after_the_close_timeout_of_the_layer_whose_verdict_it_was() {
    for (reason, cut) in [
        (Reason::IdleTimeout, 3_000),
        (Reason::FirstMessageTimeout, 3_000),
        (Reason::MessageTimeout, 3_000),
        (Reason::MaxLifetime, 3_000),
        (Reason::WriteStalled, 1_000),
        (Reason::Replaced, 1_000),
    ] {
        let mut line = Line::new(both(heartbeat(|_| {}), idle(|_| {})));
        line.monitor.end(line.now, reason);
        line.run(10_000).did(&[(cut, Cut)]);
        line.act();
        line.did(&[(cut, Cut), (10_000, Cut)]);
    }
}

#[test]
fn health_names_what_develops() {
    let mut line = Line::new(heartbeat(|policy| policy.missed_pings = 2));
    assert_eq!(line.health(), Health::Live);
    line.run(10_000);
    assert_eq!(line.health(), Health::PeerSilent { missed: 0 });
    line.flushes = false;
    line.run(14_000);
    assert_eq!(
        line.health(),
        Health::PeerSilent { missed: 1 },
        "also while the next ping is on its way"
    );
    line.monitor.refused(line.now);
    assert_eq!(line.health(), Health::WriteStalled);
    line.monitor.bytes_wait(line.now);
    assert_eq!(line.health(), Health::HandlerStalled);
    line.monitor.handler_read(line.now, false);
    line.flush();
    assert_eq!(line.health(), Health::PeerSilent { missed: 1 });
    line.hears();
    assert_eq!(line.health(), Health::Degraded, "a ping was missed");
    SERVER_CLOSES(&mut line);
    line.monitor.refused(line.now);
    assert_eq!(line.health(), Health::Closing);
    EOF(&mut line);
    assert_eq!(line.health(), Health::Ended);
}

#[test]
fn counts_what_passed() {
    let mut line = Line::new(heartbeat(|_| {}));
    line.run(10_000);
    assert!(line.pongs(0));
    line.monitor.sent(300);
    line.data_in(Data::End);
    line.data_out(Data::End);
    line.data_out(Data::End);
    let stats = line.monitor.stats();
    assert_eq!((stats.bytes_received(), stats.bytes_sent()), (10, 310));
    assert_eq!((stats.messages_received(), stats.messages_sent()), (1, 2));
    assert_eq!((stats.pings_sent(), stats.pongs_received()), (1, 1));
    assert_eq!(line.monitor.opened(), Moment::START);
}
