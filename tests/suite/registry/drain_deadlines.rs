//! The timing of a drain: batches, pauses, deadlines, and concurrent drains.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWriteExt;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};
use tower_ws_liveness::{Drain, Health, HeartbeatLayer, Reason};

use super::drained::*;
use crate::script::*;

/// The time of each eviction since `begun`.
fn evicted_after(scene: &DrainScene, begun: Instant) -> Vec<Duration> {
    let events = scene.recorder.all();
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert!(ids.is_sorted(), "evicted out of the order of creation");
    events.iter().map(|event| event.at - begun).collect()
}

#[tokio::test(start_paused = true)]
async fn batches_are_evicted_with_random_pauses_between_them() {
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let scene = DrainScene::with_closing_peers(10);
        let begun = Instant::now();
        let drain = Drain::default().batch(3).pause(ms(1_000));
        assert_eq!(counts(scene.registry.drain(drain).await), (10, 0, 0));
        let at = evicted_after(&scene, begun);
        assert_eq!(at[0], Duration::ZERO);
        for batch in at.chunks(3) {
            assert!(batch.iter().all(|one| *one == batch[0]), "{at:?}");
        }
        pauses.extend([at[3] - at[0], at[6] - at[3], at[9] - at[6]]);
    }
    // A sleep is rounded up to whole milliseconds.
    assert!(pauses.iter().all(|one| *one >= ms(500)), "{pauses:?}");
    assert!(pauses.iter().all(|one| *one <= ms(1_501)), "{pauses:?}");
    // The chance that none of the sixty pauses is in an outer quarter is about one in ten million.
    assert!(pauses.iter().any(|one| *one < ms(750)), "{pauses:?}");
    assert!(pauses.iter().any(|one| *one > ms(1_250)), "{pauses:?}");
}

