//! Long transfers, slow bytes and endless messages, against all three timeouts.
//!
//! Their bytes prove that the peer is alive and count as traffic for the idle timeout;
//! `message_timeout` bounds them.

use std::convert::Infallible;
use std::io::IoSlice;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::{MethodRouter, any};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tower_ws_liveness::{
    HeartbeatLayer, IdleTimeoutLayer, IdleTimeoutLayerBuilder, ProofOfLife, Reason, Traffic,
};

use crate::recorded::{only_eviction, recorded};
use crate::script::*;
use crate::support::raw::{self, RawClient};
use crate::support::recorder::Recorder;
use crate::support::{bytes_route, echo_route, in_memory, never_reads, within};

/// Lateness allowed under `heartbeat()`: the driver's tick, and 1 ms to act.
const TICK: Duration = Duration::from_millis(2);

/// The bound on detecting a dead peer under `heartbeat()`: interval plus timeout.
const DETECTION_BOUND: Duration = Duration::from_millis(150);

const ONE_MISSED_PING: Reason = Reason::HeartbeatTimeout { missed: 1 };

const MASKING_KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// Spawns a handler that reads to the end and returns the number of bytes.
fn spawn_reader(mut stream: Stream) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let (mut count, mut buffer) = (0, [0; 4_096]);
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            count += read;
        }
        count
    })
}

// Bytes that arrive one at a time.

