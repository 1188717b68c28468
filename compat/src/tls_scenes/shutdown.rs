//! axum-server's graceful shutdown together with the registry's drain closes everything.
//!
//! The shutdown waits for HTTP connections, the drain for WebSockets.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum_server::Handle;
use axum_server::tls_openssl::{OpenSSLAcceptor, OpenSSLConfig};
use axum_server::tls_rustls::RustlsConfig;
use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower_ws_liveness::{Drain, HeartbeatLayer, Registry};

use super::client::{ConnectionEnd, open, read_to_end};
use super::{Scene, TlsServer};
use crate::client::Client;
use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::rig::long_heartbeat;
use crate::support::raw::Frame;
use crate::support::{never, until, within};
use crate::tls::Acceptor;

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum_server("a graceful shutdown and a drain over HTTP/1.1", |server| {
        http1(server).boxed()
    }),
    Scene::on_axum_server("a graceful shutdown and a drain over HTTP/2", |server| {
        http2(server).boxed()
    }),
];

/// Grace period of axum-server, longer than the scene.
const GRACE_PERIOD: Duration = Duration::from_secs(600);

/// A running axum-server.
struct Serving {
    addr: SocketAddr,
    handle: Handle<SocketAddr>,
    registry: Registry,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    async fn start(server: TlsServer) -> Self {
        let heartbeat = long_heartbeat().build().expect("valid settings");
        let registry = heartbeat.registry();
        let bound = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = bound.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let handle = Handle::new();
        let listener = listener.into_std().expect("a bound listener");
        let service = router(heartbeat).into_make_service();
        let serving = match server.tls.acceptor() {
            Acceptor::Rustls(config) => {
                let config = RustlsConfig::from_config(config);
                let server = axum_server::from_tcp_rustls(listener, config);
                let mut server = server.expect("a runtime").handle(handle.clone());
                server.http_builder().http2().enable_connect_protocol();
                tokio::spawn(server.serve(service))
            }
            Acceptor::OpenSsl(acceptor) => {
                let acceptor = OpenSSLAcceptor::new(OpenSSLConfig::from_acceptor(acceptor));
                let server = axum_server::from_tcp(listener).expect("a runtime");
                let mut server = server.acceptor(acceptor).handle(handle.clone());
                server.http_builder().http2().enable_connect_protocol();
                tokio::spawn(server.serve(service))
            }
            Acceptor::Native(_) => panic!("axum-server has no native-tls"),
        };
        Self {
            addr,
            handle,
            registry,
            serving,
        }
    }

    /// Waits until the port is closed.
    async fn wait_until_closed(&self) {
        let closed = async { while TcpStream::connect(self.addr).await.is_ok() {} };
        within("a closed port", closed).await;
    }
}

/// axum-server's shutdown completes immediately, and the WebSocket stays open (axum-server#40).
async fn http1(server: TlsServer) {
    let mut server = Serving::start(server).await;
    let mut client = open(server.addr).await;
    until("the connection", || !server.registry.is_empty()).await;
    server.handle.graceful_shutdown(Some(GRACE_PERIOD));
    let served = within("the end of axum-server", &mut server.serving).await;
    served.expect("no panic").expect("no error");
    let hello = Frame::text("hello");
    client.send(&hello).await.expect("an open connection");
    assert_eq!(client.expect_frame().await, hello, "still served");

    let drain = server.registry.drain(Drain::default());
    let (report, end) = tokio::join!(within("the drain", drain), read_to_end(&mut client));
    assert_eq!((report.clean(), report.total()), (1, 1));
    assert_eq!(end.close.as_ref().and_then(Frame::close_code), Some(1001));
    assert_eq!(end, ConnectionEnd::clean(end.close.clone()));
}

/// The WebSocket is a stream of an HTTP/2 connection, for which axum-server would wait until the
/// end of the grace period.
async fn http2(server: TlsServer) {
    let protocol = Protocol {
        http: HttpVersion::Two,
        tls: Some(server.tls),
    };
    let mut server = Serving::start(server).await;
    let opened = Client::open(server.addr, protocol, "/ws", None).await;
    let mut client = opened.expect("an upgrade");
    until("the connection", || !server.registry.is_empty()).await;
    server.handle.graceful_shutdown(Some(GRACE_PERIOD));
    server.wait_until_closed().await;
    let span = Duration::from_millis(100);
    never("the end of axum-server", span, &mut server.serving).await;

    let drain = server.registry.drain(Drain::default());
    let answer_close = async {
        let close = client.frames.expect_frame().await;
        client
            .frames
            .send(&close)
            .await
            .expect("an open connection");
        close.close_code()
    };
    let (report, code) = tokio::join!(within("the drain", drain), answer_close);
    assert_eq!((report.clean(), report.total()), (1, 1));
    assert_eq!(code, Some(1001));
    let served = within("the end of axum-server", &mut server.serving).await;
    served.expect("no panic").expect("no error");
}

fn router(heartbeat: HeartbeatLayer) -> Router {
    let route = any(async |ws: WebSocketUpgrade| ws.on_upgrade(echo));
    Router::new().route("/ws", route).layer(heartbeat)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}
