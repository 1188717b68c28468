//! Registry snapshots, `wait_idle`, draining, and the high-water and growth hooks.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::io::InspectReader;
use tower_ws_liveness::{
    ConfigError, ConnectionId, Evicted, Eviction, Growth, Health, HeartbeatLayer, HighWater,
    Liveness, Reason, Registry,
};

use super::counts::{count, until_empty};
use crate::script::{Peer, Stream, TEXT, frame, heartbeat, script};
use crate::support::raw::{CLOSE, Frame, RawClient, opening};
use crate::support::scene::{patient, quiet};
use crate::support::{self, echo_route, in_memory, ms, until, within};

fn layer(registry: &Registry) -> HeartbeatLayer {
    quiet().registry(registry.clone()).build().unwrap()
}

fn connect(layer: &HeartbeatLayer) -> (Stream, Liveness, Peer) {
    let (io, peer) = script();
    let (stream, live) = layer.wrap_server(io);
    (stream, live, peer)
}

fn is_idle(registry: &Registry) -> bool {
    registry.wait_idle().now_or_never().is_some()
}

// Snapshots.

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_what_the_handles_show() {
    let registry = Registry::new();
    let layer = heartbeat().registry(registry.clone()).build().unwrap();
    assert!(registry.snapshot().is_empty());
    let (mut first, live, peer) = connect(&layer);
    sleep(ms(30)).await;
    let (_second, silent, _peer) = connect(&layer);
    sleep(ms(40)).await;
    peer.send(&frame(0x80 | TEXT, Some([1, 2, 3, 4]), b"hello"));
    first.read_exact(&mut [0; 11]).await.unwrap();
    sleep(ms(50)).await;

    let entries = registry.snapshot();
    let ids: Vec<_> = entries.iter().map(|entry| entry.id()).collect();
    assert_eq!(ids, [live.id(), silent.id()]);
    assert_eq!(entries[0].age(), ms(120));
    assert_eq!(entries[1].age(), ms(90));
    assert_eq!(entries[0].idle_for(), ms(50));
    assert_eq!(entries[1].idle_for(), ms(90));
    assert_eq!(entries[0].stats().messages_received(), 1);
    for (entry, live) in entries.iter().zip([&live, &silent]) {
        assert_eq!(entry.health(), live.health());
        assert_eq!(entry.rtt(), live.rtt());
        assert_eq!(entry.idle_for(), live.idle_for());
        assert_eq!(entry.last_seen(), live.last_seen());
        assert_eq!(entry.stats(), live.stats());
    }
    // The snapshot does not change later.
    sleep(ms(20)).await;
    assert_eq!(silent.health(), Health::PeerSilent { missed: 0 });
    assert_eq!(entries[1].health(), Health::Live);
    live.evict(1000, "");
    let ids: Vec<_> = registry.snapshot().iter().map(|entry| entry.id()).collect();
    assert_eq!(ids, [silent.id()]);
}

/// Threads open and end connections while another takes snapshots.
#[test]
fn a_snapshot_contains_each_open_connection_exactly_once() {
    const STAYING: usize = 200;
    let registry = Registry::new();
    let over = Arc::new(AtomicBool::new(false));
    let (ids_tx, ids_rx) = mpsc::channel();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (layer, over, ids_tx) = (layer(&registry), Arc::clone(&over), ids_tx.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let _entered = runtime.as_ref().unwrap().enter();
                let staying: Vec<_> = (0..STAYING).map(|_| connect(&layer)).collect();
                let ids: Vec<_> = staying.iter().map(|(_, live, _)| live.id()).collect();
                ids_tx.send(ids).unwrap();
                let mut gone = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    let some: Vec<_> = (0..20).map(|_| connect(&layer)).collect();
                    gone.extend(some.iter().map(|(_, live, _)| live.id()));
                }
                gone
            })
        })
        .collect();
    let staying: Vec<_> = (0..3).flat_map(|_| ids_rx.recv().unwrap()).collect();
    let staying: BTreeSet<ConnectionId> = staying.into_iter().collect();
    for _ in 0..300 {
        let (before, entries) = (registry.high_water(), registry.snapshot());
        let ids: Vec<_> = entries.iter().map(|entry| entry.id()).collect();
        assert!(
            ids.is_sorted_by(|one, next| one < next),
            "sorted and without duplicates"
        );
        assert!(entries.iter().all(|entry| entry.health() != Health::Ended));
        let seen: BTreeSet<_> = ids.into_iter().collect();
        assert!(staying.is_subset(&seen), "an open connection is missing");
        assert!(before >= staying.len());
    }
    over.store(true, Ordering::SeqCst);
    let gone: Vec<_> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    assert!(gone.len() > 20);
    assert_eq!(registry.len(), 0);
    assert!(
        registry.snapshot().is_empty() && is_idle(&registry),
        "{registry:?}"
    );
    assert!(gone.iter().all(|id| registry.get(*id).is_none()));
    // The high-water mark is the number of connections open at once: at most 60 more than those
    // that stay.
    assert!((staying.len()..=staying.len() + 60).contains(&registry.high_water()));
}

