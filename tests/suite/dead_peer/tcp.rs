//! TCP sockets: which options the layers set on them, and the effect of each option.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::Message;
use axum::serve::ListenerExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tower_ws_liveness::{
    Health, HeartbeatLayer, HeartbeatLayerBuilder, IdleTimeoutLayer, Reason, TcpKeepalive,
    TcpOptions,
};

use crate::support::h2_client::H2Client;
use crate::support::raw::{BINARY, Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::{
    self, Server, bytes_route, echo_route, ms, noise, report_liveness, serve_io, until,
    watched_route, within,
};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// Options as the kernel reports them.

/// The options of a socket that the layers may change.
#[derive(Clone, Debug, PartialEq)]
struct SocketOptions {
    unsent_limit: u32,
    user_timeout: Option<Duration>,
    keepalive: Option<TcpKeepalive>,
}

fn options_of(socket: &Socket) -> SocketOptions {
    SocketOptions {
        unsent_limit: socket.tcp_notsent_lowat().unwrap(),
        user_timeout: socket.tcp_user_timeout().unwrap(),
        keepalive: socket.keepalive().unwrap().then(|| {
            TcpKeepalive::new(
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_interval().unwrap(),
                socket.tcp_keepalive_retries().unwrap(),
            )
        }),
    }
}

/// The options of a socket after `options` are applied.
fn as_set(options: &TcpOptions) -> SocketOptions {
    SocketOptions {
        unsent_limit: options.unsent_limit.unwrap(),
        user_timeout: options.user_timeout,
        keepalive: options.keepalive,
    }
}

/// The options of a new socket.
async fn default_options() -> SocketOptions {
    let (socket, _peer) = tcp().await;
    options_of(&SockRef::from(&socket))
}

/// Both ends of a TCP connection.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (peer, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (accepted.unwrap().0, peer.unwrap())
}

// Servers that also pass the accepted sockets to the test.

/// `axum::serve`, with a receiver of the accepted sockets.
async fn serve(app: Router) -> (SocketAddr, mpsc::UnboundedReceiver<Socket>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, rx) = mpsc::unbounded_channel();
    let listener = listener.tap_io(move |io| {
        io.set_nodelay(true).unwrap();
        let _ = tx.send(SockRef::from(&*io).try_clone().unwrap());
    });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (addr, rx)
}

/// hyper-util's `auto` connection, which serves HTTP/1.1 and HTTP/2.
fn serve_auto<I>(app: Router, io: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let builder = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(app);
        let _ = builder
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .await;
    });
}

fn serve_http1<I>(app: Router, io: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    drop(serve_io(app, io));
}

type Serve = fn(Router, TcpStream);

/// The servers for one socket.
const SERVERS: [(&str, Serve); 2] = [("http1", serve_http1), ("auto", serve_auto)];

/// A heartbeat whose durations are visible in the socket options and do not expire in a test.
fn heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(secs(41))
        .timeout(secs(17))
        .missed_pings(5)
}

fn echo_app() -> Router {
    Router::new().route("/ws", echo_route())
}

async fn assert_echoes<S: AsyncRead + AsyncWrite + Unpin>(client: &mut RawClient<S>) {
    let message = Frame::text("hello");
    client.send(&message).await.unwrap();
    assert_eq!(client.expect_frame().await, message);
}

/// The options of a socket over which `app` echoes, behind `axum::serve`.
async fn options_behind(app: Router) -> SocketOptions {
    let (addr, mut sockets) = serve(app).await;
    let mut client = RawClient::connect(addr, "/ws").await;
    assert_echoes(&mut client).await;
    options_of(&sockets.recv().await.unwrap())
}

// Options.

#[tokio::test]
async fn the_layer_sets_the_options_behind_axum_serve() {
    let layer = heartbeat().build().unwrap();
    let expected = TcpKeepalive::new(secs(41), secs(17), 5);
    let options = options_behind(echo_app().layer(layer.clone())).await;
    assert_eq!(options.keepalive, Some(expected));
    assert_eq!(options.user_timeout, Some(secs(41 + 6 * 17 + 17)));
    assert_eq!(options.unsent_limit, 16 * 1024);
    assert_eq!(options, as_set(&layer.tcp_options()));

    let defaults = HeartbeatLayer::default();
    let options = options_behind(echo_app().layer(defaults)).await;
    assert_eq!(options, as_set(&TcpOptions::default()));

    let patient = heartbeat().write_timeout(None).build().unwrap();
    let options = options_behind(echo_app().layer(patient)).await;
    assert_eq!(
        (options.user_timeout, options.keepalive),
        (None, Some(expected))
    );
}

