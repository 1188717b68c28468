//! Tests of the idle layer's verdicts, the precedence of verdicts, and the end of a connection.

use std::io::ErrorKind;

use super::Act::{Cut, End, Ping};
use super::*;

// ---- the idle timeout ---------------------------------------------------------------------------

/// Passes data in one direction.
type DataEvent = fn(&mut Simulation, Data);

const INBOUND: DataEvent = |sim, data| {
    sim.data_in(data);
};
const OUTBOUND: DataEvent = |sim, data| {
    sim.data_out(data);
};

#[test]
fn only_data_in_the_watched_direction_counts() {
    let watched = [Traffic::Inbound, Traffic::Outbound, Traffic::Either];
    let passes: [(DataEvent, [bool; 3]); 4] = [
        (INBOUND, [true, false, true]),
        (OUTBOUND, [false, true, true]),
        // Bytes that are not data.
        (
            |sim, _| {
                sim.receive_partial_frame();
            },
            [false; 3],
        ),
        (
            |sim, _| sim.monitor.accepted(sim.now, true, &sim.policy),
            [false; 3],
        ),
    ];
    for data in [Data::Part, Data::End, Data::Unframed] {
        for (passes, counts) in passes {
            for (watch, counts) in watched.into_iter().zip(counts) {
                let mut sim = Simulation::new(idle(|policy| policy.watch = watch));
                sim.run_until(59_999);
                passes(&mut sim, data);
                let last = if counts { 59_999 } else { 0 };
                assert_eq!(sim.monitor.last_active(&sim.policy), at(last));
                sim.run_until(last + 60_000)
                    .assert_log(&[(last + 60_000, End(Reason::IdleTimeout))]);
            }
        }
    }
}

#[test]
fn pings_and_pongs_do_not_count_as_activity() {
    let mut sim = Simulation::new(both(heartbeat(|_| {}), idle(|_| {})));
    for ping in 0..5 {
        sim.run_until(10_000 * (ping as u64 + 1));
        assert!(sim.receive_pong(ping));
    }
    assert_eq!(sim.monitor.last_inbound(), at(50_000));
    sim.run_until(60_000);
    assert_eq!(sim.log.last(), Some(&(60_000, End(Reason::IdleTimeout))));
}

#[test]
fn the_first_message_must_come_from_the_peer_and_in_time() {
    for (peer, server, end) in [
        (None, None, (20_000, Reason::FirstMessageTimeout)),
        (None, Some(19_000), (20_000, Reason::FirstMessageTimeout)),
        (Some(19_999), None, (79_999, Reason::IdleTimeout)),
    ] {
        let mut sim = Simulation::new(idle(|policy| policy.first_message = Some(ms(20_000))));
        if let Some(when) = server {
            sim.run_until(when);
            sim.data_out(Data::End);
        }
        if let Some(when) = peer {
            sim.run_until(when);
            sim.data_in(Data::End);
        }
        sim.run_until(end.0).assert_log(&[(end.0, End(end.1))]);
    }
}

#[test]
fn without_frame_boundaries_any_byte_counts_as_the_first_message() {
    let mut sim = Simulation::new(idle(|policy| policy.first_message = Some(ms(20_000))));
    sim.run_until(19_999)
        .data_in(Data::Part)
        .data_in(Data::Unframed);
    sim.run_until(79_999)
        .assert_log(&[(79_999, End(Reason::IdleTimeout))]);
}

// ---- the bound on one message -------------------------------------------------------------------

/// A message timeout of 20 s, an idle timeout of 60 s.
fn bounded(watch: Traffic) -> Policy {
    idle(|policy| {
        policy.message_timeout = Some(ms(20_000));
        policy.watch = watch;
    })
}

#[test]
fn a_slow_message_is_evicted_at_its_timeout_in_the_watched_directions() {
    for (passes, watches) in [
        (INBOUND, [Traffic::Inbound, Traffic::Either]),
        (OUTBOUND, [Traffic::Outbound, Traffic::Either]),
    ] {
        for watch in [Traffic::Inbound, Traffic::Outbound, Traffic::Either] {
            let mut sim = Simulation::new(bounded(watch));
            sim.run_until(5_000);
            sim.monitor.take_moved();
            passes(&mut sim, Data::Part);
            assert!(sim.monitor.take_moved(), "there is a new deadline");
            for second in 6..60 {
                // Other traffic, such as pongs, does not extend the timeout.
                sim.run_until(second * 1_000).receive_frame();
                passes(&mut sim, Data::Part);
                assert!(!sim.monitor.take_moved() || sim.monitor.has_ended());
            }
            if watches.contains(&watch) {
                sim.assert_log(&[(25_000, End(Reason::MessageTimeout)), (28_000, Cut)]);
            } else {
                sim.assert_log(&[]);
                sim.run_until(60_000)
                    .assert_log(&[(60_000, End(Reason::IdleTimeout))]);
            }
        }
    }
}