#[tokio::test]
async fn the_hook_finds_its_connection_gone_from_the_registry() {
    let registry = Registry::new();
    let (seen_tx, seen) = mpsc::channel();
    let shown = registry.clone();
    let layer = quiet()
        .registry(registry.clone())
        .on_evict(move |ev: &Eviction| {
            let known = shown.get(ev.id()).is_some() || !shown.snapshot().is_empty();
            seen_tx
                .send((known, shown.len(), count(&shown, "admitted")))
                .unwrap();
        });
    let layer = layer.build().unwrap();
    let (_stream, live, _peer) = connect(&layer);
    assert_eq!(registry.get(live.id()).unwrap().id(), live.id());
    live.evict(1000, "");
    assert_eq!(seen.try_recv().unwrap(), (false, 0, 0));
}

// When a registry is idle.

/// Panics when it is dropped.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("a scripted panic of the transport");
    }
}

#[tokio::test(start_paused = true)]
async fn wait_idle_completes_after_the_transport_is_dropped() {
    let registry = Registry::new();
    let layer = heartbeat()
        .interval(ms(60_000))
        .timeout(ms(60_000))
        .registry(registry.clone());
    let layer = layer.build().unwrap();
    assert!(is_idle(&registry));

    // During a closing handshake that the peer does not answer.
    let (_stream, live, peer) = connect(&layer);
    assert!(!is_idle(&registry));
    live.evict(1000, "");
    assert!(registry.is_empty() && !is_idle(&registry));
    within("the close timeout", registry.wait_idle()).await;
    assert!(peer.is_dropped());

    // After the peer's end, while the handler still owns the stream.
    let (mut stream, live, peer) = connect(&layer);
    peer.end(Ok(()));
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(live.evicted().await.reason(), Reason::PeerVanished);
    assert!(registry.is_empty() && !is_idle(&registry));
    drop(stream);
    assert!(is_idle(&registry) && peer.is_dropped());

    // A transport that panics when it is dropped.
    let panics_on_drop = PanicsOnDrop;
    let reader = InspectReader::new(tokio::io::empty(), move |_| {
        let _ = &panics_on_drop;
    });
    let (stream, _live) = layer.wrap_server(tokio::io::join(reader, tokio::io::sink()));
    drop(stream);
    assert!(is_idle(&registry));
}

