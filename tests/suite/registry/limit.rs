//! The connection limit: it is never exceeded, and each slot is released once on every path.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{
    HeartbeatLayerBuilder, IdleTimeoutLayer, Liveness, Reason, Registry, UpgradeRefused,
};

use super::counts::{count, until_empty};
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

/// Sends an opening handshake, and returns the head of the response.
async fn send_handshake<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) -> String {
    io.write_all(opening("/ws").as_bytes()).await.unwrap();
    let answer = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap().to_lowercase()
    };
    within("a response", answer).await
}

fn is_refused(head: &str) -> bool {
    head.starts_with("http/1.1 503 ") || {
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        false
    }
}

async fn is_accepted(app: &Router) -> bool {
    !is_refused(&send_handshake(&mut in_memory(app.clone(), 4096)).await)
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
    let head = send_handshake(&mut third).await;
    assert!(is_refused(&head), "{head}");
    assert!(head.contains("\r\nretry-after: 10\r\n"), "{head}");
    for (delay, seconds) in [(ms(1_001), 2), (ms(3_000), 3), (ms(0), 0)] {
        registry.retry_after(delay);
        let head = send_handshake(&mut third).await;
        let expected = format!("\r\nretry-after: {seconds}\r\n");
        assert!(is_refused(&head) && head.contains(&expected), "{head}");
    }
    registry.retry_after(Duration::MAX);
    assert!(is_refused(&send_handshake(&mut third).await));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!((registry.opened_total(), registry.refused_total()), (2, 5));

    // The refused connection can send other requests. A new handshake succeeds once a slot is free.
    let plain = b"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n";
    third.write_all(plain).await.unwrap();
    let mut answer = [0; 12];
    third.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    first.send(&Frame::close(1000, "")).await.unwrap();
    first.closed().await;
    until("a slot is free", || registry.len() == 1).await;
    RawClient::connect(server.addr, "/ws").await;
}

#[tokio::test]
async fn a_layer_further_out_may_answer_refused_handshakes_itself() {
    async fn explain(response: Response) -> Response {
        match response.extensions().get::<UpgradeRefused>() {
            Some(refused) => {
                let seconds = refused.retry_after().as_secs();
                let text = format!("{}, come back in {seconds} s", refused.cause());
                (response.status(), [("x-refused", "yes")], text).into_response()
            }
            None => response,
        }
    }

    let registry = Registry::new();
    registry.retry_after(ms(60_000));
    let app = app(&registry, echo_route()).layer(map_response(explain));
    assert!(is_accepted(&app).await);
    registry.limit(0);
    for cause in ["limit", "draining"] {
        let mut io = in_memory(app.clone(), 4096);
        let head = send_handshake(&mut io).await;
        assert!(
            is_refused(&head) && head.contains("\r\nx-refused: yes\r\n"),
            "{head}"
        );
        let expected = format!("{cause}, come back in 60 s");
        let mut body = vec![0; expected.len()];
        within("the body", io.read_exact(&mut body)).await.unwrap();
        assert_eq!(body, expected.as_bytes());
        registry.begin_drain();
    }
}

