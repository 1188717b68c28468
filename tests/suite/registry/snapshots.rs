//! The registry: one look at everybody, alarms, and the way to a server that nobody is left on.

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

use super::counts::{count, empties};
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

// One look at everybody.

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

    let looks = registry.snapshot();
    let ids: Vec<_> = looks.iter().map(|look| look.id()).collect();
    assert_eq!(ids, [live.id(), silent.id()]);
    assert_eq!(looks[0].age(), ms(120));
    assert_eq!(looks[1].age(), ms(90));
    assert_eq!(looks[0].idle_for(), ms(50));
    assert_eq!(looks[1].idle_for(), ms(90));
    assert_eq!(looks[0].stats().messages_received(), 1);
    for (look, live) in looks.iter().zip([&live, &silent]) {
        assert_eq!(look.health(), live.health());
        assert_eq!(look.rtt(), live.rtt());
        assert_eq!(look.idle_for(), live.idle_for());
        assert_eq!(look.last_seen(), live.last_seen());
        assert_eq!(look.stats(), live.stats());
    }
    // It stays what it was.
    sleep(ms(20)).await;
    assert_eq!(silent.health(), Health::PeerSilent { missed: 0 });
    assert_eq!(looks[1].health(), Health::Live);
    live.evict(1000, "");
    let ids: Vec<_> = registry.snapshot().iter().map(|look| look.id()).collect();
    assert_eq!(ids, [silent.id()]);
}

/// Threads come and go while others look.
#[test]
fn a_snapshot_has_everybody_once_whoever_comes_and_goes() {
    const STAYING: usize = 200;
    let registry = Registry::new();
    let over = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (layer, over, tell) = (layer(&registry), Arc::clone(&over), tell.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let _entered = runtime.as_ref().unwrap().enter();
                let staying: Vec<_> = (0..STAYING).map(|_| connect(&layer)).collect();
                let ids: Vec<_> = staying.iter().map(|(_, live, _)| live.id()).collect();
                tell.send(ids).unwrap();
                let mut gone = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    let some: Vec<_> = (0..20).map(|_| connect(&layer)).collect();
                    gone.extend(some.iter().map(|(_, live, _)| live.id()));
                }
                gone
            })
        })
        .collect();
    let staying: Vec<_> = (0..3).flat_map(|_| told.recv().unwrap()).collect();
    let staying: BTreeSet<ConnectionId> = staying.into_iter().collect();
    for _ in 0..300 {
        let (before, looks) = (registry.high_water(), registry.snapshot());
        let ids: Vec<_> = looks.iter().map(|look| look.id()).collect();
        assert!(
            ids.is_sorted_by(|one, next| one < next),
            "sorted, none twice"
        );
        assert!(looks.iter().all(|look| look.health() != Health::Ended));
        let seen: BTreeSet<_> = ids.into_iter().collect();
        assert!(staying.is_subset(&seen), "who is live all the time");
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
    // As many as were live at once, and not more.
    assert!((staying.len()..=staying.len() + 60).contains(&registry.high_water()));
}

#[tokio::test]
async fn whoever_is_told_of_an_end_finds_nothing_in_the_registry() {
    let registry = Registry::new();
    let (tell, told) = mpsc::channel();
    let shown = registry.clone();
    let layer = quiet()
        .registry(registry.clone())
        .on_evict(move |ev: &Eviction| {
            let known = shown.get(ev.id()).is_some() || !shown.snapshot().is_empty();
            tell.send((known, shown.len(), count(&shown, "admitted")))
                .unwrap();
        });
    let layer = layer.build().unwrap();
    let (_stream, live, _peer) = connect(&layer);
    assert_eq!(registry.get(live.id()).unwrap().id(), live.id());
    live.evict(1000, "");
    assert_eq!(told.try_recv().unwrap(), (false, 0, 0));
}

// When nothing is left.

