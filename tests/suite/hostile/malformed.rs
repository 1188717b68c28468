//! Malformed and endless input: no pings and no evictions without frame boundaries.
//!
//! Other connections of the runtime are not affected.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, advance, sleep};
use tower_ws_liveness::{
    HeartbeatLayerBuilder, IdleTimeoutLayer, IdleTimeoutLayerBuilder, Liveness, ProofOfLife,
    Reason, Traffic,
};

use crate::recorded::recorded;
use crate::script::*;
use crate::support::raw::{self, RawClient};
use crate::support::recorder::Recorder;
use crate::support::{bytes_route, in_memory, report_liveness};

const PROOFS: [ProofOfLife; 2] = [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong];

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// A frame with a reserved opcode (RFC 6455 section 5.2), sent to a server.
fn malformed() -> Vec<u8> {
    frame(0x80 | 0x3, Some([1, 2, 3, 4]), b"of an extension")
}

/// A heartbeat with every check switched on.
fn strict(proof: ProofOfLife) -> HeartbeatLayerBuilder {
    heartbeat()
        .proof_of_life(proof)
        .write_timeout(ms(300))
        .handler_stall_timeout(ms(300))
}

/// Asserts that bytes flow both ways unchanged and that the peer's end is detected.
async fn assert_bytes_flow(mut stream: Stream, peer: &Peer, recorder: &Recorder) {
    let before = peer.wire().written.len();
    for round in 0..5 {
        let bytes = [malformed(), vec![round; 300]].concat();
        peer.send(&bytes);
        let mut read = vec![0; bytes.len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, bytes);
        stream.write_all(&hello()).await.unwrap();
        sleep(ms(500)).await;
    }
    assert_eq!(peer.wire().written[before..], hello().repeat(5));
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    peer.end(Ok(()));
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(recorder.nth(1).await.reason, Reason::PeerVanished);
}

