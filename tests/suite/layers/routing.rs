//! The layers on nested and merged routers, and next to middleware that changes handshakes.

use std::future::ready;
use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tower_ws_liveness::{Liveness, PolicyOverride, Reason};
use tungstenite::protocol::Role;

use super::stack::{
    self, Position, Stack, echoes, handshake, refused, send_http1, send_http2,
    works_in_every_position,
};
use crate::support::h2_client::H2Client;
use crate::support::raw::Frame;
use crate::support::{Server, echo_route, ms, never, switching_protocols, within};

// Routers.

#[tokio::test]
async fn nested_routers_with_the_layers_on_one_or_both() {
    for (inner, outer) in [(true, false), (false, true), (true, true)] {
        let stack = Stack::new();
        let around = |is_around, app| match is_around {
            true => stack.around(app),
            false => app,
        };
        let app = around(inner, stack.routes());
        let app = around(outer, Router::new().nest("/v1", app));
        let app = Router::new().nest("/api", app);
        stack.full_lifecycle(app, "/api/v1/ws").await;
    }
    // One layer on each router.
    let stack = Stack::new();
    let inner = stack.routes().layer(stack.idle.clone());
    let app = Router::new().nest_service("/api", inner);
    let app = app.layer(stack.heartbeat.clone());
    stack.full_lifecycle(app, "/api/ws").await;
}

#[tokio::test]
async fn a_fallback_works_like_a_route() {
    let stack = Stack::new();
    let app = Router::new().fallback_service(stack.routes());
    stack.full_lifecycle(stack.around(app), "/ws").await;
    let stack = Stack::new();
    let app = Router::new().fallback_service(stack.around(stack.routes()));
    stack.full_lifecycle(app, "/ws").await;
}

/// Merging does not move layers between the routers.
#[tokio::test]
async fn merged_routers_keep_their_own_layers() {
    let stack = Stack::new();
    let required = any(|_: Liveness| ready(StatusCode::OK));
    let optional = any(|live: Option<Liveness>| ready(live.is_some().to_string()));
    let bare = Router::new()
        .route("/bare", echo_route())
        .route("/required", required.clone())
        .route("/optional", optional.clone());
    let layered = stack.routes().route("/layered", optional);
    let app = bare.merge(stack.around(layered));
    let server = Server::start(app.clone()).await;
    let mut client = stack::http1(server.addr, "/bare").await;
    echoes(&mut client).await;
    never("a ping", ms(300), client.read_frame()).await;
    assert!(stack.registry.is_empty());
    refused(&app, "/required", StatusCode::INTERNAL_SERVER_ERROR).await;
    for (path, answer) in [("/optional", "false"), ("/layered", "true")] {
        let (response, _) = send_http1(server.addr, &handshake(path)).await;
        assert_eq!(response.body(), answer);
    }
    stack.assert_no_connection().await;
    stack.full_lifecycle(app, "/ws").await;
}

/// `layer` sees requests that match no route, `route_layer` does not. Neither registers them.
#[tokio::test]
async fn a_route_layer_leaves_unknown_paths_alone() {
    let stack = Stack::new();
    let route_layered = stack
        .routes()
        .route_layer(stack.idle.clone())
        .route_layer(stack.heartbeat.clone());
    let layered = stack.around(stack.routes());
    for app in [&route_layered, &layered] {
        refused(app, "/nowhere", StatusCode::NOT_FOUND).await;
    }
    stack.assert_no_connection().await;
    // A full registry refuses every handshake that reaches the layer.
    stack.registry.limit(0);
    refused(&route_layered, "/nowhere", StatusCode::NOT_FOUND).await;
    refused(&layered, "/nowhere", StatusCode::SERVICE_UNAVAILABLE).await;
    refused(&route_layered, "/ws", StatusCode::SERVICE_UNAVAILABLE).await;
    stack.registry.limit(None);
    stack.assert_no_connection().await;
    stack.full_lifecycle(route_layered, "/ws").await;
}

// Middleware that leaves the handshake valid.

#[tokio::test]
async fn middleware_that_passes_everything_on() {
    let pass = |request: Request, next: Next| next.run(request);
    works_in_every_position(|app| app.layer(from_fn(pass))).await;
}

/// An opening handshake has no body, over HTTP/1.1 or HTTP/2.
#[tokio::test]
async fn middleware_that_reads_the_body() {
    async fn read(request: Request, next: Next) -> Response {
        let (head, body) = request.into_parts();
        let body = to_bytes(body, 1024).await.unwrap();
        assert!(body.is_empty());
        next.run(Request::from_parts(head, Body::from(body))).await
    }
    works_in_every_position(|app| app.layer(from_fn(read))).await;
}