#[tokio::test]
async fn wait_idle_completes_after_the_hooks_have_returned() {
    let registry = Registry::new();
    let (release_tx, release_rx) = mpsc::channel::<()>();
    let release_rx = Mutex::new(release_rx);
    let layer = heartbeat()
        .registry(registry.clone())
        .on_evict(move |_: &Eviction| {
            let _ = release_rx.lock().unwrap().recv();
        });
    let layer = layer
        .interval(ms(60_000))
        .timeout(ms(60_000))
        .build()
        .unwrap();
    let (stream, live, peer) = connect(&layer);
    let evicting = std::thread::spawn(move || live.evict(1000, "bye"));
    until("the transport is dropped", || peer.is_dropped()).await;
    assert!(registry.is_empty() && !is_idle(&registry));
    release_tx.send(()).unwrap();
    within("the hook's end", registry.wait_idle()).await;
    assert!(evicting.join().unwrap());
    drop(stream);
    assert_eq!(count(&registry, "present"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_waiter_is_woken() {
    for _ in 0..200 {
        let registry = Registry::new();
        let (stream, _live, _peer) = connect(&layer(&registry));
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let registry = registry.clone();
                tokio::spawn(async move { registry.wait_idle().await })
            })
            .collect();
        // A cancelled waiter does not consume the wake of another.
        waiters[0].abort();
        let dropping = std::thread::spawn(move || drop(stream));
        for waiter in waiters.into_iter().skip(1) {
            within("idle", waiter).await.unwrap();
        }
        dropping.join().unwrap();
    }
}

#[test]
fn wait_idle_completes_after_the_runtime_has_shut_down() {
    let registry = Registry::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_kept, live, _peer) = runtime.block_on(async {
        let layer = layer(&registry);
        let (stream, _live, _peer) = connect(&layer);
        tokio::spawn(async move {
            let _stream = stream;
            std::future::pending::<()>().await;
        });
        connect(&layer)
    });
    drop(runtime);
    assert_eq!(count(&registry, "present"), 0);
    assert!(!live.evict(1000, ""), "it has ended with the runtime");
    assert!(is_idle(&registry), "{registry:?}");
}

// Draining.

/// Reads until the connection ends. On a drain it sends a message and a Close frame.
async fn close_on_drain(mut socket: WebSocket, live: Liveness) {
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(_)) => {}
                _ => return,
            },
            () = live.draining() => {
                let _ = socket.send(Message::text("draining")).await;
                let _ = socket.send(Message::Close(None)).await;
                while let Some(Ok(_)) = socket.recv().await {}
                return;
            }
        }
    }
}

