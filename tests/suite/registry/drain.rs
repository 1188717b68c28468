//! A drain ends everybody, once, as politely as it can; and says what became of them.

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
    let defaults = Drain {
        code: 1001,
        batch: 100,
        pause: ms(100),
        deadline: Duration::from_secs(30),
    };
    assert_eq!(Drain::default(), defaults);
    assert_eq!(counts(DrainReport::default()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_empty_registry_is_drained_at_once_and_again() {
    let room = Room::new();
    let begun = Instant::now();
    assert!(!room.registry.is_draining());
    for _ in 0..2 {
        let report = room.registry.drain(Drain::default()).await;
        assert_eq!(counts(report), (0, 0, 0));
        assert!(room.registry.is_draining());
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

// What becomes of each.

#[tokio::test(start_paused = true)]
async fn each_end_is_counted_as_what_it_was() {
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
            "the handler's bytes are no frames",
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
            "the handler has sent a Close frame of its own",
            |(stream, _, peer)| {
                let close = frame(0x80 | CLOSE, None, &4_000_u16.to_be_bytes());
                assert!(poll_write(stream, &Wakes::new(), &close).is_ready());
                peer.send(&peer_close());
            },
            (1, 0, 0),
        ),
    ];
    for (case, prepare, expected) in cases {
        let mut room = Room::new();
        prepare(room.join());
        let report = room.registry.drain(at_once()).await;
        assert_eq!(counts(report), expected, "{case}");
        room.assert_over(Reason::Drained);
        let (stream, ..) = &mut room.connections[0];
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
    let mut room = Room::polite(3);
    let victim = room.connections[2].1.clone();
    room.connections[0].1.on_evict(move |_| {
        assert!(victim.evict(4_000, "you too"));
    });
    // In the middle of a frame, and its peer vanishes before the handler is done.
    let (stream, _, peer) = room.join();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    let peer = peer.clone();
    let registry = room.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(at_once()).await });
    sleep(ms(10)).await;
    let begun = Instant::now();
    peer.end(Ok(()));
    let (stream, ..) = &mut room.connections[3];
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    room.connections.truncate(3);
    let report = within("the drain", draining).await.unwrap();
    assert_eq!(counts(report), (2, 0, 2));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let reasons: Vec<_> = room.recorder.all().iter().map(|one| one.reason).collect();
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
async fn the_close_frame_says_what_was_asked_for() {
    let codes = [
        (1001, 1001),
        (1012, 1012),
        (4_321, 4_321),
        (1006, 1011),
        (0, 1011),
        (5_000, 1011),
    ];
    for (code, on_wire) in codes {
        let room = Room::polite(1);
        let drain = Drain { code, ..at_once() };
        assert_eq!(counts(room.registry.drain(drain).await), (1, 0, 0));
        assert_eq!(close_codes(&room.connections[0].2), [on_wire], "{code}");
        let frames = room.connections[0].2.frames();
        assert_eq!(frames[0].payload[2..], *b"server is going away");
    }
}

#[tokio::test(start_paused = true)]
async fn a_boundary_that_cannot_be_seen_is_not_waited_for() {
    let mut room = Room::new();
    let (stream, _, peer) = room.join();
    assert!(poll_write(stream, &Wakes::new(), &[0xFF; 8]).is_ready());
    // No Close frame can be sent, so all that is waited for is the peer's end.
    peer.end(Ok(()));
    let begun = Instant::now();
    assert_eq!(counts(room.registry.drain(at_once()).await), (0, 1, 0));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

// In the middle of a message.

#[tokio::test(start_paused = true)]
async fn a_message_that_is_under_way_arrives_whole() {
    for vectored in [false, true] {
        let mut room = Room::new();
        let (io, peer) = script();
        if vectored {
            peer.vectored();
        }
        // A slow reader: so much at a time, and then nothing until it reads on.
        peer.write_steps(&[60_000, WAIT]);
        let (mut stream, live) = room.layer.wrap_server(io);
        let big = frame(0x80 | BINARY, None, &support::noise(1, 1_000_000));
        // Another message follows in the same write. It is not begun.
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
        room.join_polite();

        let registry = room.registry.clone();
        let draining = tokio::spawn(async move { registry.drain(at_once()).await });
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
        assert_eq!(room.recorder.total(), 2);
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
async fn a_message_that_is_under_way_keeps_nobody_else() {
    let mut room = Room::new();
    let (stream, ..) = room.join();
    assert!(poll_write(stream, &Wakes::new(), &hello()[..4]).is_ready());
    (0..10).for_each(|_| room.join_polite());
    let begun = Instant::now();
    let registry = room.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(at_once()).await });
    sleep(ms(1_000)).await;
    assert_eq!(room.recorder.total(), 10);
    assert!(!draining.is_finished());

    let (stream, live, peer) = &mut room.connections[0];
    assert!(!live.health().to_string().contains("ended"));
    stream.write_all(&hello()[4..]).await.unwrap();
    assert_eq!(room.recorder.total(), 11, "told in the handler's own write");
    let error = stream.write_all(&hello()).await.unwrap_err();
    assert!(Evicted::from_error(&error).is_some());
    peer.send(&peer_close());
    assert_eq!(counts(draining.await.unwrap()), (11, 0, 0));
    assert!(begun.elapsed() <= ms(1_001));
    room.assert_over(Reason::Drained);
    let frames = room.connections[0].2.frames();
    assert_eq!(frames[0].raw, hello());
    assert_eq!(frames.len(), 2);
}

// Whoever comes meanwhile.

#[tokio::test(start_paused = true)]
async fn whoever_opens_during_a_drain_is_ended_too() {
    let mut room = Room::polite(2);
    let drain = Drain {
        code: 1012,
        batch: 1,
        pause: ms(1_000),
        ..Drain::default()
    };
    let registry = room.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(drain).await });
    sleep(ms(1)).await;
    room.join_polite();
    sleep(ms(1)).await;
    let (_, live, peer) = room.connections.last().unwrap();
    assert_eq!(live.evicted().await.reason(), Reason::Drained);
    assert_eq!(close_codes(peer), [1012]);
    let report = draining.await.unwrap();
    assert!(report.clean() >= 2, "{report:?}");
    room.assert_over(Reason::Drained);

    // And after it.
    room.join_polite();
    sleep(ms(1)).await;
    assert_eq!(close_codes(&room.connections.last().unwrap().2), [1012]);
    room.assert_over(Reason::Drained);
}

// Handlers, hooks and runtimes.

#[tokio::test(start_paused = true)]
async fn handlers_are_woken_and_their_drain_may_be_their_own() {
    let mut room = Room::polite(3);
    let mut handlers = Vec::new();
    for (mut stream, ..) in room.connections.drain(..) {
        let registry = room.registry.clone();
        handlers.push(tokio::spawn(async move {
            // Nobody reads in a handler that drains, which has its stream still.
            let report = registry.drain(at_once()).await;
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
    let room = Room::polite(3);
    for (_, live, _) in &room.connections {
        let (registry, own) = (room.registry.clone(), live.clone());
        live.on_evict(move |ev: &Eviction| {
            assert!(registry.get(ev.id()).is_none());
            assert!(registry.is_draining());
            registry.begin_drain();
            assert!(!own.evict(1000, "twice"));
            // What another thread asks it is told at once, too.
            let (tell, told) = mpsc::channel();
            let registry = registry.clone();
            std::thread::spawn(move || tell.send(registry.len()).unwrap());
            told.recv_timeout(support::PATIENCE).unwrap();
        });
    }
    assert_eq!(counts(room.registry.drain(at_once()).await), (3, 0, 0));
    room.assert_over(Reason::Drained);
}

#[tokio::test]
async fn connections_of_a_runtime_that_has_gone_are_gone_with_it() {
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
    let report = within("the drain", registry.drain(at_once())).await;
    assert_eq!(counts(report), (0, 0, 0));
    assert!(peers.iter().all(Peer::is_dropped));
    drop(streams);
}

// Many.

#[tokio::test(start_paused = true)]
async fn ten_thousand_are_drained() {
    let drains = [
        (at_once(), (10_000, 0, 0)),
        (
            Drain {
                batch: usize::MAX,
                ..at_once()
            },
            (10_000, 0, 0),
        ),
        (
            Drain {
                deadline: Duration::ZERO,
                ..at_once()
            },
            (0, 10_000, 0),
        ),
    ];
    for (drain, expected) in drains {
        let room = Room::polite(10_000);
        let report = room.registry.drain(drain).await;
        assert_eq!(counts(report), expected);
        room.assert_over(Reason::Drained);
    }
}

/// Handlers that write and read, peers that answer or do not, kicks and two drains, by threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn drains_meet_everything_else() {
    for round in 0..20 {
        let mut room = Room::with(HeartbeatLayer::builder().close_timeout(ms(300)));
        let mut handlers = Vec::new();
        let mut others = Vec::new();
        let mut peers = Vec::new();
        for number in 0..200 {
            let (io, peer) = script();
            let (mut stream, live) = room.layer.wrap_server(io);
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
            let (_, live, peer) = room.join();
            peers.push((live.clone(), peer.clone()));
        }
        let drain = Drain {
            batch: 10,
            deadline: ms(200),
            ..at_once()
        };
        let (one, other) = within("both drains", async {
            let registry = room.registry.clone();
            let one = tokio::spawn(async move { registry.drain(drain).await });
            (room.registry.drain(drain).await, one.await.unwrap())
        })
        .await;
        assert!(room.registry.is_empty(), "round {round}");
        for (live, peer) in &peers {
            // Who was kicked before the drain came has the close timeout.
            let reason = live.evicted().await.reason();
            let kicked = reason == Reason::Kicked { code: 4_000 };
            assert!(kicked || peer.is_dropped(), "round {round}: {reason}");
        }
        for task in handlers.into_iter().chain(others) {
            within("the others", task).await.unwrap();
        }
        let events = room.recorder.all();
        let ids: HashSet<_> = events.iter().map(|event| event.id).collect();
        assert_eq!((ids.len(), events.len()), (400, 400), "round {round}");
        let drained = events.iter().filter(|one| one.reason == Reason::Drained);
        let told = one.clean() + one.cut() + other.clean() + other.cut();
        assert_eq!(told, drained.count(), "round {round}: {one:?} {other:?}");
    }
}
