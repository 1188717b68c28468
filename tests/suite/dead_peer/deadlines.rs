//! Pings and evictions happen at their deadlines, in memory and on a paused clock.

use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message as Served, WebSocket};
use tokio::time::{Instant, sleep, sleep_until};
use tower_ws_liveness::{Health, HeartbeatLayer, IdleTimeoutLayer, ProofOfLife, Reason, Traffic};

use crate::support::raw::{Answer, Frame, PONG, RawClient};
use crate::support::recorder::{Event, Recorder};
use crate::support::{echo, echo_route, in_memory, ms, never_reads, watched_route, within};

const BUFFER: usize = 64 * 1024;

/// Lateness added by the driver's tick, which derives from the shortest configured duration.
fn tick(shortest: Duration) -> Duration {
    shortest / 4
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_all_the_time_is_not_pinged_until_it_falls_silent() {
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(100))
        .timeout(ms(100))
        .build()
        .unwrap();
    let (route, mut live) = watched_route(echo);
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;
    let live = within("the handler", live.recv()).await.unwrap();

    for n in 0..500 {
        sleep(ms(20)).await;
        let sent = Frame::text(&format!("chat {n}"));
        client.send(&sent).await.unwrap();
        assert_eq!(client.expect_frame().await, sent);
    }
    assert_eq!(client.pings, 0);
    assert_eq!(live.stats().pings_sent(), 0);

    let silent = Instant::now();
    client.expect_ping().await;
    assert!(silent.elapsed() <= ms(100) + tick(ms(100)));
    assert_eq!(live.stats().pings_sent(), 1);
}

