//! Upgrades of requests that a service is called with directly.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::{Request, Response, StatusCode, header};
use axum::routing::{any, get};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower_ws_liveness::test_util::{self, OpeningHandshake, ServerMessage};
use tower_ws_liveness::{
    Eviction, Health, HeartbeatLayer, IdleTimeoutLayer, Liveness, PolicyOverride, Reason, Registry,
    UpgradeRefused,
};

use crate::support::{echo, echo_route, ms, watched_route};

fn request() -> Request<Body> {
    Request::get("/ws").body(Body::empty()).unwrap()
}

/// Calls the application with an opening handshake.
async fn call(app: &Router, mut request: Request<Body>) -> (OpeningHandshake, Response<Body>) {
    let handshake = test_util::opening_handshake(&mut request);
    let response = app.clone().oneshot(request).await.unwrap();
    (handshake, response)
}

/// The message of the panic for a response that refuses the handshake.
fn refusal(handshake: OpeningHandshake, response: &Response<Body>) -> String {
    let connect = AssertUnwindSafe(|| handshake.connect(response));
    let panic = catch_unwind(connect).expect_err("a refusal");
    *panic.downcast().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_upgraded_with_its_liveness_and_echoes() {
    let (route, mut lives) = watched_route(echo);
    let heartbeat = HeartbeatLayer::default();
    let registry = heartbeat.registry();
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let (handshake, response) = call(&app, request()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    // The accept value of the key in RFC 6455 section 1.3.
    let accept = &response.headers()[header::SEC_WEBSOCKET_ACCEPT];
    assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let live = lives.recv().await.unwrap();
    assert_eq!(live.health(), Health::Opening);
    assert!(!live.is_detached());

    let mut client = handshake.connect(&response);
    assert_eq!(live.health(), Health::Live);
    assert_eq!(registry.len(), 1);
    client.send_text("hello");
    let message = ServerMessage::Text("hello".to_owned());
    assert_eq!(client.recv().await, Some(message));
    sleep(ms(3_600_000)).await;
    assert!(client.pings_received() >= 100);
    client.vanish();
    let reason = live.evicted().await.reason();
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(registry.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_idle_timeout_and_an_override_apply() {
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(IdleTimeoutLayer::new(ms(60_000)));
    let short = PolicyOverride::builder().idle_timeout(ms(5_000)).build();
    for (overrides, idle) in [(None, ms(60_000)), (Some(short.unwrap()), ms(5_000))] {
        let mut request = request();
        if let Some(overrides) = overrides {
            request.extensions_mut().insert(overrides);
        }
        let (handshake, response) = call(&app, request).await;
        let mut client = handshake.connect(&response);
        let opened = Instant::now();
        let close = client.recv().await;
        assert!(
            matches!(close, Some(ServerMessage::Close { .. })),
            "{close:?}"
        );
        let took = opened.elapsed();
        assert!((idle..idle + ms(1_500)).contains(&took), "{took:?}");
    }
}

#[tokio::test]
async fn a_full_registry_refuses_the_handshake() {
    let registry = Registry::new();
    registry.limit(1);
    let layer = HeartbeatLayer::builder().registry(registry.clone());
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(layer.build().unwrap());
    let (handshake, response) = call(&app, request()).await;
    let _client = handshake.connect(&response);
    let (handshake, response) = call(&app, request()).await;
    assert!(response.extensions().get::<UpgradeRefused>().is_some());
    let message = refusal(handshake, &response);
    assert!(message.contains("503 Service Unavailable"), "{message}");
    assert_eq!(registry.refused_total(), 1);
}

#[tokio::test]
async fn a_handshake_that_the_handler_refuses_is_no_connection() {
    let (seen, mut evictions) = mpsc::unbounded_channel();
    let layer =
        HeartbeatLayer::builder().on_evict(move |ev: &Eviction| drop(seen.send(ev.clone())));
    let layer = layer.build().unwrap();
    let registry = layer.registry();
    let slot = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&slot);
    let handler = get(async move |live: Liveness| {
        *keep.lock().unwrap() = Some(live);
        StatusCode::UNAUTHORIZED
    });
    let app = Router::new().route("/ws", handler).layer(layer);
    let (handshake, response) = call(&app, request()).await;
    let message = refusal(handshake, &response);
    assert!(message.contains("401 Unauthorized"), "{message}");
    let live = slot.lock().unwrap().take().unwrap();
    assert_eq!(live.reason(), Some(Reason::UpgradeFailed));
    assert!(registry.is_empty());
    assert!(evictions.try_recv().is_err(), "a hook was called");
}

#[tokio::test]
async fn a_client_that_does_not_connect_fails_the_upgrade() {
    let (failed, mut failures) = mpsc::unbounded_channel();
    let (lives_seen, mut lives) = mpsc::unbounded_channel();
    let handler = any(async move |ws: WebSocketUpgrade, live: Liveness| {
        let _ = lives_seen.send(live);
        let report = move |error: axum::Error| drop(failed.send(error));
        ws.on_failed_upgrade(report)
            .on_upgrade(async |_| panic!("upgraded"))
    });
    let app = Router::new()
        .route("/ws", handler)
        .layer(HeartbeatLayer::default());
    let (handshake, response) = call(&app, request()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let live = lives.recv().await.unwrap();
    assert_eq!(live.reason(), None);
    drop(handshake);
    assert_eq!(live.evicted().await.reason(), Reason::UpgradeFailed);
    failures.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_route_without_a_layer_is_upgraded_too() {
    let app = Router::new().route("/ws", echo_route());
    let (handshake, response) = call(&app, request()).await;
    let mut client = handshake.connect(&response);
    client.send_binary([1, 2]);
    assert_eq!(client.recv().await, Some(ServerMessage::Binary(vec![1, 2])));
    client.disconnect();
}

#[test]
fn headers_of_the_request_stay() {
    let mut request = Request::get("/ws")
        .header(header::SEC_WEBSOCKET_KEY, "b3RoZXIga2V5IG9mIDE2IGI=")
        .header(header::CONNECTION, "keep-alive, Upgrade")
        .body(())
        .unwrap();
    let _handshake = test_util::opening_handshake(&mut request);
    let headers = request.headers();
    assert_eq!(
        headers[header::SEC_WEBSOCKET_KEY],
        "b3RoZXIga2V5IG9mIDE2IGI="
    );
    assert_eq!(headers[header::CONNECTION], "keep-alive, Upgrade");
    assert_eq!(headers[header::UPGRADE], "websocket");
    assert_eq!(headers[header::HOST], "localhost");
    assert_eq!(headers.len(), 5);
}

#[test]
fn the_host_is_that_of_the_request() {
    let cases = [
        ("http://ann@example.com:8080/ws", None, "example.com:8080"),
        ("http://example.com/ws", Some("other.test"), "other.test"),
        ("/ws", Some("other.test"), "other.test"),
    ];
    for (uri, host, expected) in cases {
        let mut request = Request::get(uri).body(()).unwrap();
        if let Some(host) = host {
            let host = host.parse().unwrap();
            request.headers_mut().insert(header::HOST, host);
        }
        let _handshake = test_util::opening_handshake(&mut request);
        assert_eq!(request.headers()[header::HOST], expected, "{uri}");
    }
}

#[tokio::test]
async fn a_connection_header_that_names_no_upgrade_is_replaced() {
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(HeartbeatLayer::default());
    let mut request = request();
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, "keep-alive".parse().unwrap());
    headers.append(header::CONNECTION, "x-upgrade".parse().unwrap());
    let (handshake, response) = call(&app, request).await;
    let mut client = handshake.connect(&response);
    client.send_text("hello");
    let message = ServerMessage::Text("hello".to_owned());
    assert_eq!(client.recv().await, Some(message));
}

#[tokio::test]
async fn a_post_is_refused_as_on_a_server() {
    let app = Router::new()
        .route("/ws", any(async |_: Liveness| StatusCode::OK))
        .layer(HeartbeatLayer::default());
    let post = Request::post("/ws").body(Body::empty()).unwrap();
    let (handshake, response) = call(&app, post).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    let message = refusal(handshake, &response);
    assert!(message.contains("405"), "{message}");
}
