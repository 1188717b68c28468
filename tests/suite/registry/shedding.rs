//! Shedding: a random fraction of the connections is evicted, spread over time.

use std::collections::HashSet;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{Health, Reason};

use super::drained::*;
use crate::script::*;

const SHED: Reason = Reason::Kicked { code: 1012 };

#[tokio::test(start_paused = true)]
async fn the_fraction_is_rounded_to_whole_connections() {
    let table = [
        (0, 1.0, 0),
        (10, 0.0, 0),
        (10, -0.0, 0),
        (3, 0.1, 0),
        (10, 0.24, 2),
        (10, 0.25, 3),
        (3, 1.0 / 3.0, 1),
        (1, 0.5, 1),
        (10, 1.0, 10),
    ];
    for (open, f, expected) in table {
        for over in [0, 5_000] {
            let scene = DrainScene::with_closing_peers(open);
            let evicted = scene.registry.evict_fraction(f, ms(over)).await;
            assert_eq!(evicted, Ok(expected), "{f} of {open}");
            assert_eq!(scene.recorder.total(), expected);
            assert_eq!(scene.registry.len(), open - expected);
            assert!(scene.registry.readiness().is_ready());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn evictions_are_distributed_evenly() {
    let scene = DrainScene::with_closing_peers(20);
    let begun = Instant::now();
    let evicted = scene.registry.evict_fraction(0.5, ms(10_000)).await;
    assert_eq!(evicted, Ok(10));
    sleep(ms(1)).await;
    let events = scene.recorder.all();
    let ids: HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), 10);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.reason, SHED);
        let at = (event.at - begun).as_millis();
        let due = index as u128 * 1_000;
        assert!(at >= due && at <= due + 1, "{at} ms instead of {due} ms");
    }
    let evicted = |index: &usize| scene.connections[*index].1.health() == Health::Ended;
    for index in (0..20).filter(evicted) {
        let (.., peer) = &scene.connections[index];
        let payload = &peer.frames()[0].payload;
        assert_eq!(payload[..2], 1012_u16.to_be_bytes());
        assert_eq!(payload[2..], *b"rebalancing connections");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_chosen_in_a_random_order() {
    let scene = DrainScene::with_closing_peers(20);
    let evicted = scene.registry.evict_fraction(1.0, Duration::ZERO).await;
    assert_eq!(evicted, Ok(20));
    let events = scene.recorder.all();
    // The registry lists its shards one after the other, so that ids ascend but for one place. The
    // chance that a random order does is less than one in a billion.
    let pairs = events.windows(2);
    let descents = pairs.filter(|pair| pair[0].id > pair[1].id).count();
    assert!(descents > 1, "{descents}");
}

#[tokio::test(start_paused = true)]
async fn the_code_and_the_reason_can_be_set() {
    for (code, on_wire) in [(4_000, 4_000), (1006, 1011)] {
        let scene = DrainScene::with_closing_peers(1);
        let shed = scene.registry.evict_fraction_with(1.0, ms(0), code, "move");
        assert_eq!(shed.await, Ok(1));
        sleep(ms(1)).await;
        scene.assert_all_evicted(Reason::Kicked { code });
        let payload = &scene.connections[0].2.frames()[0].payload;
        assert_eq!(payload[..2], u16::to_be_bytes(on_wire));
        assert_eq!(payload[2..], *b"move");
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_fractions_and_times_are_refused() {
    let scene = DrainScene::with_closing_peers(2);
    let fractions = [f64::NAN, f64::INFINITY, -0.1, 1.000_001];
    for f in fractions {
        let error = scene.registry.evict_fraction(f, ms(0)).await.unwrap_err();
        let rule = "must be a number within 0.0..=1.0";
        let expected = format!("Registry::evict_fraction: {f:?}: {rule}");
        assert_eq!(error.to_string(), expected);
    }
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let refused = scene
        .registry
        .evict_fraction_with(1.0, year + ms(1), 4_000, "");
    let error = refused.await.unwrap_err();
    let expected = "Registry::evict_fraction: 31536000.001s: must be at most 365 days";
    assert_eq!(error.to_string(), expected);
    assert_eq!(scene.recorder.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn connections_that_open_later_are_not_affected() {
    let mut scene = DrainScene::with_closing_peers(4);
    let registry = scene.registry.clone();
    let shed = tokio::spawn(async move { registry.evict_fraction(1.0, ms(4_000)).await });
    sleep(ms(500)).await;
    scene.open_silent();
    assert_eq!(shed.await.unwrap(), Ok(4));
    assert_eq!(scene.registry.len(), 1);
    assert_eq!(scene.connections[4].1.health(), Health::Live);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_before_its_turn_is_not_counted() {
    let scene = DrainScene::with_closing_peers(4);
    let registry = scene.registry.clone();
    let shed = tokio::spawn(async move { registry.evict_fraction(1.0, ms(4_000)).await });
    sleep(ms(500)).await;
    let mut evicted = 0;
    for (_, live, _) in &scene.connections {
        evicted += usize::from(live.evict(4_000, "an admin"));
    }
    assert_eq!(evicted, 3);
    assert_eq!(shed.await.unwrap(), Ok(1));
    assert_eq!(scene.recorder.total(), 4);
}

#[tokio::test(start_paused = true)]
async fn two_calls_evict_each_connection_once() {
    let scene = DrainScene::with_closing_peers(50);
    let shed = || scene.registry.evict_fraction(1.0, ms(1_000));
    let (one, other) = tokio::join!(shed(), shed());
    assert_eq!(one.unwrap() + other.unwrap(), 50);
    sleep(ms(1)).await;
    scene.assert_all_evicted(SHED);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_evicts_no_more() {
    let scene = DrainScene::with_closing_peers(10);
    let shed = scene.registry.evict_fraction(1.0, ms(10_000));
    assert!(timeout(ms(4_500), shed).await.is_err());
    assert_eq!(scene.recorder.total(), 5);
    sleep(ms(60_000)).await;
    assert_eq!(scene.recorder.total(), 5);
    assert_eq!(scene.registry.evict_fraction(1.0, ms(0)).await, Ok(5));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_call() {
    // During the wait for the next eviction, and before the first.
    for over in [10_000, 0] {
        let scene = DrainScene::with_closing_peers(10);
        let registry = scene.registry.clone();
        if over == 0 {
            registry.begin_drain();
        }
        let begun = Instant::now();
        let shed = tokio::spawn(async move { registry.evict_fraction(1.0, ms(over)).await });
        sleep(ms(4_500)).await;
        scene.registry.begin_drain();
        let evicted = if over == 0 { 0 } else { 5 };
        assert_eq!(shed.await.unwrap(), Ok(evicted));
        assert!(begun.elapsed() <= ms(4_501), "{:?}", begun.elapsed());
        assert_eq!(scene.recorder.total(), evicted);
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_the_handler_is_finished_first() {
    let mut scene = DrainScene::new();
    let (stream, ..) = scene.open_silent();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    let evicted = scene.registry.evict_fraction(1.0, ms(0)).await;
    assert_eq!(evicted, Ok(1));
    assert_eq!(scene.recorder.total(), 0);
    // A second call finds the eviction under way.
    assert_eq!(scene.registry.evict_fraction(1.0, ms(0)).await, Ok(0));
    let (stream, ..) = &mut scene.connections[0];
    stream.write_all(&hello()[4..]).await.unwrap();
    assert_eq!(scene.recorder.all()[0].reason, SHED);
    sleep(ms(1)).await;
    let frames = scene.connections[0].2.frames();
    assert_eq!(frames[0].raw, hello());
    assert_eq!(close_codes(&scene.connections[0].2), [1012]);
}

#[tokio::test(start_paused = true)]
async fn many_evictions_at_once_yield_to_other_tasks() {
    let scene = DrainScene::with_closing_peers(1_000);
    let registry = scene.registry.clone();
    let shed = tokio::spawn(async move { registry.evict_fraction(1.0, ms(0)).await });
    let mut seen = HashSet::new();
    while !shed.is_finished() {
        seen.insert(scene.recorder.total());
        tokio::task::yield_now().await;
    }
    assert!(seen.len() >= 14, "{seen:?}");
    assert_eq!(shed.await.unwrap(), Ok(1_000));
}
