//! The layers in either order, alone, twice, on a router and on one of its routes: always one
//! wrapper, the innermost layer of a kind decides, and the hooks of all fire once.

mod support;

use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use support::raw::{Answer, Frame, RawClient};
use support::recorder::Recorder;
use support::scene::{patient, quiet};
use support::{echo_route, in_memory, ms, until, within};
use tokio::io::DuplexStream;
use tokio::time::Instant;
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, Liveness, Reason};

async fn connect(app: &Router, path: &str) -> RawClient<DuplexStream> {
    RawClient::handshake(in_memory(app.clone(), 64 * 1024), path).await
}

async fn echoes(client: &mut RawClient<DuplexStream>) {
    let sent = Frame::text("there and back");
    client.send(&sent).await.unwrap();
    assert_eq!(client.expect_frame().await, sent);
}

/// How many pings a client that does nothing but answer them gets in so much time.
async fn pings_within(client: &mut RawClient<DuplexStream>, span: Duration) -> usize {
    let before = client.pings;
    let frame = tokio::time::timeout(span, client.next()).await;
    assert!(frame.is_err(), "{frame:?}");
    client.pings - before
}

fn every(interval: Duration, recorder: &Recorder) -> HeartbeatLayer {
    HeartbeatLayer::builder()
        .interval(interval)
        .timeout(ms(100))
        .jitter(0.0)
        .on_evict(recorder.hook())
        .build()
        .unwrap()
}

