//! What the integration tests share: servers, a recorder of evictions, bounded waits.
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

/// How long a test waits for something that must come. Generous: it only decides how late a
/// failure is noticed, never whether a correct run passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a loaded machine may add to a bound that is measured on the wall clock.
pub(crate) const SLACK: Duration = Duration::from_secs(3);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for something that must happen, and names it if it does not.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

/// Asserts that something does *not* happen during `span`.
pub(crate) async fn never<F>(what: &str, span: Duration, future: F)
where
    F: Future<Output: std::fmt::Debug>,
{
    if let Ok(output) = timeout(span, future).await {
        panic!("{what}: {output:?}");
    }
}

/// Waits until `condition` holds, for conditions that nobody announces.
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

/// Bytes that repeat at no power of two, different for each seed.
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

/// The tasks alive on this runtime.
pub(crate) fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

// Servers.

/// `axum::serve` on a loopback port, until dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    task: JoinHandle<()>,
    /// The connection that the clients over HTTP/2 share.
    h2: OnceCell<Arc<H2Client>>,
}

impl Server {
    pub(crate) async fn start(app: Router) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        // Small frames leave at once, or a test of a thousand of them takes a minute.
        let listener = listener.tap_io(|io| io.set_nodelay(true).unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let h2 = OnceCell::new();
        Self { addr, task, h2 }
    }

    /// A new client. All that come over HTTP/2 share one connection.
    pub(crate) async fn client(&self, wire: Wire, path: &str) -> Client {
        match wire {
            Wire::Http1 => wire.connect(self.addr, path).await,
            Wire::Http2 => RawClient::over(self.stream(path).await),
        }
    }

    /// The same, with a WebSocket library at the client's end.
    pub(crate) async fn stock_client(&self, wire: Wire, path: &str) -> WebSocketStream<Carrier> {
        match wire {
            Wire::Http1 => {
                let carrier = Carrier::tcp(self.addr).await;
                let opened = tokio_tungstenite::client_async(self.url(path), carrier);
                within("the opening handshake", opened).await.unwrap().0
            }
            // The library does not speak HTTP/2, and need not: the handshake is done.
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

/// Serves one HTTP/1.1 connection in memory and returns the client's end of it.
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

/// The route of an echo handler as any axum application writes it: it knows nothing of the layers.
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

/// A route whose handler gets the upgraded byte stream itself, without any WebSocket library.
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

/// The answer to an opening handshake (RFC 6455 section 4.2.2), by hand.
pub(crate) fn switching_protocols<B>(request: &Request<B>) -> Response {
    if request.method() == Method::CONNECT {
        // Nothing to prove (RFC 8441 section 5).
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

/// A route with this handler, which also hands the test each connection's `Liveness`.
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
    let (tell, told) = mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        // Nobody may be listening any more.
        let _ = tell.send(live);
        ws.on_upgrade(handler)
    });
    (route, told)
}

/// A route that also hands the test each connection's `Liveness`, whatever its handler does.
pub(crate) fn report_liveness(
    route: MethodRouter<(), Infallible>,
) -> (
    MethodRouter<(), Infallible>,
    mpsc::UnboundedReceiver<Liveness>,
) {
    let (tell, told) = mpsc::unbounded_channel();
    let route = route.layer(from_fn(
        move |live: Liveness, request: axum::extract::Request, next: Next| {
            let _ = tell.send(live);
            next.run(request)
        },
    ));
    (route, told)
}

/// The handler that is busy with other things: it keeps the socket and never looks at it.
pub(crate) async fn never_reads(socket: WebSocket) {
    let _kept = socket;
    std::future::pending().await
}
