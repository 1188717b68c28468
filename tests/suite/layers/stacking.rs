//! Layers stacked in any order share one wrapper; the innermost of a kind decides.
//!
//! Covers either order, one layer alone, a layer applied twice, and layers on a router and on one
//! of its routes. The hooks of all layers are called once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_ws_liveness::{
    HealthChange, HeartbeatLayer, IdleTimeoutLayer, Liveness, PolicyOverride, Reason, Registry,
};

use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::scene::{patient, quiet};
use crate::support::{self, echo_route, in_memory, ms, switching_protocols, until, within};

async fn connect(app: &Router, path: &str) -> RawClient<DuplexStream> {
    RawClient::handshake(in_memory(app.clone(), 64 * 1024), path).await
}

async fn echoes(client: &mut RawClient<DuplexStream>) {
    let sent = Frame::text("there and back");
    client.send(&sent).await.unwrap();
    assert_eq!(client.expect_frame().await, sent);
}

/// Answers pings for `span` and returns how many there were.
async fn pings_within(client: &mut RawClient<DuplexStream>, span: Duration) -> usize {
    let before = client.pings;
    let frame = tokio::time::timeout(span, client.next()).await;
    assert!(frame.is_err(), "{frame:?}");
    client.pings - before
}

fn every(interval: Duration, recorder: &Recorder) -> HeartbeatLayer {
    HeartbeatLayer::builder()
        .interval(interval)
        .timeout(ms(100))
        .jitter(0.0)
        .on_evict(recorder.hook())
        .build()
        .unwrap()
}