fn idle(timeout: Duration, recorder: &Recorder) -> IdleTimeoutLayer {
    IdleTimeoutLayer::builder()
        .timeout(timeout)
        .on_evict(recorder.hook())
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn both_orders_do_the_same() {
    for heartbeat_outside in [true, false] {
        let (beat, rest) = (Recorder::new(), Recorder::new());
        let heartbeat = every(ms(100), &beat);
        let registry = heartbeat.registry();
        let idle = idle(ms(2_000), &rest);
        let app = Router::new().route("/ws", echo_route());
        let app = if heartbeat_outside {
            app.layer(idle).layer(heartbeat)
        } else {
            app.layer(heartbeat).layer(idle)
        };

        // An idle client that answers pings.
        let mut quiet_one = connect(&app, "/ws").await;
        echoes(&mut quiet_one).await;
        assert_eq!(registry.len(), 1);
        let close = quiet_one.closed().await.expect("a Close frame");
        assert_eq!(close.close_code(), Some(1001));
        assert!(quiet_one.pings >= 10, "{} pings", quiet_one.pings);
        for recorder in [&beat, &rest] {
            assert_eq!(recorder.nth(1).await.reason, Reason::IdleTimeout);
        }

        // A dead one.
        let dead = connect(&app, "/ws").await;
        for recorder in [&beat, &rest] {
            let event = recorder.nth(2).await;
            assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
            recorder.stays_at_for(2, ms(10_000)).await;
        }
        until("the registry is empty", || registry.is_empty()).await;
        drop(dead);
    }
}

#[tokio::test(start_paused = true)]
async fn each_layer_works_alone() {
    let recorder = Recorder::new();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(every(ms(100), &recorder));
    let mut client = connect(&app, "/ws").await;
    echoes(&mut client).await;
    // No idle timeout by itself: ten minutes are nothing.
    assert!(pings_within(&mut client, Duration::from_secs(600)).await > 1000);
    assert_eq!(recorder.total(), 0);
    drop(client);
    assert_eq!(recorder.nth(1).await.reason, Reason::PeerVanished);

    let recorder = Recorder::new();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(idle(ms(100_000), &recorder));
    let mut client = connect(&app, "/ws").await;
    echoes(&mut client).await;
    // No heartbeat by itself: not one ping.
    assert_eq!(pings_within(&mut client, ms(99_000)).await, 0);
    assert_eq!(recorder.nth(1).await.reason, Reason::IdleTimeout);
    recorder.stays_at(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_layer_twice_pings_once() {
    for copies in [1, 2, 3] {
        let recorder = Recorder::new();
        let layer = every(ms(100), &recorder);
        let mut app = Router::new().route("/ws", echo_route());
        for _ in 0..copies {
            app = app.layer(layer.clone());
        }
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        let pings = pings_within(&mut client, ms(10_000)).await;
        assert!(
            (60..=100).contains(&pings),
            "{copies} layers: {pings} pings"
        );
        assert_eq!(layer.registry().len(), 1);

        let dead = client.answering(Answer::Nothing);
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        until("the registry is empty", || layer.registry().is_empty()).await;
        drop(dead);
        // It is one layer, and its hook one hook, however often it is put on.
        recorder.stays_at_for(1, ms(10_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_innermost_of_two_decides_and_the_hooks_of_both_fire_once() {
    for (outer, inner, expected) in [(ms(100), ms(1_000), 6..=10), (ms(1_000), ms(100), 60..=100)] {
        let (outside, inside) = (Recorder::new(), Recorder::new());
        let (outer, inner) = (every(outer, &outside), every(inner, &inside));
        let app = Router::new()
            .route("/ws", echo_route())
            .layer(inner.clone())
            // Another kind in between changes nothing.
            .layer(patient().build().unwrap())
            .layer(outer.clone());
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        let pings = pings_within(&mut client, ms(10_000)).await;
        assert!(expected.contains(&pings), "{pings} pings");
        assert_eq!((outer.registry().len(), inner.registry().len()), (1, 1));

        drop(client);
        let (out, ins) = (outside.nth(1).await, inside.nth(1).await);
        assert_eq!((out.id, out.reason), (ins.id, Reason::PeerVanished));
        assert_eq!(ins.reason, Reason::PeerVanished);
        until("the registries are empty", || {
            outer.registry().is_empty() && inner.registry().is_empty()
        })
        .await;
        outside.stays_at_for(1, ms(10_000)).await;
        inside.stays_at_for(1, ms(10_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_overrides_its_router_and_leaves_its_neighbour_alone() {
    let (router, route) = (Recorder::new(), Recorder::new());
    let app = Router::new()
        .route("/own", echo_route().layer(every(ms(100), &route)))
        .route("/idle", echo_route().layer(idle(ms(3_000), &route)))
        .route("/ws", echo_route())
        .layer(idle(ms(60_000), &router))
        .layer(every(ms(20_000), &router));

    let start = Instant::now();
    let own = connect(&app, "/own").await;
    let event = route.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.at - start <= ms(300), "{:?}", event.at - start);
    assert_eq!(router.nth(1).await.id, event.id);

    let start = Instant::now();
    let idle = connect(&app, "/idle").await;
    let event = route.nth(2).await;
    assert_eq!(event.reason, Reason::IdleTimeout);
    assert!(event.at - start <= ms(4_000), "{:?}", event.at - start);

    let start = Instant::now();
    let neighbour = connect(&app, "/ws").await;
    // The router has two hooks, and they were told of two connections before.
    let all = tokio::time::timeout(ms(60_000), router.reached(5)).await;
    let event = &all.expect("an eviction")[4];
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.at - start >= ms(20_100), "{:?}", event.at - start);
    assert_eq!(route.total(), 2);
    drop((own, idle, neighbour));
}

#[tokio::test(start_paused = true)]
async fn the_handler_finds_one_liveness_for_all_layers() {
    let (outside, inside) = (Recorder::new(), Recorder::new());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        tell.send(live).unwrap();
        ws.on_upgrade(support::echo)
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(quiet().on_evict(inside.hook()).build().unwrap())
        .layer(idle(ms(60_000), &inside))
        .layer(quiet().on_evict(outside.hook()).build().unwrap());
    let mut client = connect(&app, "/ws").await;
    let live = within("the handler", told.recv()).await.unwrap();
    for _ in 0..3 {
        echoes(&mut client).await;
    }
    // Counted once, not once for each layer.
    assert_eq!(live.stats().messages_received(), 3);
    assert_eq!(live.stats().messages_sent(), 3);
    let text = "there and back".len() as u64;
    assert_eq!(live.stats().bytes_received(), 3 * (2 + 4 + text));
    assert_eq!(live.stats().bytes_sent(), 3 * (2 + text));

    live.evict(4000, "all of you");
    let reason = Reason::Kicked { code: 4000 };
    assert_eq!(outside.nth(1).await.reason, reason);
    // Two layers with this hook.
    assert_eq!(inside.nth(2).await.reason, reason);
    client.closed().await;
    outside.stays_at_for(1, ms(10_000)).await;
    inside.stays_at_for(2, ms(10_000)).await;
}