#[test]
fn each_message_has_its_own_timeout() {
    for passes in [INBOUND, OUTBOUND] {
        let mut sim = Simulation::new(bounded(Traffic::Either));
        for turn in 0..10 {
            sim.run_until(turn * 20_000);
            passes(&mut sim, Data::Part);
            sim.run_until(turn * 20_000 + 19_999);
            passes(&mut sim, Data::End);
        }
        sim.assert_log(&[]);
        // A complete message has no timeout.
        sim.run_until(259_998).assert_log(&[]);
        sim.run_until(259_999)
            .assert_log(&[(259_999, End(Reason::IdleTimeout))]);
    }
}

#[test]
fn the_older_of_two_messages_sets_the_deadline() {
    for (first, second) in [(INBOUND, OUTBOUND), (OUTBOUND, INBOUND)] {
        let mut sim = Simulation::new(bounded(Traffic::Either));
        sim.run_until(1_000);
        first(&mut sim, Data::Part);
        sim.run_until(2_000);
        second(&mut sim, Data::Part);
        sim.run_until(3_000);
        first(&mut sim, Data::End);
        sim.run_until(22_000)
            .assert_log(&[(22_000, End(Reason::MessageTimeout))]);
    }
}

#[test]
fn without_frame_boundaries_no_message_timeout_applies() {
    for passes in [INBOUND, OUTBOUND] {
        let mut sim = Simulation::new(bounded(Traffic::Either));
        passes(&mut sim, Data::Part);
        sim.run_until(10_000);
        for data in [Data::Unframed, Data::Unframed] {
            passes(&mut sim, data);
        }
        sim.run_until(70_000)
            .assert_log(&[(70_000, End(Reason::IdleTimeout))]);
    }
}

#[test]
fn without_a_message_timeout_a_message_may_take_any_time() {
    let mut sim = Simulation::new(idle(|_| {}));
    for second in 0..1_000 {
        sim.run_until(second * 1_000);
        sim.data_in(Data::Part).data_out(Data::Part);
        assert!(!sim.monitor.take_moved(), "no deadline depends on it");
    }
    sim.assert_log(&[]);
}

#[test]
fn traffic_does_not_extend_the_maximum_lifetime() {
    let mut sim = Simulation::new(both(
        heartbeat(|_| {}),
        idle(|policy| policy.max_lifetime = Some(ms(100_000))),
    ));
    for second in 1..=100 {
        sim.run_until(second * 1_000).receive_frame();
        sim.data_in(Data::End);
        sim.data_out(Data::End);
    }
    sim.assert_log(&[(100_000, End(Reason::MaxLifetime))]);
}

#[test]
fn jitter_ends_the_lifetime_earlier_and_never_later() {
    for jitter in [0.0, 0.1, 1.0] {
        for random in [0.0, 0.5, 0.999] {
            let still = idle(|policy| {
                policy.timeout = None;
                policy.max_lifetime = Some(ms(100_000));
                policy.max_lifetime_jitter = jitter;
            });
            let sim = Simulation::jittered(still, random);
            let deadline = sim
                .monitor
                .deadline(&sim.policy)
                .since_start()
                .as_secs_f64();
            let expected = 100.0 * (1.0 - jitter * f64::from(random));
            assert!(
                (deadline - expected).abs() < 0.001,
                "{jitter}, {random}: {deadline}"
            );
            assert!(deadline <= 100.0, "{jitter}, {random}: {deadline}");
        }
    }
}

