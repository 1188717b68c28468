//! Every health state through the public API, below and above each threshold.
//!
//! `Liveness::health` shows a state at once; a hook is called when the state has lasted.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocket;
use axum::routing::MethodRouter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower_ws_liveness::{
    Health, HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, Liveness, Traffic,
};

use super::health_changes::Changes;
use crate::script::*;
use crate::support::raw::{Frame, RawClient};
use crate::support::{echo_route, in_memory, report_liveness, watched_route, within};

const SILENT: Health = Health::PeerSilent { missed: 0 };

/// How long an error degrades the health under `heartbeat()`: ten intervals plus timeouts.
const ERROR_MEMORY_MS: u64 = 10 * (100 + 50);

fn watched(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Changes) {
    let changes = Changes::new();
    let (stream, live, peer) = wrap_with(builder.on_health(changes.hook()));
    (stream, live, peer, changes)
}

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

fn peer_text() -> Vec<u8> {
    frame(0x80 | TEXT, Some([1, 2, 3, 4]), b"said")
}

/// Makes the peer answer each ping sent from now on, `after` it was sent.
fn spawn_pongs(peer: &Peer, after: Duration) -> AbortHandle {
    let peer = peer.clone();
    let task = tokio::spawn(async move {
        let mut seen = peer.pings().len();
        loop {
            sleep(ms(1)).await;
            let pings = peer.pings();
            for ping in &pings[seen..] {
                let (peer, pong) = (peer.clone(), Role::Server.pong(ping));
                let due = Instant::now() + after.saturating_sub(ms(1));
                tokio::spawn(async move {
                    sleep_until(due).await;
                    peer.send(&pong);
                });
            }
            seen = pings.len();
        }
    });
    task.abort_handle()
}