/// A copy of hyper's `OnUpgrade` is harmless unless it is awaited.
#[tokio::test]
async fn middleware_that_keeps_a_copy_of_the_extensions() {
    async fn copy(request: Request, next: Next) -> Response {
        let copy = request.extensions().clone();
        assert!(copy.get::<OnUpgrade>().is_some());
        let response = next.run(request).await;
        drop(copy);
        response
    }
    works_in_every_position(|app| app.layer(from_fn(copy))).await;
}

/// Inside a layer, middleware runs too late for an extension, but can use the handle. An example is
/// authentication that recognizes a mobile client.
#[tokio::test]
async fn middleware_that_overrides_the_interval() {
    async fn override_policy(mut request: Request, next: Next) -> Response {
        let patient = PolicyOverride::builder().interval(ms(600_000)).build();
        request.extensions_mut().insert(patient.unwrap());
        next.run(request).await
    }
    async fn set(live: Liveness, request: Request, next: Next) -> Response {
        live.set_interval(ms(600_000)).unwrap();
        next.run(request).await
    }
    for position in [Position::Outside, Position::Between, Position::Inside] {
        let stack = Stack::new();
        let app = stack.with(position, stack.routes(), |app| match position {
            Position::Inside => app.layer(from_fn(set)),
            _ => app.layer(from_fn(override_policy)),
        });
        let server = Server::start(app).await;
        let mut client = stack::http1(server.addr, "/ws").await;
        echoes(&mut client).await;
        never("a ping", ms(400), client.read_frame()).await;
    }
    // Inside the layers, the extension has no effect.
    let stack = Stack::new();
    let app = stack.with(Position::Inside, stack.routes(), |app| {
        app.layer(from_fn(override_policy))
    });
    let server = Server::start(app).await;
    stack::http1(server.addr, "/ws").await.expect_ping().await;
}

// Middleware that takes part in the upgrade.

async fn forbid(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match response.status() {
        // 101 over HTTP/1.1, 200 over HTTP/2.
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::OK => StatusCode::FORBIDDEN.into_response(),
        _ => response,
    }
}

/// The layers see only the refusal, so no connection opens.
#[tokio::test]
async fn an_upgrade_replaced_by_a_refusal_inside_the_layers_is_not_a_connection() {
    for position in [Position::Inside, Position::Between] {
        let stack = Stack::new();
        stack.registry.limit(1);
        let app = stack.with(position, stack.routes(), |app| app.layer(from_fn(forbid)));
        for _ in 0..2 {
            refused(&app, "/ws", StatusCode::FORBIDDEN).await;
        }
        stack.assert_no_connection().await;
    }
}

/// The layers have seen the upgrade response. Over HTTP/2 the upgrade fails immediately. Over
/// HTTP/1.1 hyper keeps its end until the client requests another upgrade or disconnects. So
/// middleware that may replace an upgrade response belongs inside the layers.
#[tokio::test]
async fn an_upgrade_replaced_by_a_refusal_outside_the_layers_fails() {
    let stack = Stack::new();
    let app = stack.with(Position::Outside, stack.routes(), |app| {
        app.layer(from_fn(forbid))
    });
    let server = Server::start(app).await;
    let h2 = H2Client::connect(server.addr).await.unwrap();
    let (response, _) = send_http2(&h2, "/ws").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(stack.recorder.nth(1).await.reason, Reason::UpgradeFailed);
    within("an idle registry", stack.registry.wait_idle()).await;

    stack.registry.limit(1);
    let mut client = KeepAlive::connect(server.addr).await;
    client.expect("/ws", StatusCode::FORBIDDEN).await;
    let mut other = KeepAlive::connect(server.addr).await;
    other.expect("/ws", StatusCode::SERVICE_UNAVAILABLE).await;
    drop(other);
    // The first upgrade fails before the layers see the second request, so the limit admits it.
    client.expect("/ws", StatusCode::FORBIDDEN).await;
    assert_eq!(stack.recorder.nth(2).await.reason, Reason::UpgradeFailed);
    drop(client);
    // hyper completes the pending upgrade with a stream that is at end of file.
    assert_eq!(stack.recorder.nth(3).await.reason, Reason::PeerVanished);
    within("an idle registry", stack.registry.wait_idle()).await;
    stack.recorder.stays_at(3).await;
}

/// A persistent HTTP/1.1 connection.
struct KeepAlive(SendRequest<Full<Bytes>>);

