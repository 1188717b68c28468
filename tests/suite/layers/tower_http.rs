//! Each tower-http layer, in every position, leaves the upgrade and the connection unchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, HeaderName,
    HeaderValue, SERVER,
};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::Layer;
use tower_http::add_extension::AddExtensionLayer;
use tower_http::auth::{AddAuthorizationLayer, AsyncRequireAuthorizationLayer};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::map_request_body::MapRequestBodyLayer;
use tower_http::map_response_body::MapResponseBodyLayer;
use tower_http::metrics::InFlightRequestsLayer;
use tower_http::normalize_path::NormalizePathLayer;
use tower_http::on_early_drop::{OnBodyDropFn, OnEarlyDropLayer};
use tower_http::propagate_header::PropagateHeaderLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveHeadersLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::timeout::{RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer};
use tower_http::trace::TraceLayer;
use tower_ws_liveness::Liveness;

use super::stack::{
    Position, Stack, TOKEN, WEBSITE, echoes, handshake, http1, http2, refused, send_http1,
    works_in, works_in_every_position,
};
use crate::support::h2_client::H2Client;
use crate::support::raw::{RawClient, opening};
use crate::support::{Server, ms, until, within};

#[tokio::test]
async fn trace() {
    works_in_every_position(|app| app.layer(TraceLayer::new_for_http())).await;
}

#[tokio::test]
async fn cors() {
    works_in_every_position(|app| app.layer(CorsLayer::permissive())).await;
}

#[tokio::test]
async fn headers_and_request_ids() {
    works_in_every_position(|app| {
        let server = HeaderValue::from_static("test");
        app.layer(PropagateRequestIdLayer::x_request_id())
            .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
            .layer(SetSensitiveHeadersLayer::new([AUTHORIZATION]))
            .layer(SetResponseHeaderLayer::overriding(SERVER, server))
            .layer(PropagateHeaderLayer::new(HeaderName::from_static("x-any")))
            .layer(AddAuthorizationLayer::bearer("another"))
            .layer(AddExtensionLayer::new("anything"))
    })
    .await;
}

#[tokio::test]
async fn bodies() {
    works_in_every_position(|app| {
        app.layer(RequestBodyLimitLayer::new(16))
            .layer(MapRequestBodyLayer::new(Body::new))
            .layer(MapResponseBodyLayer::new(Body::new))
    })
    .await;
}

/// The body timeouts do not apply to the upgraded stream, which stays open for longer.
#[tokio::test]
async fn body_timeouts() {
    works_in_every_position(|app| {
        app.layer(RequestBodyTimeoutLayer::new(ms(100)))
            .layer(ResponseBodyTimeoutLayer::new(ms(100)))
    })
    .await;
}

#[tokio::test]
async fn catch_panic() {
    works_in_every_position(|app| app.layer(CatchPanicLayer::new())).await;
}

/// A dead peer is detected 1.5 s after the upgrade at the earliest, half a second after the request
/// timeout. The connections of live peers stay open beyond both.
#[tokio::test]
async fn a_request_timeout_does_not_end_an_open_connection() {
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, ms(1_000));
    works_in_every_position(|app| app.layer(timeout)).await;
}

/// The handler never answers, so only the timeout can release what the opening handshake holds.
#[tokio::test]
async fn a_handshake_that_times_out_leaves_no_connection() {
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, ms(50));
    for position in Position::ALL {
        let stack = Stack::new();
        stack.registry.limit(1);
        let begun = Arc::new(AtomicUsize::new(0));
        let never = any({
            let begun = Arc::clone(&begun);
            move |_: WebSocketUpgrade| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<StatusCode>().await
            }
        });
        let slow = Router::new().route("/never", never);
        let slow = stack.with(position, slow, |app| app.layer(timeout));
        refused(&slow, "/never", StatusCode::GATEWAY_TIMEOUT).await;
        refused(&slow, "/never", StatusCode::GATEWAY_TIMEOUT).await;
        // Each request reached the handler although the limit is 1.
        assert_eq!(begun.load(Ordering::SeqCst), 4, "{position:?}");
        stack.assert_no_connection().await;
        let server = Server::start(stack.around(stack.routes())).await;
        echoes(&mut http1(server.addr, "/ws").await).await;
    }
}

#[tokio::test]
async fn cors_answers_a_preflight_and_marks_the_upgrade() {
    let origin: HeaderValue = WEBSITE.parse().unwrap();
    let cors = CorsLayer::new().allow_origin(origin).allow_headers(Any);
    for position in Position::ALL {
        let stack = Stack::new();
        stack.registry.limit(1);
        let app = stack.with(position, stack.routes(), |app| app.layer(cors.clone()));
        let server = Server::start(app).await;
        let mut preflight = handshake("/ws");
        *preflight.method_mut() = Method::OPTIONS;
        let method = HeaderValue::from_static("GET");
        preflight
            .headers_mut()
            .insert(ACCESS_CONTROL_REQUEST_METHOD, method);
        let (response, _) = send_http1(server.addr, &preflight).await;
        assert_eq!(response.status(), StatusCode::OK, "{position:?}");
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], WEBSITE);
        stack.assert_no_connection().await;

        let (response, upgraded) = send_http1(server.addr, &handshake("/ws")).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], WEBSITE);
        echoes(&mut RawClient::over(Box::new(upgraded.unwrap()))).await;

        // A script can read the 503 of the registry only if the CORS layer is further out.
        stack.registry.limit(0);
        let (response, _) = send_http1(server.addr, &handshake("/ws")).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let is_marked = response.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(
            is_marked,
            matches!(position, Position::Outside | Position::Both)
        );
    }
}

