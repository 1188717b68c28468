//! Response body types: the layers keep the type and require `Default`.
//!
//! They need `Default` for the 503 of a full registry. These tests show which stacks compile, and
//! the line that makes the others compile.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::future::ready;
use http_body_util::combinators::{BoxBody, UnsyncBoxBody};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::map_response_body::MapResponseBodyLayer;
use tower_http::metrics::InFlightRequestsLayer;
use tower_http::timeout::{ResponseBodyTimeoutLayer, TimeoutLayer};
use tower_http::trace::TraceLayer;
use tower_ws_liveness::Liveness;
use tungstenite::protocol::Role;

use super::stack::{Stack, handshake, refused, send_http1};
use crate::support::{ms, switching_protocols};

// On a router. `Router::layer` converts every body to axum's, so these are stacks in one
// `ServiceBuilder`.

#[tokio::test]
async fn outside_layers_whose_bodies_are_default() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            ms(1_000),
        ))
        .layer(RequestBodyLimitLayer::new(16));
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(CatchPanicLayer::new());
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
}

#[tokio::test]
async fn inside_any_layer() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(InFlightRequestsLayer::pair().0)
        .layer(ResponseBodyTimeoutLayer::new(ms(100)))
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone());
    stack
        .full_lifecycle(stack.routes().layer(layers), "/ws")
        .await;
}

/// Without the `map_response` line the compiler reports that a `ResponseBody` is not `Default`.
#[tokio::test]
async fn outside_any_layer_with_one_line() {
    let stack = Stack::new();
    let layers = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .map_response(IntoResponse::into_response)
        .layer(TraceLayer::new_for_http())
        .layer(InFlightRequestsLayer::pair().0)
        .layer(ResponseBodyTimeoutLayer::new(ms(100)));
    let app = stack.routes().layer(layers);
    stack.registry.limit(0);
    refused(&app, "/ws", StatusCode::SERVICE_UNAVAILABLE).await;
    stack.registry.limit(None);
    stack.full_lifecycle(app, "/ws").await;
}

// On hyper alone.

#[tokio::test]
async fn hyper_with_each_body_of_http_body_util() {
    on_hyper::<Full<Bytes>>().await;
    on_hyper::<Empty<Bytes>>().await;
    on_hyper::<String>().await;
    on_hyper::<BoxBody<Bytes, Infallible>>().await;
    on_hyper::<UnsyncBoxBody<Bytes, Infallible>>().await;
}

/// Both of our layers around a service with this body, and `TraceLayer` around them.
async fn on_hyper<B>()
where
    B: Body<Data: Send, Error = Infallible> + Default + Send + 'static,
{
    let stack = Stack::new();
    let service = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .service(upgrade::<B>(&stack));
    stack.full_lifecycle_at(serve(service).await, "/ws").await;
}

#[tokio::test]
async fn hyper_outside_any_layer_with_one_line() {
    let stack = Stack::new();
    let service = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(MapResponseBodyLayer::new(BodyExt::boxed_unsync))
        .layer(TraceLayer::new_for_http())
        .service(upgrade::<Full<Bytes>>(&stack));
    let addr = serve(service).await;
    stack.registry.limit(0);
    let (response, _) = send_http1(addr, &handshake("/ws")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    stack.registry.limit(None);
    stack.full_lifecycle_at(addr, "/ws").await;
}

/// A reverse proxy responds with `Incoming`, which is not `Default`.
#[tokio::test]
async fn hyper_with_a_body_that_is_not_default() {
    let stack = Stack::new();
    let proxy =
        |_: Request<Incoming>| async { Err::<Response<Incoming>, _>("there is no backend") };
    let mut service = ServiceBuilder::new()
        .layer(stack.heartbeat.clone())
        .layer(stack.idle.clone())
        .layer(MapResponseBodyLayer::new(BodyExt::boxed))
        .service(service_fn(proxy));
    let _: &mut dyn Service<
        Request<Incoming>,
        Response = Response<BoxBody<Bytes, hyper::Error>>,
        Error = &str,
        Future = _,
    > = &mut service;
}

/// An echo handler without a framework.
fn upgrade<B: Default + Send + 'static>(
    stack: &Stack,
) -> impl Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ use<B> {
    let observe = stack.observer();
    service_fn(move |mut request: Request<Incoming>| {
        let live = request.extensions().get::<Liveness>();
        observe(live.expect("a handle").clone());
        let response = match request.version() {
            Version::HTTP_2 => Response::new(B::default()),
            _ => switching_protocols(&request).map(|_| B::default()),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = TokioIo::new(upgrade.await.unwrap());
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            let (sink, stream) = socket.split();
            let texts = stream
                .filter(|message| ready(message.as_ref().is_ok_and(|message| message.is_text())));
            // Until either side ends.
            let _ = texts.forward(sink).await;
        });
        ready(Ok(response))
    })
}

/// Serves HTTP/1.1 and HTTP/2 until the test ends.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((io, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http2().enable_connect_protocol();
                // An error only means that the client ended its connection.
                let _ = server
                    .serve_connection_with_upgrades(TokioIo::new(io), service)
                    .await;
            });
        }
    });
    addr
}