impl KeepAlive {
    async fn connect(addr: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
        let (requests, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(requests)
    }

    async fn expect(&mut self, path: &str, status: StatusCode) {
        let request = handshake(path).map(|()| Full::default());
        within("the connection", self.0.ready()).await.unwrap();
        let response = within("the response", self.0.send_request(request)).await;
        assert_eq!(response.unwrap().status(), status);
    }
}

/// Middleware turns the handler's refusal into an upgrade whose stream no task holds.
#[tokio::test]
async fn an_upgrade_that_the_handler_did_not_make_ends_immediately() {
    async fn insist(request: Request, next: Next) -> Response {
        let accept = switching_protocols(&request);
        let response = next.run(request).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        accept
    }
    for position in [Position::Inside, Position::Outside] {
        let stack = Stack::new();
        let routes = Router::new().route("/no", any(|| ready(StatusCode::FORBIDDEN)));
        let app = stack.with(position, routes, |app| app.layer(from_fn(insist)));
        let server = Server::start(app).await;
        let mut client = stack::http1(server.addr, "/no").await;
        let close = client.closed().await;
        assert_eq!(close, None);
        if position == Position::Inside {
            let event = stack.recorder.nth(1).await;
            assert_eq!(event.reason, Reason::HandlerDropped);
            stack.recorder.stays_at(1).await;
        } else {
            stack.assert_no_connection().await;
        }
    }
}

/// Middleware that rebuilds a request must keep its extensions: without hyper's `OnUpgrade` no
/// upgrade is possible, with the layers or without them.
#[tokio::test]
async fn a_request_without_its_extensions_is_not_a_handshake() {
    async fn strip(mut request: Request, next: Next) -> Response {
        request.extensions_mut().clear();
        next.run(request).await
    }
    async fn is_refused(app: Router) {
        let server = Server::start(app).await;
        let (response, _) = send_http1(server.addr, &handshake("/ws")).await;
        assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
        let h2 = H2Client::connect(server.addr).await.unwrap();
        let (response, _) = send_http2(&h2, "/ws").await;
        assert!(response.status().is_client_error(), "{response:?}");
    }
    is_refused(
        Router::new()
            .route("/ws", echo_route())
            .layer(from_fn(strip)),
    )
    .await;
    for position in Position::ALL {
        let stack = Stack::new();
        is_refused(stack.with(position, stack.routes(), |app| app.layer(from_fn(strip)))).await;
        stack.assert_no_connection().await;
    }
}

/// A layer that does not find the `Liveness` of the outer layer treats the connection as new. Both
/// wrap it: the outer layer wraps the transport, the inner layer wraps the outer one's stream.
#[tokio::test]
async fn layers_that_cannot_see_each_other_wrap_twice() {
    async fn lose(mut request: Request, next: Next) -> Response {
        request.extensions_mut().remove::<Liveness>().unwrap();
        next.run(request).await
    }
    let (inner, outer) = (Stack::new(), Stack::new());
    let app = inner.around(inner.routes()).layer(from_fn(lose));
    let app = outer.around(app);
    let server = Server::start(app).await;
    let mut client = stack::http1(server.addr, "/ws").await;
    echoes(&mut client).await;
    client.live_until_ping(6).await;
    assert_eq!((inner.registry.len(), outer.registry.len()), (1, 1));
    client.send(&Frame::close(4001, "bye")).await.unwrap();
    client.closed().await;
    let events = [inner.recorder.nth(1).await, outer.recorder.nth(1).await];
    assert_ne!(events[0].id, events[1].id);
    for (stack, event) in [inner, outer].iter().zip(events) {
        assert_eq!(event.reason, Reason::PeerClosed { code: Some(4001) });
        within("an idle registry", stack.registry.wait_idle()).await;
        stack.recorder.stays_at(1).await;
    }
}

/// Middleware that serves WebSockets is a handler inside the layers. Outside them the layers do not
/// see its connections.
#[tokio::test]
async fn middleware_that_serves_the_websocket_itself() {
    async fn serve(mut request: Request, _: Next) -> Response {
        let response = switching_protocols(&request);
        let upgrade = request.extensions_mut().remove::<OnUpgrade>().unwrap();
        tokio::spawn(async move {
            let io = TokioIo::new(upgrade.await.unwrap());
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            let (sink, stream) = socket.split();
            let data = stream
                .filter(|message| ready(message.as_ref().is_ok_and(|message| message.is_text())));
            let _ = data.forward(sink).await;
        });
        response
    }
    for position in [Position::Inside, Position::Outside] {
        let stack = Stack::new();
        let app = stack.with(position, stack.routes(), |app| app.layer(from_fn(serve)));
        let server = Server::start(app).await;
        let mut client = stack::http1(server.addr, "/ws").await;
        echoes(&mut client).await;
        if position == Position::Inside {
            client.live_until_ping(3).await;
            echoes(&mut client).await;
            assert_eq!(stack.registry.len(), 1);
            drop(client);
            assert_eq!(stack.recorder.nth(1).await.reason, Reason::PeerVanished);
        } else {
            never("a ping", ms(300), client.read_frame()).await;
            stack.assert_no_connection().await;
        }
    }
}