#[test]
fn of_the_lifetime_and_the_expiry_the_earlier_one_counts_and_only_one_has_jitter() {
    for (lifetime, expiry, end) in [
        (None, Some(30_000), 30_000),
        (Some(100_000), Some(30_000), 30_000),
        (Some(100_000), Some(80_000), 50_000),
        (Some(100_000), None, 50_000),
        (None, Some(1), 1),
    ] {
        let still = idle(|policy| {
            policy.timeout = None;
            policy.max_lifetime = lifetime.map(ms);
            policy.max_lifetime_jitter = 1.0;
            policy.expires_at = expiry.map(Moment::after_millis);
        });
        let mut sim = Simulation::jittered(still, 0.5);
        sim.run_until(200_000);
        sim.log.retain(|(_, act)| *act != Cut);
        sim.assert_log(&[(end, End(Reason::MaxLifetime))]);
    }
}

#[test]
fn without_an_idle_timeout_nothing_ends_an_unused_connection() {
    let mut sim = Simulation::new(idle(|policy| policy.timeout = None));
    assert_eq!(sim.monitor.deadline(&sim.policy), Moment::NEVER);
    sim.run_until(1_000_000_000).assert_log(&[]);
    assert_eq!(sim.health(), Health::Live, "never idle");
}

// ---- precedence ---------------------------------------------------------------------------------

/// Of the verdicts that are due at the same moment, the first in this order is given.
#[test]
fn of_simultaneous_verdicts_a_dead_peer_comes_last() {
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
        // The settings for all earlier verdicts are left out.
        let has = |index| first <= index;
        let mut sim = Simulation::new(both(
            heartbeat(|policy| {
                policy.handler_stall_timeout = has(4).then_some(due);
                policy.write_timeout = has(5).then_some(ms(4_000));
            }),
            idle(|policy| {
                policy.max_lifetime = has(0).then_some(due);
                policy.first_message = has(1).then_some(due);
                policy.message_timeout = has(2).then_some(due);
                policy.timeout = has(3).then_some(due);
            }),
        ));
        sim.data_in(Data::Part);
        sim.io_state.can_inject = false;
        sim.monitor.on_backlog(sim.now);
        sim.run_until(10_000);
        sim.monitor.refused(sim.now);
        sim.refuse_writes = true;
        sim.run_until(14_000);
        sim.log.retain(|(_, act)| *act != Act::Retry);
        sim.assert_log(&[(10_000, Ping), (14_000, End(reason))]);
    }
}

// ---- closing ------------------------------------------------------------------------------------

/// An event that may end the connection.
type EndEvent = fn(&mut Simulation);

const PEER_CLOSES: EndEvent = |sim| sim.monitor.peer_closed(sim.now, Some(1001));
const SERVER_CLOSES: EndEvent = |sim| sim.monitor.handler_closed(sim.now, Some(1000));
const EOF: EndEvent = |sim| sim.monitor.eof(sim.now);
const FAILS: EndEvent = |sim| sim.monitor.failed(sim.now, ErrorKind::ConnectionReset);
const DROPS: EndEvent = |sim| sim.monitor.dropped(sim.now);
const KICKS: EndEvent = |sim| sim.monitor.end(sim.now, Reason::Kicked { code: 4000 });

#[test]
fn the_first_event_that_ends_a_connection_is_its_only_reason() {
    let handler_closed = Reason::ServerClosed { code: Some(1000) };
    let table: [(&[EndEvent], Reason); 10] = [
        (&[PEER_CLOSES], Reason::PeerClosed { code: Some(1001) }),
        (&[EOF], Reason::PeerVanished),
        (&[FAILS], Reason::Transport(ErrorKind::ConnectionReset)),
        (&[DROPS], Reason::HandlerDropped),
        (&[KICKS], Reason::Kicked { code: 4000 }),
        (&[SERVER_CLOSES, PEER_CLOSES], handler_closed),
        (&[SERVER_CLOSES, EOF], handler_closed),
        (&[SERVER_CLOSES, FAILS], handler_closed),
        (&[SERVER_CLOSES, DROPS], handler_closed),
        (&[SERVER_CLOSES, KICKS], Reason::Kicked { code: 4000 }),
    ];
    for (events, reason) in table {
        for later in [PEER_CLOSES, SERVER_CLOSES, EOF, FAILS, DROPS, KICKS] {
            let mut sim = Simulation::new(heartbeat(|_| {}));
            sim.run_until(2_000);
            for event in events {
                assert_eq!(sim.monitor.lifecycle.take_unannounced_end(), None);
                assert_eq!(sim.monitor.reason(), None);
                sim.monitor.take_moved();
                event(&mut sim);
                assert!(sim.monitor.take_moved(), "{reason}");
                sim.run_until(sim.millis() + 500);
            }
            assert!(sim.monitor.has_ended());
            assert_eq!(sim.health(), Health::Ended);
            later(&mut sim);
            assert_eq!(sim.monitor.lifecycle.take_unannounced_end(), Some(reason));
            later(&mut sim);
            assert_eq!(sim.monitor.lifecycle.take_unannounced_end(), None, "once");
            assert_eq!(sim.monitor.reason(), Some(reason), "unchanged");
            sim.run_until(60_000);
            let over = 2_000 + 500 * (events.len() as u64 - 1);
            sim.assert_log(&[(over + 1_000, Cut)]);
        }
    }
}

