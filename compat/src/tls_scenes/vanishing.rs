//! Ends that come from the client, with and without a word of its TLS; and beginnings that never
//! come to anything.

use std::io::ErrorKind;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_ws_liveness::Reason;

use super::client::{Client, End, end, open, send_close_notify};
use super::{Scene, Server};
use crate::http_version::HttpVersion;
use crate::rig::{Rig, patient, quiet};
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
    Scene::everywhere("a client sends what is not TLS", |server| {
        garbage(server).boxed()
    }),
    Scene::on_axum("a client ends one direction and listens on", |server| {
        listens_on(server).boxed()
    }),
    Scene::on_axum_server("a handshake that never ends is no connection", |server| {
        no_handshake(server).boxed()
    }),
];

/// An open WebSocket on which both sides have said something.
async fn begin(rig: &Rig) -> Client {
    let mut client = open(rig.addr).await;
    let hello = Frame::text("hello");
    client.send(&hello).await.expect("it listens");
    assert_eq!(client.expect_frame().await, hello);
    client
}

/// As when its process is killed.
async fn cut_off(server: Server) {
    let rig = server.start(quiet(), patient()).await;
    let mut client = begin(&rig).await;
    let wire = client.io().get_mut().0;
    wire.shutdown().await.expect("a FIN");
    assert_eq!(rig.ended().await, Reason::PeerVanished);
    assert_eq!(end(&mut client).await, End::LET_GO);
}

/// RFC 6455 section 7.1.5 would have it a 1006: TLS ended as it should, the WebSocket did not.
async fn ends_tls(server: Server) {
    for with_fin in [false, true] {
        let rig = server.start(quiet(), patient()).await;
        let mut client = begin(&rig).await;
        if with_fin {
            client.shutdown().await.expect("room for an alert");
        } else {
            send_close_notify(&mut client).await;
        }
        assert_eq!(rig.ended().await, Reason::PeerVanished);
        assert_eq!(end(&mut client).await, End::LET_GO);
    }
}

async fn reset(server: Server) {
    let rig = server.start(quiet(), patient()).await;
    let mut client = begin(&rig).await;
    let socket = &client.io().get_mut().0.socket;
    socket.set_zero_linger().expect("a TCP socket");
    drop(client);
    let reset = Reason::Transport(ErrorKind::ConnectionReset);
    assert_eq!(rig.ended().await, reset);
}

/// Its TLS finds that a record was changed on its way, and says so (RFC 8446 section 6.2).
async fn alert(server: Server) {
    let heartbeat = quiet().interval(ms(50));
    let rig = server.start(heartbeat, patient()).await;
    let mut client = begin(&rig).await;
    client.io().get_mut().0.spoils = true;
    let error = within("a spoilt ping", client.next()).await;
    assert_eq!(
        error.map_err(|error| error.kind()),
        Err(ErrorKind::InvalidData)
    );
    assert_eq!(rig.ended().await, server.tls_failed());
}

async fn garbage(server: Server) {
    let rig = server.start(quiet(), patient()).await;
    let mut client = begin(&rig).await;
    let wire = client.io().get_mut().0;
    let sent = wire.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    sent.expect("a socket");
    assert_eq!(rig.ended().await, server.tls_failed());
}

/// TLS 1.3 lets the other direction go on (RFC 8446 section 6.1), and so do we, for
/// `close_timeout`.
async fn listens_on(server: Server) {
    let bound = TcpListener::bind(("127.0.0.1", 0)).await;
    let listener = bound.expect("a free port");
    let addr = listener.local_addr().expect("a bound listener");
    let heartbeat = quiet().build().expect("settings of a scene");
    let serving = tokio::spawn(async move {
        let (io, _) = listener.accept().await.expect("a client");
        let io = server.tls.acceptor().accept(io).await.expect("TLS");
        let (mut stream, live) = heartbeat.wrap_server(io);
        let mut question = Vec::new();
        let read = stream.read_to_end(&mut question).await;
        read.expect("an announced end is no error");
        let evicted = live.evicted().await.reason();
        let answer = Frame::new(BINARY, question).unmasked();
        stream.write_all(&answer).await.expect("it listens");
        stream.shutdown().await.expect("it listens");
        evicted
    });
    let wire = TcpStream::connect(addr).await.expect("a server listens");
    let connector = tls::connector(HttpVersion::One);
    let mut client = connector.connect(tls::name(), wire).await.expect("TLS");
    let question = Frame::text("and?").masked();
    client.write_all(&question).await.expect("it listens");
    client.shutdown().await.expect("it listens");
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

/// It keeps nobody out, and nobody is told of it.
async fn no_handshake(server: Server) {
    let rig = server.start(quiet(), patient()).await;
    let mut silent = TcpStream::connect(rig.addr).await.expect("it listens");
    let mut begun = TcpStream::connect(rig.addr).await.expect("it listens");
    // The head of a record with a ClientHello, of which no more comes.
    let sent = begun.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await;
    sent.expect("a socket");
    let mut other = TcpStream::connect(rig.addr).await.expect("it listens");
    let sent = other.write_all(b"GET /ws HTTP/1.1\r\n\r\n").await;
    sent.expect("a socket");
    let mut rest = Vec::new();
    // What is no TLS is answered with an alert, and closed; a reset will do.
    let _ = within("the end of it", other.read_to_end(&mut rest)).await;

    let mut client = begin(&rig).await;
    assert_eq!(rig.registry.len(), 1);
    silent.shutdown().await.expect("a FIN");
    begun.shutdown().await.expect("a FIN");
    for mut io in [silent, begun] {
        let _ = within("the end of it", io.read_to_end(&mut rest)).await;
    }
    rig.recorder.stays_at(0).await;
    client.shutdown().await.expect("room for an alert");
    assert_eq!(rig.ended().await, Reason::PeerVanished);
    assert_eq!(end(&mut client).await, End::LET_GO);
}
