//! Open hooks: once for each connection that opens, with its handle, before its eviction hooks.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::routing::any;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio_tungstenite::{accept_async, client_async};
use tower_ws_liveness::{
    Eviction, Health, HeartbeatLayerBuilder, Liveness, OnOpen, Reason, Registry,
};

use crate::support::raw::{Frame, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{echo, echo_route, in_memory, within};

over_each_wire! {
    #[tokio::test]
    the_hook_is_called_with_the_handle_before_the_handler_has_its_socket,
    a_connection_that_the_hook_evicts_ends_after_it;
}

/// The calls of all hooks of a test, in order.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    fn add(&self, call: &'static str) {
        self.0.lock().unwrap().push(call);
    }

    fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }

    /// A layer whose eviction hook adds "evict".
    fn layer(&self) -> HeartbeatLayerBuilder {
        let calls = self.clone();
        quiet().on_evict(move |_: &Eviction| calls.add("evict"))
    }
}

async fn the_hook_is_called_with_the_handle_before_the_handler_has_its_socket(wire: Wire) {
    let registry = Registry::new();
    let calls = Calls::default();
    let opened = Arc::new(Mutex::new(Vec::new()));
    let heartbeat = calls.layer().registry(registry.clone()).on_open({
        let (calls, opened) = (calls.clone(), Arc::clone(&opened));
        move |live| {
            // Each of these calls would deadlock if the hook ran under a lock.
            assert_eq!(
                registry.get(live.id()).map(|live| live.id()),
                Some(live.id())
            );
            assert_eq!(registry.snapshot().len(), 1);
            assert_eq!(live.health(), Health::Live);
            // Panics without a runtime.
            drop(tokio::spawn(async {}));
            calls.add("open");
            opened.lock().unwrap().push(live.clone());
        }
    });
    let handler = {
        let calls = calls.clone();
        move |socket: WebSocket| {
            calls.add("handler");
            echo(socket)
        }
    };
    let mut scene = Scene::start(wire, heartbeat, patient(), handler).await;
    let (mut client, live) = scene.connect().await;
    client.send(&Frame::text("hello")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("hello"));
    assert_eq!(calls.all(), ["open", "handler"]);
    let ids: Vec<_> = opened.lock().unwrap().iter().map(Liveness::id).collect();
    assert_eq!(ids, [live.id()]);
    client.send(&Frame::close(1000, "")).await.unwrap();
    scene
        .ended(&live, Reason::PeerClosed { code: Some(1000) })
        .await;
    assert_eq!(calls.all(), ["open", "handler", "evict"]);
}

/// `evict` returns before the eviction hooks are called, since the open hooks still run.
async fn a_connection_that_the_hook_evicts_ends_after_it(wire: Wire) {
    let calls = Calls::default();
    let heartbeat = calls
        .layer()
        .on_open({
            let calls = calls.clone();
            move |live| {
                live.on_evict({
                    let calls = calls.clone();
                    move |_| calls.add("local evict")
                });
                assert!(live.evict(4001, "not today"));
                assert!(!live.evict(4002, "again"));
                assert_eq!(live.reason(), Some(Reason::Kicked { code: 4001 }));
                calls.add("open");
            }
        })
        .on_open({
            let calls = calls.clone();
            move |live| {
                assert_eq!(live.health(), Health::Ended);
                calls.add("second open");
            }
        });
    let mut scene = Scene::start(wire, heartbeat, patient(), echo).await;
    let (mut client, live) = scene.connect().await;
    assert_eq!(client.expect_frame().await, Frame::close(4001, "not today"));
    scene.ended(&live, Reason::Kicked { code: 4001 }).await;
    let expected = ["open", "second open", "local evict", "evict"];
    assert_eq!(calls.all(), expected);
}

#[tokio::test]
async fn the_handler_may_read_its_session_after_an_open_hook_has_ended_the_connection() {
    let (found_tx, mut found) = mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| {
        let found_tx = found_tx.clone();
        async move {
            live.set_session("alice");
            ws.on_upgrade(async move |_socket| {
                found_tx
                    .send(live.session::<&str>().as_deref().copied())
                    .unwrap();
            })
        }
    });
    let evicting = quiet().on_open(|live| assert!(live.evict(4001, "not today")));
    let app = Router::new()
        .route("/ws", route)
        .layer(evicting.build().unwrap());
    let _client = RawClient::handshake(in_memory(app, 4096), "/ws").await;
    assert_eq!(found.recv().await, Some(Some("alice")));
}

/// Counts its calls.
#[derive(Default)]
struct Counter(AtomicUsize);