/// A frame with each length of header.
fn frames_of_each_header_length() -> Vec<Vec<u8>> {
    let lengths = [5, 300, 70_000].into_iter();
    lengths
        .map(|length| frame(0x80 | BINARY, MASKING_KEY, &vec![3; length]))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_a_header_byte_by_byte_for_longer_than_the_timeout_is_alive() {
    // Each byte arrives in time. `AnyBytes`: before the ping for the preceding silence times out.
    // `MatchingPong`: before another timeout, while the pong cannot arrive inside the frame.
    for (proof, pause) in [
        (ProofOfLife::AnyBytes, ms(120)),
        (ProofOfLife::MatchingPong, ms(45)),
    ] {
        for frame in frames_of_each_header_length() {
            let (stream, live, peer, recorder) = recorded(heartbeat().proof_of_life(proof));
            let handler = spawn_reader(stream);
            // The first byte also arrives just before the deadline.
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
async fn a_peer_that_stops_in_the_middle_of_a_header_is_dead() {
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        for stops_after in 1..14 {
            let (stream, _live, peer, recorder) = recorded(heartbeat().proof_of_life(proof));
            let _handler = spawn_reader(stream);
            let frame = &frames_of_each_header_length()[2];
            let mut last = Instant::now();
            for byte in &frame[..stops_after] {
                last = Instant::now();
                peer.send(&[*byte]);
                sleep(ms(120)).await;
            }
            sleep(ms(1_000)).await;
            let (after, reason) = only_eviction(&recorder, last);
            assert_eq!(reason, ONE_MISSED_PING);
            assert!(
                after <= DETECTION_BOUND + TICK,
                "{proof:?}, {stops_after}: {after:?}"
            );
        }
    }
}

// Messages that never end.

/// A client of an echo handler behind both layers.
async fn client_behind_both(
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

/// Sends the same bytes every 50 ms until an eviction, for at most 10 s.
async fn send_repeatedly(client: &mut RawClient<DuplexStream>, bytes: &[u8], recorder: &Recorder) {
    let begun = Instant::now();
    while begun.elapsed() < ms(10_000) && recorder.total() == 0 {
        // Fails after the eviction.
        let _ = client.send_bytes(bytes).await;
        sleep(ms(50)).await;
    }
}

/// Endless messages: name, first bytes, and the bytes to repeat.
fn endless() -> [(&'static str, Vec<u8>, Vec<u8>); 4] {
    let more = raw::Frame::new(raw::CONTINUATION, "and so on").unfinished();
    let nothing = raw::Frame::new(raw::CONTINUATION, "").unfinished();
    let ping = raw::Frame::new(raw::PING, "still here");
    let once = raw::Frame::text("once").unfinished().masked();
    [
        ("fragments", once.clone(), more.masked()),
        (
            "empty fragments",
            raw::Frame::text("").unfinished().masked(),
            nothing.masked(),
        ),
        (
            "fragments and pings",
            once,
            [more.masked(), ping.masked()].concat(),
        ),
        (
            "one huge frame",
            vec![0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            vec![b'x'; 1_000],
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_ends_is_not_idle_and_is_evicted_at_the_message_timeout() {
    for (what, first, repeated) in endless() {
        for watch in [Traffic::Inbound, Traffic::Either] {
            for bound in [None, Some(ms(4_000))] {
                let recorder = Recorder::new();
                let idle = IdleTimeoutLayer::builder().timeout(ms(2_000)).watch(watch);
                let mut client = client_behind_both(idle.message_timeout(bound), &recorder).await;
                // The bound counts from the message's start, not from the connection's.
                sleep(ms(300)).await;
                let begun = Instant::now();
                client.send_bytes(&first).await.unwrap();
                send_repeatedly(&mut client, &repeated, &recorder).await;
                let Some(bound) = bound else {
                    assert_eq!(recorder.total(), 0, "{what}: {:?}", recorder.all());
                    continue;
                };
                let (after, reason) = only_eviction(&recorder, begun);
                assert_eq!(reason, Reason::MessageTimeout, "{what}");
                // An interval of 100 ms gives a tick of 3 ms.
                assert!(
                    after >= bound && after <= bound + ms(3),
                    "{what}: {after:?}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pings_inside_a_stopped_message_do_not_reset_the_idle_timeout() {
    let recorder = Recorder::new();
    let idle = IdleTimeoutLayer::builder().timeout(ms(2_000));
    let mut client = client_behind_both(idle, &recorder).await;
    sleep(ms(300)).await;
    let begun = Instant::now();
    client
        .send(&raw::Frame::text("once").unfinished())
        .await
        .unwrap();
    let ping = raw::Frame::new(raw::PING, "still here");
    send_repeatedly(&mut client, &ping.masked(), &recorder).await;
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::IdleTimeout);
    // The echo handler's pongs are not data either.
    assert!(after >= ms(2_000) && after <= ms(2_003), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_never_ends_does_not_count_as_the_first_message() {
    let recorder = Recorder::new();
    let idle = IdleTimeoutLayer::builder().first_message(ms(500));
    let mut client = client_behind_both(idle, &recorder).await;
    let begun = Instant::now();
    client
        .send(&raw::Frame::text("once").unfinished())
        .await
        .unwrap();
    let more = raw::Frame::new(raw::CONTINUATION, "more").unfinished();
    send_repeatedly(&mut client, &more.masked(), &recorder).await;
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::FirstMessageTimeout);
    assert!(after >= ms(500) && after <= ms(550), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_message_that_ends_in_time_is_delivered() {
    let recorder = Recorder::new();
    let idle = IdleTimeoutLayer::builder().timeout(ms(2_000));
    let mut client = client_behind_both(idle.watch(Traffic::Inbound), &recorder).await;
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

// Transfers.

/// Lateness allowed for deadlines of 3 s and more: the driver's tick, and 1 ms to act.
const IDLE_TICK: Duration = Duration::from_millis(65);

/// The payload of a transfer.
const TRANSFER_BYTES: usize = 400_000;

/// Pieces of a transfer, sent 25 ms apart: 8 s in total.
const PIECES: usize = 320;

/// A message with a payload of `TRANSFER_BYTES` in so many equal fragments.
fn transfer(fragments: usize, masked: bool) -> Vec<u8> {
    let key = MASKING_KEY.filter(|_| masked);
    let payload = vec![7; TRANSFER_BYTES / fragments];
    let frames = (1..=fragments).map(|number| {
        let opcode = if number == 1 { BINARY } else { CONTINUATION };
        let fin = if number == fragments { 0x80 } else { 0 };
        frame(fin | opcode, key, &payload)
    });
    frames.collect::<Vec<_>>().concat()
}

/// A client behind an idle layer without a heartbeat, and the recorder of its hook.
async fn client_behind_idle(
    idle: IdleTimeoutLayerBuilder,
    route: MethodRouter<(), Infallible>,
    buffer: usize,
) -> (RawClient<DuplexStream>, Recorder) {
    let recorder = Recorder::new();
    let idle = idle.on_evict(recorder.hook()).build().unwrap();
    let app = Router::new().route("/ws", route).layer(idle);
    let client = RawClient::handshake(in_memory(app, buffer), "/ws").await;
    (client, recorder)
}

/// An idle timeout of 3 s.
fn idle_after_3s(watch: Traffic) -> IdleTimeoutLayerBuilder {
    IdleTimeoutLayer::builder().timeout(ms(3_000)).watch(watch)
}

/// Asserts that the only eviction so far is the idle timeout of 3 s after `from`.
#[track_caller]
fn assert_idle_after_3s(recorder: &Recorder, from: Instant) {
    let (after, reason) = only_eviction(recorder, from);
    assert_eq!(reason, Reason::IdleTimeout);
    let in_time = after >= ms(3_000) && after <= ms(3_000) + IDLE_TICK;
    assert!(in_time, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_progress_is_not_idle() {
    for fragments in [1, 20] {
        for watch in [Traffic::Inbound, Traffic::Either, Traffic::Outbound] {
            let (mut client, recorder) =
                client_behind_idle(idle_after_3s(watch), echo_route(), 64 * 1024).await;
            let begun = Instant::now();
            let bytes = transfer(fragments, true);
            for piece in bytes.chunks(bytes.len().div_ceil(PIECES)) {
                // Fails after the eviction.
                let _ = client.send_bytes(piece).await;
                sleep(ms(25)).await;
            }
            if watch == Traffic::Outbound {
                assert_idle_after_3s(&recorder, begun);
                continue;
            }
            assert_eq!(recorder.total(), 0, "{watch:?}: {:?}", recorder.all());
            assert_eq!(client.expect_frame().await.payload.len(), TRANSFER_BYTES);
            // The silence after the upload is idle.
            let ended = Instant::now();
            let event = recorder.nth(1).await;
            assert_eq!(event.reason, Reason::IdleTimeout);
            assert!(event.at - ended <= ms(3_000) + IDLE_TICK);
        }
    }
}

/// A route whose handler writes `bytes` and then waits in a read until the end.
fn writing(bytes: Vec<u8>, vectored: bool) -> MethodRouter<(), Infallible> {
    bytes_route(move |mut io| {
        let bytes = bytes.clone();
        async move {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(rest.len().min(9));
                let written = match vectored {
                    true => {
                        io.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)])
                            .await
                    }
                    false => io.write(rest).await,
                };
                match written {
                    Ok(count) => rest = &rest[count..],
                    Err(_) => return,
                }
            }
            let _ = io.read(&mut [0; 8]).await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_download_that_is_drained_slowly_is_not_idle() {
    for (fragments, vectored) in [(1, false), (1, true), (20, false), (20, true)] {
        for watch in [Traffic::Outbound, Traffic::Either, Traffic::Inbound] {
            let bytes = transfer(fragments, false);
            let route = writing(bytes.clone(), vectored);
            let (mut client, recorder) =
                client_behind_idle(idle_after_3s(watch), route, 1_024).await;
            let begun = Instant::now();
            // The last piece may have been received with the handshake.
            for _ in 1..PIECES {
                if recorder.total() > 0 {
                    break;
                }
                client.fill(bytes.len() / PIECES).await.unwrap();
                sleep(ms(25)).await;
            }
            if watch == Traffic::Inbound {
                assert_idle_after_3s(&recorder, begun);
                continue;
            }
            assert_eq!(recorder.total(), 0, "{watch:?}: {:?}", recorder.all());
            assert!(begun.elapsed() >= ms(7_900), "the download was slow");
            assert_eq!(recorder.nth(1).await.reason, Reason::IdleTimeout);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_that_is_not_drained_is_idle_from_its_last_accepted_byte() {
    for watch in [Traffic::Outbound, Traffic::Either] {
        let route = writing(transfer(1, false), false);
        let (mut client, recorder) = client_behind_idle(idle_after_3s(watch), route, 1_024).await;
        client.fill(10_000).await.unwrap();
        sleep(ms(2_000)).await;
        client.fill(10_000).await.unwrap();
        // By then the handler has filled the transport again.
        sleep(ms(1)).await;
        let last = Instant::now();
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::IdleTimeout);
        let after = event.at - last;
        assert!(
            after >= ms(2_990) && after <= ms(3_000) + IDLE_TICK,
            "{after:?}"
        );
    }
}

// The bound on one message.

/// A message of two fragments with `size` bytes of payload in total.
fn fragmented(size: usize, masked: bool) -> Vec<u8> {
    let key = MASKING_KEY.filter(|_| masked);
    let (head, tail) = (size / 2, size - size / 2);
    let begin = frame(BINARY, key, &vec![1; head]);
    let end = frame(0x80 | CONTINUATION, key, &vec![1; tail]);
    [begin, end].concat()
}

/// A `message_timeout` of 4 s and an idle timeout that does not expire.
fn message_within_4s(watch: Traffic) -> IdleTimeoutLayerBuilder {
    let idle = IdleTimeoutLayer::builder().timeout(ms(600_000));
    idle.watch(watch).message_timeout(ms(4_000))
}

/// The driver's tick under the message timeout of 4 s or the `close_timeout` of 5 s.
const MESSAGE_TICK: Duration = Duration::from_millis(65);

/// Sends `bytes` in pieces of `chunk`, the last one `span` after the first.
async fn send_slowly(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    chunk: usize,
    span: Duration,
) -> std::io::Result<()> {
    let begun = Instant::now();
    let pauses = bytes.len().div_ceil(chunk) - 1;
    let pause = span / u32::try_from(pauses).unwrap();
    for (number, piece) in (0..).zip(bytes.chunks(chunk)) {
        sleep_until(begun + pause * number).await;
        writer.write_all(piece).await?;
        writer.flush().await?;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_inbound_message_has_the_message_timeout_at_any_chunking() {
    let discards =
        || bytes_route(|mut io| async move { while let Ok(1..) = io.read(&mut [0; 100]).await {} });
    let whole = frame(0x80 | BINARY, MASKING_KEY, &[1; 300]);
    for bytes in [whole, fragmented(300, true)] {
        for chunk in [1, 2, 3, 7, 50, 157, bytes.len() - 1] {
            for (watch, span, ends) in [
                (Traffic::Inbound, ms(3_900), false),
                (Traffic::Inbound, ms(4_200), true),
                (Traffic::Either, ms(4_200), true),
                (Traffic::Outbound, ms(4_200), false),
            ] {
                let (mut client, recorder) =
                    client_behind_idle(message_within_4s(watch), discards(), 4_096).await;
                // The second message has a timeout of its own.
                for _ in 0..2 {
                    sleep(ms(1_000)).await;
                    let begun = Instant::now();
                    let sent = send_slowly(client.io(), &bytes, chunk, span).await;
                    let case = format!("{watch:?}, {span:?}, {} by {chunk}", bytes.len());
                    if !ends {
                        sent.expect(&case);
                        assert_eq!(recorder.total(), 0, "{case}: {:?}", recorder.all());
                        continue;
                    }
                    sleep(ms(1_000)).await;
                    let (after, reason) = only_eviction(&recorder, begun);
                    assert_eq!(reason, Reason::MessageTimeout, "{case}");
                    assert!(after >= ms(4_000), "{case}: {after:?}");
                    assert!(after <= ms(4_000) + MESSAGE_TICK, "{case}: {after:?}");
                    break;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outbound_message_has_the_message_timeout_at_any_chunking() {
    let whole = frame(0x80 | BINARY, None, &[1; 300]);
    for bytes in [whole, fragmented(300, false)] {
        for chunk in [1, 2, 3, 7, 50, 151, bytes.len() - 1] {
            for (watch, span, ends) in [
                (Traffic::Outbound, ms(3_900), false),
                (Traffic::Outbound, ms(4_200), true),
                (Traffic::Either, ms(4_200), true),
                (Traffic::Inbound, ms(4_200), false),
            ] {
                let message = bytes.clone();
                let route = bytes_route(move |mut io| {
                    let message = message.clone();
                    async move {
                        for _ in 0..2 {
                            sleep(ms(1_000)).await;
                            let _ = send_slowly(&mut io, &message, chunk, span).await;
                        }
                        std::future::pending::<()>().await;
                    }
                });
                let (_client, recorder) =
                    client_behind_idle(message_within_4s(watch), route, 4_096).await;
                let begun = Instant::now() + ms(1_000);
                sleep(ms(12_000)).await;
                let case = format!("{watch:?}, {span:?}, {} by {chunk}", bytes.len());
                if !ends {
                    assert_eq!(recorder.total(), 0, "{case}: {:?}", recorder.all());
                    continue;
                }
                let (after, reason) = only_eviction(&recorder, begun);
                assert_eq!(reason, Reason::MessageTimeout, "{case}");
                assert!(after >= ms(4_000), "{case}: {after:?}");
                assert!(after <= ms(4_000) + MESSAGE_TICK, "{case}: {after:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_peer_drains_too_slowly_is_evicted_at_the_message_timeout() {
    let (mut client, recorder) = {
        let route = writing(transfer(1, false), false);
        client_behind_idle(message_within_4s(Traffic::Outbound), route, 1_024).await
    };
    let begun = Instant::now();
    while recorder.total() == 0 && begun.elapsed() < ms(10_000) {
        client.fill(1_000).await.unwrap();
        sleep(ms(25)).await;
    }
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::MessageTimeout);
    assert!(
        after >= ms(4_000) && after <= ms(4_000) + MESSAGE_TICK,
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_handler_does_not_read_does_not_count_towards_the_message_timeout() {
    for chunk in [64, 100_000] {
        let route = bytes_route(move |mut io| async move {
            sleep(ms(60_000)).await;
            let mut buffer = vec![0; chunk];
            while let Ok(1..) = io.read(&mut buffer).await {}
        });
        // The heartbeat makes the driver visit early and fill the read-ahead.
        let pings = HeartbeatLayer::builder().interval(ms(1_000));
        let recorder = Recorder::new();
        let idle = message_within_4s(Traffic::Inbound).on_evict(recorder.hook());
        let app = Router::new()
            .route("/ws", route)
            .layer(idle.build().unwrap())
            .layer(pings.timeout(ms(60_000)).build().unwrap());
        let mut client = RawClient::handshake(in_memory(app, 100_000), "/ws").await;
        let message = transfer(1, true);
        let (unread, rest) = message.split_at(350_000);
        client.send_bytes(unread).await.unwrap();
        // The peer still has the whole message timeout.
        send_slowly(client.io(), rest, 1_000, ms(3_900))
            .await
            .unwrap();
        assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
        // The next message times out once the handler has read all that was sent of it.
        let begun = Instant::now();
        client
            .send_bytes(&transfer(1, true)[..50_000])
            .await
            .unwrap();
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::MessageTimeout);
        let after = event.at - begun;
        assert!(
            after >= ms(4_000) && after <= ms(4_000) + MESSAGE_TICK,
            "{after:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_message_to_a_handler_that_does_not_read_is_evicted_at_the_message_timeout() {
    let route = any(|ws: WebSocketUpgrade| async move { ws.on_upgrade(never_reads) });
    let idle = message_within_4s(Traffic::Inbound).timeout(ms(10_000));
    let (mut client, recorder) = client_behind_idle(idle, route, 4_096).await;
    let begun = Instant::now();
    let message = frame(0x80 | BINARY, MASKING_KEY, &[1; 300]);
    let _ = send_slowly(client.io(), &message, 1, ms(60_000)).await;
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::MessageTimeout);
    // The driver first reads when the idle timeout expires, and keeps reading from then on.
    let latest = ms(14_000) + 2 * MESSAGE_TICK;
    assert!(after >= ms(14_000) && after <= latest, "{after:?}");
}

// Behind a full read-ahead.

/// Sends one message of `len` bytes to a handler that does not read. Returns the time from the last
/// byte to the eviction, which must follow within a day, and its reason.
async fn evicted_unread(idle: IdleTimeoutLayerBuilder, len: usize) -> (Duration, Reason) {
    let route = any(|ws: WebSocketUpgrade| async move { ws.on_upgrade(never_reads) });
    let (mut client, recorder) = client_behind_idle(idle, route, 1 << 20).await;
    client
        .send(&raw::Frame::new(raw::BINARY, vec![1; len]))
        .await
        .unwrap();
    let last = Instant::now();
    sleep(ms(86_400_000)).await;
    only_eviction(&recorder, last)
}

#[tokio::test(start_paused = true)]
async fn unread_bytes_delay_the_idle_timeout_at_most_once() {
    for len in [10, 10_000, 16_376, 16_377, 20_000, 500_000] {
        for watch in [Traffic::Inbound, Traffic::Either, Traffic::Outbound] {
            let (after, reason) = evicted_unread(idle_after_3s(watch), len).await;
            assert_eq!(reason, Reason::IdleTimeout, "{len}, {watch:?}");
            // At the deadline the driver finds the unread bytes and counts once more from there.
            let periods = if watch == Traffic::Outbound { 1 } else { 2 };
            let latest = (ms(3_000) + IDLE_TICK) * periods;
            assert!(
                after >= ms(3_000) && after <= latest,
                "{len}, {watch:?}: {after:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_message_larger_than_the_read_ahead_counts_as_received() {
    let idle = || idle_after_3s(Traffic::Inbound).first_message(ms(1_000));
    assert_eq!(evicted_unread(idle(), 20_000).await.1, Reason::IdleTimeout);
    let cut = frame(0x80 | BINARY, MASKING_KEY, &[1; 20_000]);
    let route = any(|ws: WebSocketUpgrade| async move { ws.on_upgrade(never_reads) });
    let (mut client, recorder) = client_behind_idle(idle(), route, 1 << 20).await;
    let begun = Instant::now();
    client.send_bytes(&cut[..10_000]).await.unwrap();
    // The driver has read all bytes: the message is incomplete.
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::FirstMessageTimeout);
    assert!(event.at - begun <= ms(1_000) + IDLE_TICK);
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_behind_a_full_read_ahead_is_not_idle_while_it_reads() {
    let route = bytes_route(|mut io| async move {
        // 16 KiB every 2 s.
        let mut buffer = vec![0; 16 * 1024];
        while io.read_exact(&mut buffer).await.is_ok() {
            sleep(ms(2_000)).await;
        }
        std::future::pending::<()>().await;
    });
    let (mut client, recorder) =
        client_behind_idle(idle_after_3s(Traffic::Inbound), route, 64 * 1024).await;
    let begun = Instant::now();
    client.send_bytes(&transfer(1, true)).await.unwrap();
    assert!(begun.elapsed() >= ms(30_000), "{:?}", begun.elapsed());
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
}