fn idle(timeout: Duration, recorder: &Recorder) -> IdleTimeoutLayer {
    IdleTimeoutLayer::builder()
        .timeout(timeout)
        .on_evict(recorder.hook())
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn both_orders_do_the_same() {
    for heartbeat_outside in [true, false] {
        let (beat, rest) = (Recorder::new(), Recorder::new());
        let heartbeat = every(ms(100), &beat);
        let registry = heartbeat.registry();
        let idle = idle(ms(2_000), &rest);
        let app = Router::new().route("/ws", echo_route());
        let app = if heartbeat_outside {
            app.layer(idle).layer(heartbeat)
        } else {
            app.layer(heartbeat).layer(idle)
        };

        // An idle client that answers pings.
        let mut idle_client = connect(&app, "/ws").await;
        echoes(&mut idle_client).await;
        assert_eq!(registry.len(), 1);
        let close = idle_client.closed().await.expect("a Close frame");
        assert_eq!(close.close_code(), Some(1001));
        assert!(idle_client.pings >= 10, "{} pings", idle_client.pings);
        for recorder in [&beat, &rest] {
            assert_eq!(recorder.nth(1).await.reason, Reason::IdleTimeout);
        }

        // A dead client.
        let dead = connect(&app, "/ws").await;
        for recorder in [&beat, &rest] {
            let event = recorder.nth(2).await;
            assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
            recorder.stays_at_for(2, ms(10_000)).await;
        }
        until("the registry is empty", || registry.is_empty()).await;
        drop(dead);
    }
}

#[tokio::test(start_paused = true)]
async fn each_layer_works_alone() {
    let recorder = Recorder::new();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(every(ms(100), &recorder));
    let mut client = connect(&app, "/ws").await;
    echoes(&mut client).await;
    // The heartbeat layer adds no idle timeout.
    assert!(pings_within(&mut client, Duration::from_secs(600)).await > 1000);
    assert_eq!(recorder.total(), 0);
    drop(client);
    assert_eq!(recorder.nth(1).await.reason, Reason::PeerVanished);

    let recorder = Recorder::new();
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(idle(ms(100_000), &recorder));
    let mut client = connect(&app, "/ws").await;
    echoes(&mut client).await;
    // The idle timeout layer sends no ping.
    assert_eq!(pings_within(&mut client, ms(99_000)).await, 0);
    assert_eq!(recorder.nth(1).await.reason, Reason::IdleTimeout);
    recorder.stays_at(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_layer_twice_pings_once() {
    for copies in [1, 2, 3] {
        let recorder = Recorder::new();
        let layer = every(ms(100), &recorder);
        let mut app = Router::new().route("/ws", echo_route());
        for _ in 0..copies {
            app = app.layer(layer.clone());
        }
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        let pings = pings_within(&mut client, ms(10_000)).await;
        assert!(
            (60..=100).contains(&pings),
            "{copies} layers: {pings} pings"
        );
        assert_eq!(layer.registry().len(), 1);

        let dead = client.answering(Answer::Nothing);
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        until("the registry is empty", || layer.registry().is_empty()).await;
        drop(dead);
        // Copies of a layer share one hook.
        recorder.stays_at_for(1, ms(10_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_innermost_of_two_decides_and_the_hooks_of_both_fire_once() {
    for (outer, inner, expected) in [(ms(100), ms(1_000), 6..=10), (ms(1_000), ms(100), 60..=100)] {
        let (outside, inside) = (Recorder::new(), Recorder::new());
        let (outer, inner) = (every(outer, &outside), every(inner, &inside));
        let app = Router::new()
            .route("/ws", echo_route())
            .layer(inner.clone())
            // A layer of the other kind in between changes nothing.
            .layer(patient().build().unwrap())
            .layer(outer.clone());
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        let pings = pings_within(&mut client, ms(10_000)).await;
        assert!(expected.contains(&pings), "{pings} pings");
        assert_eq!((outer.registry().len(), inner.registry().len()), (1, 1));

        drop(client);
        let (out, ins) = (outside.nth(1).await, inside.nth(1).await);
        assert_eq!((out.id, out.reason), (ins.id, Reason::PeerVanished));
        assert_eq!(ins.reason, Reason::PeerVanished);
        until("the registries are empty", || {
            outer.registry().is_empty() && inner.registry().is_empty()
        })
        .await;
        outside.stays_at_for(1, ms(10_000)).await;
        inside.stays_at_for(1, ms(10_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_overrides_its_router_and_leaves_its_neighbour_alone() {
    let (router, route) = (Recorder::new(), Recorder::new());
    let app = Router::new()
        .route("/own", echo_route().layer(every(ms(100), &route)))
        .route("/idle", echo_route().layer(idle(ms(3_000), &route)))
        .route("/ws", echo_route())
        .layer(idle(ms(60_000), &router))
        .layer(every(ms(20_000), &router));

    let start = Instant::now();
    let own = connect(&app, "/own").await;
    let event = route.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.at - start <= ms(300), "{:?}", event.at - start);
    assert_eq!(router.nth(1).await.id, event.id);

    let start = Instant::now();
    let idle = connect(&app, "/idle").await;
    let event = route.nth(2).await;
    assert_eq!(event.reason, Reason::IdleTimeout);
    assert!(event.at - start <= ms(4_000), "{:?}", event.at - start);

    let start = Instant::now();
    let neighbour = connect(&app, "/ws").await;
    // The router's two hooks have recorded two connections before.
    let all = tokio::time::timeout(ms(60_000), router.reached(5)).await;
    let event = &all.expect("an eviction")[4];
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.at - start >= ms(20_100), "{:?}", event.at - start);
    assert_eq!(route.total(), 2);
    drop((own, idle, neighbour));
}

#[tokio::test(start_paused = true)]
async fn the_handler_finds_one_liveness_for_all_layers() {
    let (outside, inside) = (Recorder::new(), Recorder::new());
    let (handles_tx, mut handles) = tokio::sync::mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        handles_tx.send(live).unwrap();
        ws.on_upgrade(support::echo)
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(quiet().on_evict(inside.hook()).build().unwrap())
        .layer(idle(ms(60_000), &inside))
        .layer(quiet().on_evict(outside.hook()).build().unwrap());
    let mut client = connect(&app, "/ws").await;
    let live = within("the handler", handles.recv()).await.unwrap();
    for _ in 0..3 {
        echoes(&mut client).await;
    }
    // Each message counts once, not once for each layer.
    assert_eq!(live.stats().messages_received(), 3);
    assert_eq!(live.stats().messages_sent(), 3);
    let text = "there and back".len() as u64;
    assert_eq!(live.stats().bytes_received(), 3 * (2 + 4 + text));
    assert_eq!(live.stats().bytes_sent(), 3 * (2 + text));

    live.evict(4000, "evicted");
    let reason = Reason::Kicked { code: 4000 };
    assert_eq!(outside.nth(1).await.reason, reason);
    // Two layers have this hook.
    assert_eq!(inside.nth(2).await.reason, reason);
    client.closed().await;
    outside.stays_at_for(1, ms(10_000)).await;
    inside.stays_at_for(2, ms(10_000)).await;
}

// Layers whose service refuses a handshake that another service then accepts.

/// Calls another service first. Returns `None` if the routes must answer.
type Attempt = Arc<dyn Fn(Request) -> BoxFuture<'static, Option<Response>> + Send + Sync>;

fn attempt<F>(call: impl Fn(Request) -> F + Send + Sync + 'static) -> Attempt
where
    F: Future<Output = Option<Response>> + Send + 'static,
{
    Arc::new(move |request| call(request).boxed())
}

/// Offers each handshake to a canary first, and to the routes if the canary does not answer it.
fn after(routes: Router, attempt: Attempt) -> Router {
    routes.layer(from_fn(move |request: Request, next: Next| {
        let attempt = Arc::clone(&attempt);
        async move {
            let (parts, body) = request.into_parts();
            let copy = Request::from_parts(parts.clone(), Body::empty());
            match attempt(copy).await {
                Some(response) => response,
                None => next.run(Request::from_parts(parts, body)).await,
            }
        }
    }))
}

/// The answer of an application, unless it is a 404.
fn unless_not_found(app: Router) -> Attempt {
    attempt(move |request| {
        let app = app.clone();
        async move {
            let response = app.oneshot(request).await.into_response();
            (response.status() != StatusCode::NOT_FOUND).then_some(response)
        }
    })
}

fn not_found() -> Router {
    Router::new().fallback(|| async { StatusCode::NOT_FOUND })
}

/// The ways in which a service behind a layer fails to accept a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NotFound,
    AnotherProtocol,
    Error,
    Panic,
    PanicAtOnce,
    DroppedUnpolled,
    Dropped,
}

const REFUSALS: [Refusal; 7] = [
    Refusal::NotFound,
    Refusal::AnotherProtocol,
    Refusal::Error,
    Refusal::Panic,
    Refusal::PanicAtOnce,
    Refusal::DroppedUnpolled,
    Refusal::Dropped,
];

/// Has a service behind `layer` refuse the handshake.
fn refused<L>(layer: L, refusal: Refusal) -> Attempt
where
    L: Layer<tower::util::BoxCloneSyncService<Request, Response, String>>
        + Clone
        + Send
        + Sync
        + 'static,
    L::Service: Service<Request, Response = Response, Error = String> + Send,
    <L::Service as Service<Request>>::Future: Send,
{
    attempt(move |request| {
        let answer = service_fn(move |_: Request| {
            assert_ne!(refusal, Refusal::PanicAtOnce, "a scripted panic");
            async move {
                match refusal {
                    Refusal::NotFound => Ok(StatusCode::NOT_FOUND.into_response()),
                    Refusal::AnotherProtocol => {
                        let upgrade = [(header::UPGRADE, "h2c")];
                        Ok((StatusCode::SWITCHING_PROTOCOLS, upgrade).into_response())
                    }
                    Refusal::Error => Err("a scripted error".to_owned()),
                    Refusal::Panic => panic!("a scripted panic"),
                    _ => std::future::pending().await,
                }
            }
        });
        let service = tower::util::BoxCloneSyncService::new(answer);
        let mut service = layer.layer(service);
        async move {
            let called = catch_unwind(AssertUnwindSafe(|| service.call(request)));
            match (refusal, called) {
                (Refusal::PanicAtOnce, called) => assert!(called.is_err()),
                (Refusal::DroppedUnpolled, called) => drop(called.ok().unwrap()),
                (_, called) => {
                    let answered = AssertUnwindSafe(called.ok().unwrap()).catch_unwind();
                    let _ = timeout(ms(10), answered).await;
                }
            }
            None
        }
    })
}

/// An outer layer whose deadlines never expire during a test, with its registry and recorder.
fn outermost() -> (HeartbeatLayer, Registry, Recorder) {
    let recorder = Recorder::new();
    let layer = quiet().on_evict(recorder.hook()).build().unwrap();
    (layer.clone(), layer.registry(), recorder)
}

#[tokio::test(start_paused = true)]
async fn a_layer_whose_service_refused_does_not_affect_the_connection() {
    for refusal in REFUSALS {
        let canary = Recorder::new();
        let health = Arc::new(AtomicUsize::new(0));
        let health_calls = Arc::clone(&health);
        let registry = Registry::new();
        registry.limit(1);
        let layer = HeartbeatLayer::builder()
            .interval(ms(50))
            .timeout(ms(50))
            .registry(registry.clone())
            .on_evict(canary.hook())
            .on_health(move |_: &HealthChange| {
                health_calls.fetch_add(1, Ordering::SeqCst);
            })
            .build()
            .unwrap();
        let (outer, all, recorder) = outermost();
        let routes = Router::new().route("/ws", echo_route());
        let app = after(routes, refused(layer, refusal)).layer(outer);
        let mut clients = Vec::new();
        // More than the canary's limit.
        for count in 1..=3 {
            let mut client = connect(&app, "/ws").await;
            echoes(&mut client).await;
            assert_eq!((registry.len(), all.len()), (0, count), "{refusal:?}");
            within("an idle registry", registry.wait_idle()).await;
            clients.push(client);
        }
        for client in &mut clients {
            assert_eq!(pings_within(client, ms(10_000)).await, 0, "{refusal:?}");
        }
        assert_eq!(health.load(Ordering::SeqCst), 0, "{refusal:?}");
        drop(clients);
        recorder.nth(3).await;
        assert_eq!(canary.total(), 0, "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_timeout_whose_service_refused_evicts_no_connection() {
    for refusal in REFUSALS {
        let canary = Recorder::new();
        let (outer, _, recorder) = outermost();
        let routes = Router::new().route("/ws", echo_route());
        let app = after(routes, refused(idle(ms(1_000), &canary), refusal)).layer(outer);
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        recorder.stays_at_for(0, ms(10_000)).await;
        drop(client);
        assert_eq!(recorder.nth(1).await.reason, Reason::PeerVanished);
        assert_eq!(canary.total(), 0, "{refusal:?}");
    }
}

/// The innermost of the remaining layers decides.
#[tokio::test(start_paused = true)]
async fn of_three_layers_only_those_that_accepted_the_handshake_apply() {
    // The innermost refuses: the middle layer accepts the handshake from the routes.
    let (middle, inner) = (Recorder::new(), Recorder::new());
    let (outer, all, outside) = outermost();
    let routes = Router::new().route("/ws", echo_route());
    let app = not_found().layer(every(ms(1_000), &inner));
    let app = after(routes, unless_not_found(app)).layer(every(ms(100), &middle));
    let app = app.layer(outer);
    let mut client = connect(&app, "/ws").await;
    let pings = pings_within(&mut client, ms(10_000)).await;
    assert!((60..=100).contains(&pings), "{pings} pings");
    assert_eq!(all.len(), 1);
    drop(client);
    let id = outside.nth(1).await.id;
    assert_eq!((middle.count(id), inner.total()), (1, 0));

    // The middle layer refuses after the innermost has accepted: both are removed.
    let (middle, inner) = (Recorder::new(), Recorder::new());
    let (outer, _, outside) = outermost();
    let app = Router::new()
        .fallback(|request: Request| async move { switching_protocols(&request) })
        .layer(every(ms(50), &inner))
        .layer(from_fn(async |request: Request, next: Next| {
            drop(next.run(request).await);
            StatusCode::NOT_FOUND
        }))
        .layer(every(ms(100), &middle));
    let routes = Router::new().route("/ws", echo_route());
    let app = after(routes, unless_not_found(app)).layer(outer);
    let mut client = connect(&app, "/ws").await;
    echoes(&mut client).await;
    assert_eq!(pings_within(&mut client, ms(10_000)).await, 0);
    drop(client);
    outside.nth(1).await;
    assert_eq!((middle.total(), inner.total()), (0, 0));

    // Two layers side by side are called in turn: the first refuses, the second accepts.
    let (first, second) = (Recorder::new(), Recorder::new());
    let (outer, _, outside) = outermost();
    let routes = Router::new()
        .route("/ws", echo_route())
        .layer(every(ms(100), &second));
    let app = not_found().layer(every(ms(1_000), &first));
    let app = after(routes, unless_not_found(app)).layer(outer);
    let mut client = connect(&app, "/ws").await;
    let pings = pings_within(&mut client, ms(10_000)).await;
    assert!((60..=100).contains(&pings), "{pings} pings");
    drop(client);
    let id = outside.nth(1).await.id;
    assert_eq!((first.total(), second.count(id)), (0, 1));
}

/// A removed layer shares its registry and hook with a remaining layer, which keeps both.
#[tokio::test(start_paused = true)]
async fn a_removed_layer_takes_nothing_from_the_remaining_layers() {
    for is_outer in [true, false] {
        let registry = Registry::new();
        registry.limit(1);
        let recorder = Recorder::new();
        let shared = quiet()
            .registry(registry.clone())
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        let routes = Router::new().route("/ws", echo_route());
        let app = unless_not_found(not_found().layer(shared.clone()));
        let app = match is_outer {
            true => after(routes, app).layer(shared),
            false => after(routes.layer(shared), app).layer(outermost().0),
        };
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        assert_eq!(registry.len(), 1);
        let mut idle = Box::pin(registry.wait_idle());
        assert!(
            timeout(ms(100), &mut idle).await.is_err(),
            "the connection is not counted"
        );
        drop(client);
        recorder.nth(1).await;
        within("the end", idle).await;
        recorder.stays_at(1).await;
    }
}

/// Two services are called concurrently, and one refuses after the other has accepted.
#[tokio::test(start_paused = true)]
async fn a_layer_whose_service_refuses_late_is_removed_from_the_open_connection() {
    for is_same in [true, false] {
        let (slow, quick) = (Recorder::new(), Recorder::new());
        // After its removal the outer layer's deadlines apply again.
        let layer = every(ms(5_000), &slow);
        let other = every(ms(5_000), &quick);
        let beside = if is_same { layer.clone() } else { other };
        let outside = Recorder::new();
        let outer = every(ms(100), &outside);
        let (refuse_tx, refuse_rx) = oneshot::channel::<()>();
        let refuse_rx = Arc::new(Mutex::new(Some(refuse_rx)));
        let app = Router::new().fallback(move || {
            let refuse_rx = refuse_rx.lock().unwrap().take().unwrap();
            async move {
                let _ = refuse_rx.await;
                StatusCode::NOT_FOUND
            }
        });
        let app = app.layer(layer.clone());
        let at_once = attempt(move |request| {
            tokio::spawn(app.clone().oneshot(request));
            async {
                // Lets the spawned request run first.
                tokio::task::yield_now().await;
                None
            }
        });
        let routes = Router::new().route("/ws", echo_route());
        let routes = if is_same {
            routes.layer(beside)
        } else {
            routes
        };
        let app = after(routes, at_once).layer(outer);
        let mut client = connect(&app, "/ws").await;
        echoes(&mut client).await;
        assert_eq!(layer.registry().len(), 1);
        assert!(pings_within(&mut client, ms(10_000)).await <= 3);
        refuse_tx.send(()).unwrap();
        let pings = pings_within(&mut client, ms(10_000)).await;
        if is_same {
            // The same layer is on the route as well, and remains.
            assert!(pings <= 3, "{pings} pings");
            assert_eq!(layer.registry().len(), 1);
        } else {
            assert!((60..=100).contains(&pings), "{pings} pings");
            assert_eq!(layer.registry().len(), 0);
        }
        drop(client);
        outside.nth(1).await;
        assert_eq!(slow.total(), usize::from(is_same));
        until("the registries are empty", || layer.registry().is_empty()).await;
    }
}

/// Overrides in a layer's request are removed with the layer. Overrides that a handler sets on its
/// handle remain, since they belong to the connection.
#[tokio::test(start_paused = true)]
async fn overrides_in_a_refused_request_are_removed_and_those_on_the_handle_remain() {
    for on_handle in [false, true] {
        let inside = Recorder::new();
        let outside = Recorder::new();
        let kept = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&kept);
        let app = Router::new()
            .fallback(move |live: Liveness| {
                if on_handle {
                    live.set_interval(ms(200)).unwrap();
                }
                *keep.lock().unwrap() = Some(live);
                async { StatusCode::NOT_FOUND }
            })
            .layer(every(ms(5_000), &inside))
            .layer(from_fn(async |mut request: Request, next: Next| {
                let own = PolicyOverride::builder()
                    .interval(ms(20))
                    .expires_at(tokio::time::Instant::now() + ms(10_000));
                request.extensions_mut().insert(own.build().unwrap());
                next.run(request).await
            }));
        let routes = Router::new().route("/ws", echo_route());
        let outer = every(ms(1_000), &outside);
        let app = after(routes, unless_not_found(app)).layer(outer);
        let mut client = connect(&app, "/ws").await;
        let pings = pings_within(&mut client, ms(20_000)).await;
        let expected = if on_handle { 60..=100 } else { 15..=20 };
        assert!(expected.contains(&pings), "{pings} pings");
        // The handle that the canary kept refers to the connection.
        let live = kept.lock().unwrap().take().unwrap();
        assert!(live.evict(4000, "by the canary"));
        assert_eq!(outside.nth(1).await.reason, Reason::Kicked { code: 4000 });
        assert_eq!((live.id(), inside.total()), (outside.nth(1).await.id, 0));
    }
}

/// The outer layer's response is not an upgrade either, so no connection opens.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_every_service_refuses_leaves_no_connection() {
    for refusal in REFUSALS {
        let inside = Recorder::new();
        let inner = every(ms(50), &inside);
        let (outer, all, outside) = outermost();
        let registries = [inner.registry(), all];
        let app = after(not_found(), refused(inner, refusal)).layer(outer);
        let mut io = in_memory(app, 64 * 1024);
        let head = support::raw::opening("/ws");
        tokio::io::AsyncWriteExt::write_all(&mut io, head.as_bytes())
            .await
            .unwrap();
        let mut answer = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut io, &mut answer)
            .await
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        for registry in registries {
            within("an idle registry", registry.wait_idle()).await;
        }
        outside.stays_at_for(0, ms(1_000)).await;
        assert_eq!(inside.total(), 0);
    }
}