#[tokio::test]
async fn the_layer_sets_the_options_on_hyper_servers() {
    for (name, serve) in SERVERS {
        let layer = heartbeat().build().unwrap();
        let (server, peer) = tcp().await;
        let socket = SockRef::from(&server).try_clone().unwrap();
        serve(echo_app().layer(layer.clone()), server);
        let mut client = RawClient::handshake(peer, "/ws").await;
        assert_echoes(&mut client).await;
        assert_eq!(options_of(&socket), as_set(&layer.tcp_options()), "{name}");
    }
}

#[tokio::test]
async fn the_innermost_heartbeat_decides_the_options() {
    let (one, other) = (heartbeat(), heartbeat().interval(secs(97)));
    let (on, off) = (one.build().unwrap(), other.tune_tcp(false).build().unwrap());
    let options = options_behind(echo_app().layer(on.clone()).layer(off.clone())).await;
    assert_eq!(options, as_set(&on.tcp_options()));
    let options = options_behind(echo_app().layer(off).layer(on)).await;
    assert_eq!(options, default_options().await);
}

/// The kernel must not end a connection whose timeout was extended, such as a phone's.
#[tokio::test]
async fn options_follow_changes_of_interval_and_timeout() {
    for tuned in [true, false] {
        let (route, mut lives) = watched_route(support::echo);
        let layer = heartbeat().tune_tcp(tuned).build().unwrap();
        let (addr, mut sockets) = serve(Router::new().route("/ws", route).layer(layer)).await;
        let mut client = RawClient::connect(addr, "/ws").await;
        assert_echoes(&mut client).await;
        let (live, socket) = (lives.recv().await.unwrap(), sockets.recv().await.unwrap());

        live.set_timeout(secs(600)).unwrap();
        live.set_interval(secs(77)).unwrap();
        let longer = heartbeat().timeout(secs(600)).interval(secs(77));
        let expected = match tuned {
            true => as_set(&longer.build().unwrap().tcp_options()),
            false => default_options().await,
        };
        assert_eq!(options_of(&socket), expected);

        // More than the kernel accepts: the option is switched off.
        live.set_timeout(secs(365 * 24 * 3600)).unwrap();
        assert_eq!(options_of(&socket).user_timeout, None);
        assert_echoes(&mut client).await;
    }
}

#[tokio::test]
async fn without_tune_tcp_or_a_heartbeat_the_options_are_unchanged() {
    let off = heartbeat().tune_tcp(false).build().unwrap();
    assert_eq!(
        options_behind(echo_app().layer(off)).await,
        default_options().await
    );
    let idle = IdleTimeoutLayer::new(secs(300));
    assert_eq!(
        options_behind(echo_app().layer(idle)).await,
        default_options().await
    );
}

#[tokio::test]
async fn options_can_be_applied_to_accepted_sockets() {
    let layer = heartbeat().tune_tcp(false).build().unwrap();
    let mut options = layer.tcp_options();
    options.user_timeout = Some(secs(600));
    options.unsent_limit = Some(64 * 1024);
    let expected = as_set(&options);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, mut sockets) = mpsc::unbounded_channel();
    let listener = listener.tap_io(move |io| {
        options.apply(io).unwrap();
        let _ = tx.send(SockRef::from(&*io).try_clone().unwrap());
    });
    let app = echo_app().layer(layer);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mut client = RawClient::connect(addr, "/ws").await;
    assert_echoes(&mut client).await;
    assert_eq!(options_of(&sockets.recv().await.unwrap()), expected);
}

// Other transports.

