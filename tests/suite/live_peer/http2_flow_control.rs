//! HTTP/2 peers that grant no flow-control window, a small one, or late (RFC 9113 section 5.2).

use axum::extract::ws::{Message as Served, WebSocket};
use h2::client;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{Health, Liveness, ProofOfLife, Reason};

use crate::support::h2_link::{Link, wide};
use crate::support::raw::{BINARY, Frame};
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::Wire;
use crate::support::{echo, ms, never, never_reads, noise, until};

/// Client settings with an initial window of `size` bytes per stream.
fn window(size: u32) -> client::Builder {
    let mut settings = wide();
    settings.initial_window_size(size);
    settings
}

/// Sends one message of 30 MB, and then echoes.
async fn send_thirty_megabytes(mut socket: WebSocket) {
    let message = Served::binary(noise(3, 30_000_000));
    if socket.send(message).await.is_ok() {
        echo(socket).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_queued_behind_megabytes_evicts_no_peer_while_they_drain() {
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        let heartbeat = quiet()
            .interval(ms(100))
            .timeout(ms(400))
            .proof_of_life(proof);
        let mut scene =
            Scene::start(Wire::Http2, heartbeat, patient(), send_thirty_megabytes).await;
        let link = Link::open(scene.app.clone()).await;
        let mut client = link.websocket().await;
        let live = scene.next_live().await;
        let begun = Instant::now();
        // A hundred times the timeout, at a steady pace.
        for _ in 0..300 {
            client.fill(100_000).await.unwrap();
            sleep(ms(200)).await;
        }
        assert!(begun.elapsed() >= ms(60_000));
        let frame = client.expect_frame().await;
        assert!(frame == Frame::new(BINARY, noise(3, 30_000_000)), "changed");
        client.live_until_ping(client.pings + 3).await;
        assert_eq!(scene.recorder.total(), 0, "{:?}", scene.recorder.all());
        assert!(live.stats().pongs_received() >= 2, "{live:?}");
    }
}

/// Sends as fast as it can.
async fn push(mut socket: WebSocket) {
    while socket.send(Served::binary(vec![0; 4_000])).await.is_ok() {}
}

/// Echoes until it receives "push", then sends as fast as it can.
async fn echo_or_push(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if message.to_text().is_ok_and(|text| text == "push") {
            return push(socket).await;
        }
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_grants_no_window_is_a_write_stall_and_not_a_dead_peer() {
    for size in [0, 1, 60_000] {
        let heartbeat = quiet()
            .interval(ms(1_000))
            .timeout(ms(1_000))
            .write_timeout(ms(30_000));
        let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), push).await;
        let link = Link::with(scene.app.clone(), &window(size)).await;
        let _client = link.websocket().await;
        let begun = Instant::now();
        let live = scene.next_live().await;
        sleep(ms(25_000)).await;
        assert_eq!(live.health(), Health::WriteStalled);
        scene.ended(&live, Reason::WriteStalled).await;
        let took = begun.elapsed();
        assert!(took >= ms(30_000) && took <= ms(31_000), "{took:?}");
        scene.handlers_done(1).await;
        scene.assert_evicted_once().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_window_prevents_a_write_stall_until_it_stops() {
    let heartbeat = quiet()
        .interval(ms(1_000))
        .timeout(ms(5_000))
        .write_timeout(ms(3_000));
    let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), push).await;
    let link = Link::with(scene.app.clone(), &window(8_000)).await;
    let mut client = link.websocket().await;
    let live = scene.next_live().await;
    for _ in 0..200 {
        sleep(ms(250)).await;
        client.fill(4_000).await.unwrap();
    }
    assert_eq!(scene.recorder.total(), 0, "{:?}", scene.recorder.all());
    assert_eq!(
        live.stats().pongs_received(),
        0,
        "the pings waited behind the writes"
    );
    let window_closed = Instant::now();
    scene.ended(&live, Reason::WriteStalled).await;
    assert!(
        window_closed.elapsed() >= ms(2_500),
        "{:?}",
        window_closed.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_ping_held_back_by_the_window_is_a_write_stall_and_not_a_dead_peer() {
    // The window, less than a ping's ten bytes.
    for size in [0, 1, 7] {
        let heartbeat = quiet()
            .interval(ms(1_000))
            .timeout(ms(1_000))
            .write_timeout(ms(30_000));
        let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), never_reads).await;
        let link = Link::with(scene.app.clone(), &window(size)).await;
        let _client = link.websocket().await;
        let live = scene.next_live().await;
        let begun = Instant::now();
        sleep(ms(25_000)).await;
        assert_eq!(live.health(), Health::WriteStalled, "{size}");
        scene.ended(&live, Reason::WriteStalled).await;
        let took = begun.elapsed();
        assert!(took >= ms(30_000) && took <= ms(32_000), "{took:?}");
        assert_eq!(live.stats().pings_sent(), 0, "no ping fits into the window");
        scene.assert_evicted_once().await;
    }
}

