//! Ends caused by the client, with and without close_notify, and unfinished TLS handshakes.

use std::io::ErrorKind;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_ws_liveness::Reason;

use super::client::{ConnectionEnd, TlsClient, open, read_to_end, send_close_notify};
use super::{Scene, TlsServer};
use crate::http_version::HttpVersion;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::support::raw::{BINARY, Frame};
use crate::support::{ms, within};
use crate::tls;

pub(super) const SCENES: &[Scene] = &[
    Scene::everywhere("a client is cut off: FIN without close_notify", |server| {
        cut_off(server).boxed()
    }),
    Scene::everywhere("a client ends TLS without a Close frame", |server| {
        ends_tls(server).boxed()
    }),
    Scene::everywhere("a client is reset", |server| reset(server).boxed()),
    Scene::everywhere("a client sends an alert", |server| alert(server).boxed()),
    Scene::everywhere("a client sends bytes that are not TLS", |server| {
        garbage(server).boxed()
    }),
    Scene::on_axum("a client ends its direction and reads on", |server| {
        reads_on(server).boxed()
    }),
    Scene::on_axum_server("an unfinished handshake is no connection", |server| {
        no_handshake(server).boxed()
    }),
];

/// Opens a WebSocket and exchanges a message in each direction.
async fn open_and_echo(rig: &Rig) -> TlsClient {
    let mut client = open(rig.addr).await;
    let hello = Frame::text("hello");
    client.send(&hello).await.expect("an open connection");
    assert_eq!(client.expect_frame().await, hello);
    client
}

/// A FIN without a close_notify, as from a killed process.
async fn cut_off(server: TlsServer) {
    let rig = server.start(long_heartbeat(), long_idle()).await;
    let mut client = open_and_echo(&rig).await;
    let wire = client.io().get_mut().0;
    wire.shutdown().await.expect("a FIN");
    assert_eq!(rig.end_reason().await, Reason::PeerVanished);
    assert_eq!(read_to_end(&mut client).await, ConnectionEnd::DROPPED);
}

/// TLS ends cleanly, but the WebSocket has no Close frame (1006 by RFC 6455 section 7.1.5).
async fn ends_tls(server: TlsServer) {
    for with_fin in [false, true] {
        let rig = server.start(long_heartbeat(), long_idle()).await;
        let mut client = open_and_echo(&rig).await;
        if with_fin {
            client.shutdown().await.expect("a write of an alert");
        } else {
            send_close_notify(&mut client).await;
        }
        assert_eq!(rig.end_reason().await, Reason::PeerVanished);
        assert_eq!(read_to_end(&mut client).await, ConnectionEnd::DROPPED);
    }
}

async fn reset(server: TlsServer) {
    let rig = server.start(long_heartbeat(), long_idle()).await;
    let mut client = open_and_echo(&rig).await;
    let socket = &client.io().get_mut().0.socket;
    socket.set_zero_linger().expect("a TCP socket");
    drop(client);
    let reset = Reason::Transport(ErrorKind::ConnectionReset);
    assert_eq!(rig.end_reason().await, reset);
}

/// The client's TLS detects a corrupted record and sends an alert (RFC 8446 section 6.2).
async fn alert(server: TlsServer) {
    let heartbeat = long_heartbeat().interval(ms(50));
    let rig = server.start(heartbeat, long_idle()).await;
    let mut client = open_and_echo(&rig).await;
    client.io().get_mut().0.corrupts_incoming = true;
    let error = within("a corrupted ping", client.next()).await;
    assert_eq!(
        error.map_err(|error| error.kind()),
        Err(ErrorKind::InvalidData)
    );
    assert_eq!(rig.end_reason().await, server.tls_error_reason());
}

async fn garbage(server: TlsServer) {
    let rig = server.start(long_heartbeat(), long_idle()).await;
    let mut client = open_and_echo(&rig).await;
    let wire = client.io().get_mut().0;
    let sent = wire.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    sent.expect("a socket");
    assert_eq!(rig.end_reason().await, server.tls_error_reason());
}

/// TLS 1.3 leaves the other direction open (RFC 8446 section 6.1), and so does the layer, for
/// `close_timeout`.
async fn reads_on(server: TlsServer) {
    let bound = TcpListener::bind(("127.0.0.1", 0)).await;
    let listener = bound.expect("a free port");
    let addr = listener.local_addr().expect("a bound listener");
    let heartbeat = long_heartbeat().build().expect("valid settings");
    let serving = tokio::spawn(async move {
        let (io, _) = listener.accept().await.expect("a client");
        let io = server.tls.acceptor().accept(io).await.expect("TLS");
        let (mut stream, live) = heartbeat.wrap_server(io);
        let mut question = Vec::new();
        let read = stream.read_to_end(&mut question).await;
        read.expect("a close_notify is no error");
        let evicted = live.evicted().await.reason();
        let answer = Frame::new(BINARY, question).unmasked();
        stream.write_all(&answer).await.expect("an open connection");
        stream.shutdown().await.expect("an open connection");
        evicted
    });
    let wire = TcpStream::connect(addr).await.expect("the server listens");
    let connector = tls::connector(HttpVersion::One);
    let mut client = connector.connect(tls::name(), wire).await.expect("TLS");
    let question = Frame::text("question").masked();
    client
        .write_all(&question)
        .await
        .expect("an open connection");
    client.shutdown().await.expect("an open connection");
    let mut answer = Vec::new();
    let read = within("the answer", client.read_to_end(&mut answer)).await;
    read.expect("a close_notify");
    assert_eq!(
        Frame::parse(&mut answer),
        Some(Frame::new(BINARY, question))
    );
    let reason = within("the server's end", serving).await;
    assert_eq!(reason.expect("no panic"), Reason::PeerVanished);
}

/// An unfinished handshake neither blocks other clients nor causes an eviction.
async fn no_handshake(server: TlsServer) {
    let rig = server.start(long_heartbeat(), long_idle()).await;
    let mut silent = TcpStream::connect(rig.addr)
        .await
        .expect("the server listens");
    let mut begun = TcpStream::connect(rig.addr)
        .await
        .expect("the server listens");
    // The start of a record with a ClientHello, without its rest.
    let sent = begun.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await;
    sent.expect("a socket");
    let mut other = TcpStream::connect(rig.addr)
        .await
        .expect("the server listens");
    let sent = other.write_all(b"GET /ws HTTP/1.1\r\n\r\n").await;
    sent.expect("a socket");
    let mut rest = Vec::new();
    // Bytes that are not TLS are answered with an alert and a close; a reset is accepted too.
    let _ = within("the end of it", other.read_to_end(&mut rest)).await;

    let mut client = open_and_echo(&rig).await;
    assert_eq!(rig.registry.len(), 1);
    silent.shutdown().await.expect("a FIN");
    begun.shutdown().await.expect("a FIN");
    for mut io in [silent, begun] {
        let _ = within("the end of it", io.read_to_end(&mut rest)).await;
    }
    rig.recorder.stays_at(0).await;
    client.shutdown().await.expect("a write of an alert");
    assert_eq!(rig.end_reason().await, Reason::PeerVanished);
    assert_eq!(read_to_end(&mut client).await, ConnectionEnd::DROPPED);
}
