//! What our kernel shows of the peer's, over plain TCP.

use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tower_ws_liveness::{
    Eviction, HeartbeatLayer, HeartbeatLayerBuilder, Liveness, LivenessStream, PeerKernel, Reason,
};

use crate::support::raw::{Answer, BINARY, Frame, RawClient};
use crate::support::wire::Wire;
use crate::support::{SLACK, Server, echo_route, ms, never, report_liveness, until, within};

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
        // No verdict depended on the kernel.
        assert_eq!(live.evicted().await.stats().unacknowledged_bytes(), None);
    }
}

#[tokio::test]
async fn other_transports_have_no_kernel() {
    let (_io, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
    assert_eq!(live.stats().unacknowledged_bytes(), None);
    assert_eq!(live.stats().kernel_rtt(), None);
    // Like TLS, it has a buffer of its own: what its socket has sent is not what the handler has.
    let (socket, _peer) = tcp().await;
    let (_io, live) = HeartbeatLayer::default().wrap_server(BufStream::new(socket));
    assert_eq!(live.stats().unacknowledged_bytes(), None);
    assert_eq!(live.stats().kernel_rtt(), None);
}

// Verdicts.

const INTERVAL: Duration = ms(300);
const TIMEOUT: Duration = ms(300);
/// Within which a dead peer is evicted, with one tick of the timer.
const BOUND: Duration = ms(300 + 300 + 300 / 32);
/// Within which it is behind unread bytes.
const UNREAD_BOUND: Duration = ms(300 + 2 * 300 + 300 / 32);
/// Within which it is behind more unread bytes than the kernel takes at first: these arrive after
/// the first timeout, and the bound begins anew.
const WIDENED_BOUND: Duration = ms(300 + 300 + 300 / 32 + 300 + 2 * 300 + 300 / 32);

const MISSED: Reason = Reason::HeartbeatTimeout { missed: 1 };

/// A server's stream that is never read, and its peer.
async fn open() -> (LivenessStream<TcpStream>, Liveness, RawClient) {
    let (io, live, peer) = open_with(|builder| builder).await;
    (io, live, RawClient::over(peer))
}

async fn open_with(
    change: impl FnOnce(HeartbeatLayerBuilder) -> HeartbeatLayerBuilder,
) -> (LivenessStream<TcpStream>, Liveness, TcpStream) {
    let (socket, peer) = tcp().await;
    peer.set_nodelay(true).unwrap();
    let heartbeat = HeartbeatLayer::builder()
        .interval(INTERVAL)
        .timeout(TIMEOUT);
    let (io, live) = change(heartbeat).build().unwrap().wrap_server(socket);
    (io, live, peer)
}

/// The eviction, within the bound since `dead`.
async fn evicted(live: &Liveness, dead: Instant) -> Eviction {
    evicted_within(BOUND, live, dead).await
}

async fn evicted_within(bound: Duration, live: &Liveness, dead: Instant) -> Eviction {
    let eviction = within("the eviction", live.evicted()).await;
    assert!(dead.elapsed() <= bound + SLACK, "{:?}", dead.elapsed());
    assert_eq!(eviction.reason(), MISSED);
    eviction
}

#[tokio::test]
async fn the_kernel_of_a_program_that_hangs_acknowledges() {
    let (_io, live, mut client) = open().await;
    client.live_until_ping(2).await;
    let eviction = evicted(&live, Instant::now()).await;
    assert_eq!(eviction.peer_kernel(), PeerKernel::Acknowledges);
    assert_eq!(eviction.stats().unacknowledged_bytes(), Some(0));
    assert!(eviction.stats().kernel_rtt().is_some());
}

#[tokio::test]
async fn a_kernel_that_is_not_asked_is_unknown() {
    let (_io, live, _client) = open().await;
    live.evict(4000, "kicked");
    assert_eq!(live.evicted().await.peer_kernel(), PeerKernel::Unknown);

    let heartbeat = HeartbeatLayer::builder()
        .interval(INTERVAL)
        .timeout(TIMEOUT);
    let (io, _peer) = duplex(64);
    let (_io, live) = heartbeat.build().unwrap().wrap_server(io);
    let eviction = evicted(&live, Instant::now()).await;
    assert_eq!(eviction.peer_kernel(), PeerKernel::Unknown);
}

#[tokio::test]
async fn a_peer_that_hangs_behind_unread_bytes_is_evicted_and_one_that_answers_is_not() {
    // More than are read ahead, and less than our kernel takes.
    for unread in [20_000, 40_000] {
        let (_io, live, mut client) = open().await;
        let message = Frame::new(BINARY, vec![0; unread]);
        client.send(&message).await.unwrap();
        client.live_until_ping(8).await;
        assert!(!live.health().to_string().contains("ended"));
        assert!(live.stats().bytes_received() < unread as u64, "all is read");
        let eviction = evicted_within(UNREAD_BOUND, &live, Instant::now()).await;
        assert_eq!(eviction.peer_kernel(), PeerKernel::Acknowledges);
        assert_eq!(eviction.stats().missed_pings(), 1);
    }
}

#[tokio::test]
async fn behind_more_bytes_than_the_kernel_takes_at_first_a_peer_is_found_too() {
    let (_io, live, mut client) = open().await;
    let message = Frame::new(BINARY, vec![0; 256 * 1024]);
    client.send(&message).await.unwrap();
    client.live_until_ping(8).await;
    assert!(!live.health().to_string().contains("ended"));
    let eviction = evicted_within(WIDENED_BOUND, &live, Instant::now()).await;
    assert_eq!(eviction.peer_kernel(), PeerKernel::Acknowledges);

    // It stops at once: its kernel sends the rest.
    let (_io, live, mut client) = open().await;
    client.send(&message).await.unwrap();
    evicted_within(WIDENED_BOUND, &live, Instant::now()).await;
    drop(client);
}

#[tokio::test]
async fn without_tune_tcp_the_receive_window_stays_closed() {
    let (_io, live, mut peer) = open_with(|builder| builder.tune_tcp(false)).await;
    let message = Frame::new(BINARY, vec![0; 256 * 1024]).masked();
    peer.write_all(&message).await.unwrap();
    never("an eviction", BOUND * 6, async {
        drop(live.evicted().await)
    })
    .await;
}

#[tokio::test]
async fn behind_a_closed_receive_window_a_peer_need_not_answer() {
    let (_io, live, client) = open().await;
    let mut client = client.answering(Answer::Nothing);
    let endless = Frame::new(BINARY, vec![0; 64 << 20]).masked();
    // It sends as long as it can, and reads.
    let sending = async {
        loop {
            client.send_or_receive(&endless).await.unwrap();
        }
    };
    tokio::select! {
        () = sending => unreachable!("an endless message"),
        () = never("an eviction", BOUND * 6, async { drop(live.evicted().await) }) => {}
    }
}

/// A documented limit: nothing distinguishes it from a peer whose pong waits behind the same bytes.
#[tokio::test]
async fn a_peer_with_more_to_send_than_the_kernel_takes_is_evicted_by_handler_stall_timeout_only() {
    let (_io, live, mut peer) = open_with(|builder| builder).await;
    // Ends when both kernels are full, with the write pending.
    let endless = Frame::new(BINARY, vec![0; 64 << 20]).masked();
    let full = tokio::time::timeout(TIMEOUT, peer.write_all(&endless)).await;
    full.unwrap_err();
    never("an eviction", BOUND * 6, async {
        drop(live.evicted().await)
    })
    .await;

    let stall = BOUND * 3;
    let (_io, live, mut peer) = open_with(|builder| builder.handler_stall_timeout(stall)).await;
    let full = tokio::time::timeout(TIMEOUT, peer.write_all(&endless)).await;
    full.unwrap_err();
    let eviction = within("the eviction", live.evicted()).await;
    assert_eq!(eviction.reason(), Reason::HandlerStalled);
}

/// The other documented limit: no pong can follow the end of the stream.
#[tokio::test]
async fn a_peer_that_has_ended_its_direction_behind_unread_bytes_is_not_found() {
    let (_io, live, mut peer) = open_with(|builder| builder).await;
    let message = Frame::new(BINARY, vec![0; 40_000]).masked();
    peer.write_all(&message).await.unwrap();
    peer.shutdown().await.unwrap();
    never("an eviction", BOUND * 6, async {
        drop(live.evicted().await)
    })
    .await;
}
