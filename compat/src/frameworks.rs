//! Scenes for frameworks around the layers, which `tests/frameworks.rs` runs.

use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use http_body_util::combinators::BoxBody;
use hyper::upgrade::OnUpgrade;
use jsonrpsee::RpcModule;
use poem::endpoint::TowerCompatExt;
use poem::listener::TcpAcceptor;
use poem::web::Data;
use poem::web::websocket::WebSocket;
use poem::{EndpointExt, IntoResponse, Route, Server};
use salvo::http::StatusError;
use salvo::websocket::WebSocketUpgrade;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_ws_liveness::{Liveness, Reason};
use warp::Filter;
use warp::ws::Ws;

use crate::client::{Client, Refusal};
use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::site::Site;
use crate::stack::Stack;
use crate::stacks;
use crate::support::raw::Frame;

/// A full registry makes the layer respond with 503, which passes through the framework. Below HTTP
/// there is no response to send.
pub async fn a_full_registry_responds_503_on_every_stack() {
    let below_http = stacks::tokio_tungstenite::STACK.name;
    for stack in stacks::ALL.iter().filter(|stack| stack.name != below_http) {
        let rig = Rig::start(*stack, Protocol::ALL[0], long_heartbeat(), long_idle()).await;
        rig.registry.limit(0);
        let refused = rig.try_open(None).await.map(|_| "opened");
        let unavailable = Refusal::Status(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused, Err(unavailable), "{}", stack.name);
        rig.registry.limit(1);
        rig.open().await;
    }
}

/// Every framework gives its handlers access to the connection's handle in the request's
/// extensions.
pub async fn handlers_of_every_framework_find_the_handle() {
    fn axum07(site: Site) -> BoxFuture<'static, ()> {
        // `Liveness` is an extractor for axum 0.8 only.
        let connect = |ws: axum07::extract::WebSocketUpgrade,
                       axum07::Extension(live): axum07::Extension<Liveness>| async {
            ws.on_upgrade(async move |_| evict(&live))
        };
        let router = axum07::Router::new().route("/ws", axum07::routing::any(connect));
        stacks::axum07::serve_router(site, router).boxed()
    }
    fn warp(site: Site) -> BoxFuture<'static, ()> {
        let routes = warp::path("ws")
            .and(warp::ws())
            .and(warp::ext::get())
            .map(|ws: Ws, live: Liveness| ws.on_upgrade(async move |_| evict(&live)));
        site.serve_service(warp::service(routes)).boxed()
    }
    fn poem(site: Site) -> BoxFuture<'static, ()> {
        #[poem::handler]
        fn connect(ws: WebSocket, live: Data<&Liveness>) -> impl IntoResponse {
            let live = live.clone();
            ws.on_upgrade(async move |_| evict(&live))
        }
        stacks::poem::serve_app(site, Route::new().at("/ws", connect)).boxed()
    }
    fn salvo(site: Site) -> BoxFuture<'static, ()> {
        #[salvo::handler]
        async fn connect(
            req: &mut salvo::Request,
            res: &mut salvo::Response,
        ) -> Result<(), StatusError> {
            let live = req.extensions().get::<Liveness>().cloned();
            let live = live.ok_or_else(StatusError::internal_server_error)?;
            WebSocketUpgrade::new()
                .upgrade(req, res, async move |_| evict(&live))
                .await
        }
        stacks::salvo::serve_goal(site, connect).boxed()
    }
    fn jsonrpsee(site: Site) -> BoxFuture<'static, ()> {
        let mut module = RpcModule::new(());
        module
            .register_method("echo", |_, _, extensions| {
                extensions.get::<Liveness>().map(evict);
            })
            .expect("the only method");
        stacks::jsonrpsee::serve_module(site, module).boxed()
    }
    let all = [
        Stack {
            serve: axum07,
            ..stacks::axum07::STACK
        },
        Stack {
            serve: warp,
            ..stacks::warp::STACK
        },
        Stack {
            serve: poem,
            ..stacks::poem::STACK
        },
        Stack {
            serve: salvo,
            ..stacks::salvo::STACK
        },
        Stack {
            serve: jsonrpsee,
            ..stacks::jsonrpsee::STACK
        },
    ];
    for stack in all {
        let rig = Rig::start(stack, Protocol::ALL[0], long_heartbeat(), long_idle()).await;
        let mut client = rig.try_open(None).await.expect("an upgrade");
        // jsonrpsee calls a handler only on a message. The others may have closed the connection
        // already, so the write may fail.
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"echo"}"#;
        let _ = client.frames.send(&Frame::text(call)).await;
        let reason = rig.recorder.nth(1).await.reason;
        assert_eq!(reason, Reason::Kicked { code: 4000 }, "{}", stack.name);
    }
}

fn evict(live: &Liveness) {
    live.evict(4000, "done");
}

/// poem's adapter for tower services drops hyper's `OnUpgrade` from the request, so that a service
/// behind it cannot upgrade, with the layers or without them.
pub async fn poems_tower_adapter_drops_the_upgrade() {
    let heartbeat = long_heartbeat().build().expect("valid settings");
    let idle = long_idle().build().expect("valid settings");
    let registry = heartbeat.registry();
    let app = tower::service_fn(async |request: Request<BoxBody<Bytes, io::Error>>| {
        let mut response = Response::new(Full::<Bytes>::default());
        if request.extensions().get::<OnUpgrade>().is_none() {
            *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        }
        Ok::<_, poem::Error>(response)
    });
    let layered = ServiceBuilder::new()
        .layer(heartbeat)
        .layer(idle)
        .service(app);
    for endpoint in [app.compat().boxed(), layered.compat().boxed()] {
        let bound = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = bound.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let acceptor = TcpAcceptor::from_tokio(listener).expect("a bound listener");
        let server = tokio::spawn(Server::new_with_acceptor(acceptor).run(endpoint));
        let opened = Client::open(addr, Protocol::ALL[0], "/ws", None).await;
        let refused = opened.map(|_| "opened").expect_err("no upgrade");
        assert_eq!(refused, Refusal::Status(StatusCode::UPGRADE_REQUIRED));
        server.abort();
    }
    assert!(registry.is_empty());
}
