//! Input that breaks the rules or wears the patience: nobody is pinged or judged by bytes that
//! cannot be understood, and nobody else suffers.

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

use crate::script::*;
use crate::support::raw::{self, RawClient};
use crate::support::recorder::Recorder;
use crate::support::{bytes_route, in_memory, told_of};

const PROOFS: [ProofOfLife; 2] = [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong];

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// No frame of RFC 6455, to a server: the opcode is reserved.
fn malformed() -> Vec<u8> {
    frame(0x80 | 0x3, Some([1, 2, 3, 4]), b"of an extension")
}

/// A server's end, with a hook.
fn recorded(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let (stream, live, peer) = wrap_with(builder.on_evict(recorder.hook()));
    (stream, live, peer, recorder)
}

/// All that can be asked for.
fn strict(proof: ProofOfLife) -> HeartbeatLayerBuilder {
    heartbeat()
        .proof_of_life(proof)
        .write_timeout(ms(300))
        .handler_stall_timeout(ms(300))
}

/// Bytes flow both ways, and the peer's end is noticed.
async fn flows(mut stream: Stream, peer: &Peer, recorder: &Recorder) {
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
async fn after_malformed_input_there_are_no_pings_and_no_verdicts_and_the_bytes_flow() {
    for proof in PROOFS {
        let (mut stream, _live, peer, recorder) = recorded(strict(proof));
        peer.send(&malformed());
        let mut read = vec![0; malformed().len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, malformed());
        sleep(ms(20_000)).await;
        assert_eq!(recorder.total(), 0, "{proof:?}: {:?}", recorder.all());
        assert_eq!(peer.wire().written, b"", "{proof:?}");
        flows(stream, &peer, &recorder).await;
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_input_takes_back_what_is_expected_of_a_ping_that_is_out() {
    for proof in PROOFS {
        let (mut stream, _live, peer, recorder) = recorded(strict(proof).missed_pings(3));
        sleep(ms(110)).await;
        // A pong that comes too late to be told from other bytes is the handler's.
        let sent = [malformed(), Role::Server.pong(&peer.last_ping())].concat();
        peer.send(&sent);
        let mut read = vec![0; sent.len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, sent);
        sleep(ms(20_000)).await;
        assert_eq!(peer.pings().len(), 1, "{proof:?}");
        assert_eq!(recorder.total(), 0, "{proof:?}: {:?}", recorder.all());
        flows(stream, &peer, &recorder).await;
    }
}

/// A ping waits for the end of the handler's frame when the malformed bytes come.
async fn taken_back(builder: HeartbeatLayerBuilder) {
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
    flows(stream, &peer, &recorder).await;
}

#[tokio::test(start_paused = true)]
async fn malformed_input_takes_back_a_ping_that_waits_for_a_boundary() {
    for proof in PROOFS {
        taken_back(heartbeat().proof_of_life(proof)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_stalled_by_a_ping_that_malformed_input_took_back() {
    taken_back(heartbeat().handler_stall_timeout(ms(300))).await;
}

/// Pings no longer bring the driver to a transport that the handler does not read.
#[tokio::test(start_paused = true)]
async fn after_malformed_input_the_transport_is_looked_at_for_a_handler_that_does_not_read() {
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
        // The handler does something else from now on.
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
        // An interval until the driver looks, and 300 ms of the handler's.
        assert!(
            events[0].at - begun <= ms(410),
            "{what}: {:?}",
            events[0].at - begun
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_malformed_input_no_ping_asks_whether_a_write_is_stalled() {
    let (mut stream, _live, peer, recorder) = recorded(heartbeat().write_timeout(ms(300)));
    peer.send(&malformed());
    let mut read = vec![0; malformed().len()];
    stream.read_exact(&mut read).await.unwrap();
    peer.write_steps(&[WAIT]);
    // Refused, and given up; then the peer drains what it was sent before.
    assert!(poll_write(&mut stream, &Wakes::new(), &hello()).is_pending());
    sleep(ms(20)).await;
    peer.drain();
    sleep(ms(20_000)).await;
    assert_eq!(peer.wire().written, b"");
    flows(stream, &peer, &recorder).await;
}

#[tokio::test(start_paused = true)]
async fn after_malformed_input_a_write_may_still_be_stalled() {
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

// Frames that are masked against the sender's role (RFC 6455 section 5.1). Their boundaries are known,
// and the application's codec judges them.

const ROLES: [Role; 2] = [Role::Server, Role::Client];

/// A masking key where the role wants none, and none where it wants one.
fn wrong(right: Option<[u8; 4]>) -> Option<[u8; 4]> {
    match right {
        Some(_) => None,
        None => Some([5, 6, 7, 8]),
    }
}

/// One end of a connection in this role, with a hook.
fn recorded_as(role: Role, builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let layer = builder.on_evict(recorder.hook()).build().unwrap();
    let (io, peer) = script();
    let (stream, live) = role.wrap(&layer, io);
    (stream, live, peer, recorder)
}

async fn reads(stream: &mut Stream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, expected);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_masks_wrongly_is_pinged_and_seen_to_close() {
    for (role, proof) in ROLES
        .into_iter()
        .flat_map(|role| PROOFS.map(|proof| (role, proof)))
    {
        let (mut stream, live, peer, recorder) = recorded_as(role, strict(proof));
        let key = wrong(role.inbound([1, 2, 3, 4]));
        let message = frame(0x80 | TEXT, key, b"hello");
        for round in 1..=20 {
            peer.send(&message);
            reads(&mut stream, &message).await;
            sleep(ms(110)).await;
            assert_eq!(peer.pings().len(), round, "{role:?}, {proof:?}");
            // Our own frames are masked as our role wants it.
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
        reads(&mut stream, &close).await;
        let reason = Reason::PeerClosed { code: Some(1001) };
        assert_eq!(recorder.nth(1).await.reason, reason, "{role:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_that_masked_wrongly_is_found() {
    for role in ROLES {
        let (mut stream, _live, peer, recorder) = recorded_as(role, heartbeat());
        let message = frame(0x80 | TEXT, wrong(role.inbound([1, 2, 3, 4])), b"hello");
        peer.send(&message);
        reads(&mut stream, &message).await;
        let last = Instant::now();
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        assert!(event.at - last <= ms(152), "{:?}", event.at - last);
    }
}

/// Reads all there is, in pieces of `size`, and never an end of the stream.
fn all_of(stream: &mut Stream, size: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while let Poll::Ready(bytes) = poll_read(stream, &Wakes::new(), size) {
        let bytes = bytes.unwrap();
        assert!(!bytes.is_empty(), "zero bytes are the end of the stream");
        read.extend(bytes);
    }
    read
}

#[tokio::test(start_paused = true)]
async fn pongs_masked_either_way_are_cut_out_at_any_split_and_nothing_else_is() {
    let keys = [None, Some([9, 8, 7, 6])];
    for (role, pong_key, next_key) in ROLES
        .into_iter()
        .flat_map(|role| keys.map(|pong| keys.map(|next| (role, pong, next))))
        .flatten()
    {
        // What follows is shorter than what is missing of a masked pong, or longer, or another pong.
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
                // In two pieces, each cut; in single bytes; in threes.
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
                            read.extend(all_of(&mut stream, size));
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
async fn pings_go_between_the_frames_of_a_handler_that_masks_wrongly() {
    for role in ROLES {
        for chunk in [1, 3, ALL] {
            let (mut stream, live, peer, recorder) =
                recorded_as(role, heartbeat().timeout(ms(500)));
            peer.write_steps(&[chunk]);
            let key = wrong(role.outbound([1, 2, 3, 4]));
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
            // Its Close is seen, too.
            let close = frame(0x80 | CLOSE, key, &1000_u16.to_be_bytes());
            stream.write_all(&close).await.unwrap();
            peer.end(Ok(()));
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
            let reason = Reason::ServerClosed { code: Some(1000) };
            assert_eq!(recorder.nth(1).await.reason, reason, "{role:?}");
        }
    }
}

/// Returns the evictions within 60 s of a client that sends every 100 ms, to an axum handler that accepts
/// unmasked frames and sends nothing.
async fn chats(idle: IdleTimeoutLayerBuilder, masks: bool) -> Vec<Reason> {
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
            assert_eq!(chats(idle().watch(watch), masks).await, [], "{watch:?}");
        }
        let patient = IdleTimeoutLayer::builder().first_message(ms(2_000));
        assert_eq!(chats(patient, masks).await, []);
        // The messages are known to be complete, and that nothing goes the other way.
        let bounded = idle().watch(Traffic::Inbound).message_timeout(ms(1_000));
        assert_eq!(chats(bounded, masks).await, []);
        let outbound = idle().watch(Traffic::Outbound);
        assert_eq!(chats(outbound, masks).await, [Reason::IdleTimeout]);
    }
}

// Lost boundaries: what passes may be anything, so every byte counts for the idle layer.

/// Malformed frames of each kind that loses the frame boundaries.
fn lost() -> [Vec<u8>; 5] {
    [
        vec![0x83, 0],
        vec![0x8B, 0x80],
        vec![0x09, 0],
        vec![0x89, 126, 0, 126],
        vec![0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
    ]
}

/// The end of the connection that sends malformed input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Peer,
    Handler,
}

/// One end sends `broken` and then a byte each second, for 60 s or until the connection ends. Returns the
/// eviction, its time after the first byte, and the longest time for which the connection was idle.
async fn unframed(
    says: Says,
    broken: &[u8],
    idle: IdleTimeoutLayerBuilder,
) -> (Option<(Duration, Reason)>, Duration) {
    let recorder = Recorder::new();
    let bytes = broken.to_vec();
    let (route, mut lives) = told_of(bytes_route(move |io| {
        let bytes = bytes.clone();
        async move {
            let (mut reader, mut writer) = tokio::io::split(io);
            tokio::spawn(async move { while let Ok(1..) = reader.read(&mut [0; 64]).await {} });
            if says == Says::Peer {
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
        if says == Says::Peer {
            // Fails when it is over.
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
    for (says, watched) in [
        (Says::Peer, Traffic::Inbound),
        (Says::Handler, Traffic::Outbound),
    ] {
        for broken in lost() {
            for watch in [Traffic::Inbound, Traffic::Outbound, Traffic::Either] {
                let idle = IdleTimeoutLayer::builder().timeout(ms(3_000)).watch(watch);
                // No byte may be of a message that goes on.
                let idle = idle.message_timeout(ms(5_000));
                let (end, longest) = unframed(says, &broken, idle).await;
                let case = format!("{says:?}, {broken:x?}, {watch:?}");
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
async fn without_frame_boundaries_any_byte_is_the_peers_first_message() {
    for broken in lost() {
        let idle = || IdleTimeoutLayer::builder().first_message(ms(4_000));
        let (end, _) = unframed(Says::Peer, &broken, idle()).await;
        assert_eq!(end, None, "{broken:x?}");
        // What the handler says is no message of the peer's, and hides none.
        let (end, _) = unframed(Says::Handler, &broken, idle()).await;
        let (after, reason) = end.expect("an end");
        assert_eq!(reason, Reason::FirstMessageTimeout);
        assert!((ms(4_000)..=ms(4_128)).contains(&after), "{after:?}");
    }
}

// A peer that never stops.

/// A transport whose peer repeats the pong to our first ping for ever, as fast as it is read.
#[derive(Clone, Default)]
struct Parrot {
    written: Arc<Mutex<Vec<u8>>>,
    reader: Arc<Mutex<Option<Waker>>>,
    /// Reads since the rest of the runtime had its turn.
    reads: Arc<AtomicUsize>,
}

impl AsyncRead for Parrot {
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
        // Otherwise the test would never end.
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(reads < 100_000, "nobody else of the runtime has had a turn");
        buf.put_slice(&Role::Server.pong(&ping.payload));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Parrot {
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

/// A parrot, and for as long its neighbours: one that answers and one that is dead.
async fn beside_a_parrot(handler_reads: bool) {
    let recorder = Recorder::new();
    let layer = heartbeat().on_evict(recorder.hook()).build().unwrap();
    let parrot = Parrot::default();
    let (mut noisy, live) = layer.wrap_server(parrot.clone());
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
        parrot.reads.store(0, Ordering::Relaxed);
        for ping in &answering.pings()[answered..] {
            answering.send(&Role::Server.pong(ping));
            answered += 1;
        }
    }
    let events = recorder.all();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].id, dead_live.id());
    // Time goes in strides of 5 ms here, and each of the verdict's two steps may miss two of them.
    assert!(
        events[0].at - begun <= ms(150 + 20),
        "{:?}",
        events[0].at - begun
    );
    assert!(answered >= 8, "{answered}");
    assert!(live.stats().bytes_received() > 0, "it did come to that");
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
async fn a_peer_that_repeats_an_old_pong_for_ever_starves_nobody_while_the_handler_reads() {
    beside_a_parrot(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_repeats_an_old_pong_for_ever_starves_nobody_while_the_handler_is_busy() {
    beside_a_parrot(false).await;
}