/// One stream that is not read uses up the window of the whole connection (RFC 9113 section 6.9.1).
/// Pings on the other streams are held back, which must not evict their peers.
#[tokio::test(start_paused = true)]
async fn a_neighbour_that_uses_up_the_connection_window_evicts_no_peer() {
    let heartbeat = quiet()
        .interval(ms(1_000))
        .timeout(ms(1_000))
        .write_timeout(ms(60_000));
    let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), echo_or_push).await;
    let mut settings = client::Builder::new();
    settings.initial_window_size(1 << 20);
    let link = Link::with(scene.app.clone(), &settings).await;
    let mut quiet = link.websocket().await;
    let live = scene.next_live().await;
    quiet.live_until_ping(3).await;

    let mut greedy = link.websocket().await;
    let greedy_live = scene.next_live().await;
    greedy.send(&Frame::text("push")).await.unwrap();
    until("both are stalled", || {
        [&live, &greedy_live].map(Liveness::health) == [Health::WriteStalled; 2]
    })
    .await;
    let pings = quiet.pings;
    // Many times the timeout, without an eviction.
    never("a ping", ms(15_000), quiet.live_until_ping(pings + 1)).await;
    assert_eq!(scene.recorder.total(), 0, "{:?}", scene.recorder.all());

    // The client reads again.
    let reads = async {
        while greedy.fill(50_000).await.is_ok() {
            sleep(ms(10)).await;
        }
    };
    tokio::select! {
        () = quiet.live_until_ping(pings + 3) => {}
        () = reads => panic!("the greedy stream ended"),
    }
    // Dropping the stream returns its part of the window too.
    drop(greedy);
    assert_eq!(scene.recorder.nth(1).await.id, greedy_live.id());
    quiet.live_until_ping(pings + 6).await;
    scene.recorder.stays_at(1).await;
}

/// The handler's task has spent its cooperative budget on other work when it writes. hyper's
/// streams do not take part in budgets, so their `Pending` is due to the peer.
#[tokio::test(start_paused = true)]
async fn a_stalled_write_is_detected_though_the_handlers_budget_is_spent() {
    // The sleep uses one of the 128 units of a task's budget.
    for jobs in [100, 127] {
        let heartbeat = quiet()
            .interval(ms(1_000))
            .timeout(ms(1_000))
            .write_timeout(ms(30_000));
        let handler = move |mut socket: WebSocket| async move {
            let (tx, mut rx) = mpsc::unbounded_channel();
            let _ = socket.send(Served::text("hello")).await;
            sleep(ms(100)).await;
            for job in 1..=jobs {
                tx.send(job).unwrap();
            }
            while let Some(job) = rx.recv().await {
                if job == jobs {
                    let _ = socket.send(Served::binary(noise(5, 1_000_000))).await;
                }
            }
        };
        let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), handler).await;
        let link = Link::with(scene.app.clone(), &window(0)).await;
        let _client = link.websocket().await;
        let live = scene.next_live().await;
        let begun = Instant::now();
        let reason = live.evicted().await.reason();
        assert_eq!(reason, Reason::WriteStalled, "{jobs} jobs");
        let after = begun.elapsed();
        assert!(after <= ms(31_500), "{jobs} jobs: {after:?}");
    }
}
