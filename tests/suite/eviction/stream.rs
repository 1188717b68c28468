//! `Evictions` yields each eviction once, in order, and an overrun in place of missed ones.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::StatusCode;
use axum::routing::any;
use futures_util::{FutureExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tower_ws_liveness::{
    ConnectionId, Eviction, Evictions, HeartbeatLayer, Liveness, Overrun, Reason, Registry,
};

use crate::logs::Logs;
use crate::panicking_waker::{PANIC, PanickingWaker};
use crate::script::{Peer, Stream, Wakes, script};
use crate::support::raw::{RawClient, opening};
use crate::support::scene::{patient, quiet};
use crate::support::{self, echo, in_memory, within};

fn layer(registry: &Registry) -> HeartbeatLayer {
    quiet().registry(registry.clone()).build().unwrap()
}

fn connect(layer: &HeartbeatLayer) -> (Stream, Liveness, Peer) {
    let (io, peer) = script();
    let (stream, live) = layer.wrap_server(io);
    (stream, live, peer)
}

/// Opens a connection and drops its stream at once.
fn evict_one(layer: &HeartbeatLayer) -> ConnectionId {
    let (_, live, _peer) = connect(layer);
    live.id()
}

/// The items that the stream yields without waiting.
fn drain_ready(evictions: &mut Evictions) -> Vec<Result<ConnectionId, u64>> {
    let next = || evictions.recv().now_or_never().flatten();
    let items = std::iter::from_fn(next);
    items
        .map(|item| item.map(|ev| ev.id()).map_err(|overrun| overrun.missed()))
        .collect()
}

#[tokio::test]
async fn each_end_is_yielded_once_in_order_to_every_consumer() {
    let registry = Registry::new();
    let layer = layer(&registry);
    evict_one(&layer);
    let (mut first, mut second) = (registry.evictions(), registry.evictions());
    let ids: Vec<_> = (0..1024).map(|_| Ok(evict_one(&layer))).collect();
    assert_eq!(drain_ready(&mut first), ids);
    let mut late = registry.evictions();
    assert_eq!(drain_ready(&mut second), ids);
    assert_eq!(drain_ready(&mut late), []);

    let (_stream, live, _peer) = connect(&layer);
    live.set_session(7_u32);
    live.evict(4000, "bye");
    let eviction = within("the end", late.recv()).await.unwrap().unwrap();
    assert_eq!(eviction.reason(), Reason::Kicked { code: 4000 });
    assert_eq!(eviction.session::<u32>().as_deref(), Some(&7));
    let eviction = within("the end", first.next()).await.unwrap().unwrap();
    assert_eq!(eviction.id(), live.id());
}

#[tokio::test]
async fn an_overrun_takes_the_place_of_the_missed_evictions() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let mut evictions = registry.evictions_with_capacity(3);
    let ends = |count: usize| -> Vec<_> { (0..count).map(|_| Ok(evict_one(&layer))).collect() };
    let first = ends(3);
    ends(4);
    // Two are read, which makes room for two more behind the overrun.
    let mut read: Vec<Result<ConnectionId, u64>> = Vec::new();
    for _ in 0..2 {
        let next = evictions.recv().now_or_never().flatten().unwrap();
        read.push(Ok(next.unwrap().id()));
    }
    let second = ends(2);
    ends(5);
    ends(1);
    read.extend(drain_ready(&mut evictions));
    let mut expected = first;
    expected.push(Err(4));
    expected.extend(second);
    expected.push(Err(6));
    assert_eq!(read, expected);
    // From here on the stream yields as usual.
    let third = ends(3);
    assert_eq!(drain_ready(&mut evictions), third);
}

#[tokio::test]
async fn a_capacity_of_zero_is_one() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let mut evictions = registry.evictions_with_capacity(0);
    let id = evict_one(&layer);
    evict_one(&layer);
    assert_eq!(drain_ready(&mut evictions), [Ok(id), Err(1)]);
}

#[test]
fn an_overrun_implements_error_and_the_stream_is_send() {
    fn is_error<T: std::error::Error + Send + Sync + 'static>() {}
    fn is_stream<
        T: futures_util::Stream<Item = Result<Eviction, Overrun>> + Send + Sync + Unpin,
    >() {
    }
    is_error::<Overrun>();
    is_stream::<Evictions>();
}

