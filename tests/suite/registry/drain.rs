//! A drain evicts every connection once and reports how each one ended.

use std::collections::HashSet;
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{
    Drain, DrainReport, Evicted, Eviction, HeartbeatLayer, Liveness, Reason, Registry,
};

use super::drained::*;
use crate::script::*;
use crate::support::{self, within};

#[test]
fn the_defaults_are_as_documented() {
    let drain = Drain::default();
    assert_eq!((drain.code, &*drain.reason), (1001, "server is going away"));
    assert_eq!((drain.batch, drain.pause), (100, ms(100)));
    assert_eq!(drain.deadline, Duration::from_secs(30));
    assert_eq!(counts(DrainReport::default()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_empty_registry_drains_immediately_and_repeatedly() {
    let scene = DrainScene::new();
    let begun = Instant::now();
    assert!(!scene.registry.is_draining());
    for _ in 0..2 {
        let report = scene.registry.drain(Drain::default()).await;
        assert_eq!(counts(report), (0, 0, 0));
        assert!(scene.registry.is_draining());
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

// How each connection ends.

#[tokio::test(start_paused = true)]
async fn each_end_is_counted_as_clean_or_cut() {
    type Prepare = fn(&mut (Stream, Liveness, Peer));
    let cases: [(&str, Prepare, (usize, usize, usize)); 11] = [
        (
            "the peer answers",
            |(.., peer)| peer.send(&peer_close()),
            (1, 0, 0),
        ),
        (
            "the peer answers after other things",
            |(.., peer)| {
                peer.send(&frame(0x80 | TEXT, KEY, &[7; 100_000]));
                peer.send(&peer_close());
            },
            (1, 0, 0),
        ),
        ("the peer is silent", |_| {}, (0, 1, 0)),
        (
            "the peer ends the transport instead",
            |(.., peer)| {
                peer.send(&hello_to_server());
                peer.end(Ok(()));
            },
            (0, 1, 0),
        ),
        (
            "the transport is reset",
            |(.., peer)| peer.end(Err(std::io::ErrorKind::ConnectionReset)),
            (0, 1, 0),
        ),
        (
            "the Close frame cannot be written",
            |(.., peer)| {
                peer.send(&peer_close());
                peer.wire().write_error = Some(std::io::ErrorKind::BrokenPipe);
            },
            (0, 1, 0),
        ),
        (
            "the transport takes nothing",
            |(.., peer)| {
                peer.send(&peer_close());
                peer.write_steps(&[WAIT]);
            },
            (0, 1, 0),
        ),
        (
            "the transport panics",
            |(.., peer)| peer.wire().panics = true,
            (0, 1, 0),
        ),
        (
            "the handler's bytes are not frames",
            |(stream, _, peer)| {
                peer.send(&peer_close());
                assert!(poll_write(stream, &Wakes::new(), &[0xFF; 8]).is_ready());
            },
            (0, 1, 0),
        ),
        (
            "the handler leaves a frame unfinished",
            |(stream, _, peer)| {
                peer.send(&peer_close());
                assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
            },
            (0, 1, 0),
        ),
        (
            "the handler has sent a Close frame itself",
            |(stream, _, peer)| {
                let close = frame(0x80 | CLOSE, None, &4_000_u16.to_be_bytes());
                assert!(poll_write(stream, &Wakes::new(), &close).is_ready());
                peer.send(&peer_close());
            },
            (1, 0, 0),
        ),
    ];
    for (case, prepare, expected) in cases {
        let mut scene = DrainScene::new();
        prepare(scene.open_silent());
        let report = scene.registry.drain(without_pauses()).await;
        assert_eq!(counts(report), expected, "{case}");
        scene.assert_all_evicted(Reason::Drained);
        let (stream, ..) = &mut scene.connections[0];
        let error = stream.read_u8().await.unwrap_err();
        let evicted = Evicted::from_error(&error).expect(case);
        assert_eq!(evicted.reason(), Reason::Drained, "{case}");
    }
}

fn hello_to_server() -> Vec<u8> {
    frame(0x80 | TEXT, KEY, b"hello")
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_before_its_turn_is_already_gone() {
    let mut scene = DrainScene::with_closing_peers(3);
    let victim = scene.connections[2].1.clone();
    scene.connections[0].1.on_evict(move |_| {
        assert!(victim.evict(4_000, "evicted"));
    });
    // The handler is in the middle of a frame when its peer disconnects.
    let (stream, _, peer) = scene.open_silent();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    let peer = peer.clone();
    let registry = scene.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(without_pauses()).await });
    sleep(ms(10)).await;
    let begun = Instant::now();
    peer.end(Ok(()));
    let (stream, ..) = &mut scene.connections[3];
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    scene.connections.truncate(3);
    let report = within("the drain", draining).await.unwrap();
    assert_eq!(counts(report), (2, 0, 2));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let reasons: Vec<_> = scene.recorder.all().iter().map(|one| one.reason).collect();
    let kicked = Reason::Kicked { code: 4_000 };
    let expected = [
        kicked,
        Reason::Drained,
        Reason::Drained,
        Reason::PeerVanished,
    ];
    assert_eq!(reasons, expected);
}

#[tokio::test(start_paused = true)]
async fn the_close_frame_carries_the_requested_code() {
    let codes = [
        (1001, 1001),
        (1012, 1012),
        (4_321, 4_321),
        (1006, 1011),
        (0, 1011),
        (5_000, 1011),
    ];
    for (code, on_wire) in codes {
        let scene = DrainScene::with_closing_peers(1);
        let drain = without_pauses().code(code);
        assert_eq!(counts(scene.registry.drain(drain).await), (1, 0, 0));
        assert_eq!(close_codes(&scene.connections[0].2), [on_wire], "{code}");
        let frames = scene.connections[0].2.frames();
        assert_eq!(frames[0].payload[2..], *b"server is going away");
    }
}

#[tokio::test(start_paused = true)]
async fn the_close_frame_carries_the_requested_text() {
    let long = "€".repeat(42);
    // The longest text that fits: 41 characters of 3 bytes are 123 bytes.
    let texts = [("", ""), ("deploy 7", "deploy 7"), (&long, &long[..123])];
    for (text, on_wire) in texts {
        let mut scene = DrainScene::with_closing_peers(1);
        let drain = without_pauses().reason(text);
        assert_eq!(counts(scene.registry.drain(drain).await), (1, 0, 0));
        // This one opens after the drain.
        scene.open_closing();
        sleep(ms(1)).await;
        for (.., peer) in &scene.connections {
            let payload = &peer.frames()[0].payload;
            assert_eq!(payload[..2], 1001_u16.to_be_bytes());
            assert_eq!(payload[2..], *on_wire.as_bytes());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_frame_boundary_that_it_cannot_detect() {
    let mut scene = DrainScene::new();
    let (stream, _, peer) = scene.open_silent();
    assert!(poll_write(stream, &Wakes::new(), &[0xFF; 8]).is_ready());
    // The handler's bytes are not frames, so no boundary is known and no Close frame can be sent.
    // The drain waits only for the peer's end.
    peer.end(Ok(()));
    let begun = Instant::now();
    assert_eq!(
        counts(scene.registry.drain(without_pauses()).await),
        (0, 1, 0)
    );
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

// In the middle of a message.

#[tokio::test(start_paused = true)]
async fn a_message_in_progress_arrives_whole() {
    for vectored in [false, true] {
        let mut scene = DrainScene::new();
        let (io, peer) = script();
        if vectored {
            peer.vectored();
        }
        // A slow reader: the transport takes 60 kB, then nothing until the next `kick`.
        peer.write_steps(&[60_000, WAIT]);
        let (mut stream, live) = scene.layer.wrap_server(io);
        let big = frame(0x80 | BINARY, None, &support::noise(1, 1_000_000));
        // The second message follows in the same write. No byte of it is sent.
        let both = [big.clone(), hello()].concat();
        let handler = tokio::spawn(async move {
            let written = match vectored {
                false => stream.write_all(&both).await,
                true => write_all_vectored(&mut stream, &both).await,
            };
            (stream, written)
        });
        sleep(ms(100)).await;
        assert_eq!(peer.wire().written.len(), 60_000);
        scene.open_closing();

        let registry = scene.registry.clone();
        let draining = tokio::spawn(async move { registry.drain(without_pauses()).await });
        while !live.health().to_string().contains("ended") {
            sleep(ms(100)).await;
            peer.kick();
        }
        sleep(ms(100)).await;
        peer.drain();
        sleep(ms(100)).await;
        assert!(!draining.is_finished(), "the peer has not answered");
        let frames = peer.frames();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].raw, big);
        assert_eq!(close_codes(&peer), [1001]);
        peer.send(&peer_close());

        assert_eq!(counts(draining.await.unwrap()), (2, 0, 0));
        let (_stream, written) = handler.await.unwrap();
        let evicted = Evicted::from_error(&written.unwrap_err()).unwrap();
        assert_eq!(evicted.reason(), Reason::Drained);
        assert!(peer.is_dropped());
        assert_eq!(scene.recorder.total(), 2);
    }
}

async fn write_all_vectored(stream: &mut Stream, bytes: &[u8]) -> std::io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let (first, second) = bytes[at..].split_at((bytes.len() - at) / 2);
        let slices = [first, second].map(std::io::IoSlice::new);
        at += stream.write_vectored(&slices).await?;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_message_in_progress_delays_no_other_connection() {
    let mut scene = DrainScene::new();
    let (stream, ..) = scene.open_silent();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    (0..10).for_each(|_| scene.open_closing());
    let begun = Instant::now();
    let registry = scene.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(without_pauses()).await });
    sleep(ms(1_000)).await;
    assert_eq!(scene.recorder.total(), 10);
    assert!(!draining.is_finished());

    let (stream, live, peer) = &mut scene.connections[0];
    assert!(!live.health().to_string().contains("ended"));
    stream.write_all(&hello()[4..]).await.unwrap();
    assert_eq!(
        scene.recorder.total(),
        11,
        "evicted within the handler's write"
    );
    let error = stream.write_all(&hello()).await.unwrap_err();
    assert!(Evicted::from_error(&error).is_some());
    peer.send(&peer_close());
    assert_eq!(counts(draining.await.unwrap()), (11, 0, 0));
    assert!(begun.elapsed() <= ms(1_001));
    scene.assert_all_evicted(Reason::Drained);
    let frames = scene.connections[0].2.frames();
    assert_eq!(frames[0].raw, hello());
    assert_eq!(frames.len(), 2);
}

// Connections that open during a drain.

#[tokio::test(start_paused = true)]
async fn a_connection_that_opens_during_a_drain_is_evicted() {
    let mut scene = DrainScene::with_closing_peers(2);
    let drain = Drain::default().code(1012).batch(1).pause(ms(1_000));
    let registry = scene.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(drain).await });
    sleep(ms(1)).await;
    scene.open_closing();
    sleep(ms(1)).await;
    let (_, live, peer) = scene.connections.last().unwrap();
    assert_eq!(live.evicted().await.reason(), Reason::Drained);
    assert_eq!(close_codes(peer), [1012]);
    let report = draining.await.unwrap();
    assert!(report.clean() >= 2, "{report:?}");
    scene.assert_all_evicted(Reason::Drained);

    // After the drain.
    scene.open_closing();
    sleep(ms(1)).await;
    assert_eq!(close_codes(&scene.connections.last().unwrap().2), [1012]);
    scene.assert_all_evicted(Reason::Drained);
}

// Handlers, hooks and runtimes.

#[tokio::test(start_paused = true)]
async fn handlers_are_woken_and_may_themselves_drain() {
    let mut scene = DrainScene::with_closing_peers(3);
    let mut handlers = Vec::new();
    for (mut stream, ..) in scene.connections.drain(..) {
        let registry = scene.registry.clone();
        handlers.push(tokio::spawn(async move {
            // The handler owns its stream but does not read while it drains.
            let report = registry.drain(without_pauses()).await;
            let error = stream.read_u8().await.unwrap_err();
            (report, Evicted::from_error(&error).unwrap().reason())
        }));
    }
    let mut clean = 0;
    for handler in handlers {
        let (report, reason) = within("the handler", handler).await.unwrap();
        assert_eq!(reason, Reason::Drained);
        clean += report.clean();
    }
    assert_eq!(clean, 3);
}

#[tokio::test(start_paused = true)]
async fn no_lock_is_held_while_hooks_run() {
    let scene = DrainScene::with_closing_peers(3);
    for (_, live, _) in &scene.connections {
        let (registry, own) = (scene.registry.clone(), live.clone());
        live.on_evict(move |ev: &Eviction| {
            assert!(registry.get(ev.id()).is_none());
            assert!(registry.is_draining());
            registry.begin_drain();
            assert!(!own.evict(1000, "twice"));
            // Another thread can use the registry as well.
            let (len_tx, len_rx) = mpsc::channel();
            let registry = registry.clone();
            std::thread::spawn(move || len_tx.send(registry.len()).unwrap());
            len_rx.recv_timeout(support::PATIENCE).unwrap();
        });
    }
    assert_eq!(
        counts(scene.registry.drain(without_pauses()).await),
        (3, 0, 0)
    );
    scene.assert_all_evicted(Reason::Drained);
}

#[tokio::test]
async fn connections_of_a_runtime_that_has_shut_down_are_gone() {
    let registry = Registry::new();
    let layer = HeartbeatLayer::builder().registry(registry.clone());
    let layer = layer.build().unwrap();
    let (streams, peers) = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        let transports: Vec<_> = (0..3).map(|_| script()).collect();
        transports
            .into_iter()
            .map(|(io, peer)| (layer.wrap_server(io).0, peer))
            .unzip::<_, _, Vec<_>, Vec<_>>()
    })
    .join()
    .unwrap();
    assert_eq!(registry.len(), 0);
    let report = within("the drain", registry.drain(without_pauses())).await;
    assert_eq!(counts(report), (0, 0, 0));
    assert!(peers.iter().all(Peer::is_dropped));
    drop(streams);
}

