//! Transfers in both directions while pings are sent.
//!
//! The handler reads the peer's bytes minus the pongs to our pings. The peer reads the handler's
//! bytes plus whole pings at frame boundaries.

use axum::Router;
use axum::extract::ws::{Message as Served, WebSocket};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tower_ws_liveness::{HeartbeatLayer, ProofOfLife};
use tungstenite::Message;

use crate::support::raw::{BINARY, CONTINUATION, Frame, PING, PONG, RawClient};
use crate::support::recorder::Recorder;
use crate::support::wire::{Wire, over_each_wire};
use crate::support::{self, Server, echo_route, in_memory, ms, noise, watched_route, within};

over_each_wire! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    three_megabytes_both_ways_with_pings_in_between_arrive_unchanged,
    the_pings_of_either_side_work_as_without_the_layers;
}

const MESSAGE_BYTES: usize = 3 * 1000 * 1000;

async fn three_megabytes_both_ways_with_pings_in_between_arrive_unchanged(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(3))
        .timeout(ms(10_000))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let app = Router::new().route("/ws", echo_route()).layer(heartbeat);
    let server = Server::start(app).await;
    let client = server.stock_client(wire, "/ws").await;
    let (mut sink, mut stream) = client.split();

    let (seeds_tx, mut seeds) = mpsc::unbounded_channel::<u32>();
    let upload = tokio::spawn(async move {
        while let Some(seed) = seeds.recv().await {
            let message = Message::binary(noise(seed, MESSAGE_BYTES));
            sink.send(message).await.unwrap();
        }
    });
    let mut pings = 0;
    for group in [0..3, 3..6, 6..9, 9..12] {
        // Several messages at once, so that uploads and echoes overlap.
        for seed in group.clone() {
            seeds_tx.send(seed).unwrap();
        }
        for seed in group {
            let echo = loop {
                match within("the echo", stream.next()).await.unwrap().unwrap() {
                    Message::Ping(_) => pings += 1,
                    message => break message,
                }
            };
            let sent = noise(seed, MESSAGE_BYTES);
            assert!(echo == Message::binary(sent), "message {seed} changed");
        }
        let ping = within("a ping", stream.next()).await.unwrap().unwrap();
        assert!(ping.is_ping());
        pings += 1;
    }
    assert!(pings >= 4, "{pings} pings");
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    drop(seeds_tx);
    upload.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pings_are_sent_during_an_upload_but_never_inside_a_downloaded_frame() {
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        let recorder = Recorder::new();
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(5))
            .timeout(ms(20))
            .proof_of_life(proof)
            .on_evict(recorder.hook())
            .build()
            .unwrap();
        let app = Router::new().route("/ws", echo_route()).layer(heartbeat);
        let io = in_memory(app, 16 * 1024);
        let mut client = RawClient::handshake(io, "/ws").await;

        let sent = Frame::new(BINARY, noise(7, MESSAGE_BYTES));
        let mut waiting = Vec::new();
        let bytes = sent.masked();
        let (most, last) = bytes.split_at(bytes.len() - 1);
        for piece in most.chunks(250_000) {
            client.send_bytes(piece).await.unwrap();
            // A pause inside the frame: a ping arrives, and the client cannot send a pong yet.
            // With `MatchingPong` no second ping is sent before the first is answered.
            if waiting.is_empty() || matches!(proof, ProofOfLife::AnyBytes) {
                waiting.push(client.expect_ping().await);
            }
            sleep(ms(15)).await;
        }
        client.send_bytes(last).await.unwrap();
        for ping in waiting {
            client.send(&Frame::new(PONG, ping)).await.unwrap();
        }

        // The client reads the echo slowly, so it waits in full buffers while pings are due.
        for _ in 0..MESSAGE_BYTES / 80_000 {
            sleep(ms(7)).await;
            client.fill(80_000).await.unwrap();
        }
        assert_eq!(client.expect_frame().await, sent);
        let pings = client.pings;
        client.live_until_ping(pings + 2).await;
        client.send(&Frame::text("end")).await.unwrap();
        assert_eq!(client.expect_frame().await, Frame::text("end"));
        assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    }
}

