//! The idle layer's verdicts, the order of all, and the end itself.

use std::io::ErrorKind;

use super::Act::{Cut, End, Ping};
use super::*;

// ---- the idle timeout ----------------------------------------------------------------------------

#[test]
fn only_data_messages_in_the_watched_direction_count() {
    let kinds: [fn(&mut Line); 4] = [
        |line| line.monitor.message_in(line.now),
        |line| line.monitor.message_out(line.now),
        |line| {
            line.hears_part_of_a_frame();
        },
        |line| line.monitor.accepted(line.now, true, &line.policy),
    ];
    for (watch, counts) in [
        (Traffic::Inbound, [true, false, false, false]),
        (Traffic::Outbound, [false, true, false, false]),
        (Traffic::Either, [true, true, false, false]),
    ] {
        for (kind, counts) in kinds.iter().zip(counts) {
            let mut line = Line::new(idle(|policy| policy.watch = watch));
            line.run(59_999);
            kind(&mut line);
            let last = if counts { 59_999 } else { 0 };
            assert_eq!(line.monitor.last_active(&line.policy), at(last));
            line.run(last + 60_000)
                .did(&[(last + 60_000, End(Reason::IdleTimeout))]);
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
            line.monitor.message_out(line.now);
        }
        if let Some(when) = peer {
            line.run(when);
            line.monitor.message_in(line.now);
        }
        line.run(end.0).did(&[(end.0, End(end.1))]);
    }
}

#[test]
fn nothing_prolongs_a_lifetime() {
    let mut line = Line::new(both(
        heartbeat(|_| {}),
        idle(|policy| policy.max_lifetime = Some(ms(100_000))),
    ));
    for second in 1..=100 {
        line.run(second * 1_000).hears();
        line.monitor.message_in(line.now);
        line.monitor.message_out(line.now);
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
                policy.handler_stall_timeout = has(3).then_some(due);
                policy.write_timeout = has(4).then_some(ms(4_000));
            }),
            idle(|policy| {
                policy.max_lifetime = has(0).then_some(due);
                policy.first_message = has(1).then_some(due);
                policy.timeout = if has(2) { due } else { ms(1_000_000) };
            }),
        ));
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
                assert_eq!(line.monitor.take_verdict(), None);
                assert_eq!(line.monitor.reason(), None);
                line.monitor.take_moved();
                event(&mut line);
                assert!(line.monitor.take_moved(), "{reason}");
                line.run(line.millis() + 500);
            }
            assert!(line.monitor.is_over());
            assert_eq!(line.health(), Health::Ended);
            later(&mut line);
            assert_eq!(line.monitor.take_verdict(), Some(reason));
            later(&mut line);
            assert_eq!(line.monitor.take_verdict(), None, "once");
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
    assert_eq!(line.monitor.take_verdict(), Some(Reason::CloseTimeout));
}

#[test]
fn a_cut_comes_after_the_close_timeout_of_the_layer_whose_verdict_it_was() {
    for (reason, cut) in [
        (Reason::IdleTimeout, 3_000),
        (Reason::FirstMessageTimeout, 3_000),
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
    line.monitor.message_in(line.now);
    line.monitor.message_out(line.now);
    line.monitor.message_out(line.now);
    let stats = line.monitor.stats();
    assert_eq!((stats.bytes_received(), stats.bytes_sent()), (10, 310));
    assert_eq!((stats.messages_received(), stats.messages_sent()), (1, 2));
    assert_eq!((stats.pings_sent(), stats.pongs_received()), (1, 1));
    assert_eq!(line.monitor.opened(), Moment::START);
}