/// Goes off when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a transport that panics as it is dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_is_when_the_transport_is_gone() {
    let registry = Registry::new();
    let layer = heartbeat()
        .interval(ms(60_000))
        .timeout(ms(60_000))
        .registry(registry.clone());
    let layer = layer.build().unwrap();
    assert!(is_idle(&registry));

    // In its closing handshake, which the peer does not answer.
    let (_stream, live, peer) = connect(&layer);
    assert!(!is_idle(&registry));
    live.evict(1000, "");
    assert!(registry.is_empty() && !is_idle(&registry));
    within("the close timeout", registry.wait_idle()).await;
    assert!(peer.is_dropped());

    // In the handler's hands, after the peer's end.
    let (mut stream, live, peer) = connect(&layer);
    peer.end(Ok(()));
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(live.evicted().await.reason(), Reason::PeerVanished);
    assert!(registry.is_empty() && !is_idle(&registry));
    drop(stream);
    assert!(is_idle(&registry) && peer.is_dropped());

    // A transport that panics as it goes.
    let bomb = Bomb;
    let reader = InspectReader::new(tokio::io::empty(), move |_| {
        let _ = &bomb;
    });
    let (stream, _live) = layer.wrap_server(tokio::io::join(reader, tokio::io::sink()));
    drop(stream);
    assert!(is_idle(&registry));
}

#[tokio::test]
async fn idle_is_when_the_hooks_have_returned() {
    let registry = Registry::new();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let layer = heartbeat()
        .registry(registry.clone())
        .on_evict(move |_: &Eviction| {
            let _ = released.lock().unwrap().recv();
        });
    let layer = layer
        .interval(ms(60_000))
        .timeout(ms(60_000))
        .build()
        .unwrap();
    let (stream, live, peer) = connect(&layer);
    let evicting = std::thread::spawn(move || live.evict(1000, "bye"));
    until("the transport is gone", || peer.is_dropped()).await;
    assert!(registry.is_empty() && !is_idle(&registry));
    release.send(()).unwrap();
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
        // One that loses its interest takes nobody's wake-up.
        waiters[0].abort();
        let dropping = std::thread::spawn(move || drop(stream));
        for waiter in waiters.into_iter().skip(1) {
            within("idle", waiter).await.unwrap();
        }
        dropping.join().unwrap();
    }
}

