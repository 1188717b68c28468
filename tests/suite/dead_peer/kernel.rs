//! What the kernel says of the peer's kernel, over plain TCP.

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tower_ws_liveness::HeartbeatLayer;

use crate::support::wire::Wire;
use crate::support::{Server, echo_route, report_liveness, until, within};

/// Both ends of a TCP connection.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (peer, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (accepted.unwrap().0, peer.unwrap())
}

// Statistics.

#[tokio::test]
async fn unacknowledged_bytes_count_until_the_peers_kernel_has_them() {
    let (socket, mut peer) = tcp().await;
    let (mut io, live) = HeartbeatLayer::default().wrap_server(socket);
    assert_eq!(live.stats().unacknowledged_bytes(), Some(0));
    // More than both kernels take.
    let message = vec![0; 32 << 20];
    let writer = tokio::spawn(async move {
        io.write_all(&message).await.unwrap();
        io
    });
    let unacknowledged = || live.stats().unacknowledged_bytes().unwrap();
    until("the peer's window is closed", || unacknowledged() > 0).await;
    peer.read_exact(&mut vec![0; 32 << 20]).await.unwrap();
    let _io = within("all is written", writer).await.unwrap();
    until("all is acknowledged", || unacknowledged() == 0).await;
    assert!(live.stats().kernel_rtt().is_some());
    assert_eq!(live.rtt(), None, "no ping was sent");
}

#[tokio::test]
async fn behind_axum_the_kernel_is_asked_on_http1_only() {
    let layer = HeartbeatLayer::default();
    let (route, mut opened) = report_liveness(echo_route());
    let app = Router::new().route("/ws", route).layer(layer);
    let server = Server::start(app).await;
    for (wire, is_asked) in [(Wire::Http1, true), (Wire::Http2, false)] {
        let _client = server.client(wire, "/ws").await;
        let live = within("the handle", opened.recv()).await.unwrap();
        until("the upgrade", || live.health().to_string() == "live").await;
        let stats = live.stats();
        assert_eq!(stats.unacknowledged_bytes().is_some(), is_asked, "{wire:?}");
        assert_eq!(stats.kernel_rtt().is_some(), is_asked, "{wire:?}");
        live.evict(1000, "");
        // The transport is closed, or no verdict was given by the kernel's word.
        assert_eq!(live.evicted().await.stats().unacknowledged_bytes(), None);
    }
}

#[tokio::test]
async fn other_transports_have_no_kernel() {
    let (_io, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
    assert_eq!(live.stats().unacknowledged_bytes(), None);
    assert_eq!(live.stats().kernel_rtt(), None);
}
