//! Our layers on routers in routers, and among middleware of the application's own: what such a
//! middleware may do to a handshake, and what comes of it.

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
    self, Place, Stack, ask_http1, ask_http2, echoes, handshake, refused, works_everywhere,
};
use crate::support::h2_client::H2Client;
use crate::support::raw::Frame;
use crate::support::{Server, echo_route, ms, never, switching_protocols, within};

// Routers.

#[tokio::test]
async fn nested_routers_with_the_layers_on_either_or_both() {
    for (inner, outer) in [(true, false), (false, true), (true, true)] {
        let stack = Stack::new();
        let around = |is_around, app| match is_around {
            true => stack.around(app),
            false => app,
        };
        let app = around(inner, stack.routes());
        let app = around(outer, Router::new().nest("/v1", app));
        let app = Router::new().nest("/api", app);
        stack.lives_and_dies(app, "/api/v1/ws").await;
    }
    // One layer on each.
    let stack = Stack::new();
    let inner = stack.routes().layer(stack.idle.clone());
    let app = Router::new().nest_service("/api", inner);
    let app = app.layer(stack.heartbeat.clone());
    stack.lives_and_dies(app, "/api/ws").await;
}

#[tokio::test]
async fn a_fallback_is_a_route_like_any_other() {
    let stack = Stack::new();
    let app = Router::new().fallback_service(stack.routes());
    stack.lives_and_dies(stack.around(app), "/ws").await;
    let stack = Stack::new();
    let app = Router::new().fallback_service(stack.around(stack.routes()));
    stack.lives_and_dies(app, "/ws").await;
}

/// What a layer is on, it is on: a router that is merged brings no layer along, and gets none.
#[tokio::test]
async fn merged_routers_keep_their_own_layers() {
    let stack = Stack::new();
    let demands = any(|_: Liveness| ready(StatusCode::OK));
    let asks = any(|live: Option<Liveness>| ready(live.is_some().to_string()));
    let bare = Router::new()
        .route("/bare", echo_route())
        .route("/demands", demands.clone())
        .route("/asks", asks.clone());
    let layered = stack.routes().route("/knows", asks);
    let app = bare.merge(stack.around(layered));
    let server = Server::start(app.clone()).await;
    let mut client = stack::http1(server.addr, "/bare").await;
    echoes(&mut client).await;
    never("a ping", ms(300), client.read_frame()).await;
    assert!(stack.registry.is_empty());
    refused(&app, "/demands", StatusCode::INTERNAL_SERVER_ERROR).await;
    for (path, answer) in [("/asks", "false"), ("/knows", "true")] {
        let (response, _) = ask_http1(server.addr, &handshake(path)).await;
        assert_eq!(response.body(), answer);
    }
    stack.untouched().await;
    stack.lives_and_dies(app, "/ws").await;
}

/// `layer` sees what no route was found for, `route_layer` does not. Neither keeps anything of it.
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
    stack.untouched().await;
    // A full house says so to whoever asks it.
    stack.registry.limit(0);
    refused(&route_layered, "/nowhere", StatusCode::NOT_FOUND).await;
    refused(&layered, "/nowhere", StatusCode::SERVICE_UNAVAILABLE).await;
    refused(&route_layered, "/ws", StatusCode::SERVICE_UNAVAILABLE).await;
    stack.registry.limit(None);
    stack.untouched().await;
    stack.lives_and_dies(route_layered, "/ws").await;
}

// Middleware that changes nothing, or little.

#[tokio::test]
async fn middleware_that_passes_everything_on() {
    let pass = |request: Request, next: Next| next.run(request);
    works_everywhere(|app| app.layer(from_fn(pass))).await;
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
    works_everywhere(|app| app.layer(from_fn(read))).await;
}

/// A copy of hyper's `OnUpgrade` does no harm as long as nobody awaits it.
#[tokio::test]
async fn middleware_that_keeps_a_copy_of_the_extensions() {
    async fn copy(request: Request, next: Next) -> Response {
        let copy = request.extensions().clone();
        assert!(copy.get::<OnUpgrade>().is_some());
        let response = next.run(request).await;
        drop(copy);
        response
    }
    works_everywhere(|app| app.layer(from_fn(copy))).await;
}

/// Authentication, say, that knows a client for a phone. Inside of the layers it comes too late for
/// an extension, and has the handle instead.
#[tokio::test]
async fn middleware_that_asks_for_other_times() {
    async fn override_policy(mut request: Request, next: Next) -> Response {
        let patient = PolicyOverride::builder().interval(ms(600_000)).build();
        request.extensions_mut().insert(patient.unwrap());
        next.run(request).await
    }
    async fn set(live: Liveness, request: Request, next: Next) -> Response {
        live.set_interval(ms(600_000)).unwrap();
        next.run(request).await
    }
    for place in [Place::Outside, Place::Between, Place::Inside] {
        let stack = Stack::new();
        let app = stack.with(place, stack.routes(), |app| match place {
            Place::Inside => app.layer(from_fn(set)),
            _ => app.layer(from_fn(override_policy)),
        });
        let server = Server::start(app).await;
        let mut client = stack::http1(server.addr, "/ws").await;
        echoes(&mut client).await;
        never("a ping", ms(400), client.read_frame()).await;
    }
    // The same, too late.
    let stack = Stack::new();
    let app = stack.with(Place::Inside, stack.routes(), |app| {
        app.layer(from_fn(override_policy))
    });
    let server = Server::start(app).await;
    stack::http1(server.addr, "/ws").await.expect_ping().await;
}

// Middleware that takes part in the upgrade.

async fn forbid(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match response.status() {
        // The latter over HTTP/2.
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::OK => StatusCode::FORBIDDEN.into_response(),
        _ => response,
    }
}

