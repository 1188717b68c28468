//! Handwritten frames: fragments, reserved bits, writes across boundaries, and malformed bytes.

use std::io::IoSlice;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message as Served, WebSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{HeartbeatLayer, ProofOfLife, Reason};

use crate::support::raw::{BINARY, CLOSE, CONTINUATION, Frame, PING, RawClient, TEXT};
use crate::support::recorder::Recorder;
use crate::support::{bytes_route, in_memory, ms, noise, watched_route, within};

#[tokio::test(start_paused = true)]
async fn the_handlers_fragments_keep_their_order_with_pings_in_between() {
    // The message takes 600 ms. A ping waits at most 20 ms for the end of a message.
    let mut client = fragments_for(ms(20)).await;
    client.pings = 0;
    for frame in fragments() {
        assert_eq!(client.expect_frame().await, frame);
    }
    assert!((8..=20).contains(&client.pings), "{} pings", client.pings);
}

/// A ping waits for the end of a message because some peers lose a compressed message that a ping
/// interrupts.
#[tokio::test(start_paused = true)]
async fn a_ping_waits_for_the_end_of_a_message() {
    let mut client = fragments_for(ms(1_000)).await;
    let mut read = Vec::new();
    while read.len() < 21 {
        read.push(client.read_frame().await.unwrap().unwrap());
    }
    assert_eq!(read.last().map(|frame| frame.opcode), Some(PING));
    read.pop();
    assert_eq!(read, fragments());
}