#[tokio::test]
async fn begin_drain_wakes_handlers_and_refuses_new_handshakes() {
    let (outer, inner) = (Registry::new(), Registry::new());
    let route = any(|ws: WebSocketUpgrade, live: Liveness| async move {
        ws.on_upgrade(|socket| close_on_drain(socket, live))
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(patient().registry(inner.clone()).build().unwrap())
        .layer(layer(&outer));
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(RawClient::handshake(in_memory(app.clone(), 4096), "/ws").await);
    }
    until("all are open", || outer.len() == 3).await;
    assert!(!inner.is_draining());
    let waiter = tokio::spawn({
        let inner = inner.clone();
        async move { inner.draining().await }
    });
    tokio::task::yield_now().await;
    inner.begin_drain();
    inner.begin_drain();
    assert!(inner.is_draining() && !outer.is_draining());
    within("the drain", waiter).await.unwrap();
    within("draining() during the drain", inner.draining()).await;

    let mut late = in_memory(app.clone(), 4096);
    late.write_all(opening("/ws").as_bytes()).await.unwrap();
    let mut head = [0; 13];
    late.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 503 ");
    for client in &mut clients {
        assert_eq!(client.expect_frame().await, Frame::text("draining"));
        assert_eq!(client.expect_frame().await.opcode, CLOSE);
        client.send(&Frame::close(1000, "")).await.unwrap();
    }
    for registry in [&outer, &inner] {
        within("the end", registry.wait_idle()).await;
        until_empty("the drain", registry).await;
    }
    // A change of the limit does not undo the drain.
    inner.limit(None);
    let mut late = in_memory(app, 4096);
    late.write_all(opening("/ws").as_bytes()).await.unwrap();
    late.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 503 ");
}

#[tokio::test]
async fn a_handshake_that_completes_during_a_drain_is_evicted_immediately() {
    let registry = Registry::new();
    let recorder = support::recorder::Recorder::new();
    let answer = Arc::new(Notify::new());
    let calls = Arc::new(AtomicUsize::new(0));
    let route = any({
        let (answer, calls) = (Arc::clone(&answer), Arc::clone(&calls));
        move |ws: WebSocketUpgrade, live: Liveness| async move {
            live.set_session("the handler's");
            calls.fetch_add(1, Ordering::SeqCst);
            answer.notified().await;
            ws.on_upgrade(move |mut socket| async move {
                let error = socket.recv().await.unwrap().unwrap_err();
                let reason = Evicted::from_error(&error).unwrap().reason();
                assert_eq!(reason, Reason::Drained);
                assert_eq!(live.session::<&str>().as_deref(), Some(&"the handler's"));
                calls.fetch_add(1, Ordering::SeqCst);
            })
        }
    });
    let heartbeat = quiet().registry(registry.clone()).on_evict(recorder.hook());
    let app = Router::new()
        .route("/ws", route)
        .layer(heartbeat.build().unwrap());
    let mut client = in_memory(app, 4096);
    client.write_all(opening("/ws").as_bytes()).await.unwrap();
    until("the handler", || calls.load(Ordering::SeqCst) == 1).await;
    registry.begin_drain();
    assert!(registry.is_empty() && !is_idle(&registry));
    answer.notify_one();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the 101", client.read_u8()).await.unwrap());
    }
    let mut client = RawClient::over(client);
    let close = client.expect_frame().await;
    assert_eq!(close, Frame::close(1001, "server is going away"));
    client.send(&close).await.unwrap();
    assert_eq!(recorder.nth(1).await.reason, Reason::Drained);
    within("the end", registry.wait_idle()).await;
    until("the handler has seen it", || {
        calls.load(Ordering::SeqCst) == 2
    })
    .await;
    recorder.stays_at_for(1, ms(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_escapes_a_drain() {
    for _ in 0..100 {
        let registry = Registry::new();
        let heartbeat = quiet().registry(registry.clone()).close_timeout(ms(20));
        let app = Router::new()
            .route("/ws", echo_route())
            .layer(heartbeat.build().unwrap());
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = in_memory(app.clone(), 4096);
                tokio::spawn(async move {
                    client.write_all(opening("/ws").as_bytes()).await.unwrap();
                    // Keeps the connection open until the server ends it.
                    let mut sink = Vec::new();
                    let _ = client.read_to_end(&mut sink).await;
                })
            })
            .collect();
        let pause = fastrand::u64(..300);
        sleep(Duration::from_micros(pause)).await;
        registry.begin_drain();
        for entry in registry.snapshot() {
            if let Some(live) = registry.get(entry.id()) {
                live.evict(1001, "");
            }
        }
        within("the end of all", registry.wait_idle()).await;
        assert_eq!(count(&registry, "present"), 0);
        assert!(registry.is_empty());
        clients.into_iter().for_each(|client| client.abort());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_wrapped_during_a_drain_is_evicted() {
    let registry = Registry::new();
    registry.begin_drain();
    let (mut stream, live, _peer) = connect(&layer(&registry));
    assert_eq!(live.evicted().await.reason(), Reason::Drained);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    // `draining()` completes although the connection has ended.
    within("the drain", live.draining()).await;
}

#[tokio::test(start_paused = true)]
async fn draining_completes_for_every_waiter_of_that_registry_only() {
    let registry = Registry::new();
    let (_stream, live, _peer) = connect(&layer(&registry));
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let live = live.clone();
            tokio::spawn(async move { live.draining().await })
        })
        .collect();
    tokio::task::yield_now().await;
    waiters[0].abort();
    let (_other, unrelated, _peer) = connect(&layer(&Registry::new()));
    registry.begin_drain();
    for waiter in waiters.into_iter().skip(1) {
        within("the drain", waiter).await.unwrap();
    }
    support::never("a drain", ms(1_000_000), unrelated.draining()).await;
}

// High-water and growth hooks.

#[tokio::test(start_paused = true)]
async fn the_high_water_hook_is_called_once_until_the_count_has_fallen() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let (calls_tx, calls) = mpsc::channel();
    let shown = registry.clone();
    registry.on_high_water(10, move |_: &Registry, high: &HighWater| {
        assert_eq!(high.live(), shown.len());
        calls_tx.send((high.live(), high.mark())).unwrap();
    });
    let mut open = Vec::new();
    let mut set_to = |count: usize| {
        while open.len() < count {
            open.push(connect(&layer));
        }
        open.truncate(count);
    };
    let mut after = |count: usize| {
        set_to(count);
        calls.try_iter().collect::<Vec<_>>()
    };
    assert_eq!(after(10), []);
    assert_eq!(after(13), [(11, 10)]);
    assert_eq!(after(10), []);
    assert_eq!(after(12), [], "the count has not fallen below the mark");
    assert_eq!(after(9), []);
    assert_eq!(after(11), [(11, 10)]);
    assert_eq!(registry.high_water(), 13);
    // A hook that is added above its mark is called at the next connection.
    let (late_tx, late) = mpsc::channel();
    registry.on_high_water(0, move |_: &Registry, high: &HighWater| {
        late_tx.send(high.live()).unwrap()
    });
    assert_eq!(after(11), []);
    assert!(late.try_recv().is_err());
    after(12);
    after(1);
    after(2);
    assert_eq!(late.try_iter().collect::<Vec<_>>(), [12]);
    after(0);
    after(1);
    assert_eq!(late.try_iter().collect::<Vec<_>>(), [1]);
}

