//! Upgrades that fail, are never used, or are refused for lack of a timer.
//!
//! Hooks are called once for a connection that fails to open. In a runtime without a timer, and
//! outside of a runtime, the handshake is refused.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::{Request, StatusCode};
use axum::routing::{any, get};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_ws_liveness::{HighWater, Liveness, Reason, Registry, Seat};

use crate::logs::Logs;
use crate::support::raw::{Frame, RawClient, opening};
use crate::support::recorder::Recorder;
use crate::support::scene::{patient, quiet};
use crate::support::wire::{Client, Wire, over_each_wire};
use crate::support::{
    self, Server, echo, echo_route, in_memory, serve_io, switching_protocols, until, within,
};
use crate::unwritable::Unwritable;

#[tokio::test]
async fn the_upgrade_fails_while_the_101_is_written() {
    for kicked in [false, true] {
        let mut failing = FailingUpgrade::new(kicked);
        let (mut client, server) = tokio::io::duplex(4096);
        let served = serve_io(failing.app.clone(), Unwritable(server));
        client.write_all(opening("/ws").as_bytes()).await.unwrap();
        failing.verify().await;
        let served = within("the connection's end", served).await.unwrap();
        assert!(served.is_err(), "{served:?}");
        failing.recorder.stays_at(1).await;
    }
}

#[tokio::test]
async fn the_upgrade_fails_because_the_server_does_not_support_it() {
    for kicked in [false, true] {
        let mut failing = FailingUpgrade::new(kicked);
        let (mut client, server) = tokio::io::duplex(4096);
        // Without `with_upgrades()`.
        let service = TowerToHyperService::new(failing.app.clone());
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service);
        let served = tokio::spawn(served);
        client.write_all(opening("/ws").as_bytes()).await.unwrap();
        failing.verify().await;
        within("the connection's end", served)
            .await
            .unwrap()
            .unwrap();
        failing.recorder.stays_at(1).await;
    }
}

/// An application whose upgrade will fail.
struct FailingUpgrade {
    app: Router,
    /// The expected reason: the connection may be kicked before the upgrade fails.
    reason: Reason,
    recorder: Recorder,
    registry: tower_ws_liveness::Registry,
    lives: mpsc::UnboundedReceiver<Liveness>,
    failures: mpsc::UnboundedReceiver<axum::Error>,
}

impl FailingUpgrade {
    fn new(kicked: bool) -> Self {
        let reason = match kicked {
            true => Reason::Kicked { code: 4003 },
            false => Reason::UpgradeFailed,
        };
        let recorder = Recorder::new();
        let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
        let registry = heartbeat.registry();
        let (tx, lives) = mpsc::unbounded_channel();
        let (fail, failures) = mpsc::unbounded_channel();
        let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
            assert!(!kicked || live.evict(4003, "never mind"));
            tx.send(live).unwrap();
            ws.on_failed_upgrade(move |error| fail.send(error).unwrap())
                .on_upgrade(|_| async { panic!("upgraded") })
        });
        let app = Router::new()
            .route("/ws", route)
            .layer(patient().build().unwrap())
            .layer(heartbeat);
        Self {
            app,
            reason,
            recorder,
            registry,
            lives,
            failures,
        }
    }

    async fn verify(&mut self) {
        let live = within("the handler", self.lives.recv()).await.unwrap();
        let event = self.recorder.nth(1).await;
        assert_eq!((event.id, event.reason), (live.id(), self.reason));
        let eviction = within("evicted()", live.evicted()).await;
        assert_eq!(eviction.reason(), self.reason);
        // The application's own callback is called as without the layers.
        within("on_failed_upgrade", self.failures.recv())
            .await
            .unwrap();
        within("an idle registry", self.registry.wait_idle()).await;
    }
}

#[tokio::test]
async fn an_upgrade_that_the_handler_never_takes_is_reported_once() {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    // A handler that responds with 101 and drops the upgrade.
    let route = any(|request: axum::extract::Request| async move { switching_protocols(&request) });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, 4096), "/ws").await;
    client.closed().await;
    let event = recorder.nth(1).await;
    assert!(
        matches!(event.reason, Reason::HandlerDropped | Reason::UpgradeFailed),
        "{event:?}"
    );
    until("the registry is empty", || registry.is_empty()).await;
    recorder.stays_at(1).await;
}

// Connections that are evicted before they open. The upgrade fails for the handler only: the driver
// sends the Close frame as soon as it has the stream.