/// A client of a server that pings every 10 ms, and whose handler sends [`fragments`] with pauses.
async fn fragments_for(timeout: Duration) -> RawClient<DuplexStream> {
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(10))
        .timeout(timeout)
        .build()
        .unwrap();
    let route = bytes_route(move |mut io| async move {
        for frame in fragments() {
            // Two writes for each fragment, with time for a ping inside it and after it.
            let bytes = frame.unmasked();
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            for half in [head, tail] {
                io.write_all(half).await.unwrap();
                io.flush().await.unwrap();
                sleep(ms(15)).await;
            }
        }
        while io.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await
}

/// A message in 20 fragments.
fn fragments() -> Vec<Frame> {
    (0..20)
        .map(|n| match n {
            0 => Frame::new(BINARY, noise(n, 700)).unfinished(),
            19 => Frame::new(CONTINUATION, noise(n, 0)),
            n => Frame::new(CONTINUATION, noise(n, 40 * n as usize)).unfinished(),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_stops_at_a_frame_boundary_is_pinged() {
    for vectored in [false, true] {
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(10))
            .timeout(ms(100))
            .build()
            .unwrap();
        let route = bytes_route(move |mut io| async move {
            let frame = Frame::new(BINARY, noise(1, 50)).unmasked();
            // Every write after the first starts and ends in the middle of a frame.
            let (head, tail) = frame.split_at(20);
            let mut written = io.write_all(head).await;
            while written.is_ok() {
                let mut chunk = [tail, head].concat();
                while !chunk.is_empty() && written.is_ok() {
                    let (first, second) = chunk.split_at(chunk.len() / 4);
                    let slices = [IoSlice::new(first), IoSlice::new(second)];
                    let count = if vectored {
                        io.write_vectored(&slices).await
                    } else {
                        io.write(&chunk).await
                    };
                    written = count.map(|count| drop(chunk.drain(..count)));
                }
                sleep(ms(1)).await;
            }
        });
        let app = Router::new().route("/ws", route).layer(heartbeat);
        let mut client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
        for _ in 0..1_000 {
            assert_eq!(
                client.expect_frame().await,
                Frame::new(BINARY, noise(1, 50))
            );
        }
        // The frames take one second, with a ping about every 10 ms.
        assert!(client.pings >= 50, "{} pings", client.pings);
    }
}

#[tokio::test(start_paused = true)]
async fn reserved_bits_are_opaque_in_both_directions() {
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(10))
        .timeout(ms(100))
        .proof_of_life(ProofOfLife::MatchingPong)
        .build()
        .unwrap();
    let frames: Vec<Frame> = (0..8)
        .flat_map(|rsv| {
            [
                Frame::new(TEXT, noise(rsv.into(), 10))
                    .with_rsv(rsv)
                    .unfinished(),
                Frame::new(CONTINUATION, noise(rsv.into(), 200)).with_rsv(7 - rsv),
                Frame::new(BINARY, noise(rsv.into(), 70_000)).with_rsv(rsv),
            ]
        })
        .collect();
    let answers: Vec<u8> = frames.iter().flat_map(Frame::unmasked).collect();
    let (received_tx, mut received_rx) = mpsc::unbounded_channel();
    let route = bytes_route(move |mut io| {
        let (received_tx, answers) = (received_tx.clone(), answers.clone());
        async move {
            io.write_all(&answers).await.unwrap();
            io.flush().await.unwrap();
            let mut received = Vec::new();
            io.read_to_end(&mut received).await.unwrap();
            received_tx.send(received).unwrap();
        }
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, 16 * 1024), "/ws").await;
    for frame in &frames {
        assert_eq!(&client.expect_frame().await, frame);
    }
    for frame in &frames {
        client.send(frame).await.unwrap();
        let pings = client.pings;
        client.live_until_ping(pings + 1).await;
    }
    client.shutdown().await.unwrap();
    let received = within("the handler's end", received_rx.recv())
        .await
        .unwrap();
    let sent: Vec<u8> = frames.iter().flat_map(Frame::masked).collect();
    assert!(received == sent, "the handler read different bytes");
}

#[tokio::test(start_paused = true)]
async fn no_ping_follows_a_close_frame() {
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(10))
        .timeout(ms(10))
        .close_timeout(ms(1_000))
        .build()
        .unwrap();
    let (route, _live) = watched_route(|mut socket: WebSocket| async move {
        sleep(ms(55)).await;
        socket.send(Served::Close(None)).await.unwrap();
        while let Some(Ok(_)) = socket.recv().await {}
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let mut client = RawClient::handshake(in_memory(app, 16 * 1024), "/ws").await;
    assert_eq!(client.expect_frame().await, Frame::new(CLOSE, ""));
    assert!(client.pings > 0);
    // The client delays its Close frame. No ping is due meanwhile.
    let more = timeout(ms(500), client.read_frame()).await;
    assert!(more.is_err(), "after the Close frame: {more:?}");
}

#[tokio::test(start_paused = true)]
async fn malformed_frames_pass_unchanged_and_stop_the_pings() {
    let reserved = Frame::new(0x3, "reserved opcode").masked();
    let long_control = Frame::new(PING, vec![b'x'; 126]).masked();
    let split_control = Frame::new(PING, "half a ping").unfinished().masked();
    let endless = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5].to_vec();
    for (name, malformed) in [
        ("reserved opcode", reserved),
        ("long control frame", long_control),
        ("fragmented control frame", split_control),
        ("length with the top bit", endless),
    ] {
        let recorder = Recorder::new();
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(10))
            .timeout(ms(1_000))
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        let (received_tx, mut received_rx) = mpsc::unbounded_channel();
        let route = bytes_route(move |mut io| {
            let received_tx = received_tx.clone();
            async move {
                let mut received = Vec::new();
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = io.read(&mut buffer).await {
                    received.extend_from_slice(&buffer[..count]);
                    if received.ends_with(b"answer") {
                        io.write_all(b"not a frame too").await.unwrap();
                        io.flush().await.unwrap();
                    }
                }
                received_tx.send(received).unwrap();
            }
        });
        let app = Router::new().route("/ws", route).layer(heartbeat);
        let mut client = RawClient::handshake(in_memory(app, 16 * 1024), "/ws").await;
        client.live_until_ping(3).await;
        let good = Frame::text("a valid frame first").masked();
        client.send_bytes(&good).await.unwrap();
        client.send_bytes(&malformed).await.unwrap();

        // No byte is sent for ten intervals.
        let injected = timeout(ms(100), client.read_frame()).await;
        assert!(injected.is_err(), "{name}: {injected:?}");
        client.send_bytes(b"answer").await.unwrap();
        let answer = within("the handler's bytes", client.read_exactly(15)).await;
        assert_eq!(answer.unwrap(), b"not a frame too", "{name}");
        client.shutdown().await.unwrap();
        let received = within("the handler's end", received_rx.recv())
            .await
            .unwrap();
        assert_eq!(
            received,
            [good, malformed, b"answer".to_vec()].concat(),
            "{name}"
        );
        drop(client);
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::PeerVanished, "{name}");
        recorder.stays_at(1).await;
    }
}
