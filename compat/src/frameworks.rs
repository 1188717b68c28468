//! What frameworks do around the layers, and where they have no place for them.
//! `tests/frameworks.rs` plays these scenes.

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

use crate::client::{Client, Refused};
use crate::protocol::Protocol;
use crate::rig::{Rig, patient, quiet};
use crate::site::Site;
use crate::stack::Stack;
use crate::stacks;
use crate::support::raw::Frame;

/// The 503 of a registry that is full comes from the layer, through whatever a framework has around
/// it. Below HTTP there is nobody to say it.
pub async fn every_stack_refuses_what_is_too_many() {
    let below_http = stacks::tokio_tungstenite::STACK.name;
    for stack in stacks::ALL.iter().filter(|stack| stack.name != below_http) {
        let rig = Rig::start(*stack, Protocol::ALL[0], quiet(), patient()).await;
        rig.registry.limit(0);
        let refused = rig.try_open(None).await.map(|_| "opened");
        let unavailable = Refused::With(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused, Err(unavailable), "{}", stack.name);
        rig.registry.limit(1);
        rig.open().await;
    }
}

/// A connection's handle is in the request's extensions, and each framework has its way to these.
pub async fn every_framework_finds_the_handle() {
    fn warp(site: Site) -> BoxFuture<'static, ()> {
        let routes = warp::path("ws")
            .and(warp::ws())
            .and(warp::ext::get())
            .map(|ws: Ws, live: Liveness| ws.on_upgrade(async move |_| say_goodbye(&live)));
        site.serve_service(warp::service(routes)).boxed()
    }
    fn poem(site: Site) -> BoxFuture<'static, ()> {
        #[poem::handler]
        fn connect(ws: WebSocket, live: Data<&Liveness>) -> impl IntoResponse {
            let live = live.clone();
            ws.on_upgrade(async move |_| say_goodbye(&live))
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
                .upgrade(req, res, async move |_| say_goodbye(&live))
                .await
        }
        stacks::salvo::serve_goal(site, connect).boxed()
    }
    fn jsonrpsee(site: Site) -> BoxFuture<'static, ()> {
        let mut module = RpcModule::new(());
        module
            .register_method("echo", |_, _, extensions| {
                extensions.get::<Liveness>().map(say_goodbye);
            })
            .expect("the only method");
        stacks::jsonrpsee::serve_module(site, module).boxed()
    }
    let all = [
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
        let rig = Rig::start(stack, Protocol::ALL[0], quiet(), patient()).await;
        let mut client = rig.try_open(None).await.expect("an upgrade");
        // Where it takes a message to find a handler. Others may have said goodbye before.
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"echo"}"#;
        let _ = client.frames.send(&Frame::text(call)).await;
        let reason = rig.recorder.nth(1).await.reason;
        assert_eq!(reason, Reason::Kicked { code: 4000 }, "{}", stack.name);
    }
}

fn say_goodbye(live: &Liveness) {
    live.evict(4000, "goodbye");
}

/// poem's adapter for tower services takes hyper's `OnUpgrade` out of the request and leaves it
/// behind: nothing on the other side can upgrade, whether it is behind our layers or not.
pub async fn poem_keeps_the_upgrade_to_itself() {
    let heartbeat = quiet().build().expect("settings of a scene");
    let idle = patient().build().expect("settings of a scene");
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
        assert_eq!(refused, Refused::With(StatusCode::UPGRADE_REQUIRED));
        server.abort();
    }
    assert!(registry.is_empty());
}