over_each_wire! {
    #[tokio::test]
    a_peer_that_is_evicted_before_the_upgrade_completes_gets_the_code,
    a_peer_that_the_high_water_hook_evicts_gets_the_code;
}

/// Reads the Close frame, asserts its code and answers it.
async fn assert_closed_with(client: &mut Client, code: u16) {
    let close = client.expect_frame().await;
    assert_eq!(close.close_code(), Some(code), "{close:?}");
    client.send(&close).await.unwrap();
    assert_eq!(client.closed().await, None);
}

async fn a_peer_that_is_evicted_before_the_upgrade_completes_gets_the_code(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let (fail, mut failures) = mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        assert!(live.evict(4003, "never mind"));
        ws.on_failed_upgrade(move |error| fail.send(error).unwrap())
            .on_upgrade(|_| async { panic!("upgraded") })
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let server = Server::start(app).await;
    let mut client = server.client(wire, "/ws").await;
    assert_closed_with(&mut client, 4003).await;
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::Kicked { code: 4003 });
    within("on_failed_upgrade", failures.recv()).await.unwrap();
    within("an idle registry", registry.wait_idle()).await;
    recorder.stays_at(1).await;
}

// Runtimes without a timer, and no runtime at all.

const NO_TIMER: &str = "WebSocket liveness needs tokio's timer: call `enable_time` or \
                        `enable_all` on the `tokio::runtime::Builder`";

fn without_timer() -> Runtime {
    let runtime = Builder::new_current_thread().enable_io().build();
    runtime.unwrap()
}

async fn unreachable() -> StatusCode {
    panic!("the handler was called")
}

/// Both layers over a WebSocket handler that must not be called. The limit is two connections.
fn app_without_calls(recorder: &Recorder) -> (Router, Registry) {
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    registry.limit(2);
    let app = Router::new()
        .route("/ws", any(unreachable))
        .route("/", get(|| async { "hello" }))
        .layer(patient().build().unwrap())
        .layer(heartbeat);
    (app, registry)
}

fn assert_nothing_is_left(recorder: &Recorder, registry: &Registry) {
    assert_eq!(recorder.total(), 0);
    assert_eq!((registry.len(), registry.high_water()), (0, 0));
    let idle = pin!(registry.wait_idle());
    let polled = idle.poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_ready(), "the registry is not idle");
}

#[test]
fn without_a_timer_handshakes_are_refused_with_the_reason() {
    let recorder = Recorder::new();
    let (app, registry) = app_without_calls(&recorder);
    let logs = Logs::keep();
    let runtime = without_timer();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, app).await });
        let (done, is_done) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            let send = |request: &str| {
                let mut client = TcpStream::connect(addr).unwrap();
                client.write_all(request.as_bytes()).unwrap();
                let mut response = String::new();
                client.read_to_string(&mut response).unwrap();
                response.lines().next().unwrap().to_owned()
            };
            let close = "Connection: close\r\n";
            let plain = format!("GET / HTTP/1.1\r\nHost: a\r\n{close}\r\n");
            let handshake = opening("/ws").replacen("Connection: ", "Connection: close, ", 1);
            let answers = [&handshake, &handshake, &plain, &handshake].map(|request| send(request));
            done.send(answers).unwrap();
        });
        let answers = is_done.await.unwrap();
        let refused = format!("HTTP/1.1 500 {NO_TIMER}");
        assert_eq!(answers, [&refused, &refused, "HTTP/1.1 200 OK", &refused]);
    });
    let errors = logs.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains(NO_TIMER), "{errors:?}");
    assert_nothing_is_left(&recorder, &registry);
    // In a runtime with a timer both places under the limit are free.
    drop(runtime);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let heartbeat = quiet().registry(registry.clone()).build().unwrap();
        let app = Router::new()
            .route("/ws", support::echo_route())
            .layer(heartbeat);
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(RawClient::handshake(in_memory(app.clone(), 4096), "/ws").await);
        }
        until("both are open", || registry.len() == 2).await;
    });
}

#[test]
fn outside_of_a_runtime_handshakes_are_refused_with_the_reason() {
    let recorder = Recorder::new();
    let (app, registry) = app_without_calls(&recorder);
    let logs = Logs::keep();
    for _ in 0..3 {
        let response = ready_output(app.clone().oneshot(handshake())).unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let phrase = response.extensions().get::<ReasonPhrase>().unwrap();
        let phrase = std::str::from_utf8(phrase.as_bytes()).unwrap();
        assert!(phrase.ends_with("runs outside of one"), "{phrase}");
        assert!(logs.errors().len() <= 1, "{:?}", logs.errors());
    }
    assert_nothing_is_left(&recorder, &registry);
}

