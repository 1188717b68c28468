//! Who is let in: never more than the limit, and every place is given back once, whatever became of
//! the connection.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, any, get};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, Reason, Registry};

use super::counts::{count, empties};
use crate::support::h2_client::H2Client;
use crate::support::raw::{Frame, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::{patient, quiet};
use crate::support::{
    Server, echo, echo_route, in_memory, ms, never_reads, serve_io, until, within,
};
use crate::unwritable::Unwritable;

type Route = MethodRouter<(), Infallible>;

fn with(registry: &Registry) -> HeartbeatLayerBuilder {
    quiet().registry(registry.clone())
}

fn app(registry: &Registry, route: Route) -> Router {
    Router::new()
        .route("/ws", route)
        .layer(with(registry).build().unwrap())
}

/// Sends an opening handshake, and returns the head of the answer.
async fn knock<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) -> String {
    io.write_all(opening("/ws").as_bytes()).await.unwrap();
    let answer = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap().to_lowercase()
    };
    within("an answer", answer).await
}

fn is_refused(head: &str) -> bool {
    head.starts_with("http/1.1 503 ") || {
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        false
    }
}

async fn is_let_in(app: &Router) -> bool {
    !is_refused(&knock(&mut in_memory(app.clone(), 4096)).await)
}

#[tokio::test]
async fn over_the_limit_the_handler_is_not_called() {
    let registry = Registry::new();
    registry.limit(2);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let route = any(move |ws: WebSocketUpgrade| async move {
        counted.fetch_add(1, Ordering::SeqCst);
        ws.on_upgrade(echo)
    });
    let app = Router::new()
        .route("/ws", route)
        .route("/plain", get(async || "plain"))
        .layer(with(&registry).build().unwrap());
    let server = Server::start(app).await;
    let mut first = RawClient::connect(server.addr, "/ws").await;
    let _second = RawClient::connect(server.addr, "/ws").await;

    let mut third = TcpStream::connect(server.addr).await.unwrap();
    let head = knock(&mut third).await;
    assert!(is_refused(&head), "{head}");
    assert!(head.contains("\r\nretry-after: 10\r\n"), "{head}");
    for (delay, seconds) in [(ms(1_001), 2), (ms(3_000), 3), (ms(0), 0)] {
        registry.retry_after(delay);
        let head = knock(&mut third).await;
        let expected = format!("\r\nretry-after: {seconds}\r\n");
        assert!(is_refused(&head) && head.contains(&expected), "{head}");
    }
    registry.retry_after(Duration::MAX);
    assert!(is_refused(&knock(&mut third).await));
    assert_eq!(calls.load(Ordering::SeqCst), 2);

    // The same connection asks for something else, and comes in when there is room.
    let plain = b"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n";
    third.write_all(plain).await.unwrap();
    let mut answer = [0; 12];
    third.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    first.send(&Frame::close(1000, "")).await.unwrap();
    first.closed().await;
    until("there is room", || registry.len() == 1).await;
    RawClient::connect(server.addr, "/ws").await;
}

#[tokio::test]
async fn over_http2_as_well() {
    let registry = Registry::new();
    registry.limit(1);
    let server = Server::start(app(&registry, echo_route())).await;
    let h2 = H2Client::connect(server.addr).await.unwrap();
    let uri = "http://localhost/ws";
    let (response, mut stream) = h2.websocket(uri).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (response, mut refused) = h2.websocket(uri).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "10");
    assert_eq!(refused.read(&mut [0; 8]).await.unwrap(), 0);
    stream.reset(h2::Reason::CANCEL);
    empties("the stream was reset", &registry).await;
    let (response, _stream) = h2.websocket(uri).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn no_limit_zero_and_one_below_the_present_number() {
    let registry = Registry::new();
    let app = app(&registry, echo_route());
    let connect = || RawClient::handshake(in_memory(app.clone(), 4096), "/ws");
    let mut clients = [connect().await, connect().await, connect().await];
    registry.limit(1);
    assert!(!is_let_in(&app).await);
    for client in &mut clients {
        client.send(&Frame::text("still here")).await.unwrap();
        assert_eq!(client.expect_frame().await, Frame::text("still here"));
    }
    let [first, second, third] = clients;
    drop((first, second));
    until("two are gone", || registry.len() == 1).await;
    assert!(!is_let_in(&app).await);
    drop(third);
    empties("all are gone", &registry).await;
    assert!(is_let_in(&app).await);
    registry.limit(0);
    empties("and that one", &registry).await;
    assert!(!is_let_in(&app).await);
    registry.limit(None);
    assert!(is_let_in(&app).await);
}

