//! The options of the socket below TLS, which are the acceptor's to set.

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

use super::client::{End, end, open};
use super::{Scene, Server};
use crate::rig::quiet;
use crate::support::{ms, within};
use crate::tls::{Acceptor, TlsStream};

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum("TcpOptions below a TLS of tokio's", |server| {
        axum(server).boxed()
    }),
    Scene::on_axum_server("TcpOptions below axum-server's TLS", |server| {
        axum_server(server).boxed()
    }),
];

/// For `axum::serve`.
struct TlsListener {
    listener: TcpListener,
    tls: Acceptor,
    options: TcpOptions,
    witness: Witness,
}

/// For axum-server, below its own acceptor of TLS.
#[derive(Clone)]
struct Tuned {
    options: TcpOptions,
    witness: Witness,
}

/// Gets every socket that was accepted once more.
type Witness = UnboundedSender<OwnedFd>;

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
            // A socket that refuses them serves as it is.
            let _ = self.options.apply(socket);
            show(socket, &self.witness);
            return (io, addr);
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl<S> Accept<TcpStream, S> for Tuned {
    type Stream = TcpStream;
    type Service = S;
    type Future = Ready<io::Result<(TcpStream, S)>>;

    fn accept(&self, socket: TcpStream, service: S) -> Self::Future {
        let _ = self.options.apply(&socket);
        show(&socket, &self.witness);
        ready(Ok((socket, service)))
    }
}

async fn axum(server: Server) {
    let (heartbeat, listener) = begin().await;
    let addr = listener.local_addr().expect("a bound listener");
    let (witness, sockets) = unbounded_channel();
    let listener = TlsListener {
        listener,
        tls: server.tls.acceptor(),
        options: heartbeat.tcp_options(),
        witness,
    };
    let router = router(heartbeat.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    watch(addr, &heartbeat, sockets).await;
    server.abort();
}

async fn axum_server(server: Server) {
    let (heartbeat, listener) = begin().await;
    let addr = listener.local_addr().expect("a bound listener");
    let (witness, sockets) = unbounded_channel();
    let tuned = Tuned {
        options: heartbeat.tcp_options(),
        witness,
    };
    let listener = listener.into_std().expect("a listener of tokio's");
    let service = router(heartbeat.clone()).into_make_service();
    let server = match server.tls.acceptor() {
        Acceptor::Rustls(config) => {
            let config = RustlsConfig::from_config(config);
            let server = axum_server::from_tcp_rustls(listener, config);
            let server = server.expect("a runtime").map(|tls| tls.acceptor(tuned));
            tokio::spawn(server.serve(service))
        }
        Acceptor::OpenSsl(acceptor) => {
            let acceptor = OpenSSLAcceptor::new(OpenSSLConfig::from_acceptor(acceptor));
            let server = axum_server::from_tcp(listener).expect("a runtime");
            let server = server.acceptor(acceptor.acceptor(tuned));
            tokio::spawn(server.serve(service))
        }
        Acceptor::Native(_) => panic!("axum-server has no native-tls"),
    };
    watch(addr, &heartbeat, sockets).await;
    server.abort();
}

async fn begin() -> (HeartbeatLayer, TcpListener) {
    // None of these is anybody's default.
    let heartbeat = quiet().interval(ms(41_000)).timeout(ms(7_000));
    let heartbeat = heartbeat.missed_pings(4).build();
    let bound = TcpListener::bind(("127.0.0.1", 0)).await;
    (
        heartbeat.expect("settings of a scene"),
        bound.expect("a free port"),
    )
}

fn router(heartbeat: HeartbeatLayer) -> Router {
    let route = any(async |ws: WebSocketUpgrade| {
        ws.on_upgrade(async |mut socket: WebSocket| while socket.recv().await.is_some() {})
    });
    Router::new().route("/ws", route).layer(heartbeat)
}

/// Opens a WebSocket, and looks at the socket that it is on.
async fn watch(
    addr: SocketAddr,
    heartbeat: &HeartbeatLayer,
    mut sockets: UnboundedReceiver<OwnedFd>,
) {
    let mut client = open(addr).await;
    let socket = within("the socket", sockets.recv()).await;
    let socket = socket.expect("the server lives");
    let options = heartbeat.tcp_options();
    let keepalive = options.keepalive.expect("it is on by default");
    let seen = SockRef::from(&socket);
    assert_eq!(seen.tcp_notsent_lowat().ok(), options.unsent_limit);
    assert_eq!(seen.tcp_user_timeout().ok(), Some(options.user_timeout));
    assert!(seen.keepalive().expect("a socket"));
    assert_eq!(seen.tcp_keepalive_time().ok(), Some(keepalive.idle));
    assert_eq!(seen.tcp_keepalive_interval().ok(), Some(keepalive.interval));
    assert_eq!(seen.tcp_keepalive_retries().ok(), Some(keepalive.retries));
    assert_eq!((keepalive.idle, keepalive.retries), (ms(41_000), 4));
    drop(socket);

    client.shutdown().await.expect("room for an alert");
    assert_eq!(end(&mut client).await, End::LET_GO);
}

fn show(socket: &TcpStream, witness: &Witness) {
    let socket = socket.as_fd().try_clone_to_owned();
    let shown = witness.send(socket.expect("a file descriptor"));
    shown.expect("the scene goes on");
}