/// The peer has not been promised anything yet: there was no connection.
#[tokio::test]
async fn an_upgrade_that_is_taken_back_inside_the_layers_is_none() {
    for place in [Place::Inside, Place::Between] {
        let stack = Stack::new();
        stack.registry.limit(1);
        let app = stack.with(place, stack.routes(), |app| app.layer(from_fn(forbid)));
        for _ in 0..2 {
            refused(&app, "/ws", StatusCode::FORBIDDEN).await;
        }
        stack.untouched().await;
    }
}

/// The layers have seen it promised. Over HTTP/2 they learn at once that it failed; over HTTP/1.1,
/// where hyper keeps its end until then, when the client asks for another upgrade or goes. So
/// whatever may take an upgrade back belongs inside.
#[tokio::test]
async fn an_upgrade_that_is_taken_back_outside_the_layers_has_failed() {
    let stack = Stack::new();
    let app = stack.with(Place::Outside, stack.routes(), |app| {
        app.layer(from_fn(forbid))
    });
    let server = Server::start(app).await;
    let h2 = H2Client::connect(server.addr).await.unwrap();
    let (response, _) = ask_http2(&h2, "/ws").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(stack.recorder.nth(1).await.reason, Reason::UpgradeFailed);
    within("nobody is left", stack.registry.wait_idle()).await;

    stack.registry.limit(1);
    let mut kept = Kept::connect(server.addr).await;
    kept.ask("/ws", StatusCode::FORBIDDEN).await;
    kept.ask("/ws", StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(stack.recorder.nth(2).await.reason, Reason::UpgradeFailed);
    within("nobody is left", stack.registry.wait_idle()).await;
    kept.ask("/ws", StatusCode::FORBIDDEN).await;
    drop(kept);
    // What hyper gives out then has ended.
    assert_eq!(stack.recorder.nth(3).await.reason, Reason::PeerVanished);
    within("nobody is left", stack.registry.wait_idle()).await;
    stack.recorder.stays_at(3).await;
}

/// One HTTP/1.1 connection, kept alive.
struct Kept(SendRequest<Full<Bytes>>);

impl Kept {
    async fn connect(addr: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
        let (requests, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(requests)
    }

    async fn ask(&mut self, path: &str, status: StatusCode) {
        let request = handshake(path).map(|()| Full::default());
        within("the connection", self.0.ready()).await.unwrap();
        let response = within("the response", self.0.send_request(request)).await;
        assert_eq!(response.unwrap().status(), status);
    }
}

/// A refusal that is turned into an upgrade: nobody holds the other end.
#[tokio::test]
async fn an_upgrade_that_the_handler_knows_nothing_of_ends_at_once() {
    async fn insist(request: Request, next: Next) -> Response {
        let accept = switching_protocols(&request);
        let response = next.run(request).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        accept
    }
    for place in [Place::Inside, Place::Outside] {
        let stack = Stack::new();
        let routes = Router::new().route("/no", any(|| ready(StatusCode::FORBIDDEN)));
        let app = stack.with(place, routes, |app| app.layer(from_fn(insist)));
        let server = Server::start(app).await;
        let mut client = stack::http1(server.addr, "/no").await;
        let close = client.closed().await;
        assert_eq!(close, None);
        if place == Place::Inside {
            let event = stack.recorder.nth(1).await;
            assert_eq!(event.reason, Reason::HandlerDropped);
            stack.recorder.stays_at(1).await;
        } else {
            stack.untouched().await;
        }
    }
}

/// Whoever builds a request anew has to take the extensions along: without hyper's `OnUpgrade`
/// nothing can be upgraded, with the layers or without them.
#[tokio::test]
async fn a_request_without_its_extensions_is_no_handshake() {
    async fn strip(mut request: Request, next: Next) -> Response {
        request.extensions_mut().clear();
        next.run(request).await
    }
    async fn is_refused(app: Router) {
        let server = Server::start(app).await;
        let (response, _) = ask_http1(server.addr, &handshake("/ws")).await;
        assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
        let h2 = H2Client::connect(server.addr).await.unwrap();
        let (response, _) = ask_http2(&h2, "/ws").await;
        assert!(response.status().is_client_error(), "{response:?}");
    }
    is_refused(
        Router::new()
            .route("/ws", echo_route())
            .layer(from_fn(strip)),
    )
    .await;
    for place in Place::ALL {
        let stack = Stack::new();
        is_refused(stack.with(place, stack.routes(), |app| app.layer(from_fn(strip)))).await;
        stack.untouched().await;
    }
}

/// A second layer that does not find the handle of the first takes the connection for a new one.
/// Both do their work, the outer one on the transport and the inner one on what it is given.
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
        within("nobody is left", stack.registry.wait_idle()).await;
        stack.recorder.stays_at(1).await;
    }
}

/// A middleware that serves WebSockets by itself. Inside of the layers it is a handler like any
/// other; outside of them the connection is its own.
#[tokio::test]
async fn middleware_that_takes_the_upgrade_for_itself() {
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
    for place in [Place::Inside, Place::Outside] {
        let stack = Stack::new();
        let app = stack.with(place, stack.routes(), |app| app.layer(from_fn(serve)));
        let server = Server::start(app).await;
        let mut client = stack::http1(server.addr, "/ws").await;
        echoes(&mut client).await;
        if place == Place::Inside {
            client.live_until_ping(3).await;
            echoes(&mut client).await;
            assert_eq!(stack.registry.len(), 1);
            drop(client);
            assert_eq!(stack.recorder.nth(1).await.reason, Reason::PeerVanished);
        } else {
            never("a ping", ms(300), client.read_frame()).await;
            stack.untouched().await;
        }
    }
}