#[tokio::test]
async fn other_requests_pass_a_closed_door() {
    let registry = Registry::new();
    registry.limit(0);
    let app = app(&registry, any(async || StatusCode::IM_A_TEAPOT));
    let others = [
        "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "POST /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
    ];
    for request in others {
        let mut io = in_memory(app.clone(), 4096);
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 418", "{request}");
    }
}

/// What becomes of a handshake that was let in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Refused,
    Panics,
    Abandoned,
    Fails,
    Kicked,
    KickedAndRefused,
    PeerCloses,
    PeerVanishes,
    HandlerDrops,
    HandlerPanics,
    Dies,
}

const FATES: [Fate; 11] = [
    Fate::Refused,
    Fate::Panics,
    Fate::Abandoned,
    Fate::Fails,
    Fate::Kicked,
    Fate::KickedAndRefused,
    Fate::PeerCloses,
    Fate::PeerVanishes,
    Fate::HandlerDrops,
    Fate::HandlerPanics,
    Fate::Dies,
];

/// `lives` is given the handle, and keeps it: nothing is to depend on its going.
fn fated(fate: Fate, lives: Arc<OnceLock<Liveness>>) -> Route {
    any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        let live = lives.get_or_init(|| live);
        match fate {
            Fate::Panics => panic!("before the answer"),
            Fate::Abandoned => std::future::pending().await,
            Fate::Kicked | Fate::KickedAndRefused => assert!(live.evict(4000, "no")),
            _ => {}
        }
        if matches!(fate, Fate::Refused | Fate::KickedAndRefused) {
            return StatusCode::BAD_REQUEST.into_response();
        }
        ws.on_upgrade(move |socket: WebSocket| async move {
            match fate {
                Fate::HandlerDrops => drop(socket),
                Fate::HandlerPanics => panic!("after the upgrade"),
                Fate::Dies => never_reads(socket).await,
                _ => echo(socket).await,
            }
        })
    })
}

