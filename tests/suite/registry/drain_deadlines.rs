//! A drain takes its time, and no more of it: batches, pauses, deadlines, and drains that meet.

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

/// When each was told, since `begun`.
fn told_after(room: &Room, begun: Instant) -> Vec<Duration> {
    let events = room.recorder.all();
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert!(ids.is_sorted(), "in the order in which they came");
    events.iter().map(|event| event.at - begun).collect()
}

#[tokio::test(start_paused = true)]
async fn batches_are_told_with_pauses_between_them_that_differ() {
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let room = Room::polite(10);
        let begun = Instant::now();
        let drain = Drain {
            batch: 3,
            pause: ms(1_000),
            ..Drain::default()
        };
        assert_eq!(counts(room.registry.drain(drain).await), (10, 0, 0));
        let at = told_after(&room, begun);
        assert_eq!(at[0], Duration::ZERO);
        for batch in at.chunks(3) {
            assert!(batch.iter().all(|one| *one == batch[0]), "{at:?}");
        }
        pauses.extend([at[3] - at[0], at[6] - at[3], at[9] - at[6]]);
    }
    // A sleep is rounded up to whole milliseconds.
    assert!(pauses.iter().all(|one| *one >= ms(500)), "{pauses:?}");
    assert!(pauses.iter().all(|one| *one <= ms(1_501)), "{pauses:?}");
    // Sixty of them: that none is in the outer quarters has a chance of one to ten millions.
    assert!(pauses.iter().any(|one| *one < ms(750)), "{pauses:?}");
    assert!(pauses.iter().any(|one| *one > ms(1_250)), "{pauses:?}");
}