#[tokio::test]
async fn authorization_that_refuses_leaves_no_connection() {
    for (token, is_authorized) in [(TOKEN, true), ("Bearer another", false)] {
        let authorize = AsyncRequireAuthorizationLayer::new(move |request: Request| async move {
            match request.headers()[AUTHORIZATION] == token {
                true => Ok(request),
                false => Err(hyper::Response::builder()
                    .status(StatusCode::UNAUTHORIZED)
                    .body(Body::empty())
                    .unwrap()),
            }
        });
        let layer = |app: Router| app.layer(authorize.clone());
        if is_authorized {
            works_in_every_position(layer).await;
            continue;
        }
        for position in Position::ALL {
            let stack = Stack::new();
            stack.registry.limit(1);
            let app = stack.with(position, stack.routes(), layer);
            for _ in 0..2 {
                refused(&app, "/ws", StatusCode::UNAUTHORIZED).await;
            }
            stack.assert_no_connection().await;
            // With a full registry, the outermost of the two layers decides the status.
            stack.registry.limit(0);
            let first = match position {
                Position::Inside | Position::Between => StatusCode::SERVICE_UNAVAILABLE,
                Position::Outside | Position::Both => StatusCode::UNAUTHORIZED,
            };
            refused(&app, "/ws", first).await;
        }
    }
}

/// Requests in flight are opening handshakes; `Registry::len` counts open connections.
#[tokio::test]
async fn in_flight_requests_are_not_connections() {
    for position in [Position::Inside, Position::Outside] {
        let (layer, counter) = InFlightRequestsLayer::pair();
        let stack = Stack::new();
        let app = stack.with(position, stack.routes(), |app| app.layer(layer.clone()));
        let server = Server::start(app).await;
        let h2 = H2Client::connect(server.addr).await.unwrap();
        let mut clients = [http1(server.addr, "/ws").await, http2(&h2, "/ws").await];
        for client in &mut clients {
            echoes(client).await;
        }
        until("no request is in flight", || counter.get() == 0).await;
        assert_eq!(stack.registry.len(), 2);
    }
    works_in_every_position(|app| app.layer(InFlightRequestsLayer::pair().0)).await;
}

/// The hooks report clients that disconnect before the response is complete. The body of an upgrade
/// response is empty and is dropped immediately.
#[tokio::test]
async fn an_upgrade_does_not_call_the_early_drop_hook() {
    let (requests, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (request_count, drop_count) = (Arc::clone(&requests), Arc::clone(&dropped));
    let hook = move |_: &Request| {
        request_count.fetch_add(1, Ordering::SeqCst);
        let drop_count = Arc::clone(&drop_count);
        move |_: &hyper::http::response::Parts| {
            move || {
                drop_count.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let layer = OnEarlyDropLayer::builder().on_body_drop(OnBodyDropFn::new(hook));
    works_in([Position::Inside, Position::Outside], |app| {
        app.layer(layer.clone())
    })
    .await;
    // Four connections in each position.
    assert_eq!(requests.load(Ordering::SeqCst), 8);
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_normalized_path_reaches_the_websocket_route() {
    let stack = Stack::new();
    let app = stack.around(stack.routes());
    let service = NormalizePathLayer::trim_trailing_slash().layer(app);
    let app = Router::new().fallback_service(service);
    stack.full_lifecycle(app, "/ws/").await;
}

#[tokio::test]
async fn a_handler_that_panics_before_its_101_leaves_no_connection() {
    async fn panics(_: WebSocketUpgrade, _: Liveness) -> StatusCode {
        panic!("a scripted panic")
    }
    for position in Position::ALL {
        let stack = Stack::new();
        stack.registry.limit(1);
        let app = Router::new().route("/panics", any(panics));
        let app = stack.with(position, app, |app| app.layer(CatchPanicLayer::new()));
        for _ in 0..2 {
            refused(&app, "/panics", StatusCode::INTERNAL_SERVER_ERROR).await;
        }
        stack.assert_no_connection().await;
    }
    // Without `CatchPanicLayer` the connection ends without a response.
    let stack = Stack::new();
    let app = stack.around(Router::new().route("/panics", any(panics)));
    let server = Server::start(app).await;
    let mut io = TcpStream::connect(server.addr).await.unwrap();
    io.write_all(opening("/panics").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Either a reset or end of file is acceptable.
    let _ = within("the end", io.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "{answer:?}");
    stack.assert_no_connection().await;
}