async fn sleep_to_ms(start: Instant, millis: u64) {
    sleep_until(start + ms(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn each_missed_ping_calls_the_hook_and_a_pong_degrades_then_restores_health() {
    let start = Instant::now();
    let (_stream, live, peer, changes) = watched(heartbeat().missed_pings(4));
    assert_eq!(live.health(), Health::Live);
    sleep_to_ms(start, 102).await;
    assert_eq!(live.health(), SILENT, "at once");
    assert_eq!(changes.total(), 0);
    sleep_to_ms(start, 210).await;
    let missed = |missed| Health::PeerSilent { missed };
    changes.assert_at(&[(125, SILENT), (150, missed(1)), (200, missed(2))]);
    assert_eq!(live.health(), missed(2));

    spawn_pongs(&peer, ms(2));
    peer.send(&Role::Server.pong(&peer.last_ping()));
    sleep_to_ms(start, 212).await;
    assert_eq!(live.health(), Health::Degraded);
    assert_eq!(live.stats().missed_pings(), 2);
    // The last error was the ping that was missed at 200 ms.
    sleep_to_ms(start, 198 + ERROR_MEMORY_MS).await;
    assert_eq!((live.health(), changes.total()), (Health::Degraded, 4));
    sleep_to_ms(start, 3_000).await;
    assert_eq!(live.health(), Health::Live);
    changes.assert_at(&[
        (125, SILENT),
        (150, missed(1)),
        (200, missed(2)),
        (210, Health::Degraded),
        (200 + ERROR_MEMORY_MS, Health::Live),
    ]);
    let all = changes.all();
    assert_eq!(all[0].id(), live.id());
    assert_eq!(all[0].rtt(), None);
    assert!(all[4].rtt().is_some());
    let missed: Vec<_> = all
        .iter()
        .map(|change| change.stats().missed_pings())
        .collect();
    assert_eq!(missed, [0, 1, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn pongs_are_slow_from_half_the_timeout_on() {
    for (after, slow) in [(20, false), (30, true)] {
        let (_stream, live, peer, changes) = watched(heartbeat());
        let answering = spawn_pongs(&peer, ms(after));
        sleep(ms(150)).await;
        assert_eq!(live.stats().pongs_received(), 1);
        assert_eq!(live.stats().slow_pongs(), u64::from(slow));
        if !slow {
            assert_eq!((live.health(), changes.total()), (Health::Live, 0));
            continue;
        }
        assert_eq!(live.health(), Health::Degraded);
        assert_eq!(changes.states(), [SILENT, Health::Degraded]);
        // From now on the peer answers quickly.
        answering.abort();
        spawn_pongs(&peer, ms(2));
        sleep(ms(ERROR_MEMORY_MS + 50)).await;
        assert_eq!(live.health(), Health::Live);
        assert_eq!(changes.states(), [SILENT, Health::Degraded, Health::Live]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_stall_calls_the_hook_after_half_the_write_timeout() {
    for (write_timeout, half) in [(Some(ms(400)), 200), (None, 15_000)] {
        for drained_after in [half - 5, half + 5] {
            let stalled = drained_after > half;
            let case = (half, drained_after);
            let start = Instant::now();
            let (mut stream, live, peer, changes) = watched(
                heartbeat()
                    .interval(ms(100_000))
                    .write_timeout(write_timeout),
            );
            peer.write_steps(&[WAIT]);
            let writing = tokio::spawn(async move {
                stream.write_all(&hello()).await.unwrap();
                stream
            });
            sleep_to_ms(start, drained_after).await;
            assert_eq!(live.health(), Health::WriteStalled, "{case:?}");
            assert_eq!(
                live.stats().write_stalls(),
                0,
                "counted only when the stall ends"
            );
            peer.drain();
            let _stream = within("the write", writing).await.unwrap();
            assert_eq!(live.stats().write_stalls(), u64::from(stalled), "{case:?}");
            let health = if stalled {
                Health::Degraded
            } else {
                Health::Live
            };
            assert_eq!(live.health(), health, "{case:?}");
            sleep(ms(1_000)).await;
            if stalled {
                changes.assert_at(&[
                    (half, Health::WriteStalled),
                    (drained_after, Health::Degraded),
                ]);
            } else {
                changes.assert_at(&[]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_write_stall_calls_the_hook_again() {
    let start = Instant::now();
    // No deadline is near at which the driver would visit the connection.
    let builder = heartbeat().interval(ms(10_000_000)).write_timeout(None);
    let (mut stream, live, peer, changes) = watched(builder);
    peer.write_steps(&[WAIT, 3]);
    let writing = tokio::spawn(async move { stream.write_all(&hello()).await });
    sleep_to_ms(start, 16_000).await;
    peer.kick();
    sleep_to_ms(start, 40_000).await;
    assert_eq!(live.stats().write_stalls(), 1);
    changes.assert_at(&[
        (15_000, Health::WriteStalled),
        (16_000, Health::Degraded),
        (31_000, Health::WriteStalled),
    ]);
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_read_calls_the_hook_once_the_stall_has_lasted() {
    // The driver finds the bytes when the first ping is due, at 100 ms.
    for (limit, half) in [(None, 100), (Some(ms(300)), 150)] {
        for read_after in [100 + half - 10, 100 + half + 10] {
            let start = Instant::now();
            let builder = heartbeat().handler_stall_timeout(limit);
            let (mut stream, live, peer, changes) = watched(builder);
            spawn_pongs(&peer, ms(2));
            peer.send(&peer_text());
            sleep_to_ms(start, read_after).await;
            assert_eq!(live.health(), Health::HandlerStalled);
            stream.read_exact(&mut [0; 10]).await.unwrap();
            assert_eq!(
                live.health(),
                Health::Live,
                "a read stall leaves no past error"
            );
            if read_after > 100 + half {
                changes.assert_at(&[
                    (100 + half, Health::HandlerStalled),
                    (read_after, Health::Live),
                ]);
            } else {
                changes.assert_at(&[]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_written_frame_calls_the_hook_after_a_ping_has_waited_for_it() {
    let start = Instant::now();
    let (mut stream, live, peer, changes) = watched(heartbeat());
    spawn_pongs(&peer, ms(2));
    stream.write_all(&hello()[..3]).await.unwrap();
    sleep_to_ms(start, 190).await;
    assert_eq!(
        (live.health(), changes.total()),
        (Health::HandlerStalled, 0)
    );
    sleep_to_ms(start, 230).await;
    stream.write_all(&hello()[3..]).await.unwrap();
    sleep_to_ms(start, 300).await;
    assert_eq!(live.health(), Health::Live);
    changes.assert_at(&[(200, Health::HandlerStalled), (230, Health::Live)]);
}

#[tokio::test(start_paused = true)]
async fn malformed_framing_degrades_for_ever() {
    let (mut stream, live, peer, changes) = watched(heartbeat());
    peer.send(&frame(0x80 | 0x3, Some([0; 4]), b"reserved"));
    let mut read = [0; 64];
    assert!(stream.read(&mut read).await.unwrap() > 0);
    assert_eq!(live.health(), Health::Degraded);
    sleep(ms(1_000_000)).await;
    assert_eq!(live.health(), Health::Degraded);
    changes.assert_at(&[(0, Health::Degraded)]);
}

#[tokio::test(start_paused = true)]
async fn the_closing_handshake_calls_the_hook_and_its_end_does_not() {
    let (mut stream, live, peer, changes) = watched(heartbeat());
    let code = 1000_u16.to_be_bytes();
    stream
        .write_all(&frame(0x80 | CLOSE, None, &code))
        .await
        .unwrap();
    assert_eq!(live.health(), Health::Closing);
    assert_eq!(changes.states(), [Health::Closing]);
    sleep(ms(10)).await;
    peer.send(&frame(0x80 | CLOSE, Some([4; 4]), &code));
    stream.read_exact(&mut [0; 8]).await.unwrap();
    within("the end", live.evicted()).await;
    assert_eq!(live.health(), Health::Ended);
    drop(stream);
    sleep(ms(10_000)).await;
    assert_eq!(changes.states(), [Health::Closing]);
}

#[tokio::test(start_paused = true)]
async fn the_end_is_no_change_of_health() {
    type End = fn(&Liveness, &Peer);
    let ends: [(&str, End); 4] = [
        ("kicked", |live, _| assert!(live.evict(1000, "bye"))),
        ("end of file", |_, peer| peer.end(Ok(()))),
        ("reset", |_, peer| {
            peer.end(Err(std::io::ErrorKind::ConnectionReset));
        }),
        ("dead", |_, _| {}),
    ];
    for (name, end) in ends {
        let (stream, live, peer, changes) = watched(heartbeat());
        sleep(ms(130)).await;
        assert_eq!(changes.states(), [SILENT], "{name}");
        end(&live, &peer);
        sleep(ms(20_000)).await;
        assert_eq!(live.health(), Health::Ended, "{name}");
        drop(stream);
        sleep(ms(20_000)).await;
        assert_eq!(changes.states(), [SILENT], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_answered_pings_calls_no_hook() {
    let builder = HeartbeatLayer::builder();
    let (_stream, live, peer, changes) = watched(builder);
    for _ in 0..3_600 {
        sleep(ms(1_000)).await;
        let answered = live.stats().pongs_received() as usize;
        for ping in &peer.pings()[answered..] {
            peer.send(&Role::Server.pong(ping));
        }
    }
    assert!(live.stats().pongs_received() > 100);
    assert_eq!(
        (live.stats().missed_pings(), live.stats().slow_pongs()),
        (0, 0)
    );
    assert_eq!(changes.total(), 0, "{:?}", changes.all());
}

#[tokio::test(start_paused = true)]
async fn a_shorter_timeout_calls_the_hook_earlier() {
    let start = Instant::now();
    let (_stream, live, _peer, changes) = watched(heartbeat().timeout(ms(5_000)));
    sleep_to_ms(start, 200).await;
    live.set_timeout(ms(400)).unwrap();
    sleep_to_ms(start, 350).await;
    changes.assert_at(&[(300, SILENT)]);
}

/// A client of `route` behind an idle layer and an optional heartbeat.
async fn client(
    (route, mut lives): (
        MethodRouter<(), Infallible>,
        mpsc::UnboundedReceiver<Liveness>,
    ),
    idle: IdleTimeoutLayer,
    heartbeat: Option<HeartbeatLayer>,
) -> (RawClient<DuplexStream>, Liveness) {
    let mut app = Router::new().route("/ws", route).layer(idle);
    if let Some(heartbeat) = heartbeat {
        app = app.layer(heartbeat);
    }
    let client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    let live = within("the handler", lives.recv()).await.unwrap();
    (client, live)
}

#[tokio::test(start_paused = true)]
async fn idle_is_half_the_idle_timeout_without_a_message() {
    for with_heartbeat in [false, true] {
        let changes = Changes::new();
        let start = Instant::now();
        let idle = IdleTimeoutLayer::builder()
            .timeout(ms(4_000))
            .on_health(changes.hook())
            .build()
            .unwrap();
        let heartbeat = with_heartbeat.then(|| heartbeat().build().unwrap());
        let (mut client, live) = client(report_liveness(echo_route()), idle, heartbeat).await;
        // The client sends only pongs, which are not messages.
        let quiet = timeout(ms(1_990), client.next()).await;
        assert!(quiet.is_err());
        assert_eq!((live.health(), changes.total()), (Health::Live, 0));
        let quiet = timeout(ms(1_010), client.next()).await;
        assert!(quiet.is_err());
        assert_eq!(live.health(), Health::Idle);
        let hello = Frame::text("hello");
        client.send(&hello).await.unwrap();
        assert_eq!(client.expect_frame().await, hello);
        assert_eq!(live.health(), Health::Live);
        let quiet = timeout(ms(3_000), client.next()).await;
        assert!(quiet.is_err());
        assert_eq!(start.elapsed(), ms(6_000));
        assert_eq!(
            changes.states(),
            [Health::Idle, Health::Live, Health::Idle],
            "heartbeat: {with_heartbeat}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn only_data_in_the_watched_direction_keeps_a_connection_from_being_idle() {
    for (watch, health) in [
        (Traffic::Inbound, Health::Live),
        (Traffic::Outbound, Health::Idle),
        (Traffic::Either, Health::Live),
    ] {
        let idle = IdleTimeoutLayer::builder()
            .timeout(ms(4_000))
            .watch(watch)
            .build()
            .unwrap();
        // A handler that reads and never writes.
        let reads_only =
            |mut socket: WebSocket| async move { while let Some(Ok(_)) = socket.recv().await {} };
        let (mut client, live) = client(watched_route(reads_only), idle, None).await;
        sleep(ms(2_500)).await;
        assert_eq!(live.health(), Health::Idle);
        client.send(&Frame::new(PING, "no message")).await.unwrap();
        assert_eq!(client.expect_frame().await.opcode, PONG);
        assert_eq!(live.health(), Health::Idle, "{watch:?}: no data so far");
        let half = Frame::text("unfinished").unfinished();
        client.send(&half).await.unwrap();
        sleep(ms(10)).await;
        assert_eq!(live.health(), health, "{watch:?}: data of a message");
        assert!((live.idle_for() <= ms(12)) == (health == Health::Live));
        sleep(ms(1_200)).await;
        client.send(&Frame::new(CONTINUATION, ".")).await.unwrap();
        sleep(ms(10)).await;
        assert_eq!(live.health(), health, "{watch:?}: its end");
    }
}