#[tokio::test(start_paused = true)]
async fn outbound_traffic_alone_does_not_suppress_pings() {
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(100))
        .timeout(ms(100))
        .build()
        .unwrap();
    let (route, _live) = watched_route(|mut socket: WebSocket| async move {
        while socket.send(Served::text("text")).await.is_ok() {
            sleep(ms(10)).await;
        }
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;

    let start = Instant::now();
    while client.pings < 10 {
        assert_eq!(client.expect_frame().await, Frame::text("text"));
    }
    // Per ping at most an interval, a tick and the time to the handler's next frame.
    assert!(start.elapsed() <= (ms(110) + tick(ms(100))) * 10);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_evicted_when_its_last_ping_timed_out() {
    for (interval, timeout, missed) in [
        (ms(1_000), ms(500), 1),
        (ms(1_000), ms(500), 3),
        (ms(100), ms(5_000), 2),
        (ms(30_000), ms(15_000), 1),
    ] {
        for read in [true, false] {
            let recorder = Recorder::new();
            let heartbeat = HeartbeatLayer::builder()
                .interval(interval)
                .timeout(timeout)
                .missed_pings(missed)
                .jitter(0.0)
                .on_evict(recorder.hook())
                .build()
                .unwrap();
            let (route, _live) = watched_route(move |socket: WebSocket| async move {
                if read {
                    echo(socket).await
                } else {
                    never_reads(socket).await
                }
            });
            let app = Router::new().route("/ws", route).layer(heartbeat);
            let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws")
                .await
                .answering(Answer::Nothing);

            sleep(interval / 2).await;
            client.send(&Frame::text("x")).await.unwrap();
            let last = Instant::now();
            let due = interval + timeout * missed;
            let evictions = tokio::time::timeout(due * 3, recorder.reached(1)).await;
            let event = &evictions.expect("an eviction")[0];
            assert_eq!(event.reason, Reason::HeartbeatTimeout { missed });
            let took = event.at - last;
            // The driver finds an unread byte only when the first ping is due. The byte may be old
            // by then, so it neither delays the pings nor counts as an answer to them.
            let earliest = if read { due } else { timeout * missed };
            let latest = due + tick(interval.min(timeout));
            assert!(took >= earliest, "{took:?} is early: earliest {earliest:?}");
            assert!(took <= latest, "{took:?} is late: latest {latest:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pong_just_before_the_deadline_is_in_time() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(1_000))
        .timeout(ms(500))
        .proof_of_life(ProofOfLife::MatchingPong)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let app = Router::new().route("/ws", echo_route()).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;

    for _ in 0..20 {
        let ping = client.expect_ping().await;
        sleep(ms(499)).await;
        client.send(&Frame::new(PONG, ping)).await.unwrap();
    }
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
}

#[tokio::test(start_paused = true)]
async fn the_first_ping_is_spread_over_the_jittered_part_of_the_interval() {
    let interval = ms(1_000);
    let heartbeat = HeartbeatLayer::builder()
        .interval(interval)
        .timeout(ms(500))
        .jitter(0.5)
        .build()
        .unwrap();
    let app = Router::new().route("/ws", echo_route()).layer(heartbeat);

    let mut delays = Vec::new();
    for _ in 0..64 {
        let io = in_memory(app.clone(), BUFFER);
        let mut client = RawClient::handshake(io, "/ws").await;
        let start = Instant::now();
        client.expect_ping().await;
        delays.push(start.elapsed());
    }
    delays.sort();
    let (first, last) = (delays[0], delays[63]);
    assert!(first >= interval / 2, "{first:?}");
    assert!(last <= interval + tick(ms(500)), "{last:?}");
    assert!(
        last - first >= interval / 5,
        "no spread: {first:?} to {last:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_round_trip_time_is_reported() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(1_000))
        .timeout(ms(500))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let (route, mut live) = watched_route(echo);
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;
    let live = within("the handler", live.recv()).await.unwrap();
    assert_eq!(live.rtt(), None);

    for delay in [ms(80), ms(160), ms(40)] {
        let ping = client.expect_ping().await;
        sleep(delay).await;
        client.send(&Frame::new(PONG, ping)).await.unwrap();
    }
    client.expect_ping().await;
    let rtt = live.rtt().unwrap();
    let close_to = |measured: Duration, delay: Duration| {
        assert!(measured >= delay, "{rtt:?}");
        assert!(measured <= delay + ms(2), "{rtt:?}");
    };
    close_to(rtt.last(), ms(40));
    close_to(rtt.min(), ms(40));
    // RFC 6298: 80, then 7/8 · 80 + 1/8 · 160 = 90, then 7/8 · 90 + 1/8 · 40 = 83.75.
    close_to(rtt.smoothed(), Duration::from_micros(83_750));

    let event = recorder.nth(1).await;
    assert_eq!(event.eviction.rtt(), Some(rtt));
    assert_eq!(event.eviction.stats().pongs_received(), 3);
    assert_eq!(event.eviction.stats().pings_sent(), 4);
}

#[tokio::test(start_paused = true)]
async fn pings_and_pongs_do_not_keep_an_idle_connection_open() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(100))
        .timeout(ms(100))
        .build()
        .unwrap();
    let idle = IdleTimeoutLayer::builder()
        .timeout(ms(2_000))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(idle)
        .layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;

    for _ in 0..5 {
        sleep(ms(50)).await;
        client.send(&Frame::text("busy")).await.unwrap();
        client.expect_frame().await;
    }
    let last = Instant::now();
    let close = client.closed().await.expect("a Close frame");
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    assert!(client.pings >= 10, "{} pings", client.pings);
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::IdleTimeout);
    let took = event.at - last;
    assert!(took >= ms(2_000), "{took:?}");
    assert!(took <= ms(2_000) + tick(ms(100)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_idle_timeout_watches_the_configured_direction() {
    for (watch, sends, receives, idle) in [
        (Traffic::Inbound, true, false, false),
        (Traffic::Inbound, false, true, true),
        (Traffic::Outbound, false, true, false),
        (Traffic::Outbound, true, false, true),
        (Traffic::Either, true, false, false),
        (Traffic::Either, false, true, false),
        (Traffic::Either, false, false, true),
    ] {
        let recorder = Recorder::new();
        let layer = IdleTimeoutLayer::builder()
            .timeout(ms(1_000))
            .watch(watch)
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        // Reads only, or reads and writes at the same time.
        let (route, _live) = watched_route(move |mut socket: WebSocket| async move {
            loop {
                tokio::select! {
                    message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
                    () = sleep(ms(100)), if receives => {
                        if socket.send(Served::text("x")).await.is_err() { return }
                    }
                }
            }
        });
        let app = Router::new().route("/ws", route).layer(layer);
        let mut client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;
        let end = Instant::now() + ms(5_000);
        while Instant::now() < end && recorder.total() == 0 {
            tokio::select! {
                frame = client.next() => { frame.unwrap(); }
                () = sleep(ms(100)) => if sends {
                    client.send(&Frame::text("x")).await.unwrap();
                },
                () = sleep_until(end) => {}
            }
        }
        let evictions: Vec<_> = recorder.all().iter().map(|event| event.reason).collect();
        let expected = if idle {
            vec![Reason::IdleTimeout]
        } else {
            vec![]
        };
        assert_eq!(
            evictions, expected,
            "{watch:?}, sends {sends}, receives {receives}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_message_and_the_whole_connection_have_their_deadlines() {
    let recorder = Recorder::new();
    let layer = IdleTimeoutLayer::builder()
        .first_message(ms(500))
        .max_lifetime(ms(3_000))
        .max_lifetime_jitter(0.0)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let app = Router::new().route("/ws", echo_route()).layer(layer);

    let start = Instant::now();
    let mut silent_client = RawClient::handshake(in_memory(app.clone(), BUFFER), "/ws").await;
    let close = silent_client.closed().await;
    assert_eq!(close, Some(Frame::close(3008, "no first message in time")));
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::FirstMessageTimeout);
    let took = event.at - start;
    assert!(
        took >= ms(500) && took <= ms(500) + tick(ms(500)),
        "{took:?}"
    );

    let start = Instant::now();
    let mut sending_client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;
    while recorder.total() < 2 {
        sending_client.send(&Frame::text("x")).await.unwrap();
        sending_client.expect_frame().await;
        sleep(ms(50)).await;
    }
    let close = sending_client.closed().await;
    assert_eq!(close, Some(Frame::close(1012, "maximum lifetime reached")));
    let event = recorder.nth(2).await;
    assert_eq!(event.reason, Reason::MaxLifetime);
    let took = event.at - start;
    assert!(
        took >= ms(3_000) && took <= ms(3_000) + tick(ms(500)),
        "{took:?}"
    );
    assert!(event.eviction.lifetime() >= ms(3_000));
}

/// 200 connections that were opened at the same time end in the last tenth of their lifetime.
#[tokio::test(start_paused = true)]
async fn the_ends_of_connections_that_opened_together_are_spread_and_none_is_late() {
    const CLIENTS: usize = 200;
    let limit = ms(100_000);
    // (jitter, the earliest end, the least time between the first and the last)
    for (jitter, earliest, spread) in [
        (None, ms(90_000), ms(8_000)),
        (Some(0.5), ms(50_000), ms(40_000)),
        (Some(0.0), limit, Duration::ZERO),
    ] {
        let recorder = Recorder::new();
        let mut layer = IdleTimeoutLayer::builder()
            .timeout(None)
            .max_lifetime(limit)
            .on_evict(recorder.hook());
        if let Some(jitter) = jitter {
            layer = layer.max_lifetime_jitter(jitter);
        }
        let app = Router::new()
            .route("/ws", echo_route())
            .layer(layer.build().unwrap());
        let start = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(RawClient::handshake(in_memory(app.clone(), BUFFER), "/ws").await);
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "opened together");
        sleep(ms(101_000)).await;
        let ends = recorder.all();
        assert_eq!(ends.len(), CLIENTS, "{jitter:?}");
        assert!(ends.iter().all(|end| end.reason == Reason::MaxLifetime));
        let after = |end: &Event| end.at - start;
        let first = ends.iter().map(after).min().unwrap();
        let last = ends.iter().map(after).max().unwrap();
        assert!(first >= earliest, "{jitter:?}: {first:?}");
        // A tick of the driver is 128 ms here.
        assert!(last <= limit + ms(128), "{jitter:?}: {last:?}");
        assert!(last - first >= spread, "{jitter:?}: {first:?} to {last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_the_idle_timeout_off_an_unused_connection_stays_open() {
    let (route, mut live) = watched_route(echo);
    let layer = IdleTimeoutLayer::builder().timeout(None).build().unwrap();
    let app = Router::new().route("/ws", route).layer(layer);
    let _client = RawClient::handshake(in_memory(app, BUFFER), "/ws").await;
    let live = within("the handler", live.recv()).await.unwrap();
    sleep(Duration::from_secs(30 * 86_400)).await;
    assert_eq!(live.health(), Health::Live);
}