#[tokio::test]
async fn a_waiting_consumer_is_woken() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let mut evictions = registry.evictions();
    let (first, second) = (Wakes::new(), Wakes::new());
    for wakes in [&first, &second] {
        let waker = Waker::from(Arc::clone(wakes));
        // The call is cancelled each time.
        let recv = pin!(evictions.recv());
        assert!(recv.poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let id = evict_one(&layer);
    evict_one(&layer);
    assert_eq!((first.count(), second.count()), (0, 1));
    assert_eq!(drain_ready(&mut evictions)[0], Ok(id));
    let consumer = tokio::spawn(async move { evictions.recv().await.unwrap().unwrap().id() });
    tokio::task::yield_now().await;
    let id = evict_one(&layer);
    assert_eq!(within("the consumer", consumer).await.unwrap(), id);
}

#[tokio::test]
async fn the_stream_ends_with_the_last_handle_that_could_report() {
    let registry = Registry::new();
    let mut evictions = registry.evictions();
    let layer = layer(&registry);
    let (stream, live, _peer) = connect(&layer);
    let recv = tokio::spawn(async move {
        let end = evictions.recv().await.unwrap().unwrap();
        (
            end.id(),
            evictions.recv().await.is_none(),
            evictions.recv().await.is_none(),
        )
    });
    drop((registry, layer));
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(!recv.is_finished());
    let id = live.id();
    drop((stream, live));
    assert_eq!(within("the end", recv).await.unwrap(), (id, true, true));
}

#[tokio::test]
async fn reported_evictions_are_delivered_after_the_registry_is_dropped() {
    let registry = Registry::new();
    let mut evictions = registry.evictions_with_capacity(1);
    let layer = layer(&registry);
    let id = evict_one(&layer);
    evict_one(&layer);
    drop((registry, layer));
    assert_eq!(drain_ready(&mut evictions), [Ok(id), Err(1)]);
    assert!(within("the end", evictions.recv()).await.is_none());
}

/// A value in a reference cycle: it holds the handle, and with it the registry and the stream.
struct Session {
    _live: Liveness,
    _alive: Arc<()>,
}

#[tokio::test]
async fn a_dropped_stream_releases_its_evictions() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let evictions = registry.evictions();
    let other = registry.evictions();
    let alive = Arc::new(());
    let (stream, live, _peer) = connect(&layer);
    live.set_session(Session {
        _live: live.clone(),
        _alive: Arc::clone(&alive),
    });
    drop((stream, live));
    assert_eq!(Arc::strong_count(&alive), 2, "in the streams");
    drop(evictions);
    assert_eq!(Arc::strong_count(&alive), 2, "in the other stream");
    drop((other, registry, layer));
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[tokio::test]
async fn failed_upgrades_are_reported_and_refused_ones_are_not() {
    let registry = Registry::new();
    let mut evictions = registry.evictions();
    let route = any(|ws: WebSocketUpgrade, live: Liveness| async move {
        live.evict(4000, "never mind");
        ws.on_upgrade(echo)
    });
    let no = any(async |_: WebSocketUpgrade| StatusCode::BAD_REQUEST);
    // A handler that responds with 101 and drops the upgrade.
    let dropped =
        any(
            |request: axum::extract::Request| async move { support::switching_protocols(&request) },
        );
    let app = Router::new()
        .route("/kicked", route)
        .route("/no", no)
        .route("/dropped", dropped)
        .layer(patient().registry(registry.clone()).build().unwrap())
        .layer(layer(&registry));
    let mut io = in_memory(app.clone(), 4096);
    io.write_all(opening("/no").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut io, &mut answer)
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    let mut client = RawClient::handshake(in_memory(app.clone(), 4096), "/kicked").await;
    client.closed().await;
    let eviction = within("the kick", evictions.recv()).await.unwrap().unwrap();
    assert_eq!(eviction.reason(), Reason::Kicked { code: 4000 });
    let mut client = RawClient::handshake(in_memory(app, 4096), "/dropped").await;
    client.closed().await;
    let eviction = within("the failure", evictions.recv())
        .await
        .unwrap()
        .unwrap();
    let reasons = [Reason::UpgradeFailed, Reason::HandlerDropped];
    assert!(reasons.contains(&eviction.reason()), "{eviction:?}");
    within("the end", registry.wait_idle()).await;
    assert_eq!(drain_ready(&mut evictions), []);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_in_the_stream_is_no_longer_in_the_registry() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let mut evictions = registry.evictions();
    let (_stream, live, _peer) = connect(&layer);
    let (tx, rx) = std::sync::mpsc::channel();
    live.on_evict(move |ev| {
        let seen = evictions.recv().now_or_never().flatten().unwrap().unwrap();
        tx.send((
            seen.id() == ev.id(),
            registry.get(ev.id()).is_none(),
            registry.len(),
        ))
        .unwrap();
    });
    live.evict(1000, "");
    assert_eq!(rx.try_recv().unwrap(), (true, true, 0));
}

#[tokio::test]
async fn a_waker_that_panics_affects_no_other_consumer() {
    let logs = Logs::keep();
    let registry = Registry::new();
    let layer = layer(&registry);
    let (mut first, mut second) = (registry.evictions(), registry.evictions());
    let panics = PanickingWaker::armed();
    let waiting = pin!(first.recv()).poll(&mut Context::from_waker(&panics));
    assert!(waiting.is_pending());
    let (stream, live, _peer) = connect(&layer);
    let (tx, rx) = std::sync::mpsc::channel();
    live.on_evict(move |ev| tx.send(ev.reason()).unwrap());
    drop(stream);
    assert_eq!(rx.try_recv(), Ok(Reason::HandlerDropped));
    within("the end", live.evicted()).await;
    within("an idle registry", registry.wait_idle()).await;
    for evictions in [&mut first, &mut second] {
        assert_eq!(drain_ready(evictions), [Ok(live.id())]);
    }
    let warnings = logs.panics();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let conn_id = format!("conn_id={}", live.id());
    for wanted in ["waker", PANIC, &conn_id] {
        assert!(warnings[0].contains(wanted), "{wanted}: {warnings:?}");
    }
}

#[tokio::test]
async fn a_waker_that_panics_keeps_no_other_consumer_from_the_end_of_the_streams() {
    let registry = Registry::new();
    let (mut first, mut second) = (registry.evictions(), registry.evictions());
    let wakes = Wakes::new();
    let wakers = [PanickingWaker::armed(), Waker::from(Arc::clone(&wakes))];
    for (evictions, waker) in [&mut first, &mut second].into_iter().zip(wakers) {
        let waiting = pin!(evictions.recv()).poll(&mut Context::from_waker(&waker));
        assert!(waiting.is_pending());
    }
    drop(registry);
    assert_eq!(wakes.count(), 1);
    for mut evictions in [first, second] {
        let next = evictions.recv().now_or_never();
        assert!(matches!(next, Some(None)), "{next:?}");
    }
}

/// With several reporting threads, every eviction is yielded or counted in an overrun.
#[test]
fn no_eviction_is_lost_without_an_overrun() {
    const THREADS: usize = 4;
    const ENDS: usize = 500;
    let registry = Registry::new();
    let mut evictions = registry.evictions_with_capacity(16);
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let layer = layer(&registry);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let _entered = runtime.as_ref().unwrap().enter();
                (0..ENDS).map(|_| evict_one(&layer)).collect::<Vec<_>>()
            })
        })
        .collect();
    drop(registry);
    let (mut ids, mut missed) = (Vec::new(), 0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        while let Some(next) = evictions.recv().await {
            match next {
                Ok(eviction) => ids.push(eviction.id()),
                Err(overrun) => missed += overrun.missed(),
            }
        }
    });
    assert_eq!(ids.len() as u64 + missed, (THREADS * ENDS) as u64);
    for thread in threads {
        let ended = thread.join().unwrap();
        let seen: Vec<_> = ids.iter().filter(|id| ended.contains(id)).collect();
        assert!(seen.is_sorted(), "in the order of the thread");
    }
    let total = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), total);
}

/// An eviction queued in a stream keeps its seats, so a handler that awaits their drop waits too.
#[tokio::test]
async fn a_lagging_consumer_keeps_the_seats_of_an_eviction() {
    let registry = Registry::new();
    let layer = layer(&registry);
    let map = Arc::new(Mutex::new(HashMap::new()));
    for drops in [false, true] {
        let mut evictions = registry.evictions();
        let (_stream, live, _peer) = connect(&layer);
        let (sender, mut channel) = mpsc::channel::<()>(1);
        live.register(&map, "alice", sender).unwrap();
        live.evict(4000, "bye");
        live.evicted().await;
        assert!(
            channel.recv().now_or_never().is_none(),
            "the seat is still held"
        );
        if drops {
            drop(evictions);
        } else {
            let eviction = evictions.recv().await.unwrap().unwrap();
            assert_eq!(eviction.seats::<&str, mpsc::Sender<()>>().count(), 1);
            assert!(channel.recv().now_or_never().is_none());
            drop(eviction);
        }
        assert_eq!(
            channel.recv().now_or_never(),
            Some(None),
            "the channel is closed"
        );
    }
}