#[test]
fn a_response_may_be_polled_outside_of_the_runtime() {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let mut service = heartbeat.layer(service_fn(|request: Request<Body>| async move {
        Ok::<_, Infallible>(switching_protocols(&request))
    }));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let response = {
        let _entered = runtime.enter();
        service.call(handshake())
    };
    let response = ready_output(response).unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let event = runtime.block_on(recorder.nth(1));
    assert_eq!(event.reason, Reason::UpgradeFailed);
}

/// A WebSocket handshake request without a hyper connection.
fn handshake() -> Request<Body> {
    let mut request = Request::get("/ws")
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Body::empty())
        .unwrap();
    let on_upgrade = hyper::upgrade::on(Request::new(()));
    request.extensions_mut().insert(on_upgrade);
    request
}

/// The output of a future that must be ready at the first poll.
fn ready_output<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future is pending"),
    }
}

#[test]
fn a_stream_that_cannot_be_wrapped_is_not_counted() {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let runtime = without_timer();
    for has_runtime in [false, true] {
        let _entered = has_runtime.then(|| runtime.enter());
        let wrap = || heartbeat.wrap_server(duplex(64).0);
        let message = panic_of(|| drop(wrap()));
        let expected = if has_runtime {
            NO_TIMER
        } else {
            "a tokio runtime"
        };
        assert!(message.contains(expected), "{message}");
        assert_nothing_is_left(&recorder, &registry);

        let (ours, mut theirs) = duplex(4096);
        let (mut stream, _live) = heartbeat.wrap_server_handshake(ours);
        ready_output(theirs.write_all(opening("/").as_bytes())).unwrap();
        let mut request = [0; 4096];
        ready_output(stream.read(&mut request)).unwrap();
        let answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        let message = panic_of(|| ready_output(stream.write_all(answer)).unwrap());
        assert!(message.contains(expected), "{message}");
        drop(stream);
        assert_nothing_is_left(&recorder, &registry);
    }
}

/// The message with which `act` panics.
fn panic_of(act: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(act)).expect_err("no panic");
    *payload.downcast::<String>().expect("a formatted message")
}

/// The hook runs while the connection is in the registry but not yet open.
async fn a_peer_that_the_high_water_hook_evicts_gets_the_code(wire: Wire) {
    let registry = Registry::new();
    registry.on_high_water(1, |registry: &Registry, _: &HighWater| {
        let newest = registry.snapshot().last().unwrap().id();
        registry.get(newest).unwrap().evict(1013, "try again later");
    });
    let layer = quiet().registry(registry.clone()).build().unwrap();
    let app = Router::new().route("/ws", echo_route()).layer(layer);
    let server = Server::start(app).await;
    let mut first = server.client(wire, "/ws").await;
    let mut second = server.client(wire, "/ws").await;
    assert_closed_with(&mut second, 1013).await;
    first.send(&Frame::text("still here")).await.unwrap();
    assert_eq!(first.expect_frame().await, Frame::text("still here"));
    assert_eq!(registry.len(), 1);
}

/// Two devices of one user connect at the same moment. The replaced one must get a Close frame with
/// the reason, or it would reconnect at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_peers_that_register_one_key_at_once_one_gets_4000() {
    type Map = Mutex<HashMap<usize, Seat<()>>>;
    let (map, round) = (Arc::new(Map::default()), Arc::new(AtomicUsize::new(0)));
    let route = any({
        let round = Arc::clone(&round);
        move |ws: WebSocketUpgrade, live: Liveness| async move {
            let replaced = live.register(&map, round.load(Ordering::SeqCst), ());
            // The older connection is evicted by now, in any phase of its handshake.
            replaced.map(|_| ws.on_upgrade(echo)).map_err(|_| "ended")
        }
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(quiet().build().unwrap());
    let server = Server::start(app).await;
    for _ in 0..200 {
        round.fetch_add(1, Ordering::SeqCst);
        let addr = server.addr;
        let [one, other] =
            [(); 2].map(|()| tokio::spawn(async move { RawClient::connect(addr, "/ws").await }));
        let (mut one, mut other) = (one.await.unwrap(), other.await.unwrap());
        let end = async {
            tokio::select! {
                end = one.next() => end,
                end = other.next() => end,
            }
        };
        let close = within("an end", end).await.unwrap();
        assert_eq!(close.and_then(|close| close.close_code()), Some(4000));
    }
}