#[tokio::test]
async fn a_place_is_given_back_on_every_path() {
    for fate in FATES {
        let registry = Registry::new();
        registry.limit(1);
        let recorder = Recorder::new();
        let (sender, mut places) = watch::channel(usize::MAX);
        let (hook, shown) = (recorder.hook(), registry.clone());
        let heartbeat = with(&registry).on_evict(move |ev: &_| {
            hook(ev);
            sender.send_replace(count(&shown, "admitted"));
        });
        let heartbeat = match fate {
            Fate::Dies => heartbeat.interval(ms(20)).timeout(ms(20)),
            _ => heartbeat,
        };
        let heartbeat = heartbeat.close_timeout(ms(200)).build().unwrap();
        let live = Arc::new(OnceLock::new());
        let route = fated(fate, Arc::clone(&live));
        let app = Router::new().route("/ws", route).layer(heartbeat);
        let (mut client, server) = duplex(4096);
        let served = match fate {
            Fate::Fails => serve_io(app.clone(), Unwritable(server)),
            _ => serve_io(app.clone(), server),
        };
        client.write_all(opening("/ws").as_bytes()).await.unwrap();
        until("it is let in", || live.get().is_some()).await;
        let mut client = Some(client);
        match fate {
            Fate::Abandoned => {
                assert!(!is_let_in(&app).await, "a handshake takes a place");
                client = None;
            }
            Fate::PeerCloses | Fate::PeerVanishes => {
                until("it is open", || registry.len() == 1).await;
                let mut raw = RawClient::over(client.take().unwrap());
                if fate == Fate::PeerCloses {
                    raw.send(&Frame::close(1000, "")).await.unwrap();
                }
            }
            _ => {}
        }
        let idle = registry.wait_idle();
        until(&format!("{fate:?}"), || count(&registry, "admitted") == 0).await;
        within(&format!("{fate:?}"), idle).await;
        empties(&format!("{fate:?}"), &registry).await;
        drop(client);
        served.abort();
        // Whoever is told of the end finds the place free.
        let told = !matches!(fate, Fate::Refused | Fate::Panics | Fate::Abandoned);
        assert_eq!(recorder.total(), usize::from(told), "{fate:?}");
        if told {
            assert_eq!(*places.borrow_and_update(), 0, "{fate:?}");
        }
        // And there is exactly one.
        let app = self::app(&registry, echo_route());
        let mut last = in_memory(app.clone(), 4096);
        assert!(!is_refused(&knock(&mut last).await), "{fate:?}");
        assert!(!is_let_in(&app).await, "{fate:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_handshakes_at_once() {
    const LIMIT: usize = 7;
    const CLIENTS: usize = 1_000;
    let registry = Registry::new();
    registry.limit(LIMIT);
    let calls = Arc::new(AtomicUsize::new(0));
    let go_on = Arc::new(Notify::new());
    let route = any({
        let (calls, go_on) = (Arc::clone(&calls), Arc::clone(&go_on));
        move |ws: WebSocketUpgrade| async move {
            let gone_on = go_on.notified();
            calls.fetch_add(1, Ordering::SeqCst);
            gone_on.await;
            ws.on_upgrade(echo)
        }
    });
    let app = app(&registry, route);
    let refused = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (app, refused) = (app.clone(), Arc::clone(&refused));
            tokio::spawn(async move {
                let mut io = in_memory(app, 4096);
                let is_refused = is_refused(&knock(&mut io).await);
                refused.fetch_add(usize::from(is_refused), Ordering::SeqCst);
                io
            })
        })
        .collect();
    // While those who are in are still in their handshakes.
    let others = CLIENTS - LIMIT;
    until("the others", || refused.load(Ordering::SeqCst) == others).await;
    assert_eq!((registry.len(), count(&registry, "admitted")), (0, LIMIT));
    go_on.notify_waiters();
    let mut inside = Vec::new();
    for client in clients {
        inside.push(within("an answer", client).await.unwrap());
    }
    assert_eq!(refused.load(Ordering::SeqCst), others);
    assert_eq!(calls.load(Ordering::SeqCst), LIMIT);
    until("all are open", || registry.len() == LIMIT).await;
    assert_eq!(registry.high_water(), LIMIT);
    drop(inside);
    empties("all are gone", &registry).await;
}

#[tokio::test]
async fn stacked_layers_with_one_registry_take_one_place() {
    let registry = Registry::new();
    registry.limit(1);
    let route = echo_route().layer(with(&registry).build().unwrap());
    let app = Router::new()
        .route("/ws", route)
        .layer(patient().registry(registry.clone()).build().unwrap())
        .layer(with(&registry).build().unwrap());
    let client = RawClient::handshake(in_memory(app.clone(), 4096), "/ws").await;
    assert_eq!((registry.len(), count(&registry, "admitted")), (1, 1));
    assert!(!is_let_in(&app).await);
    drop(client);
    empties("it is gone", &registry).await;
}

#[tokio::test]
async fn stacked_layers_with_two_registries_take_a_place_in_each() {
    let (outer, inner) = (Registry::new(), Registry::new());
    let recorder = Recorder::new();
    let outside = with(&outer).on_evict(recorder.hook()).build().unwrap();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(patient().registry(inner.clone()).build().unwrap())
        .layer(outside);
    for (full, name) in [(&inner, "the inner"), (&outer, "the outer")] {
        full.limit(0);
        assert!(!is_let_in(&app).await, "{name}");
        for registry in [&inner, &outer] {
            empties(name, registry).await;
        }
        full.limit(1);
        let client = RawClient::handshake(in_memory(app.clone(), 4096), "/ws").await;
        until("both count", || inner.len() == 1 && outer.len() == 1).await;
        assert!(!is_let_in(&app).await, "{name}");
        let counts = [&inner, &outer].map(|registry| count(registry, "admitted"));
        assert_eq!(counts, [1, 1], "{name}");
        drop(client);
        for registry in [&inner, &outer] {
            empties(name, registry).await;
        }
        full.limit(None);
    }
    // Nobody is told of those who were not let in.
    assert_eq!(recorder.total(), 2);
}

