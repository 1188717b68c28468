//! Every state of a connection's health, by public means: what `Liveness::health` shows at once, what
//! a hook is told once it has lasted, and each threshold from below and from above.

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

use super::changes::Changes;
use crate::script::*;
use crate::support::raw::{Frame, RawClient};
use crate::support::{echo_route, in_memory, told_of, watched_route, within};

const SILENT: Health = Health::PeerSilent { missed: 0 };

/// With the times of `heartbeat()`, an error counts for so many milliseconds.
const MEMORY: u64 = 10 * (100 + 50);

fn watched(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Changes) {
    let changes = Changes::new();
    let (stream, live, peer) = wrap_with(builder.on_health(changes.hook()));
    (stream, live, peer, changes)
}

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

fn said() -> Vec<u8> {
    frame(0x80 | TEXT, Some([1, 2, 3, 4]), b"said")
}

/// Has the peer answer each ping that comes from now on, after so much time.
fn answers(peer: &Peer, after: Duration) -> AbortHandle {
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

async fn sleep_till(begun: Instant, millis: u64) {
    sleep_until(begun + ms(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_told_of_by_and_by_and_its_silence_fades() {
    let begun = Instant::now();
    let (_stream, live, peer, changes) = watched(heartbeat().missed_pings(4));
    assert_eq!(live.health(), Health::Live);
    sleep_till(begun, 102).await;
    assert_eq!(live.health(), SILENT, "at once");
    assert_eq!(changes.total(), 0);
    sleep_till(begun, 210).await;
    let missed = |missed| Health::PeerSilent { missed };
    changes.are(&[(125, SILENT), (150, missed(1)), (200, missed(2))]);
    assert_eq!(live.health(), missed(2));

    answers(&peer, ms(2));
    peer.send(&Role::Server.pong(&peer.last_ping()));
    sleep_till(begun, 212).await;
    assert_eq!(live.health(), Health::Degraded);
    assert_eq!(live.stats().missed_pings(), 2);
    // The last error was the ping that was missed at 200 ms.
    sleep_till(begun, 198 + MEMORY).await;
    assert_eq!((live.health(), changes.total()), (Health::Degraded, 4));
    sleep_till(begun, 3_000).await;
    assert_eq!(live.health(), Health::Live);
    changes.are(&[
        (125, SILENT),
        (150, missed(1)),
        (200, missed(2)),
        (210, Health::Degraded),
        (200 + MEMORY, Health::Live),
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
        let answering = answers(&peer, ms(after));
        sleep(ms(150)).await;
        assert_eq!(live.stats().pongs_received(), 1);
        assert_eq!(live.stats().slow_pongs(), u64::from(slow));
        if !slow {
            assert_eq!((live.health(), changes.total()), (Health::Live, 0));
            continue;
        }
        assert_eq!(live.health(), Health::Degraded);
        assert_eq!(changes.states(), [SILENT, Health::Degraded]);
        // From now on it is quick again.
        answering.abort();
        answers(&peer, ms(2));
        sleep(ms(MEMORY + 50)).await;
        assert_eq!(live.health(), Health::Live);
        assert_eq!(changes.states(), [SILENT, Health::Degraded, Health::Live]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_stall_is_told_of_after_half_its_time() {
    for (write_timeout, half) in [(Some(ms(400)), 200), (None, 15_000)] {
        for drained_after in [half - 5, half + 5] {
            let stalled = drained_after > half;
            let case = (half, drained_after);
            let begun = Instant::now();
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
            sleep_till(begun, drained_after).await;
            assert_eq!(live.health(), Health::WriteStalled, "{case:?}");
            assert_eq!(live.stats().write_stalls(), 0, "not before it has ended");
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
                changes.are(&[
                    (half, Health::WriteStalled),
                    (drained_after, Health::Degraded),
                ]);
            } else {
                changes.are(&[]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_stalls_again_is_told_of_again() {
    let begun = Instant::now();
    // No verdict is near by whose time the driver would come along.
    let builder = heartbeat().interval(ms(10_000_000)).write_timeout(None);
    let (mut stream, live, peer, changes) = watched(builder);
    peer.write_steps(&[WAIT, 3]);
    let writing = tokio::spawn(async move { stream.write_all(&hello()).await });
    sleep_till(begun, 16_000).await;
    peer.kick();
    sleep_till(begun, 40_000).await;
    assert_eq!(live.stats().write_stalls(), 1);
    changes.are(&[
        (15_000, Health::WriteStalled),
        (16_000, Health::Degraded),
        (31_000, Health::WriteStalled),
    ]);
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_read_is_told_of_when_that_has_lasted() {
    // The driver finds the bytes when the first ping is due, at 100 ms.
    for (limit, half) in [(None, 100), (Some(ms(300)), 150)] {
        for read_after in [100 + half - 10, 100 + half + 10] {
            let begun = Instant::now();
            let builder = heartbeat().handler_stall_timeout(limit);
            let (mut stream, live, peer, changes) = watched(builder);
            answers(&peer, ms(2));
            peer.send(&said());
            sleep_till(begun, read_after).await;
            assert_eq!(live.health(), Health::HandlerStalled);
            stream.read_exact(&mut [0; 10]).await.unwrap();
            assert_eq!(live.health(), Health::Live, "it is no error of the past");
            if read_after > 100 + half {
                changes.are(&[
                    (100 + half, Health::HandlerStalled),
                    (read_after, Health::Live),
                ]);
            } else {
                changes.are(&[]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_left_half_written_is_told_of_when_a_ping_has_waited_for_it() {
    let begun = Instant::now();
    let (mut stream, live, peer, changes) = watched(heartbeat());
    answers(&peer, ms(2));
    stream.write_all(&hello()[..3]).await.unwrap();
    sleep_till(begun, 190).await;
    assert_eq!(
        (live.health(), changes.total()),
        (Health::HandlerStalled, 0)
    );
    sleep_till(begun, 230).await;
    stream.write_all(&hello()[3..]).await.unwrap();
    sleep_till(begun, 300).await;
    assert_eq!(live.health(), Health::Live);
    changes.are(&[(200, Health::HandlerStalled), (230, Health::Live)]);
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
    changes.are(&[(0, Health::Degraded)]);
}

#[tokio::test(start_paused = true)]
async fn the_closing_handshake_is_told_and_its_end_is_not() {
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
async fn an_hour_of_pings_is_no_news() {
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
async fn a_shorter_timeout_brings_the_news_nearer() {
    let begun = Instant::now();
    let (_stream, live, _peer, changes) = watched(heartbeat().timeout(ms(5_000)));
    sleep_till(begun, 200).await;
    live.set_timeout(ms(400)).unwrap();
    sleep_till(begun, 350).await;
    changes.are(&[(300, SILENT)]);
}

/// A client of this route behind an idle layer, and perhaps a heartbeat.
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
        let begun = Instant::now();
        let idle = IdleTimeoutLayer::builder()
            .timeout(ms(4_000))
            .on_health(changes.hook())
            .build()
            .unwrap();
        let heartbeat = with_heartbeat.then(|| heartbeat().build().unwrap());
        let (mut client, live) = client(told_of(echo_route()), idle, heartbeat).await;
        // Nothing but pongs comes from it, and they are no messages.
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
        assert_eq!(begun.elapsed(), ms(6_000));
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
        // A handler that reads and never says anything.
        let listens =
            |mut socket: WebSocket| async move { while let Some(Ok(_)) = socket.recv().await {} };
        let (mut client, live) = client(watched_route(listens), idle, None).await;
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