#[tokio::test]
async fn an_http2_socket_is_shared_and_its_options_are_unchanged() {
    let (addr, mut sockets) = serve(echo_app().layer(heartbeat().build().unwrap())).await;
    let h2 = H2Client::connect(addr).await.unwrap();
    let (response, stream) = h2.websocket("http://localhost/ws").await.unwrap();
    assert!(response.status().is_success());
    assert_echoes(&mut RawClient::over(stream)).await;
    let options = options_of(&sockets.recv().await.unwrap());
    assert_eq!(options, default_options().await);
}

#[tokio::test]
async fn a_unix_socket_is_pinged_and_echoes() {
    let recorder = Recorder::new();
    let layer = HeartbeatLayer::builder()
        .interval(ms(20))
        .timeout(secs(20))
        .on_evict(recorder.hook());
    let app = echo_app().layer(layer.build().unwrap());
    // An abstract name, which needs no file and is freed with the listener.
    let name = format!("\0tower-ws-liveness-{}", std::process::id());
    let listener = UnixListener::bind(&name).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let io = UnixStream::connect(&name).await.unwrap();
    let mut client = RawClient::handshake(io, "/ws").await;
    client.live_until_ping(3).await;
    assert_echoes(&mut client).await;
    drop(client);
    recorder.nth(1).await;
}

/// A `TcpStream` over a Unix socket, on which the kernel refuses every TCP option.
#[tokio::test]
async fn a_socket_that_refuses_the_options_is_served() {
    let (server, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    let server = std::net::TcpStream::from(OwnedFd::from(server));
    let server = TcpStream::from_std(server).unwrap();
    assert!(TcpOptions::default().apply(&server).is_err());

    let layer = heartbeat().interval(ms(20)).build().unwrap();
    serve_http1(echo_app().layer(layer), server);
    let peer = UnixStream::from_std(peer).unwrap();
    let mut client = RawClient::handshake(peer, "/ws").await;
    client.live_until_ping(2).await;
    assert_echoes(&mut client).await;
}

// The effect of the options.

#[tokio::test]
async fn vectored_writes_reach_the_socket_in_one_call() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let route = bytes_route(move |mut io| {
        let tx = tx.clone();
        async move {
            let frame = Frame::text("vectored").unmasked();
            let slices: Vec<_> = frame.chunks(2).map(io::IoSlice::new).collect();
            let written = io.write_vectored(&slices).await.unwrap();
            let _ = tx.send((io.is_write_vectored(), written, frame.len()));
            let _ = io.read(&mut [0]).await;
        }
    });
    let app = Router::new().route("/ws", route);
    let (addr, _sockets) = serve(app.layer(heartbeat().build().unwrap())).await;
    let mut client = RawClient::connect(addr, "/ws").await;
    assert_eq!(client.expect_frame().await, Frame::text("vectored"));
    let (vectored, written, len) = rx.recv().await.unwrap();
    assert!(vectored);
    assert_eq!(written, len, "one call for all slices");
}