#[tokio::test]
async fn wrapped_streams_count_and_are_never_refused() {
    let registry = Registry::new();
    registry.limit(1);
    let layer = with(&registry).build().unwrap();
    let (first, _peer) = duplex(64);
    let (second, _other) = duplex(64);
    let server = layer.wrap_server(first);
    let client = layer.wrap_client(second);
    assert_eq!((registry.len(), count(&registry, "admitted")), (2, 2));
    let app = app(&registry, echo_route());
    assert!(!is_let_in(&app).await);
    drop((server, client));
    empties("they are gone", &registry).await;
    assert!(is_let_in(&app).await);
}

/// Whatever threads do to connections at the same time: never more than the limit, and in the end
/// nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_place_is_given_back_once_whoever_ends_it() {
    const LIMIT: usize = 5;
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 150;
    let registry = Registry::new();
    registry.limit(LIMIT);
    let recorder = Recorder::new();
    let (kick, kicks) = std::sync::mpsc::channel::<Liveness>();
    let opened = Arc::new(AtomicUsize::new(0));
    let route = any({
        let opened = Arc::clone(&opened);
        move |ws: WebSocketUpgrade, live: Liveness| async move {
            let fate = fastrand::u8(..4);
            if fate < 2 {
                kick.send(live).unwrap();
            }
            if fate == 1 {
                tokio::task::yield_now().await;
            }
            if fate == 3 && fastrand::bool() {
                return StatusCode::BAD_REQUEST.into_response();
            }
            opened.fetch_add(1, Ordering::SeqCst);
            ws.on_upgrade(echo)
        }
    });
    let layer = with(&registry).close_timeout(ms(50));
    let layer = layer.on_evict(recorder.hook()).build().unwrap();
    let app = Router::new().route("/ws", route).layer(layer);
    let kicker = std::thread::spawn(move || {
        for live in kicks {
            live.evict(4000, "");
        }
    });
    let over = Arc::new(AtomicBool::new(false));
    let watching = std::thread::spawn({
        let (registry, over) = (registry.clone(), Arc::clone(&over));
        move || {
            while !over.load(Ordering::SeqCst) {
                assert!(registry.len() <= LIMIT);
                assert!(count(&registry, "admitted") <= LIMIT);
            }
        }
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    let mut io = in_memory(app.clone(), 4096);
                    io.write_all(opening("/ws").as_bytes()).await.unwrap();
                    if fastrand::bool() {
                        let _ = io.read(&mut [0; 12]).await;
                    }
                    if fastrand::bool() {
                        let _ = io.write_all(&Frame::close(1000, "").masked()).await;
                    }
                }
            })
        })
        .collect();
    for client in clients {
        within("a client", client).await.unwrap();
    }
    empties("all are gone", &registry).await;
    over.store(true, Ordering::SeqCst);
    watching.join().unwrap();
    assert!(registry.high_water() <= LIMIT, "{registry:?}");
    assert!(opened.load(Ordering::SeqCst) > ROUNDS);
    // Nobody was told twice. The last hooks are called after the last one has been counted out.
    within("the last of the hooks", registry.wait_idle()).await;
    let events = recorder.all();
    let mut ids: Vec<_> = events.iter().map(|event| event.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len());
    registry.limit(1);
    let mut last = in_memory(self::app(&registry, echo_route()), 4096);
    assert!(!is_refused(&knock(&mut last).await));
    assert!(!is_let_in(&app).await);
    drop(app);
    kicker.join().unwrap();
}

#[tokio::test]
async fn whoever_was_kicked_before_the_upgrade_leaves_when_its_handshake_is_over() {
    let registry = Registry::new();
    registry.limit(1);
    let go_on = Arc::new(Notify::new());
    let route = any({
        let go_on = Arc::clone(&go_on);
        move |ws: WebSocketUpgrade, live: Liveness| async move {
            live.evict(4000, "no");
            assert_eq!(live.evicted().await.reason(), Reason::Kicked { code: 4000 });
            go_on.notified().await;
            ws.on_upgrade(echo)
        }
    });
    let app = app(&registry, route);
    let mut io = in_memory(app.clone(), 4096);
    io.write_all(opening("/ws").as_bytes()).await.unwrap();
    until("the kick", || count(&registry, "present") == 1).await;
    until("its place is free", || count(&registry, "admitted") == 0).await;
    // It is on its way nevertheless.
    assert!(futures_util::FutureExt::now_or_never(registry.wait_idle()).is_none());
    go_on.notify_one();
    within("the end", registry.wait_idle()).await;
}