#[tokio::test]
async fn the_limit_applies_over_http2() {
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
    until_empty("the stream was reset", &registry).await;
    let (response, _stream) = h2.websocket(uri).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_limit_can_be_lowered_set_to_zero_and_removed() {
    let registry = Registry::new();
    let app = app(&registry, echo_route());
    let connect = || RawClient::handshake(in_memory(app.clone(), 4096), "/ws");
    let mut clients = [connect().await, connect().await, connect().await];
    registry.limit(1);
    assert!(!is_accepted(&app).await);
    for client in &mut clients {
        client.send(&Frame::text("still here")).await.unwrap();
        assert_eq!(client.expect_frame().await, Frame::text("still here"));
    }
    let [first, second, third] = clients;
    drop((first, second));
    until("two are gone", || registry.len() == 1).await;
    assert!(!is_accepted(&app).await);
    drop(third);
    until_empty("all are gone", &registry).await;
    assert!(is_accepted(&app).await);
    registry.limit(0);
    until_empty("the last is gone", &registry).await;
    assert!(!is_accepted(&app).await);
    registry.limit(None);
    assert!(is_accepted(&app).await);
}

#[tokio::test]
async fn other_requests_pass_a_full_registry() {
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

/// How an accepted handshake ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
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
    TimesOut,
}

const OUTCOMES: [Outcome; 11] = [
    Outcome::Refused,
    Outcome::Panics,
    Outcome::Abandoned,
    Outcome::Fails,
    Outcome::Kicked,
    Outcome::KickedAndRefused,
    Outcome::PeerCloses,
    Outcome::PeerVanishes,
    Outcome::HandlerDrops,
    Outcome::HandlerPanics,
    Outcome::TimesOut,
];

/// A handler that ends like this. It stores its handle in `handle`, which outlives the connection:
/// no slot may depend on the drop of a handle.
fn route_ending_in(outcome: Outcome, handle: Arc<OnceLock<Liveness>>) -> Route {
    any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        let live = handle.get_or_init(|| live);
        match outcome {
            Outcome::Panics => panic!("before the answer"),
            Outcome::Abandoned => std::future::pending().await,
            Outcome::Kicked | Outcome::KickedAndRefused => assert!(live.evict(4000, "no")),
            _ => {}
        }
        if matches!(outcome, Outcome::Refused | Outcome::KickedAndRefused) {
            return StatusCode::BAD_REQUEST.into_response();
        }
        ws.on_upgrade(move |socket: WebSocket| async move {
            match outcome {
                Outcome::HandlerDrops => drop(socket),
                Outcome::HandlerPanics => panic!("after the upgrade"),
                Outcome::TimesOut => never_reads(socket).await,
                _ => echo(socket).await,
            }
        })
    })
}