#[tokio::test(start_paused = true)]
async fn pongs_to_our_pings_are_removed_and_all_others_reach_the_handler() {
    for chunk in [1, 3, usize::MAX] {
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(10))
            .timeout(ms(100))
            .proof_of_life(ProofOfLife::MatchingPong)
            .build()
            .unwrap();
        let (messages_tx, mut messages) = mpsc::unbounded_channel();
        let (route, _live) = watched_route(move |mut socket: WebSocket| {
            let messages_tx = messages_tx.clone();
            async move {
                while let Some(Ok(message)) = socket.recv().await {
                    messages_tx.send(message).unwrap();
                }
            }
        });
        let app = Router::new().route("/ws", route).layer(heartbeat);
        let io = in_memory(app, 64 * 1024);
        let mut client = RawClient::handshake(io, "/ws").await.in_chunks_of(chunk);

        let mut expected = Vec::new();
        for _ in 0..5 {
            let ours = client.expect_ping().await;
            let mut nearly = ours.clone();
            nearly[0] ^= 0x80;
            let mut longer = ours.clone();
            longer.push(0);
            let shorter = ours[..ours.len() - 1].to_vec();
            for other in [
                b"other".to_vec(),
                vec![],
                nearly,
                longer,
                shorter,
                vec![9; 125],
            ] {
                client.send(&Frame::new(PONG, other.clone())).await.unwrap();
                expected.push(Served::Pong(other.into()));
            }
            client.send(&Frame::new(PONG, ours)).await.unwrap();
            client.send(&Frame::text("round")).await.unwrap();
            expected.push(Served::text("round"));
        }
        for expected in expected {
            assert_eq!(
                within("a message", messages.recv()).await.unwrap(),
                expected
            );
        }
        assert!(messages.try_recv().is_err(), "one message too many");
    }
}

async fn the_pings_of_either_side_work_as_without_the_layers(wire: Wire) {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(2))
        .timeout(ms(10_000))
        .proof_of_life(ProofOfLife::MatchingPong)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let (answers_tx, mut answers) = mpsc::unbounded_channel();
    let (route, mut live) = watched_route(move |mut socket: WebSocket| {
        let answers_tx = answers_tx.clone();
        async move {
            for n in 0..50_u32 {
                let ping = n.to_be_bytes().to_vec();
                socket.send(Served::Ping(ping.into())).await.unwrap();
                let answer = socket.recv().await.unwrap().unwrap();
                answers_tx.send(answer).unwrap();
                sleep(ms(3)).await;
            }
            support::echo(socket).await;
        }
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let server = Server::start(app).await;
    let mut client = server.stock_client(wire, "/ws").await;
    let live = within("the handler", live.recv()).await.unwrap();

    // The handler's pings: tungstenite answers them while the client is read.
    for n in 0..50_u32 {
        let pong = loop {
            tokio::select! {
                biased;
                pong = answers.recv() => break pong.unwrap(),
                message = client.next() => assert!(message.unwrap().unwrap().is_ping()),
            }
        };
        assert_eq!(pong, Served::Pong(n.to_be_bytes().to_vec().into()));
    }
    // The client's ping: axum answers it.
    let ping = Message::Ping("from the client".into());
    client.send(ping).await.unwrap();
    let pong = loop {
        let message = within("the pong", client.next()).await.unwrap().unwrap();
        if !message.is_ping() {
            break message;
        }
    };
    assert_eq!(pong, Message::Pong("from the client".into()));
    assert!(live.stats().pings_sent() > 0, "the layer sent no ping");
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
}

#[tokio::test(start_paused = true)]
async fn fragments_with_control_frames_in_between_make_one_message() {
    for chunk in [1, 2, usize::MAX] {
        let heartbeat = HeartbeatLayer::builder()
            .interval(ms(10))
            .timeout(ms(100))
            .proof_of_life(ProofOfLife::MatchingPong)
            .build()
            .unwrap();
        let app = Router::new().route("/ws", echo_route()).layer(heartbeat);
        let io = in_memory(app, 64 * 1024);
        let mut client = RawClient::handshake(io, "/ws").await.in_chunks_of(chunk);

        for _ in 0..3 {
            let first = Frame::text("frag").unfinished();
            client.send(&first).await.unwrap();
            client.send(&Frame::new(PING, "mine")).await.unwrap();
            assert_eq!(client.expect_frame().await, Frame::new(PONG, "mine"));
            let ping = client.expect_ping().await;
            let middle = Frame::new(CONTINUATION, "men").unfinished();
            client.send(&middle).await.unwrap();
            client.send(&Frame::new(PONG, ping)).await.unwrap();
            client.send(&Frame::new(PONG, "unasked")).await.unwrap();
            let ping = client.expect_ping().await;
            client.send(&Frame::new(PONG, ping)).await.unwrap();
            let last = Frame::new(CONTINUATION, "ted");
            client.send(&last).await.unwrap();
            assert_eq!(client.expect_frame().await, Frame::text("fragmented"));
        }
    }
}