/// Of a drain that finds `count` connections, and of some that open during it: those that it found are
/// evicted within the first half of the deadline, and the others as they open.
async fn drained_in_time(count: usize, drain: Drain, opening_at: &[Duration]) {
    let room = Room::silent(count);
    let begun = Instant::now();
    let opening = opening_at.iter().map(|at| async move {
        sleep(*at).await;
        at
    });
    let mut opening: FuturesUnordered<_> = opening.collect();
    let newcomers = async {
        let mut newcomers = Vec::new();
        while let Some(at) = opening.next().await {
            let (io, _peer) = script();
            let (stream, live) = room.layer.wrap_server(io);
            assert_eq!(live.health(), Health::Ended, "{at:?}");
            newcomers.push((stream, live));
        }
        newcomers
    };
    let (_, newcomers) = tokio::join!(room.registry.drain(drain), newcomers);
    let events = room.recorder.all();
    assert_eq!(events.len(), count + newcomers.len(), "{drain:?}");
    for event in events {
        if newcomers.iter().any(|(_, live)| live.id() == event.id) {
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
    let drain = |batch, pause, deadline| Drain {
        batch,
        pause: ms(pause),
        deadline: ms(deadline),
        ..Drain::default()
    };
    for _ in 0..50 {
        drained_in_time(2, drain(1, 1_000, 2_000), &[]).await;
        drained_in_time(3, drain(1, 1_000, 4_000), &[]).await;
        drained_in_time(11, drain(1, 1_000, 20_000), &[]).await;
    }
    drained_in_time(1_510, drain(10, 100, 30_000), &[]).await;
    for _ in 0..500 {
        // Also pauses that tokio's timer makes longer, and deadlines that leave room for none.
        let pause = Duration::from_micros(fastrand::u64(..1 << fastrand::u32(1..24)));
        let drain = Drain {
            batch: fastrand::usize(..20),
            pause,
            deadline: ms(fastrand::u64(1..1 << fastrand::u32(1..15))),
            ..Drain::default()
        };
        let opening_at = || drain.deadline.mul_f64(fastrand::f64());
        let opening_at: Vec<_> = (0..fastrand::usize(..5)).map(|_| opening_at()).collect();
        drained_in_time(fastrand::usize(1..100), drain, &opening_at).await;
    }
}

/// What other tasks, or hooks, take between two pauses is taken off the pauses.
#[tokio::test(start_paused = true)]
async fn pauses_are_shorter_by_the_time_that_others_take() {
    let room = Room::silent(1_000);
    let neighbour = tokio::spawn(async {
        loop {
            advance(ms(10)).await;
        }
    });
    let begun = Instant::now();
    let drain = Drain {
        batch: 100,
        pause: ms(100),
        deadline: ms(2_000),
        ..Drain::default()
    };
    room.registry.drain(drain).await;
    neighbour.abort();
    let at = told_after(&room, begun);
    assert!(at[999] <= ms(1_000), "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_none_is_one_of_one() {
    let room = Room::polite(3);
    let begun = Instant::now();
    let drain = Drain {
        batch: 0,
        ..Drain::default()
    };
    assert_eq!(counts(room.registry.drain(drain).await), (3, 0, 0));
    let at = told_after(&room, begun);
    assert!(at[0] < at[1] && at[1] < at[2], "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn others_have_their_turn_though_there_is_no_pause() {
    for (batch, least) in [(10, 99), (usize::MAX, 14)] {
        let room = Room::polite(1_000);
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
        for (_, live, _) in &room.connections {
            let (seen, turns) = (Arc::clone(&seen), Arc::clone(&turns));
            live.on_evict(move |_| seen.lock().unwrap().push(turns.load(Ordering::Relaxed)));
        }
        let begun = Instant::now();
        let drain = Drain { batch, ..at_once() };
        assert_eq!(counts(room.registry.drain(drain).await), (1_000, 0, 0));
        neighbour.abort();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let seen = seen.lock().unwrap();
        let turns = seen.last().unwrap() - seen.first().unwrap();
        assert!(turns >= least, "{turns} turns, {least} at least");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_has_the_close_timeout_of_the_layer() {
    let mut room = Room::with(HeartbeatLayer::builder().close_timeout(ms(2_000)));
    for _ in 0..5 {
        room.join();
    }
    let begun = Instant::now();
    assert_eq!(counts(room.registry.drain(at_once()).await), (0, 5, 0));
    let took = begun.elapsed();
    assert!(took >= ms(2_000) && took <= ms(2_000) + TICK, "{took:?}");
    room.assert_over(Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_everything_is_cut() {
    let mut room = Room::silent(50);
    // Told last, and thus not before the deadline: in the middle of a frame, and stuck.
    let (stream, ..) = room.join();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    let (.., peer) = room.join();
    peer.write_steps(&[WAIT]);
    let begun = Instant::now();
    let drain = Drain {
        batch: 10,
        pause: ms(1_000),
        deadline: ms(1_600),
        ..Drain::default()
    };
    let report = room.registry.drain(drain).await;
    assert_eq!(counts(report), (0, 52, 0));
    let took = begun.elapsed();
    assert!(took >= ms(1_600) && took <= ms(1_602), "{took:?}");
    room.assert_over(Reason::Drained);
    // So little time is left for the pauses that all are told at once, but for the one in mid-frame.
    let events = room.recorder.all();
    for event in &events {
        let told = event.at - begun;
        let in_mid_frame = event.id == room.connections[50].1.id();
        assert_eq!(told >= ms(1_600), in_mid_frame, "{told:?}");
    }
    // The peers are told all the same, if their transport takes it at once.
    for (.., peer) in &room.connections[..50] {
        assert_eq!(close_codes(peer), [1001]);
    }
    assert_eq!(room.connections[50].2.wire().written, hello()[..4]);
    assert!(room.connections[51].2.wire().written.is_empty());
}

#[tokio::test(start_paused = true)]
async fn with_a_deadline_of_zero_nothing_is_waited_for() {
    let mut room = Room::polite(200);
    for _ in 0..100 {
        room.join();
    }
    let begun = Instant::now();
    let drain = Drain {
        deadline: Duration::ZERO,
        ..Drain::default()
    };
    assert_eq!(counts(room.registry.drain(drain).await), (0, 300, 0));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    room.assert_over(Reason::Drained);
    for (.., peer) in &room.connections {
        assert_eq!(close_codes(peer), [1001]);
    }
}

#[tokio::test(start_paused = true)]
async fn times_beyond_all_bounds_are_just_long() {
    let room = Room::polite(2);
    let begun = Instant::now();
    let drain = Drain {
        batch: 1,
        pause: Duration::MAX,
        deadline: ms(5_000),
        ..Drain::default()
    };
    // There is room for no such pause, so there is none.
    assert_eq!(counts(room.registry.drain(drain).await), (2, 0, 0));
    assert!(begun.elapsed() <= ms(2));

    let room = Room::polite(2);
    let drain = Drain {
        deadline: Duration::MAX,
        ..at_once()
    };
    assert_eq!(counts(room.registry.drain(drain).await), (2, 0, 0));
}

// More than one drain.

#[tokio::test(start_paused = true)]
async fn the_second_of_two_finds_nobody() {
    let room = Room::polite(5);
    assert_eq!(counts(room.registry.drain(at_once()).await), (5, 0, 0));
    assert_eq!(counts(room.registry.drain(at_once()).await), (0, 0, 0));
    room.assert_over(Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn two_at_once_tell_each_once_and_count_each_once() {
    let room = Room::polite(300);
    let drain = Drain {
        batch: 7,
        ..Drain::default()
    };
    let (one, other) = tokio::join!(room.registry.drain(drain), room.registry.drain(drain));
    assert_eq!(one.clean() + other.clean(), 300);
    assert!(one.clean() > 0 && other.clean() > 0, "{one:?} {other:?}");
    assert_eq!(one.cut() + other.cut(), 0);
    assert_eq!(one.already_gone(), other.clean());
    // The other one came when the first batch was told, and did not come to those.
    assert_eq!(other.already_gone(), one.clean() - 7);
    room.assert_over(Reason::Drained);
}

#[tokio::test(start_paused = true)]
async fn of_two_deadlines_the_earlier_one_cuts() {
    for (first, second) in [(40_000, 1_000), (1_000, 40_000)] {
        // The first has told all, or some, when the second comes.
        for batch in [100, 2] {
            let mut room = Room::silent(30);
            let (stream, ..) = room.join();
            assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
            let drain = |deadline, batch| {
                let registry = room.registry.clone();
                let drain = Drain {
                    batch,
                    pause: ms(300),
                    deadline: ms(deadline),
                    ..Drain::default()
                };
                tokio::spawn(async move { registry.drain(drain).await })
            };
            let begun = Instant::now();
            let one = drain(first, batch);
            sleep(ms(10)).await;
            let other = drain(second, 100);
            let (one, other) = (one.await.unwrap(), other.await.unwrap());
            let took = begun.elapsed();
            // Whoever pauses then finds out after that.
            assert!(took >= ms(1_000) && took <= ms(1_460), "{took:?}");
            assert_eq!(one.cut() + other.cut(), 31, "{one:?} {other:?}");
            assert_eq!(one.clean() + other.clean(), 0);
            room.assert_over(Reason::Drained);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_dropped_leaves_the_rest_to_live() {
    let mut room = Room::polite(10);
    for _ in 0..10 {
        room.join();
    }
    let drain = Drain {
        batch: 15,
        pause: ms(1_000),
        ..Drain::default()
    };
    let cancelled = timeout(ms(100), room.registry.drain(drain)).await;
    assert!(cancelled.is_err());
    assert!(room.registry.is_draining());
    assert_eq!(room.registry.len(), 5);
    assert_eq!(room.recorder.total(), 15);
    // Closings go on.
    let (.., peer) = &room.connections[10];
    peer.send(&peer_close());
    sleep(ms(1)).await;
    assert!(peer.is_dropped());
    for (stream, live, peer) in &mut room.connections[15..] {
        assert!(!live.health().to_string().contains("ended"));
        stream.write_all(&hello()).await.unwrap();
        assert_eq!(peer.wire().written, hello());
    }

    // The next one tells the rest, and cuts what the first one has left half closed.
    let begun = Instant::now();
    let drain = Drain {
        deadline: ms(1_000),
        ..Drain::default()
    };
    assert_eq!(counts(room.registry.drain(drain).await), (0, 5, 0));
    assert!(begun.elapsed() <= ms(1_002), "{:?}", begun.elapsed());
    room.assert_over(Reason::Drained);
}