#[test]
fn a_closing_handshake_has_a_timeout_and_stops_all_others() {
    let mut sim = Simulation::new(both(
        heartbeat(|policy| policy.close_timeout = ms(100_000)),
        idle(|policy| policy.max_lifetime = Some(ms(50_000))),
    ));
    sim.run_until(10_000);
    assert!(sim.monitor.awaits_answer());
    SERVER_CLOSES(&mut sim);
    assert_eq!(sim.health(), Health::Closing);
    assert!(!sim.monitor.awaits_answer());
    sim.run_until(20_000);
    SERVER_CLOSES(&mut sim);
    sim.run_until(300_000).assert_log(&[
        (10_000, Ping),
        (110_000, End(Reason::CloseTimeout)),
        (210_000, Cut),
    ]);
    assert_eq!(
        sim.monitor.lifecycle.take_unannounced_end(),
        Some(Reason::CloseTimeout)
    );
}

#[test]
fn an_evicted_transport_is_cut_after_the_close_timeout_of_the_layer_that_evicted_it() {
    for (reason, cut) in [
        (Reason::IdleTimeout, 3_000),
        (Reason::FirstMessageTimeout, 3_000),
        (Reason::MessageTimeout, 3_000),
        (Reason::MaxLifetime, 3_000),
        (Reason::WriteStalled, 1_000),
        (Reason::Replaced, 1_000),
    ] {
        let mut sim = Simulation::new(both(heartbeat(|_| {}), idle(|_| {})));
        sim.monitor.end(sim.now, reason);
        sim.run_until(10_000).assert_log(&[(cut, Cut)]);
        sim.poll();
        sim.assert_log(&[(cut, Cut), (10_000, Cut)]);
    }
}

#[test]
fn health_shows_each_developing_failure() {
    let mut sim = Simulation::new(heartbeat(|policy| policy.missed_pings = 2));
    assert_eq!(sim.health(), Health::Live);
    sim.run_until(10_000);
    assert_eq!(sim.health(), Health::PeerSilent { missed: 0 });
    sim.auto_flush = false;
    sim.run_until(14_000);
    assert_eq!(
        sim.health(),
        Health::PeerSilent { missed: 1 },
        "also while the next ping is queued"
    );
    sim.monitor.refused(sim.now);
    assert_eq!(sim.health(), Health::WriteStalled);
    sim.monitor.on_backlog(sim.now);
    assert_eq!(sim.health(), Health::HandlerStalled);
    sim.monitor.handler_read(sim.now, false);
    sim.flush_ping();
    assert_eq!(sim.health(), Health::PeerSilent { missed: 1 });
    sim.receive_frame();
    assert_eq!(sim.health(), Health::Degraded, "a ping was missed");
    SERVER_CLOSES(&mut sim);
    sim.monitor.refused(sim.now);
    assert_eq!(sim.health(), Health::Closing);
    EOF(&mut sim);
    assert_eq!(sim.health(), Health::Ended);
}

#[test]
fn stats_count_traffic_pings_and_pongs() {
    let mut sim = Simulation::new(heartbeat(|_| {}));
    sim.run_until(10_000);
    assert!(sim.receive_pong(0));
    sim.monitor.sent(300);
    sim.data_in(Data::End);
    sim.data_out(Data::End);
    sim.data_out(Data::End);
    let stats = sim.monitor.stats();
    assert_eq!((stats.bytes_received(), stats.bytes_sent()), (10, 310));
    assert_eq!((stats.messages_received(), stats.messages_sent()), (1, 2));
    assert_eq!((stats.pings_sent(), stats.pongs_received()), (1, 1));
    assert_eq!(sim.monitor.opened(), Moment::START);
}
