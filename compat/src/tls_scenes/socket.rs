//! Scenes: the acceptor applies `TcpOptions` to the socket below TLS.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum::serve::Listener;
use axum_server::accept::Accept;
use axum_server::tls_openssl::{OpenSSLAcceptor, OpenSSLConfig};
use axum_server::tls_rustls::RustlsConfig;
use futures_util::FutureExt;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower_ws_liveness::{HeartbeatLayer, TcpOptions};

use super::client::{ConnectionEnd, open, read_to_end};
use super::{Scene, TlsServer};
use crate::rig::long_heartbeat;
use crate::support::{ms, within};
use crate::tls::{Acceptor, TlsStream};

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum("TcpOptions below TLS on axum::serve", |server| {
        axum(server).boxed()
    }),
    Scene::on_axum_server("TcpOptions below axum-server's TLS", |server| {
        axum_server(server).boxed()
    }),
];

/// A listener for `axum::serve`.
struct TlsListener {
    listener: TcpListener,
    tls: Acceptor,
    options: TcpOptions,
    accepted_sockets: AcceptedSockets,
}

/// An acceptor for axum-server, below its TLS acceptor.
#[derive(Clone)]
struct TuningAcceptor {
    options: TcpOptions,
    accepted_sockets: AcceptedSockets,
}

/// Receives a duplicate of every accepted socket.
type AcceptedSockets = UnboundedSender<OwnedFd>;

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, addr) = Listener::accept(&mut self.listener).await;
            let Ok(io) = self.tls.accept(io).await else {
                continue;
            };
            let socket = io.get_ref();
            // A connection is served even if its socket rejects an option.
            let _ = self.options.apply(socket);
            send_duplicate(socket, &self.accepted_sockets);
            return (io, addr);
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl<S> Accept<TcpStream, S> for TuningAcceptor {
    type Stream = TcpStream;
    type Service = S;
    type Future = Ready<io::Result<(TcpStream, S)>>;

    fn accept(&self, socket: TcpStream, service: S) -> Self::Future {
        let _ = self.options.apply(&socket);
        send_duplicate(&socket, &self.accepted_sockets);
        ready(Ok((socket, service)))
    }
}

async fn axum(server: TlsServer) {
    let (heartbeat, listener) = bind().await;
    let addr = listener.local_addr().expect("a bound listener");
    let (accepted_sockets, sockets) = unbounded_channel();
    let listener = TlsListener {
        listener,
        tls: server.tls.acceptor(),
        options: heartbeat.tcp_options(),
        accepted_sockets,
    };
    let router = router(heartbeat.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    check_options(addr, &heartbeat, sockets).await;
    server.abort();
}

async fn axum_server(server: TlsServer) {
    let (heartbeat, listener) = bind().await;
    let addr = listener.local_addr().expect("a bound listener");
    let (accepted_sockets, sockets) = unbounded_channel();
    let tuning = TuningAcceptor {
        options: heartbeat.tcp_options(),
        accepted_sockets,
    };
    let listener = listener.into_std().expect("a bound listener");
    let service = router(heartbeat.clone()).into_make_service();
    let server = match server.tls.acceptor() {
        Acceptor::Rustls(config) => {
            let config = RustlsConfig::from_config(config);
            let server = axum_server::from_tcp_rustls(listener, config);
            let server = server.expect("a runtime").map(|tls| tls.acceptor(tuning));
            tokio::spawn(server.serve(service))
        }
        Acceptor::OpenSsl(acceptor) => {
            let acceptor = OpenSSLAcceptor::new(OpenSSLConfig::from_acceptor(acceptor));
            let server = axum_server::from_tcp(listener).expect("a runtime");
            let server = server.acceptor(acceptor.acceptor(tuning));
            tokio::spawn(server.serve(service))
        }
        Acceptor::Native(_) => panic!("axum-server has no native-tls"),
    };
    check_options(addr, &heartbeat, sockets).await;
    server.abort();
}

async fn bind() -> (HeartbeatLayer, TcpListener) {
    // None of these equals a default of the layer or of the kernel.
    let heartbeat = long_heartbeat().interval(ms(41_000)).timeout(ms(7_000));
    let heartbeat = heartbeat.missed_pings(4).build();
    let bound = TcpListener::bind(("127.0.0.1", 0)).await;
    (
        heartbeat.expect("valid settings"),
        bound.expect("a free port"),
    )
}

fn router(heartbeat: HeartbeatLayer) -> Router {
    let route = any(async |ws: WebSocketUpgrade| {
        ws.on_upgrade(async |mut socket: WebSocket| while socket.recv().await.is_some() {})
    });
    Router::new().route("/ws", route).layer(heartbeat)
}

/// Opens a WebSocket and checks the options of its socket.
async fn check_options(
    addr: SocketAddr,
    heartbeat: &HeartbeatLayer,
    mut sockets: UnboundedReceiver<OwnedFd>,
) {
    let mut client = open(addr).await;
    let socket = within("the socket", sockets.recv()).await;
    let socket = socket.expect("the server runs");
    let options = heartbeat.tcp_options();
    let keepalive = options.keepalive.expect("keepalive is on by default");
    let actual = SockRef::from(&socket);
    assert_eq!(actual.tcp_notsent_lowat().ok(), options.unsent_limit);
    assert_eq!(actual.tcp_user_timeout().ok(), Some(options.user_timeout));
    assert!(actual.keepalive().expect("a socket"));
    assert_eq!(actual.tcp_keepalive_time().ok(), Some(keepalive.idle));
    assert_eq!(
        actual.tcp_keepalive_interval().ok(),
        Some(keepalive.interval)
    );
    assert_eq!(actual.tcp_keepalive_retries().ok(), Some(keepalive.retries));
    assert_eq!((keepalive.idle, keepalive.retries), (ms(41_000), 4));
    drop(socket);

    client.shutdown().await.expect("a write of an alert");
    assert_eq!(read_to_end(&mut client).await, ConnectionEnd::DROPPED);
}

fn send_duplicate(socket: &TcpStream, accepted_sockets: &AcceptedSockets) {
    let socket = socket.as_fd().try_clone_to_owned();
    let sent = accepted_sockets.send(socket.expect("a file descriptor"));
    sent.expect("the scene still runs");
}