/// Drains `count` connections while others open. Asserts that the former are evicted within the
/// first half of the deadline, and that the latter are evicted as they open.
async fn drained_in_time(count: usize, drain: Drain, opening_at: &[Duration]) {
    let scene = DrainScene::with_silent_peers(count);
    let begun = Instant::now();
    let opening = opening_at.iter().map(|at| async move {
        sleep(*at).await;
        at
    });
    let mut opening: FuturesUnordered<_> = opening.collect();
    let opened = async {
        let mut opened = Vec::new();
        while let Some(at) = opening.next().await {
            let (io, _peer) = script();
            let (stream, live) = scene.layer.wrap_server(io);
            assert_eq!(live.health(), Health::Ended, "{at:?}");
            opened.push((stream, live));
        }
        opened
    };
    let (_, opened) = tokio::join!(scene.registry.drain(drain.clone()), opened);
    let events = scene.recorder.all();
    assert_eq!(events.len(), count + opened.len(), "{drain:?}");
    for event in events {
        if opened.iter().any(|(_, live)| live.id() == event.id) {
            continue;
        }
        let at = event.at - begun;
        assert!(
            at <= drain.deadline / 2,
            "after {at:?}: {count} in {drain:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn every_connection_is_evicted_in_the_first_half_of_the_deadline() {
    let drain = |batch, pause, deadline| {
        let drain = Drain::default().batch(batch).pause(ms(pause));
        drain.deadline(ms(deadline))
    };
    for _ in 0..50 {
        drained_in_time(2, drain(1, 1_000, 2_000), &[]).await;
        drained_in_time(3, drain(1, 1_000, 4_000), &[]).await;
        drained_in_time(11, drain(1, 1_000, 20_000), &[]).await;
    }
    drained_in_time(1_510, drain(10, 100, 30_000), &[]).await;
    for _ in 0..500 {
        // Includes pauses that tokio's timer rounds up, and deadlines too short for any pause.
        let pause = Duration::from_micros(fastrand::u64(..1 << fastrand::u32(1..24)));
        let drain = Drain::default()
            .batch(fastrand::usize(..20))
            .pause(pause)
            .deadline(ms(fastrand::u64(1..1 << fastrand::u32(1..15))));
        let opening_at = || drain.deadline.mul_f64(fastrand::f64());
        let opening_at: Vec<_> = (0..fastrand::usize(..5)).map(|_| opening_at()).collect();
        drained_in_time(fastrand::usize(1..100), drain, &opening_at).await;
    }
}

/// The time that other tasks and hooks take between two pauses is subtracted from the pauses.
#[tokio::test(start_paused = true)]
async fn time_taken_by_other_tasks_shortens_the_pauses() {
    let scene = DrainScene::with_silent_peers(1_000);
    let neighbour = tokio::spawn(async {
        loop {
            advance(ms(10)).await;
        }
    });
    let begun = Instant::now();
    let drain = Drain::default()
        .batch(100)
        .pause(ms(100))
        .deadline(ms(2_000));
    scene.registry.drain(drain).await;
    neighbour.abort();
    let at = evicted_after(&scene, begun);
    assert!(at[999] <= ms(1_000), "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_size_of_zero_means_one() {
    let scene = DrainScene::with_closing_peers(3);
    let begun = Instant::now();
    let drain = Drain::default().batch(0);
    assert_eq!(counts(scene.registry.drain(drain).await), (3, 0, 0));
    let at = evicted_after(&scene, begun);
    assert!(at[0] < at[1] && at[1] < at[2], "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_pauses_yields_to_other_tasks() {
    for (batch, least) in [(10, 99), (usize::MAX, 14)] {
        let scene = DrainScene::with_closing_peers(1_000);
        let turns = Arc::new(AtomicUsize::new(0));
        let neighbour = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            }
        });
        let seen = Arc::new(Mutex::new(Vec::new()));
        for (_, live, _) in &scene.connections {
            let (seen, turns) = (Arc::clone(&seen), Arc::clone(&turns));
            live.on_evict(move |_| seen.lock().unwrap().push(turns.load(Ordering::Relaxed)));
        }
        let begun = Instant::now();
        let drain = without_pauses().batch(batch);
        assert_eq!(counts(scene.registry.drain(drain).await), (1_000, 0, 0));
        neighbour.abort();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let seen = seen.lock().unwrap();
        let turns = seen.last().unwrap() - seen.first().unwrap();
        assert!(turns >= least, "{turns} turns, {least} at least");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_has_the_close_timeout_of_the_layer() {
    let mut scene = DrainScene::with(HeartbeatLayer::builder().close_timeout(ms(2_000)));
    for _ in 0..5 {
        scene.open_silent();
    }
    let begun = Instant::now();
    assert_eq!(
        counts(scene.registry.drain(without_pauses()).await),
        (0, 5, 0)
    );
    let took = begun.elapsed();
    assert!(took >= ms(2_000) && took <= ms(2_000) + TICK, "{took:?}");
    scene.assert_all_evicted(Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_every_connection_is_cut() {
    let mut scene = DrainScene::with_silent_peers(50);
    // The first is in the middle of a frame, so it is evicted at the deadline; the transport of the
    // second is stuck.
    let (stream, ..) = scene.open_silent();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    let (.., peer) = scene.open_silent();
    peer.write_steps(&[WAIT]);
    let begun = Instant::now();
    let drain = Drain::default()
        .batch(10)
        .pause(ms(1_000))
        .deadline(ms(1_600));
    let report = scene.registry.drain(drain).await;
    assert_eq!(counts(report), (0, 52, 0));
    let took = begun.elapsed();
    assert!(took >= ms(1_600) && took <= ms(1_602), "{took:?}");
    scene.assert_all_evicted(Reason::Drained);
    // The deadline leaves so little time for pauses that all are evicted immediately, except the
    // one in the middle of a frame.
    let events = scene.recorder.all();
    for event in &events {
        let after = event.at - begun;
        let in_mid_frame = event.id == scene.connections[50].1.id();
        assert_eq!(after >= ms(1_600), in_mid_frame, "{after:?}");
    }
    // The peers receive a Close frame if the transport accepts it immediately.
    for (.., peer) in &scene.connections[..50] {
        assert_eq!(close_codes(peer), [1001]);
    }
    assert_eq!(scene.connections[50].2.wire().written, hello()[..4]);
    assert!(scene.connections[51].2.wire().written.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_zero_cuts_every_connection_immediately() {
    let mut scene = DrainScene::with_closing_peers(200);
    for _ in 0..100 {
        scene.open_silent();
    }
    let begun = Instant::now();
    let drain = Drain::default().deadline(Duration::ZERO);
    assert_eq!(counts(scene.registry.drain(drain).await), (0, 300, 0));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    scene.assert_all_evicted(Reason::Drained);
    for (.., peer) in &scene.connections {
        assert_eq!(close_codes(peer), [1001]);
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_durations_are_accepted() {
    let scene = DrainScene::with_closing_peers(2);
    let begun = Instant::now();
    let drain = Drain::default()
        .batch(1)
        .pause(Duration::MAX)
        .deadline(ms(5_000));
    // The pause does not fit in the deadline, so there is none.
    assert_eq!(counts(scene.registry.drain(drain).await), (2, 0, 0));
    assert!(begun.elapsed() <= ms(2));

    let scene = DrainScene::with_closing_peers(2);
    let drain = without_pauses().deadline(Duration::MAX);
    assert_eq!(counts(scene.registry.drain(drain).await), (2, 0, 0));
}

// More than one drain.

#[tokio::test(start_paused = true)]
async fn a_second_drain_finds_no_connection() {
    let scene = DrainScene::with_closing_peers(5);
    assert_eq!(
        counts(scene.registry.drain(without_pauses()).await),
        (5, 0, 0)
    );
    assert_eq!(
        counts(scene.registry.drain(without_pauses()).await),
        (0, 0, 0)
    );
    scene.assert_all_evicted(Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn concurrent_drains_evict_and_count_each_connection_once() {
    let scene = DrainScene::with_closing_peers(300);
    let drain = Drain::default().batch(7);
    let (one, other) = tokio::join!(
        scene.registry.drain(drain.clone()),
        scene.registry.drain(drain)
    );
    assert_eq!(one.clean() + other.clean(), 300);
    assert!(one.clean() > 0 && other.clean() > 0, "{one:?} {other:?}");
    assert_eq!(one.cut() + other.cut(), 0);
    assert_eq!(one.already_gone(), other.clean());
    // The other drain began after the first batch was evicted, so it does not report that batch.
    assert_eq!(other.already_gone(), one.clean() - 7);
    scene.assert_all_evicted(Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_two_deadlines_cuts() {
    for (first, second) in [(40_000, 1_000), (1_000, 40_000)] {
        // The first drain has evicted all, or some, when the second begins.
        for batch in [100, 2] {
            let mut scene = DrainScene::with_silent_peers(30);
            let (stream, ..) = scene.open_silent();
            assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
            let drain = |deadline, batch| {
                let registry = scene.registry.clone();
                let drain = Drain::default()
                    .batch(batch)
                    .pause(ms(300))
                    .deadline(ms(deadline));
                tokio::spawn(async move { registry.drain(drain).await })
            };
            let begun = Instant::now();
            let one = drain(first, batch);
            sleep(ms(10)).await;
            let other = drain(second, 100);
            let (one, other) = (one.await.unwrap(), other.await.unwrap());
            let took = begun.elapsed();
            // A drain that is in a pause at the earlier deadline notices it after the pause.
            assert!(took >= ms(1_000) && took <= ms(1_460), "{took:?}");
            assert_eq!(one.cut() + other.cut(), 31, "{one:?} {other:?}");
            assert_eq!(one.clean() + other.clean(), 0);
            scene.assert_all_evicted(Reason::Drained);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_drain_leaves_the_remaining_connections_open() {
    let mut scene = DrainScene::with_closing_peers(10);
    for _ in 0..10 {
        scene.open_silent();
    }
    let drain = Drain::default().batch(15).pause(ms(1_000));
    let cancelled = timeout(ms(100), scene.registry.drain(drain)).await;
    assert!(cancelled.is_err());
    assert!(scene.registry.is_draining());
    assert_eq!(scene.registry.len(), 5);
    assert_eq!(scene.recorder.total(), 15);
    // Closing handshakes continue.
    let (.., peer) = &scene.connections[10];
    peer.send(&peer_close());
    sleep(ms(1)).await;
    assert!(peer.is_dropped());
    for (stream, live, peer) in &mut scene.connections[15..] {
        assert!(!live.health().to_string().contains("ended"));
        stream.write_all(&hello()).await.unwrap();
        assert_eq!(peer.wire().written, hello());
    }

    // The next drain evicts the rest, and cuts the closing handshakes that the first one left open.
    let begun = Instant::now();
    let drain = Drain::default().deadline(ms(1_000));
    assert_eq!(counts(scene.registry.drain(drain).await), (0, 5, 0));
    assert!(begun.elapsed() <= ms(1_002), "{:?}", begun.elapsed());
    scene.assert_all_evicted(Reason::Drained);
}