#[tokio::test(start_paused = true)]
async fn the_growth_hook_is_called_for_growth_but_not_for_a_steady_count() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&calls);
    let on_growth = registry.on_growth(3, ms(16_000), move |_: &Registry, growth: &Growth| {
        assert_eq!(growth.within(), ms(16_000));
        hook.lock()
            .unwrap()
            .push((growth.live(), growth.grown_by()));
    });
    on_growth.unwrap();
    let mut open = Vec::new();
    // The count grows slowly, while other connections open and end.
    for _ in 0..20 {
        for _ in 0..10 {
            drop(connect(&layer));
        }
        open.push(connect(&layer));
        sleep(ms(8_000)).await;
    }
    assert_eq!(*calls.lock().unwrap(), []);
    for _ in 0..8 {
        open.push(connect(&layer));
    }
    // 18 connections were open about 16 s earlier.
    assert_eq!(*calls.lock().unwrap(), [(22, 4)]);
    sleep(ms(17_000)).await;
    open.push(connect(&layer));
    assert_eq!(calls.lock().unwrap().len(), 1, "the growth has stopped");
    open.clear();
    open.extend((0..5).map(|_| connect(&layer)));
    assert_eq!(calls.lock().unwrap()[1..], [(4, 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_high_water_hook_may_use_the_registry_and_may_panic() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let calls = Arc::new(AtomicUsize::new(0));
    let (shown, counted) = (registry.clone(), Arc::clone(&calls));
    registry.on_high_water(0, |_: &Registry, _: &HighWater| {
        panic!("a hook that panics")
    });
    registry.on_high_water(0, move |_: &Registry, _: &HighWater| {
        for entry in shown.snapshot() {
            shown.get(entry.id()).unwrap().evict(4000, "too many");
        }
        shown.on_high_water(5, |_: &Registry, _: &HighWater| {});
        shown.limit(1);
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let (mut stream, live, _peer) = connect(&layer);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(live.evicted().await.reason(), Reason::Kicked { code: 4000 });
    assert!(stream.read_u8().await.is_err());
    drop(stream);
    assert!(registry.is_empty());
}

#[test]
fn on_growth_refuses_meaningless_arguments() {
    let registry = Registry::new();
    let refused = |limit, per: Duration| -> ConfigError {
        registry
            .on_growth(limit, per, |_: &Registry, _: &Growth| {})
            .unwrap_err()
    };
    let error = refused(0, ms(1));
    assert_eq!(error.setter(), "Registry::on_growth");
    assert_eq!(
        error.to_string(),
        "Registry::on_growth: 0: must be at least 1"
    );
    let table = [
        (Duration::ZERO, "0ns: must be greater than zero"),
        (Duration::from_micros(999), "999µs: must be at least 1ms"),
        (Duration::MAX, "must be at most 365 days"),
    ];
    for (per, rule) in table {
        let error = refused(1, per).to_string();
        assert!(
            error.starts_with("Registry::on_growth: ") && error.contains(rule),
            "{error}"
        );
    }
    let longest = Duration::from_secs(365 * 24 * 60 * 60);
    for per in [ms(1), longest] {
        registry
            .on_growth(usize::MAX, per, |_: &Registry, _: &Growth| {})
            .unwrap();
    }
}