impl OnOpen for Counter {
    fn on_open(&self, _: &Liveness) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_open_hook_that_several_layers_share_is_called_once() {
    let counter = Arc::new(Counter::default());
    let shared: Arc<dyn OnOpen> = counter.clone();
    let inner = patient().on_open_hook(Arc::clone(&shared)).build().unwrap();
    let outer = quiet()
        .on_open(|_| panic!("a hook that panics"))
        .on_open_hook(counter.clone())
        .on_open_hook(shared)
        .build()
        .unwrap();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(inner)
        .layer(outer);
    for count in 1..=2 {
        let io = in_memory(app.clone(), 4096);
        let mut client = RawClient::handshake(io, "/ws").await;
        client.send(&Frame::text("hello")).await.unwrap();
        assert_eq!(client.expect_frame().await, Frame::text("hello"));
        assert_eq!(counter.0.load(Ordering::SeqCst), count);
    }
}

#[tokio::test]
async fn wrapped_streams_call_the_open_hooks_when_they_carry_frames() {
    let counter = Arc::new(Counter::default());
    let opened = || counter.0.load(Ordering::SeqCst);
    let layer = quiet().on_open_hook(counter.clone()).build().unwrap();
    let (near, far) = duplex(64);
    let server = layer.wrap_server(near);
    assert_eq!(opened(), 1);
    let client = layer.wrap_client(far);
    assert_eq!(opened(), 2);
    drop((server, client));

    let (near, far) = duplex(4096);
    let (server, _) = layer.wrap_server_handshake(near);
    let (client, _) = layer.wrap_client_handshake(far);
    assert_eq!(opened(), 2, "before the handshake");
    let client = client_async("ws://localhost/ws", client);
    let (server, client) = tokio::join!(accept_async(server), client);
    assert_eq!(opened(), 4);
    drop((server, client));
    assert_eq!(opened(), 4);

    let (abandoned, _) = layer.wrap_server_handshake(duplex(64).0);
    drop(abandoned);
    assert_eq!(opened(), 4);
}

#[tokio::test]
async fn a_connection_that_never_opens_calls_no_open_hook() {
    let counter = Arc::new(Counter::default());
    let recorder = Recorder::new();
    let heartbeat = quiet()
        .on_open_hook(counter.clone())
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = heartbeat.registry();
    let route = |evicts: bool| {
        any(move |ws: WebSocketUpgrade, live: Liveness| async move {
            if !evicts {
                return Err(StatusCode::FORBIDDEN);
            }
            live.evict(4003, "never mind");
            Ok(ws.on_upgrade(|_| async { panic!("upgraded") }))
        })
    };
    let app = Router::new()
        .route("/refused", route(false))
        .route("/evicted", route(true))
        .route("/failed", echo_route())
        .layer(heartbeat);

    let mut refused = in_memory(app.clone(), 4096);
    refused
        .write_all(opening("/refused").as_bytes())
        .await
        .unwrap();
    let mut status = [0; 12];
    within("a response", refused.read_exact(&mut status))
        .await
        .unwrap();
    assert_eq!(&status, b"HTTP/1.1 403");
    let evicted = RawClient::handshake(in_memory(app.clone(), 4096), "/evicted").await;
    recorder.nth(1).await;
    // A server without upgrades.
    let (mut failed, io) = duplex(4096);
    let service = TowerToHyperService::new(app);
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
    let served = tokio::spawn(served);
    failed
        .write_all(opening("/failed").as_bytes())
        .await
        .unwrap();
    let event = recorder.nth(2).await;
    assert_eq!(event.reason, Reason::UpgradeFailed);
    within("the server's end", served).await.unwrap().unwrap();
    drop((refused, evicted, failed));
    within("an idle registry", registry.wait_idle()).await;
    assert_eq!(recorder.total(), 2);
    assert_eq!(counter.0.load(Ordering::SeqCst), 0);
}

/// Another thread evicts the connection while its open hook runs.
#[tokio::test]
async fn an_eviction_by_another_thread_waits_for_the_open_hook() {
    let calls = Calls::default();
    let layer = calls.layer().on_open({
        let calls = calls.clone();
        move |live: &Liveness| {
            let live = live.clone();
            let evicting = thread::spawn(move || live.evict(4000, "by an operator"));
            assert!(evicting.join().unwrap());
            calls.add("open");
        }
    });
    let layer = layer.build().unwrap();
    let (_stream, live) = layer.wrap_server(duplex(64).0);
    assert_eq!(calls.all(), ["open", "evict"]);
    assert_eq!(
        within("the end", live.evicted()).await.reason().as_str(),
        "kicked"
    );
    assert!(layer.registry().is_empty());
}

/// Connections are evicted at any moment of their opening. An open hook that is called after the
/// eviction hook would leave its entry behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_set_that_a_pair_of_hooks_keeps_is_empty_in_the_end() {
    const CONNECTIONS: usize = 2_000;
    let open = Arc::new(Mutex::new(HashSet::new()));
    let inserted = Arc::new(AtomicUsize::new(0));
    let registry = Registry::new();
    let layer = quiet()
        .registry(registry.clone())
        .on_open({
            let (open, inserted) = (Arc::clone(&open), Arc::clone(&inserted));
            move |live| {
                thread::yield_now();
                open.lock().unwrap().insert(live.id());
                inserted.fetch_add(1, Ordering::SeqCst);
            }
        })
        .on_evict({
            let open = Arc::clone(&open);
            move |ev: &Eviction| {
                open.lock().unwrap().remove(&ev.id());
            }
        })
        .build()
        .unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let evicting = thread::spawn({
        let (registry, done) = (registry.clone(), Arc::clone(&done));
        move || {
            while !done.load(Ordering::SeqCst) {
                registry.evict_where(|_| true, 4000, "");
            }
        }
    });
    let opening = (0..2).map(|_| {
        let layer = layer.clone();
        tokio::task::spawn_blocking(move || {
            for _ in 0..CONNECTIONS / 2 {
                drop(layer.wrap_server(duplex(64).0));
            }
        })
    });
    for opening in opening.collect::<Vec<_>>() {
        opening.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    evicting.join().unwrap();
    within("an idle registry", registry.wait_idle()).await;
    assert_eq!(*open.lock().unwrap(), HashSet::new());
    // The others were evicted before they were open.
    assert!(inserted.load(Ordering::SeqCst) > CONNECTIONS / 2);
    assert_eq!(registry.opened_total(), CONNECTIONS as u64);
}