#[test]
fn idle_though_the_runtime_has_gone() {
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

// The way there.

/// Reads until the connection ends, and says goodbye when it is told to.
async fn polite(mut socket: WebSocket, live: Liveness) {
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(_)) => {}
                _ => return,
            },
            () = live.draining() => {
                let _ = socket.send(Message::text("last words")).await;
                let _ = socket.send(Message::Close(None)).await;
                while let Some(Ok(_)) = socket.recv().await {}
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_drain_is_announced_to_handlers_and_closes_the_door() {
    let (outer, inner) = (Registry::new(), Registry::new());
    let route = any(|ws: WebSocketUpgrade, live: Liveness| async move {
        ws.on_upgrade(|socket| polite(socket, live))
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
    let announced = tokio::spawn({
        let inner = inner.clone();
        async move { inner.draining().await }
    });
    tokio::task::yield_now().await;
    inner.begin_drain();
    inner.begin_drain();
    assert!(inner.is_draining() && !outer.is_draining());
    within("the drain", announced).await.unwrap();
    within("the drain, late", inner.draining()).await;

    let mut late = in_memory(app.clone(), 4096);
    late.write_all(opening("/ws").as_bytes()).await.unwrap();
    let mut head = [0; 13];
    late.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 503 ");
    for client in &mut clients {
        assert_eq!(client.expect_frame().await, Frame::text("last words"));
        assert_eq!(client.expect_frame().await.opcode, CLOSE);
        client.send(&Frame::close(1000, "")).await.unwrap();
    }
    for registry in [&outer, &inner] {
        within("the end", registry.wait_idle()).await;
        empties("the drain", registry).await;
    }
    // A limit opens no door that a drain has closed.
    inner.limit(None);
    let mut late = in_memory(app, 4096);
    late.write_all(opening("/ws").as_bytes()).await.unwrap();
    late.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 503 ");
}

#[tokio::test]
async fn a_handshake_that_completes_during_a_drain_is_ended_at_once() {
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
async fn nobody_slips_past_a_drain() {
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
                    // Kept until the server ends it.
                    let mut sink = Vec::new();
                    let _ = client.read_to_end(&mut sink).await;
                })
            })
            .collect();
        let pause = fastrand::u64(..300);
        sleep(Duration::from_micros(pause)).await;
        registry.begin_drain();
        for look in registry.snapshot() {
            if let Some(live) = registry.get(look.id()) {
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
async fn a_wrapped_stream_is_ended_by_a_drain_that_has_begun() {
    let registry = Registry::new();
    registry.begin_drain();
    let (mut stream, live, _peer) = connect(&layer(&registry));
    assert_eq!(live.evicted().await.reason(), Reason::Drained);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    // Told, though it has ended.
    within("the drain", live.draining()).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_announced_to_all_who_wait_and_to_nobody_else() {
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
    let (_other, stranger, _peer) = connect(&layer(&Registry::new()));
    registry.begin_drain();
    for waiter in waiters.into_iter().skip(1) {
        within("the drain", waiter).await.unwrap();
    }
    support::never("a drain", ms(1_000_000), stranger.draining()).await;
}

// Too many.

#[tokio::test(start_paused = true)]
async fn high_water_is_told_once_until_it_has_fallen() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let (tell, told) = mpsc::channel();
    let shown = registry.clone();
    registry.on_high_water(10, move |_: &Registry, high: &HighWater| {
        assert_eq!(high.live(), shown.len());
        tell.send((high.live(), high.mark())).unwrap();
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
        told.try_iter().collect::<Vec<_>>()
    };
    assert_eq!(after(10), []);
    assert_eq!(after(13), [(11, 10)]);
    assert_eq!(after(10), []);
    assert_eq!(after(12), [], "it has not fallen to nine");
    assert_eq!(after(9), []);
    assert_eq!(after(11), [(11, 10)]);
    assert_eq!(registry.high_water(), 13);
    // One that comes late is told with the next connection.
    let (tell, late) = mpsc::channel();
    registry.on_high_water(0, move |_: &Registry, high: &HighWater| {
        tell.send(high.live()).unwrap()
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
async fn growth_is_told_and_a_steady_number_is_not() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    let on_growth = registry.on_growth(3, ms(16_000), move |_: &Registry, growth: &Growth| {
        assert_eq!(growth.within(), ms(16_000));
        hook.lock()
            .unwrap()
            .push((growth.live(), growth.grown_by()));
    });
    on_growth.unwrap();
    let mut open = Vec::new();
    // Slowly, and people come and go.
    for _ in 0..20 {
        for _ in 0..10 {
            drop(connect(&layer));
        }
        open.push(connect(&layer));
        sleep(ms(8_000)).await;
    }
    assert_eq!(*told.lock().unwrap(), []);
    for _ in 0..8 {
        open.push(connect(&layer));
    }
    // 18 were there a while ago.
    assert_eq!(*told.lock().unwrap(), [(22, 4)]);
    sleep(ms(17_000)).await;
    open.push(connect(&layer));
    assert_eq!(told.lock().unwrap().len(), 1, "there is no more growth");
    open.clear();
    open.extend((0..5).map(|_| connect(&layer)));
    assert_eq!(told.lock().unwrap()[1..], [(4, 4)]);
}

#[tokio::test(start_paused = true)]
async fn hooks_may_do_anything_and_a_panic_harms_nobody() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let calls = Arc::new(AtomicUsize::new(0));
    let (shown, counted) = (registry.clone(), Arc::clone(&calls));
    registry.on_high_water(0, |_: &Registry, _: &HighWater| {
        panic!("a hook that panics")
    });
    registry.on_high_water(0, move |_: &Registry, _: &HighWater| {
        for look in shown.snapshot() {
            shown.get(look.id()).unwrap().evict(4000, "too many");
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
fn growth_refuses_what_means_nothing() {
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