// Many connections.

#[tokio::test(start_paused = true)]
async fn ten_thousand_connections_are_drained() {
    let drains = [
        (without_pauses(), (10_000, 0, 0)),
        (without_pauses().batch(usize::MAX), (10_000, 0, 0)),
        (without_pauses().deadline(Duration::ZERO), (0, 10_000, 0)),
    ];
    for (drain, expected) in drains {
        let scene = DrainScene::with_closing_peers(10_000);
        let report = scene.registry.drain(drain).await;
        assert_eq!(counts(report), expected);
        scene.assert_all_evicted(Reason::Drained);
    }
}

/// On several threads: handlers that write, peers that close, end or stay silent, evictions, and
/// two drains.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn drains_race_with_writes_closes_and_evictions() {
    for round in 0..20 {
        let mut scene = DrainScene::with(HeartbeatLayer::builder().close_timeout(ms(300)));
        let mut handlers = Vec::new();
        let mut others = Vec::new();
        let mut peers = Vec::new();
        for number in 0..200 {
            let (io, peer) = script();
            let (mut stream, live) = scene.layer.wrap_server(io);
            peers.push((live.clone(), peer.clone()));
            handlers.push(tokio::spawn(async move {
                for _ in 0..1_000 {
                    let (first, rest) = (&hello()[..3], &hello()[3..]);
                    if stream.write_all(first).await.is_err() {
                        return;
                    }
                    yield_now().await;
                    if stream.write_all(rest).await.is_err() {
                        return;
                    }
                }
            }));
            others.push(tokio::spawn({
                async move {
                    for _ in 0..number % 50 {
                        yield_now().await;
                    }
                    match number % 4 {
                        0 => peer.send(&peer_close()),
                        1 => peer.end(Ok(())),
                        2 => drop(live.evict(4_000, "")),
                        _ => {}
                    }
                }
            }));
            let (_, live, peer) = scene.open_silent();
            peers.push((live.clone(), peer.clone()));
        }
        let drain = without_pauses().batch(10).deadline(ms(200));
        let (one, other) = within("both drains", async {
            let other = drain.clone();
            let registry = scene.registry.clone();
            let one = tokio::spawn(async move { registry.drain(drain).await });
            (scene.registry.drain(other).await, one.await.unwrap())
        })
        .await;
        assert!(scene.registry.is_empty(), "round {round}");
        for (live, peer) in &peers {
            // A connection evicted before the drain has the close timeout instead.
            let reason = live.evicted().await.reason();
            let kicked = reason == Reason::Kicked { code: 4_000 };
            assert!(kicked || peer.is_dropped(), "round {round}: {reason}");
        }
        for task in handlers.into_iter().chain(others) {
            within("the other tasks", task).await.unwrap();
        }
        let events = scene.recorder.all();
        let ids: HashSet<_> = events.iter().map(|event| event.id).collect();
        assert_eq!((ids.len(), events.len()), (400, 400), "round {round}");
        let drained = events.iter().filter(|one| one.reason == Reason::Drained);
        let reported = one.clean() + one.cut() + other.clean() + other.cut();
        assert_eq!(
            reported,
            drained.count(),
            "round {round}: {one:?} {other:?}"
        );
    }
}
