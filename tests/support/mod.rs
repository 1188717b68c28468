//! Helpers of the integration tests: servers, routes, an eviction recorder, bounded waits.
#![allow(dead_code)] // every test binary uses its own part of this

pub(crate) mod h2_client;
pub(crate) mod h2_link;
pub(crate) mod raw;
pub(crate) mod recorder;
pub(crate) mod scene;
pub(crate) mod wire;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{Method, Request, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any};
use axum::serve::ListenerExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tower_ws_liveness::Liveness;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;

use h2_client::H2Client;
use raw::RawClient;
use wire::{Carrier, Client, Wire};

/// Bound on a wait for something that must happen. A correct run never depends on it: it only
/// decides when a failure is reported.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Tolerance on wall-clock bounds for a loaded machine.
pub(crate) const SLACK: Duration = Duration::from_secs(3);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for something that must happen. Panics with its name after [`PATIENCE`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

/// Asserts that the future does not complete during `span`.
pub(crate) async fn never<F>(what: &str, span: Duration, future: F)
where
    F: Future<Output: std::fmt::Debug>,
{
    if let Ok(output) = timeout(span, future).await {
        panic!("{what}: {output:?}");
    }
}

/// Polls `condition` until it holds, for state that sends no notification.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what}: not true within {PATIENCE:?}"
        );
        tokio::time::sleep(ms(2)).await;
    }
}

/// Pseudo-random bytes, different for each seed.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(len)
    .collect()
}

/// Number of live tasks of the current runtime.
pub(crate) fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

// Servers.

/// `axum::serve` on a loopback port. Stops when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    task: JoinHandle<()>,
    /// The HTTP/2 connection that all HTTP/2 clients share.
    h2: OnceCell<Arc<H2Client>>,
}

impl Server {
    pub(crate) async fn start(app: Router) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        // Without it Nagle's algorithm delays small frames: a thousand of them take a minute.
        let listener = listener.tap_io(|io| io.set_nodelay(true).unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let h2 = OnceCell::new();
        Self { addr, task, h2 }
    }

    /// A new client. All HTTP/2 clients share one connection.
    pub(crate) async fn client(&self, wire: Wire, path: &str) -> Client {
        match wire {
            Wire::Http1 => wire.connect(self.addr, path).await,
            Wire::Http2 => RawClient::over(self.stream(path).await),
        }
    }

    /// As [`client`](Self::client), with tungstenite as the client's WebSocket library.
    pub(crate) async fn stock_client(&self, wire: Wire, path: &str) -> WebSocketStream<Carrier> {
        match wire {
            Wire::Http1 => {
                let carrier = Carrier::tcp(self.addr).await;
                let opened = tokio_tungstenite::client_async(self.url(path), carrier);
                within("the opening handshake", opened).await.unwrap().0
            }
            // tungstenite does not speak HTTP/2: it gets the stream after the opening handshake.
            Wire::Http2 => {
                let stream = self.stream(path).await;
                WebSocketStream::from_raw_socket(stream, Role::Client, None).await
            }
        }
    }

    async fn stream(&self, path: &str) -> Carrier {
        let connection = self.h2.get_or_init(|| wire::h2(self.addr)).await;
        Carrier::stream(connection, path).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one HTTP/1.1 connection in memory and returns the client's end.
pub(crate) fn in_memory(app: Router, buffer: usize) -> DuplexStream {
    let (client, server) = tokio::io::duplex(buffer);
    serve_io(app, server);
    client
}

/// Serves one HTTP/1.1 connection over any transport.
pub(crate) fn serve_io<I>(app: Router, io: I) -> JoinHandle<hyper::Result<()>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(app))
        .with_upgrades();
    tokio::spawn(connection)
}

// Handlers.

/// Route of an ordinary axum echo handler, without any use of this crate.
pub(crate) fn echo_route() -> MethodRouter<(), Infallible> {
    any(|ws: WebSocketUpgrade| async move { ws.on_upgrade(echo) })
}

pub(crate) async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Route whose handler gets the upgraded byte stream, without a WebSocket library.
pub(crate) fn bytes_route<H, F>(handler: H) -> MethodRouter<(), Infallible>
where
    H: Fn(TokioIo<Upgraded>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    any(move |mut request: Request<axum::body::Body>| {
        let handler = handler.clone();
        async move {
            let response = switching_protocols(&request);
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    handler(TokioIo::new(upgraded)).await;
                }
            });
            response
        }
    })
}

/// Response to an opening handshake (RFC 6455 section 4.2.2), built by hand.
pub(crate) fn switching_protocols<B>(request: &Request<B>) -> Response {
    if request.method() == Method::CONNECT {
        // An extended CONNECT has no key to answer (RFC 8441 section 5).
        return StatusCode::OK.into_response();
    }
    let key = request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes();
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade".to_owned()),
            (header::UPGRADE, "websocket".to_owned()),
            (header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key)),
        ],
    )
        .into_response()
}

/// Route of this handler, and a receiver of each connection's `Liveness`.
pub(crate) fn watched_route<H, F>(
    handler: H,
) -> (
    MethodRouter<(), Infallible>,
    mpsc::UnboundedReceiver<Liveness>,
)
where
    H: Fn(WebSocket) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        // The test may have dropped the receiver.
        let _ = sender.send(live);
        ws.on_upgrade(handler)
    });
    (route, receiver)
}

/// Wraps any route. Returns it with a receiver of each connection's `Liveness`.
pub(crate) fn report_liveness(
    route: MethodRouter<(), Infallible>,
) -> (
    MethodRouter<(), Infallible>,
    mpsc::UnboundedReceiver<Liveness>,
) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let route = route.layer(from_fn(
        move |live: Liveness, request: axum::extract::Request, next: Next| {
            let _ = sender.send(live);
            next.run(request)
        },
    ));
    (route, receiver)
}

/// Handler that keeps its socket open and never reads it.
pub(crate) async fn never_reads(socket: WebSocket) {
    let _kept = socket;
    std::future::pending().await
}
