//! Bytes that dribble, and messages that never end: signs of life for the heartbeat, and nothing at
//! all for the idle clock, which runs on complete messages.

#[path = "support/script.rs"]
mod script;
mod support;

use std::time::Duration;

use axum::Router;
use script::*;
use support::raw::{self, RawClient};
use support::recorder::Recorder;
use support::{echo_route, in_memory, within};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{
    HeartbeatLayer, IdleTimeoutLayer, IdleTimeoutLayerBuilder, Liveness, ProofOfLife, Reason,
    Traffic,
};

/// What deadlines under `heartbeat()` are rounded up to, and a millisecond to act.
const TICK: Duration = Duration::from_millis(2);

/// `heartbeat()`: interval and timeout.
const BOUND: Duration = Duration::from_millis(150);

const DEAD: Reason = Reason::HeartbeatTimeout { missed: 1 };

const KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// A server's end, with a hook.
fn recorded(proof: ProofOfLife) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let builder = heartbeat().proof_of_life(proof);
    let (stream, live, peer) = wrap_with(builder.on_evict(recorder.hook()));
    (stream, live, peer, recorder)
}

/// The one eviction so far: how long after `from`, and why.
#[track_caller]
fn only(recorder: &Recorder, from: Instant) -> (Duration, Reason) {
    let events = recorder.all();
    assert_eq!(events.len(), 1, "{events:?}");
    (events[0].at - from, events[0].reason)
}

/// A handler that reads whatever comes, and counts it.
fn reads(mut stream: Stream) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let (mut count, mut buffer) = (0, [0; 4_096]);
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            count += read;
        }
        count
    })
}

// Bytes that dribble.

/// A header of each length, with the payload that it announces.
fn headers() -> Vec<Vec<u8>> {
    let lengths = [5, 300, 70_000].into_iter();
    lengths
        .map(|length| frame(0x80 | BINARY, KEY, &vec![3; length]))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_header_that_dribbles_for_longer_than_the_timeout_is_a_live_peers() {
    // Each byte comes in time: for any byte that is before the timeout of the ping for the silence
    // before it, for a pong that cannot come yet before another timeout.
    for (proof, pause) in [
        (ProofOfLife::AnyBytes, ms(120)),
        (ProofOfLife::MatchingPong, ms(45)),
    ] {
        for frame in headers() {
            let (stream, live, peer, recorder) = recorded(proof);
            let handler = reads(stream);
            // The first byte comes in the last moment, too.
            sleep(ms(140)).await;
            let head = 14.min(frame.len());
            for byte in &frame[..head] {
                peer.send(&[*byte]);
                sleep(pause).await;
                assert_eq!(recorder.total(), 0, "{proof:?}: {:?}", recorder.all());
            }
            peer.send(&frame[head..]);
            peer.send(&Role::Server.pong(&peer.last_ping()));
            sleep(ms(50)).await;
            assert_eq!(live.stats().messages_received(), 1);
            assert_eq!(live.stats().pongs_received(), 1);
            peer.end(Ok(()));
            assert_eq!(
                within("the handler's end", handler).await.unwrap(),
                frame.len()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_that_stops_dribbling_is_a_dead_peers() {
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        for stops_after in 1..14 {
            let (stream, _live, peer, recorder) = recorded(proof);
            let _handler = reads(stream);
            let frame = &headers()[2];
            let mut last = Instant::now();
            for byte in &frame[..stops_after] {
                last = Instant::now();
                peer.send(&[*byte]);
                sleep(ms(120)).await;
            }
            sleep(ms(1_000)).await;
            let (after, reason) = only(&recorder, last);
            assert_eq!(reason, DEAD);
            assert!(after <= BOUND + TICK, "{proof:?}, {stops_after}: {after:?}");
        }
    }
}

// Messages that never end. The idle clock runs on complete ones.

/// A client of an echo handler under both layers.
async fn idle_client(
    idle: IdleTimeoutLayerBuilder,
    recorder: &Recorder,
) -> RawClient<DuplexStream> {
    let pings = HeartbeatLayer::builder().interval(ms(100)).timeout(ms(400));
    let app = Router::new()
        .route("/ws", echo_route())
        .layer(idle.on_evict(recorder.hook()).build().unwrap())
        .layer(pings.build().unwrap());
    RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await
}

/// Sends the same bytes every 50 ms, for 10 s at most.
async fn goes_on(client: &mut RawClient<DuplexStream>, bytes: &[u8], recorder: &Recorder) {
    let begun = Instant::now();
    while begun.elapsed() < ms(10_000) && recorder.total() == 0 {
        // Fails when it is over.
        let _ = client.send_bytes(bytes).await;
        sleep(ms(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_ends_is_an_idle_connection() {
    let more = raw::Frame::new(raw::CONTINUATION, "and so on").unfinished();
    let nothing = raw::Frame::new(raw::CONTINUATION, "").unfinished();
    let ping = raw::Frame::new(raw::PING, "still here");
    let piece = vec![b'x'; 1_000];
    for (what, begins, goes) in [
        (
            "fragments",
            raw::Frame::text("once").unfinished().masked(),
            more.masked(),
        ),
        (
            "empty fragments",
            raw::Frame::text("").unfinished().masked(),
            nothing.masked(),
        ),
        (
            "fragments and pings",
            raw::Frame::text("once").unfinished().masked(),
            [more.masked(), ping.masked()].concat(),
        ),
        (
            "one huge frame",
            [&[0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..]].concat(),
            piece,
        ),
    ] {
        for watch in [Traffic::Inbound, Traffic::Either] {
            let recorder = Recorder::new();
            let idle = IdleTimeoutLayer::builder().timeout(ms(2_000)).watch(watch);
            let mut client = idle_client(idle, &recorder).await;
            let begun = Instant::now();
            client.send_bytes(&begins).await.unwrap();
            goes_on(&mut client, &goes, &recorder).await;
            let (after, reason) = only(&recorder, begun);
            assert_eq!(reason, Reason::IdleTimeout, "{what}");
            let tick = ms(100);
            assert!(
                after >= ms(2_000) && after <= ms(2_000) + tick,
                "{what}: {after:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_ends_is_no_first_message() {
    let recorder = Recorder::new();
    let idle = IdleTimeoutLayer::builder().first_message(ms(500));
    let mut client = idle_client(idle, &recorder).await;
    let begun = Instant::now();
    client
        .send(&raw::Frame::text("once").unfinished())
        .await
        .unwrap();
    let more = raw::Frame::new(raw::CONTINUATION, "more").unfinished();
    goes_on(&mut client, &more.masked(), &recorder).await;
    let (after, reason) = only(&recorder, begun);
    assert_eq!(reason, Reason::FirstMessageTimeout);
    assert!(after >= ms(500) && after <= ms(550), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_ends_in_time_is_as_good_as_any_other() {
    let recorder = Recorder::new();
    let idle = IdleTimeoutLayer::builder().timeout(ms(2_000));
    let mut client = idle_client(idle.watch(Traffic::Inbound), &recorder).await;
    for _ in 0..5 {
        let (mut opcode, begun) = (raw::TEXT, Instant::now());
        while begun.elapsed() < ms(1_900) {
            let piece = raw::Frame::new(opcode, "piece").unfinished();
            client.send(&piece).await.unwrap();
            opcode = raw::CONTINUATION;
            sleep(ms(50)).await;
        }
        let last = raw::Frame::new(raw::CONTINUATION, "");
        client.send(&last).await.unwrap();
        let echo = client.expect_frame().await;
        assert_eq!(echo.payload, b"piece".repeat(38));
    }
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
}