/// The bytes that the server's kernel accepts for a peer that reads nothing and has a small buffer.
async fn accepted_bytes_for_a_stalled_peer(layer: HeartbeatLayer) -> usize {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let route = bytes_route(move |mut io| {
        let count = Arc::clone(&count);
        async move {
            // One message of 64 MB.
            let mut head = vec![0x82, 127];
            head.extend_from_slice(&64_000_000_u64.to_be_bytes());
            io.write_all(&head).await.unwrap();
            while let Ok(written) = io.write(&[0; 4_096]).await {
                count.fetch_add(written, Ordering::SeqCst);
            }
        }
    });
    let (route, mut lives) = report_liveness(route);
    let server = Server::start(Router::new().route("/ws", route).layer(layer)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let io = socket.connect(server.addr).await.unwrap();
    let _client = RawClient::handshake(io, "/ws").await;
    let live = lives.recv().await.unwrap();
    let full = async {
        loop {
            let before = accepted.load(Ordering::SeqCst);
            tokio::time::sleep(ms(300)).await;
            let after = accepted.load(Ordering::SeqCst);
            if after == before && live.health() == Health::WriteStalled {
                return after;
            }
        }
    };
    within("the kernel takes no more", full).await
}

#[tokio::test]
async fn the_unsent_limit_bounds_the_bytes_queued_before_a_ping() {
    let off = heartbeat().tune_tcp(false).build().unwrap();
    let without = accepted_bytes_for_a_stalled_peer(off).await;
    let on = heartbeat().build().unwrap();
    let with = accepted_bytes_for_a_stalled_peer(on).await;
    println!("accepted without a limit: {without} bytes, with it: {with}");
    // The limit, the peer's buffer, and rounding up to whole segments.
    assert!(with <= 192 * 1024, "{with}");
    assert!(
        without >= 4 * with,
        "{without} without a limit, {with} with"
    );
}

/// It ends also the connection of a live peer that does not read, so it must not be too short.
#[tokio::test]
async fn the_user_timeout_ends_a_connection_whose_peer_takes_no_bytes() {
    let recorder = Recorder::new();
    let layer = heartbeat().write_timeout(None).on_evict(recorder.hook());
    let (server, _peer) = tcp().await;
    let mut options = TcpOptions::default();
    options.user_timeout = Some(ms(700));
    options.apply(&server).unwrap();
    let (mut stream, _live) = layer.build().unwrap().wrap_server(server);
    let mut frames = Frame::new(BINARY, vec![0; 60_000]).unmasked();
    frames = frames.repeat(1_000);
    let error = within("the error from the kernel", stream.write_all(&frames)).await;
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::Transport(io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_a_large_message() {
    let recorder = Recorder::new();
    let layer = HeartbeatLayer::builder()
        .interval(ms(100))
        .timeout(secs(5))
        .on_evict(recorder.hook());
    let (route, mut lives) = watched_route(|mut socket| async move {
        let message = noise(3, 2_000_000);
        let _ = socket.send(Message::binary(message)).await;
        let _ = socket.recv().await;
    });
    let app = Router::new().route("/ws", route);
    let (addr, _sockets) = serve(app.layer(layer.build().unwrap())).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let io = socket.connect(addr).await.unwrap();
    let mut client = RawClient::handshake(io, "/ws").await;
    let live = lives.recv().await.unwrap();
    // Some 2 MB/s: the message takes a second, during which pings become due.
    for _ in 0..20 {
        client.fill(50_000).await.unwrap();
        tokio::time::sleep(ms(25)).await;
    }
    let frame = client.expect_frame().await;
    assert!(frame.payload == noise(3, 2_000_000));
    client.live_until_ping(1).await;
    until("the pong is found", || live.rtt().is_some()).await;
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
}

// The address of the peer.

#[tokio::test]
async fn the_address_of_the_peer_is_known_while_a_tcp_socket_is_open() {
    for (name, serve) in SERVERS {
        let (route, mut lives) = watched_route(support::echo);
        let opened = Arc::new(std::sync::Mutex::new(None));
        let slot = Arc::clone(&opened);
        let layer = heartbeat().on_open(move |live| *slot.lock().unwrap() = live.peer_addr());
        let app = Router::new()
            .route("/ws", route)
            .layer(layer.build().unwrap());
        let (server, peer) = tcp().await;
        let addr = peer.local_addr().unwrap();
        serve(app, server);
        let mut client = RawClient::handshake(peer, "/ws").await;
        let live = lives.recv().await.unwrap();
        assert_echoes(&mut client).await;
        assert_eq!(live.peer_addr(), Some(addr), "{name}");
        assert_eq!(*opened.lock().unwrap(), Some(addr), "{name}");
        drop(client);
        within("the release", live.closed()).await;
        assert_eq!(live.peer_addr(), None, "{name}");
    }
    let layer = heartbeat().build().unwrap();
    let (server, peer) = tcp().await;
    let addr = peer.local_addr().unwrap();
    let (_stream, live) = layer.wrap_server(server);
    assert_eq!(live.peer_addr(), Some(addr));

    let (server, peer) = tcp().await;
    let addr = peer.local_addr().unwrap();
    let (io, live) = layer.wrap_server_handshake(server);
    assert_eq!(live.peer_addr(), None, "before the handshake");
    let opening = tokio_tungstenite::client_async("ws://localhost/ws", peer);
    let (_server, _client) = tokio::join!(tokio_tungstenite::accept_async(io), opening);
    assert_eq!(live.peer_addr(), Some(addr));

    let (_stream, live) = layer.wrap_server(tokio::io::duplex(64).0);
    assert_eq!(live.peer_addr(), None, "no socket");
}
