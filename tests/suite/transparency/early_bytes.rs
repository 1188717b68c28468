//! Bytes that the peer sends together with its opening handshake.
//!
//! hyper has read some of them with the request head; the rest is in the socket. Only over
//! HTTP/1.1: HTTP/2 has separate frames for the request and for the bytes after it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tower_ws_liveness::{HeartbeatLayer, HeartbeatLayerBuilder};

use crate::support::raw::{BINARY, Frame, PING, PONG, RawClient, opening};
use crate::support::{Server, bytes_route, echo_route, ms, report_liveness, until, within};

/// A heartbeat that sends no ping during a test.
fn heartbeat() -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder().interval(ms(60_000))
}

/// Sends the handshake and `early` in one write, and returns the client after the response.
async fn open_early(addr: SocketAddr, early: &[u8]) -> RawClient {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.set_nodelay(true).unwrap();
    let sent = [opening("/ws").as_bytes(), early].concat();
    io.write_all(&sent).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the answer", io.read_u8()).await.unwrap());
    }
    RawClient::over(io)
}

/// A route whose handler waits for `begin`, reads up to `size` bytes at a time until the end, and
/// sends the result to the receiver.
fn reading(
    size: usize,
    begin: Arc<Notify>,
) -> (
    MethodRouter<(), Infallible>,
    mpsc::UnboundedReceiver<Vec<u8>>,
) {
    let (read_tx, read) = mpsc::unbounded_channel();
    let route = bytes_route(move |mut io| {
        let (read_tx, begin) = (read_tx.clone(), Arc::clone(&begin));
        async move {
            begin.notified().await;
            let (mut got, mut buf) = (Vec::new(), vec![0; size]);
            while let Ok(count @ 1..) = io.read(&mut buf).await {
                got.extend_from_slice(&buf[..count]);
            }
            let _ = read_tx.send(got);
        }
    });
    (route, read)
}

#[tokio::test]
async fn early_bytes_arrive_whole_once_and_in_order() {
    let frames: Vec<u8> = (0_u8..50)
        .flat_map(|i| Frame::new(BINARY, vec![i; usize::from(i) * 7]).masked())
        .collect();
    // From one byte to more than hyper reads together with the head.
    for early in [1, 2, 5, 6, 7, 125, 1_000, 4_000, 7_900, 8_500] {
        for size in [1, 3, 1_024, 65_536] {
            let begin = Arc::new(Notify::new());
            let (route, mut read) = reading(size, Arc::clone(&begin));
            let app = Router::new().route("/ws", route);
            let server = Server::start(app.layer(heartbeat().build().unwrap())).await;
            let mut client = open_early(server.addr, &frames[..early]).await;
            begin.notify_one();
            client.send_bytes(&frames[early..]).await.unwrap();
            client.shutdown().await.unwrap();
            let got = within("what the handler read", read.recv()).await.unwrap();
            assert!(got == frames, "{early} early, by {size}: {}", got.len());
        }
    }
}

#[tokio::test]
async fn an_early_message_is_answered_without_further_bytes() {
    let app = Router::new().route("/ws", echo_route());
    let server = Server::start(app.layer(heartbeat().build().unwrap())).await;
    for payload in ["", "early", &"long ".repeat(1_000)] {
        let message = Frame::text(payload);
        let mut client = open_early(server.addr, &message.masked()).await;
        assert_eq!(client.expect_frame().await, message);
        client.send(&message).await.unwrap();
        assert_eq!(client.expect_frame().await, message);
    }
}

/// The peer's control frame begins with the early bytes and ends after our ping. It must pass, and
/// the pong behind it must be found.
#[tokio::test]
async fn a_control_frame_may_lie_across_the_end_of_the_early_bytes() {
    let message = Frame::text("first").masked();
    for opcode in [PING, PONG] {
        // As long as a pong to our ping, so only its last byte rules that out.
        let control = Frame::new(opcode, *b"not ours").masked();
        for cut in 1..control.len() {
            let begin = Arc::new(Notify::new());
            let (route, mut read) = reading(4, Arc::clone(&begin));
            let layer = HeartbeatLayer::builder()
                .interval(ms(20))
                .timeout(ms(20_000))
                .jitter(0.0);
            let (route, mut handles) = report_liveness(route);
            let app = Router::new().route("/ws", route);
            let server = Server::start(app.layer(layer.build().unwrap())).await;
            let early = [&message[..], &control[..cut]].concat();
            let mut client = open_early(server.addr, &early).await;
            let live = handles.recv().await.unwrap();
            let ping = client.expect_ping().await;
            begin.notify_one();
            client.send_bytes(&control[cut..]).await.unwrap();
            client.send(&Frame::new(PONG, ping)).await.unwrap();
            until("the pong is found", || live.rtt().is_some()).await;
            client.shutdown().await.unwrap();
            let got = within("what the handler read", read.recv()).await.unwrap();
            assert_eq!(got, [&message[..], &control].concat(), "cut at {cut}");
        }
    }
}