#[tokio::test(start_paused = true)]
async fn after_malformed_input_bytes_flow_without_pings_and_evictions() {
    for proof in PROOFS {
        let (mut stream, _live, peer, recorder) = recorded(strict(proof));
        peer.send(&malformed());
        let mut read = vec![0; malformed().len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, malformed());
        sleep(ms(20_000)).await;
        assert_eq!(recorder.total(), 0, "{proof:?}: {:?}", recorder.all());
        assert_eq!(peer.wire().written, b"", "{proof:?}");
        assert_bytes_flow(stream, &peer, &recorder).await;
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_input_cancels_the_wait_for_a_pong() {
    for proof in PROOFS {
        let (mut stream, _live, peer, recorder) = recorded(strict(proof).missed_pings(3));
        sleep(ms(110)).await;
        // A pong behind malformed bytes cannot be recognised, so the handler gets it.
        let sent = [malformed(), Role::Server.pong(&peer.last_ping())].concat();
        peer.send(&sent);
        let mut read = vec![0; sent.len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, sent);
        sleep(ms(20_000)).await;
        assert_eq!(peer.pings().len(), 1, "{proof:?}");
        assert_eq!(recorder.total(), 0, "{proof:?}: {:?}", recorder.all());
        assert_bytes_flow(stream, &peer, &recorder).await;
    }
}

/// Sends malformed bytes while a ping waits for the end of the handler's frame.
async fn assert_held_ping_is_cancelled(builder: HeartbeatLayerBuilder) {
    let (mut stream, _live, peer, recorder) = recorded(builder);
    stream.write_all(&hello()[..3]).await.unwrap();
    sleep(ms(110)).await;
    peer.send(&malformed());
    let mut read = vec![0; malformed().len()];
    stream.read_exact(&mut read).await.unwrap();
    stream.write_all(&hello()[3..]).await.unwrap();
    sleep(ms(20_000)).await;
    assert_eq!(peer.wire().written, hello());
    assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
    assert_bytes_flow(stream, &peer, &recorder).await;
}

#[tokio::test(start_paused = true)]
async fn malformed_input_cancels_a_ping_that_waits_for_a_boundary() {
    for proof in PROOFS {
        assert_held_ping_is_cancelled(heartbeat().proof_of_life(proof)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_malformed_input_cancelled_is_no_handler_stall() {
    assert_held_ping_is_cancelled(heartbeat().handler_stall_timeout(ms(300))).await;
}

/// Without pings to send, the driver must still poll a transport that the handler does not read.
#[tokio::test(start_paused = true)]
async fn after_malformed_input_the_driver_reads_for_a_handler_that_does_not() {
    let reset = io::ErrorKind::ConnectionReset;
    for (what, end, expected) in [
        ("bytes", None, Reason::HandlerStalled),
        ("an end", Some(Ok(())), Reason::PeerVanished),
        ("a reset", Some(Err(reset)), Reason::Transport(reset)),
    ] {
        let (mut stream, _live, peer, recorder) = recorded(strict(ProofOfLife::AnyBytes));
        peer.send(&malformed());
        let wakes = Wakes::new();
        got(poll_read(&mut stream, &wakes, 1_024));
        // The handler does not read from now on.
        sleep(ms(450)).await;
        let begun = Instant::now();
        match end {
            Some(end) => peer.end(end),
            None => peer.send(&hello()),
        }
        sleep(ms(2_000)).await;
        let events = recorder.all();
        assert_eq!(events.len(), 1, "{what}: {events:?}");
        assert_eq!(events[0].reason, expected, "{what}");
        // An interval until the driver reads, and 300 ms of handler stall.
        assert!(
            events[0].at - begun <= ms(410),
            "{what}: {:?}",
            events[0].at - begun
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_malformed_input_no_ping_probes_a_cancelled_write() {
    let (mut stream, _live, peer, recorder) = recorded(heartbeat().write_timeout(ms(300)));
    peer.send(&malformed());
    let mut read = vec![0; malformed().len()];
    stream.read_exact(&mut read).await.unwrap();
    peer.write_steps(&[WAIT]);
    // The write is refused and cancelled, then the peer drains the earlier bytes.
    assert!(poll_write(&mut stream, &Wakes::new(), &hello()).is_pending());
    sleep(ms(20)).await;
    peer.drain();
    sleep(ms(20_000)).await;
    assert_eq!(peer.wire().written, b"");
    assert_bytes_flow(stream, &peer, &recorder).await;
}

#[tokio::test(start_paused = true)]
async fn after_malformed_input_a_write_stall_is_still_detected() {
    let (mut stream, _live, peer, recorder) = recorded(heartbeat().write_timeout(ms(300)));
    peer.send(&malformed());
    let mut read = vec![0; malformed().len()];
    stream.read_exact(&mut read).await.unwrap();
    peer.write_steps(&[3, WAIT]);
    let begun = Instant::now();
    stream.write_all(&hello()).await.unwrap_err();
    assert_eq!(recorder.nth(1).await.reason, Reason::WriteStalled);
    assert!(begun.elapsed() <= ms(302), "{:?}", begun.elapsed());
}

// Frames that are masked against the sender's role (RFC 6455 section 5.1). Their boundaries are
// known, and rejecting them is left to the application's codec.

const ROLES: [Role; 2] = [Role::Server, Role::Client];

/// A masking key where the role requires none, and none where it requires one.
fn wrong_key(right: Option<[u8; 4]>) -> Option<[u8; 4]> {
    match right {
        Some(_) => None,
        None => Some([5, 6, 7, 8]),
    }
}

/// A stream in this role with a recording hook.
fn recorded_as(role: Role, builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let layer = builder.on_evict(recorder.hook()).build().unwrap();
    let (io, peer) = script();
    let (stream, live) = role.wrap(&layer, io);
    (stream, live, peer, recorder)
}

async fn assert_reads(stream: &mut Stream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, expected);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_masks_wrongly_is_pinged_and_its_close_is_detected() {
    for (role, proof) in ROLES
        .into_iter()
        .flat_map(|role| PROOFS.map(|proof| (role, proof)))
    {
        let (mut stream, live, peer, recorder) = recorded_as(role, strict(proof));
        let key = wrong_key(role.inbound([1, 2, 3, 4]));
        let message = frame(0x80 | TEXT, key, b"hello");
        for round in 1..=20 {
            peer.send(&message);
            assert_reads(&mut stream, &message).await;
            sleep(ms(110)).await;
            assert_eq!(peer.pings().len(), round, "{role:?}, {proof:?}");
            // The driver's frames are masked as the role requires.
            let masked = peer
                .frames()
                .iter()
                .all(|frame| frame.masked == (role == Role::Client));
            assert!(masked, "{role:?}");
            peer.send(&frame(0x80 | PONG, key, &peer.last_ping()));
            assert!(poll_read(&mut stream, &Wakes::new(), 64).is_pending());
            assert_eq!(live.stats().pongs_received(), round as u64);
        }
        assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
        let close = frame(0x80 | CLOSE, key, &1001_u16.to_be_bytes());
        peer.send(&close);
        assert_reads(&mut stream, &close).await;
        let reason = Reason::PeerClosed { code: Some(1001) };
        assert_eq!(recorder.nth(1).await.reason, reason, "{role:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_that_masked_wrongly_is_evicted() {
    for role in ROLES {
        let (mut stream, _live, peer, recorder) = recorded_as(role, heartbeat());
        let message = frame(0x80 | TEXT, wrong_key(role.inbound([1, 2, 3, 4])), b"hello");
        peer.send(&message);
        assert_reads(&mut stream, &message).await;
        let last = Instant::now();
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        assert!(event.at - last <= ms(152), "{:?}", event.at - last);
    }
}

/// Reads the available bytes in pieces of `size`, and asserts that the stream has not ended.
fn read_available(stream: &mut Stream, size: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while let Poll::Ready(bytes) = poll_read(stream, &Wakes::new(), size) {
        let bytes = bytes.unwrap();
        assert!(!bytes.is_empty(), "zero bytes are the end of the stream");
        read.extend(bytes);
    }
    read
}

#[tokio::test(start_paused = true)]
async fn only_our_pongs_are_removed_from_the_stream_at_any_masking_and_split() {
    let keys = [None, Some([9, 8, 7, 6])];
    for (role, pong_key, next_key) in ROLES
        .into_iter()
        .flat_map(|role| keys.map(|pong| keys.map(|next| (role, pong, next))))
        .flatten()
    {
        // The next frame is shorter or longer than the missing rest of a masked pong, or a pong.
        let foreign = frame(0x80 | PONG, pong_key, b"not ours");
        for next in [
            frame(0x80 | TEXT, next_key, b""),
            frame(0x80 | TEXT, next_key, b"twenty bytes of text"),
            frame(0x80 | PONG, next_key, b"8 bytes!"),
        ] {
            for (own, kept) in [
                (true, next.clone()),
                (false, [&foreign[..], &next].concat()),
            ] {
                let len = 14 + next.len();
                // Two pieces at every cut, single bytes, and pieces of three bytes.
                let cuts = (0..=len).map(|cut| vec![cut, len]);
                for pieces in cuts.chain([(0..=len).collect(), (0..=len).step_by(3).collect()]) {
                    for size in [1, 3, 64] {
                        let (mut stream, live, peer, _) = recorded_as(role, heartbeat());
                        sleep(ms(105)).await;
                        let pong = frame(0x80 | PONG, pong_key, &peer.last_ping());
                        let sent = match own {
                            true => [&pong[..], &next].concat(),
                            false => [&foreign[..], &next].concat(),
                        };
                        let (mut read, mut from) = (Vec::new(), 0);
                        for to in pieces.iter().chain([&len]).map(|to| sent.len().min(*to)) {
                            peer.send(&sent[from..to]);
                            from = to;
                            read.extend(read_available(&mut stream, size));
                        }
                        let case = format!("{role:?}, {sent:x?}, {pieces:?}, reads of {size}");
                        assert_eq!(read, kept, "{case}");
                        assert_eq!(live.stats().pongs_received(), u64::from(own), "{case}");
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pings_are_sent_between_the_frames_of_a_handler_that_masks_wrongly() {
    for role in ROLES {
        for chunk in [1, 3, ALL] {
            let (mut stream, live, peer, recorder) =
                recorded_as(role, heartbeat().timeout(ms(500)));
            peer.write_steps(&[chunk]);
            let key = wrong_key(role.outbound([1, 2, 3, 4]));
            let message = frame(0x80 | TEXT, key, b"hello");
            for round in 1..=5 {
                stream.write_all(&message[..4]).await.unwrap();
                // A ping is due, and waits for the end of the frame.
                sleep(ms(110)).await;
                assert_eq!(peer.pings().len(), round - 1, "{role:?}, {chunk}");
                stream.write_all(&message[4..]).await.unwrap();
                sleep(ms(5)).await;
                assert_eq!(peer.pings().len(), round, "{role:?}, {chunk}");
                peer.send(&role.pong(&peer.last_ping()));
                assert!(poll_read(&mut stream, &Wakes::new(), 64).is_pending());
            }
            let frames = peer.frames();
            let own = frames.iter().filter(|frame| frame.may_be_ours());
            assert!(
                own.clone()
                    .all(|ping| ping.masked == (role == Role::Client))
            );
            let others = frames.iter().filter(|frame| !frame.may_be_ours());
            assert!(others.clone().all(|other| other.raw == message));
            assert_eq!((own.count(), others.count()), (5, 5));
            assert_eq!(live.stats().messages_sent(), 5);
            // The handler's Close frame is detected too.
            let close = frame(0x80 | CLOSE, key, &1000_u16.to_be_bytes());
            stream.write_all(&close).await.unwrap();
            peer.end(Ok(()));
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
            let reason = Reason::ServerClosed { code: Some(1000) };
            assert_eq!(recorder.nth(1).await.reason, reason, "{role:?}");
        }
    }
}

/// The evictions within 60 s of a client that sends every 100 ms, to an axum handler that accepts
/// unmasked frames and sends nothing.
async fn evictions_of_sender(idle: IdleTimeoutLayerBuilder, masks: bool) -> Vec<Reason> {
    let recorder = Recorder::new();
    let route = any(move |ws: WebSocketUpgrade| async move {
        ws.accept_unmasked_frames(true)
            .on_upgrade(|mut socket: WebSocket| async move {
                while let Some(Ok(Message::Text(_))) = socket.recv().await {}
            })
    });
    let idle = idle.on_evict(recorder.hook()).build().unwrap();
    let app = Router::new().route("/ws", route).layer(idle);
    let mut client = RawClient::handshake(in_memory(app, 4_096), "/ws").await;
    for _ in 0..600 {
        let message = raw::Frame::text("21.5 degrees");
        let bytes = match masks {
            true => message.masked(),
            false => message.unmasked(),
        };
        if client.send_bytes(&bytes).await.is_err() {
            break;
        }
        sleep(ms(100)).await;
    }
    recorder.all().iter().map(|event| event.reason).collect()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_mask_is_not_idle() {
    let idle = || IdleTimeoutLayer::builder().timeout(ms(5_000));
    for masks in [true, false] {
        for watch in [Traffic::Inbound, Traffic::Either] {
            assert_eq!(
                evictions_of_sender(idle().watch(watch), masks).await,
                [],
                "{watch:?}"
            );
        }
        let patient = IdleTimeoutLayer::builder().first_message(ms(2_000));
        assert_eq!(evictions_of_sender(patient, masks).await, []);
        // Each message is known to be complete, and no byte flows in the other direction.
        let bounded = idle().watch(Traffic::Inbound).message_timeout(ms(1_000));
        assert_eq!(evictions_of_sender(bounded, masks).await, []);
        let outbound = idle().watch(Traffic::Outbound);
        assert_eq!(
            evictions_of_sender(outbound, masks).await,
            [Reason::IdleTimeout]
        );
    }
}

// Lost frame boundaries: every byte counts as traffic for the idle layer.

/// Malformed frames of each kind that loses the frame boundaries.
fn boundary_losing_frames() -> [Vec<u8>; 5] {
    [
        vec![0x83, 0],
        vec![0x8B, 0x80],
        vec![0x09, 0],
        vec![0x89, 126, 0, 126],
        vec![0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
    ]
}

/// The side of the connection that sends malformed input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Peer,
    Handler,
}

/// Sends `broken` and then a byte each second, for 60 s or until an eviction. Returns the time from
/// the first byte to the eviction and its reason, and the longest idle time.
async fn send_unframed(
    sender: Sender,
    broken: &[u8],
    idle: IdleTimeoutLayerBuilder,
) -> (Option<(Duration, Reason)>, Duration) {
    let recorder = Recorder::new();
    let bytes = broken.to_vec();
    let (route, mut lives) = report_liveness(bytes_route(move |io| {
        let bytes = bytes.clone();
        async move {
            let (mut reader, mut writer) = tokio::io::split(io);
            tokio::spawn(async move { while let Ok(1..) = reader.read(&mut [0; 64]).await {} });
            if sender == Sender::Peer {
                return std::future::pending().await;
            }
            let mut next = bytes;
            while writer.write_all(&next).await.is_ok() && writer.flush().await.is_ok() {
                sleep(ms(1_000)).await;
                next = b"?".to_vec();
            }
        }
    }));
    let idle = idle.on_evict(recorder.hook()).build().unwrap();
    let app = Router::new().route("/ws", route).layer(idle);
    let mut client = RawClient::handshake(in_memory(app, 4_096), "/ws").await;
    let live = lives.recv().await.unwrap();
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let mut next = broken.to_vec();
    while begun.elapsed() < ms(60_000) && recorder.total() == 0 {
        if sender == Sender::Peer {
            // Fails after the eviction.
            let _ = client.send_bytes(&next).await;
            next = b"?".to_vec();
        }
        sleep(ms(1_000)).await;
        longest = longest.max(live.idle_for());
    }
    let end = recorder
        .all()
        .first()
        .map(|event| (event.at - begun, event.reason));
    (end, longest)
}

#[tokio::test(start_paused = true)]
async fn without_frame_boundaries_every_byte_keeps_a_connection_from_being_idle() {
    for (sender, watched) in [
        (Sender::Peer, Traffic::Inbound),
        (Sender::Handler, Traffic::Outbound),
    ] {
        for broken in boundary_losing_frames() {
            for watch in [Traffic::Inbound, Traffic::Outbound, Traffic::Either] {
                let idle = IdleTimeoutLayer::builder().timeout(ms(3_000)).watch(watch);
                // Without boundaries no byte may count as part of an unfinished message.
                let idle = idle.message_timeout(ms(5_000));
                let (end, longest) = send_unframed(sender, &broken, idle).await;
                let case = format!("{sender:?}, {broken:x?}, {watch:?}");
                if watch == watched || watch == Traffic::Either {
                    assert_eq!(end, None, "{case}");
                    assert!(longest <= ms(1_000), "{case}: {longest:?}");
                } else {
                    let (after, reason) = end.expect(&case);
                    assert_eq!(reason, Reason::IdleTimeout, "{case}");
                    assert!(
                        (ms(3_000)..=ms(3_064)).contains(&after),
                        "{case}: {after:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_frame_boundaries_any_byte_counts_as_the_first_message() {
    for broken in boundary_losing_frames() {
        let idle = || IdleTimeoutLayer::builder().first_message(ms(4_000));
        let (end, _) = send_unframed(Sender::Peer, &broken, idle()).await;
        assert_eq!(end, None, "{broken:x?}");
        // The handler's bytes are no message of the peer.
        let (end, _) = send_unframed(Sender::Handler, &broken, idle()).await;
        let (after, reason) = end.expect("an end");
        assert_eq!(reason, Reason::FirstMessageTimeout);
        assert!((ms(4_000)..=ms(4_128)).contains(&after), "{after:?}");
    }
}

// A peer that never stops.

/// A transport whose peer repeats the pong to the first ping for ever, as fast as it is read.
#[derive(Clone, Default)]
struct PongFlood {
    written: Arc<Mutex<Vec<u8>>>,
    reader: Arc<Mutex<Option<Waker>>>,
    /// Reads since the other tasks of the runtime last ran.
    reads: Arc<AtomicUsize>,
}

impl AsyncRead for PongFlood {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let frames = parse(&self.written.lock().unwrap()).0;
        let Some(ping) = frames.iter().find(|frame| frame.may_be_ours()) else {
            *self.reader.lock().unwrap() = Some(cx.waker().clone());
            return Poll::Pending;
        };
        // Without this bound a failing test would never end.
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(reads < 100_000, "no other task of the runtime has run");
        buf.put_slice(&Role::Server.pong(&ping.payload));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PongFlood {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.lock().unwrap().extend_from_slice(buf);
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Asserts that, next to a pong flood, a live neighbour stays open and a dead one is evicted.
async fn assert_neighbours_unaffected(handler_reads: bool) {
    let recorder = Recorder::new();
    let layer = heartbeat().on_evict(recorder.hook()).build().unwrap();
    let flood = PongFlood::default();
    let (mut noisy, live) = layer.wrap_server(flood.clone());
    let reading = tokio::spawn(async move {
        if handler_reads {
            let _ = noisy.read(&mut [0; 64]).await;
        }
        std::future::pending::<()>().await;
        drop(noisy);
    });
    let (io, answering) = script();
    let (mut quiet, _quiet_live) = layer.wrap_server(io);
    let (io, _dead) = script();
    let (_silent, dead_live) = layer.wrap_server(io);

    let begun = Instant::now();
    let mut answered = 0;
    while begun.elapsed() < ms(1_000) {
        advance(ms(5)).await;
        flood.reads.store(0, Ordering::Relaxed);
        for ping in &answering.pings()[answered..] {
            answering.send(&Role::Server.pong(ping));
            answered += 1;
        }
    }
    let events = recorder.all();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].id, dead_live.id());
    // Time advances in steps of 5 ms, and the ping and its timeout may each be two steps late.
    assert!(
        events[0].at - begun <= ms(150 + 20),
        "{:?}",
        events[0].at - begun
    );
    assert!(answered >= 8, "{answered}");
    assert!(live.stats().bytes_received() > 0, "the flood was read");
    // The neighbour's bytes flow.
    let bytes = frame(0x80 | TEXT, Some([3; 4]), b"still here");
    answering.send(&bytes);
    let mut read = vec![0; bytes.len()];
    quiet.read_exact(&mut read).await.unwrap();
    assert_eq!(read, bytes);
    reading.abort();
    let _ = reading.await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_repeats_a_pong_for_ever_starves_no_task_while_the_handler_reads() {
    assert_neighbours_unaffected(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_repeats_a_pong_for_ever_starves_no_task_while_the_handler_is_busy() {
    assert_neighbours_unaffected(false).await;
}