#[tokio::test]
async fn a_slot_is_released_on_every_path() {
    for outcome in OUTCOMES {
        let registry = Registry::new();
        registry.limit(1);
        let recorder = Recorder::new();
        let (admitted_tx, mut admitted) = watch::channel(usize::MAX);
        let (hook, shown) = (recorder.hook(), registry.clone());
        let heartbeat = with(&registry).on_evict(move |ev: &_| {
            hook(ev);
            admitted_tx.send_replace(count(&shown, "admitted"));
        });
        let heartbeat = match outcome {
            Outcome::TimesOut => heartbeat.interval(ms(20)).timeout(ms(20)),
            _ => heartbeat,
        };
        let heartbeat = heartbeat.close_timeout(ms(200)).build().unwrap();
        let live = Arc::new(OnceLock::new());
        let route = route_ending_in(outcome, Arc::clone(&live));
        let app = Router::new().route("/ws", route).layer(heartbeat);
        let (mut client, server) = duplex(4096);
        let served = match outcome {
            Outcome::Fails => serve_io(app.clone(), Unwritable(server)),
            _ => serve_io(app.clone(), server),
        };
        client.write_all(opening("/ws").as_bytes()).await.unwrap();
        until("the handler has its handle", || live.get().is_some()).await;
        let mut client = Some(client);
        match outcome {
            Outcome::Abandoned => {
                assert!(!is_accepted(&app).await, "a handshake takes a slot");
                client = None;
            }
            Outcome::PeerCloses | Outcome::PeerVanishes => {
                until("it is open", || registry.len() == 1).await;
                let mut raw = RawClient::over(client.take().unwrap());
                if outcome == Outcome::PeerCloses {
                    raw.send(&Frame::close(1000, "")).await.unwrap();
                }
            }
            _ => {}
        }
        let idle = registry.wait_idle();
        until(&format!("{outcome:?}"), || {
            count(&registry, "admitted") == 0
        })
        .await;
        within(&format!("{outcome:?}"), idle).await;
        until_empty(&format!("{outcome:?}"), &registry).await;
        drop(client);
        served.abort();
        // The slot is free when the hook is called.
        let is_evicted = !matches!(
            outcome,
            Outcome::Refused | Outcome::Panics | Outcome::Abandoned
        );
        assert_eq!(recorder.total(), usize::from(is_evicted), "{outcome:?}");
        if is_evicted {
            assert_eq!(*admitted.borrow_and_update(), 0, "{outcome:?}");
        }
        // Exactly one slot is free.
        let app = self::app(&registry, echo_route());
        let mut last = in_memory(app.clone(), 4096);
        assert!(!is_refused(&send_handshake(&mut last).await), "{outcome:?}");
        assert!(!is_accepted(&app).await, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_handshakes_do_not_exceed_the_limit() {
    const LIMIT: usize = 7;
    const CLIENTS: usize = 1_000;
    let registry = Registry::new();
    registry.limit(LIMIT);
    let calls = Arc::new(AtomicUsize::new(0));
    let proceed = Arc::new(Notify::new());
    let route = any({
        let (calls, proceed) = (Arc::clone(&calls), Arc::clone(&proceed));
        move |ws: WebSocketUpgrade| async move {
            let notified = proceed.notified();
            calls.fetch_add(1, Ordering::SeqCst);
            notified.await;
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
                let is_refused = is_refused(&send_handshake(&mut io).await);
                refused.fetch_add(usize::from(is_refused), Ordering::SeqCst);
                io
            })
        })
        .collect();
    // The accepted clients are still in their opening handshakes.
    let others = CLIENTS - LIMIT;
    until("the others are refused", || {
        refused.load(Ordering::SeqCst) == others
    })
    .await;
    assert_eq!((registry.len(), count(&registry, "admitted")), (0, LIMIT));
    proceed.notify_waiters();
    let mut transports = Vec::new();
    for client in clients {
        transports.push(within("a response", client).await.unwrap());
    }
    assert_eq!(refused.load(Ordering::SeqCst), others);
    assert_eq!(calls.load(Ordering::SeqCst), LIMIT);
    until("all are open", || registry.len() == LIMIT).await;
    assert_eq!(registry.high_water(), LIMIT);
    drop(transports);
    until_empty("all are gone", &registry).await;
}

#[tokio::test]
async fn stacked_layers_with_one_registry_take_one_slot() {
    let registry = Registry::new();
    registry.limit(1);
    let route = echo_route().layer(with(&registry).build().unwrap());
    let app = Router::new()
        .route("/ws", route)
        .layer(patient().registry(registry.clone()).build().unwrap())
        .layer(with(&registry).build().unwrap());
    let client = RawClient::handshake(in_memory(app.clone(), 4096), "/ws").await;
    assert_eq!((registry.len(), count(&registry, "admitted")), (1, 1));
    assert!(!is_accepted(&app).await);
    drop(client);
    until_empty("it is gone", &registry).await;
}

#[tokio::test]
async fn stacked_layers_with_two_registries_take_a_slot_in_each() {
    let (outer, inner) = (Registry::new(), Registry::new());
    let recorder = Recorder::new();
    let outside = with(&outer).on_evict(recorder.hook()).build().unwrap();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(patient().registry(inner.clone()).build().unwrap())
        .layer(outside);
    for (full, name) in [(&inner, "the inner"), (&outer, "the outer")] {
        full.limit(0);
        assert!(!is_accepted(&app).await, "{name}");
        for registry in [&inner, &outer] {
            until_empty(name, registry).await;
        }
        full.limit(1);
        let client = RawClient::handshake(in_memory(app.clone(), 4096), "/ws").await;
        until("both count", || inner.len() == 1 && outer.len() == 1).await;
        assert!(!is_accepted(&app).await, "{name}");
        let counts = [&inner, &outer].map(|registry| count(registry, "admitted"));
        assert_eq!(counts, [1, 1], "{name}");
        drop(client);
        for registry in [&inner, &outer] {
            until_empty(name, registry).await;
        }
        full.limit(None);
    }
    // The hook is not called for the refused handshakes.
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
    assert!(!is_accepted(&app).await);
    drop((server, client));
    until_empty("they are gone", &registry).await;
    assert!(is_accepted(&app).await);
}

/// The layers set no deadline before the upgrade: hyper writes the response.
#[tokio::test(start_paused = true)]
async fn a_handshake_whose_response_is_not_read_keeps_its_slot() {
    let registry = Registry::new();
    registry.limit(1);
    let idle = IdleTimeoutLayer::builder()
        .first_message(ms(1_000))
        .max_lifetime(ms(1_000));
    let app = app(&registry, echo_route()).layer(idle.build().unwrap());
    // Smaller than the response.
    let mut unread = in_memory(app.clone(), 64);
    let request = opening("/ws");
    unread.write_all(request.as_bytes()).await.unwrap();
    sleep(ms(3_600_000)).await;
    assert_eq!(count(&registry, "admitted"), 1);
    assert!(!is_accepted(&app).await);
    drop(unread);
    until_empty("the client has gone", &registry).await;
}

/// The sockets of a server may exceed the limit by those that ended within the `close_timeout`.
#[tokio::test(start_paused = true)]
async fn a_closing_handshake_takes_no_slot_and_at_most_the_close_timeout() {
    let registry = Registry::new();
    registry.limit(1);
    let heartbeat = with(&registry).close_timeout(ms(5_000)).build().unwrap();
    let app = Router::new().route("/ws", echo_route()).layer(heartbeat);
    let mut clients = Vec::new();
    let begun = Instant::now();
    for _ in 0..20 {
        // None of them answers the Close frame.
        let mut client = in_memory(app.clone(), 4096);
        assert!(!is_refused(&send_handshake(&mut client).await));
        until("it is open", || registry.len() == 1).await;
        assert_eq!(registry.snapshot().len(), 1);
        assert!(
            registry
                .get(registry.snapshot()[0].id())
                .unwrap()
                .evict(4_000, "")
        );
        clients.push(client);
    }
    assert_eq!(count(&registry, "admitted"), 0);
    assert_eq!(count(&registry, "present"), 20);
    within("the transports are closed", registry.wait_idle()).await;
    assert!(begun.elapsed() <= ms(5_000 + 500), "{:?}", begun.elapsed());
    drop(clients);
}

/// Several threads open and end connections concurrently. The limit is never exceeded, and in the
/// end every slot is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slot_is_released_once_when_several_ends_race() {
    const LIMIT: usize = 5;
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 150;
    let registry = Registry::new();
    registry.limit(LIMIT);
    let recorder = Recorder::new();
    let (evict_tx, to_evict) = std::sync::mpsc::channel::<Liveness>();
    let opened = Arc::new(AtomicUsize::new(0));
    let route = any({
        let opened = Arc::clone(&opened);
        move |ws: WebSocketUpgrade, live: Liveness| async move {
            let choice = fastrand::u8(..4);
            if choice < 2 {
                evict_tx.send(live).unwrap();
            }
            if choice == 1 {
                tokio::task::yield_now().await;
            }
            if choice == 3 && fastrand::bool() {
                return StatusCode::BAD_REQUEST.into_response();
            }
            opened.fetch_add(1, Ordering::SeqCst);
            ws.on_upgrade(echo)
        }
    });
    let layer = with(&registry).close_timeout(ms(50));
    let layer = layer.on_evict(recorder.hook()).build().unwrap();
    let app = Router::new().route("/ws", route).layer(layer);
    let evicting = std::thread::spawn(move || {
        for live in to_evict {
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
    until_empty("all are gone", &registry).await;
    over.store(true, Ordering::SeqCst);
    watching.join().unwrap();
    assert!(registry.high_water() <= LIMIT, "{registry:?}");
    assert!(opened.load(Ordering::SeqCst) > ROUNDS);
    // No connection was evicted twice. Hooks are called after the counters have changed, so the
    // last calls may still be pending.
    within("the last of the hooks", registry.wait_idle()).await;
    let events = recorder.all();
    let mut ids: Vec<_> = events.iter().map(|event| event.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len());
    registry.limit(1);
    let mut last = in_memory(self::app(&registry, echo_route()), 4096);
    assert!(!is_refused(&send_handshake(&mut last).await));
    assert!(!is_accepted(&app).await);
    drop(app);
    evicting.join().unwrap();
}

#[tokio::test]
async fn a_connection_evicted_before_the_upgrade_ends_with_its_handshake() {
    let registry = Registry::new();
    registry.limit(1);
    let proceed = Arc::new(Notify::new());
    let route = any({
        let proceed = Arc::clone(&proceed);
        move |ws: WebSocketUpgrade, live: Liveness| async move {
            live.evict(4000, "no");
            assert_eq!(live.evicted().await.reason(), Reason::Kicked { code: 4000 });
            proceed.notified().await;
            ws.on_upgrade(echo)
        }
    });
    let app = app(&registry, route);
    let mut io = in_memory(app.clone(), 4096);
    io.write_all(opening("/ws").as_bytes()).await.unwrap();
    until("the eviction", || count(&registry, "present") == 1).await;
    until("its slot is free", || count(&registry, "admitted") == 0).await;
    // The registry is not idle until the handshake ends.
    assert!(futures_util::FutureExt::now_or_never(registry.wait_idle()).is_none());
    proceed.notify_one();
    within("the end", registry.wait_idle()).await;
}
