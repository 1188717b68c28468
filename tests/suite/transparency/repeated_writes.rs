//! Transports over which a pending write must be repeated, such as OpenSSL.
//!
//! Such a transport keeps the bytes of a write that returned `Pending`, and the same bytes must be
//! written again before any others. The layer must not write a frame in between.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{Drain, Evicted, Health, HeartbeatLayerBuilder, Liveness, Reason};

use crate::script::*;

/// Payload of a frame that is shorter than a ping.
const SHORT_PAYLOAD_BYTES: usize = 3;
/// Payload of a frame that is longer than a ping.
const LONG_PAYLOAD_BYTES: usize = 40;

/// A server's stream over a transport on which a refused write must be repeated.
fn wrap_repeating(builder: HeartbeatLayerBuilder, vectored: bool) -> (Stream, Liveness, Peer) {
    let (io, peer) = script();
    if vectored {
        peer.vectored();
    }
    peer.wire().repeats_writes = true;
    let layer = builder.takes_any_bytes(false).build().unwrap();
    let (stream, live) = layer.wrap_server(io);
    (stream, live, peer)
}

fn text(len: usize) -> Vec<u8> {
    frame(0x80 | TEXT, None, &vec![b'a'; len])
}

/// The handler's bytes that the peer received. Panics if they are not whole frames.
fn data(peer: &Peer) -> Vec<u8> {
    let frames = peer.frames().into_iter();
    let data = frames.filter(|frame| frame.opcode() < CLOSE);
    data.flat_map(|frame| frame.raw).collect()
}

/// Polls a write of `bytes` once, in slices of `piece` bytes if the transport is vectored.
fn poll_write_once(
    stream: &mut Stream,
    wakes: &std::sync::Arc<Wakes>,
    bytes: &[u8],
    piece: usize,
) -> Poll<usize> {
    let waker = Waker::from(wakes.clone());
    let cx = &mut Context::from_waker(&waker);
    let wrote = match stream.is_write_vectored() {
        true => {
            let slices: Vec<_> = bytes.chunks(piece).map(IoSlice::new).collect();
            Pin::new(stream).poll_write_vectored(cx, &slices)
        }
        false => Pin::new(stream).poll_write(cx, bytes),
    };
    wrote.map(|wrote| wrote.expect("the connection is open"))
}

/// Resumes the transport a few times, so that no write is pending.
async fn settle(peer: &Peer) {
    for _ in 0..4 {
        peer.kick();
        sleep(ms(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_waits_for_the_retry_of_a_refused_write() {
    for (len, at_once, vectored) in [
        (SHORT_PAYLOAD_BYTES, 1, false),
        (SHORT_PAYLOAD_BYTES, 5, false),
        (SHORT_PAYLOAD_BYTES, 5, true),
        (LONG_PAYLOAD_BYTES, 1, false),
        (LONG_PAYLOAD_BYTES, 2, false),
        (LONG_PAYLOAD_BYTES, 2, true),
    ] {
        let what = format!("{at_once} frames of {len} bytes, vectored: {vectored}");
        let (mut stream, live, peer) = wrap_repeating(heartbeat(), vectored);
        let wakes = Wakes::new();
        let bytes = text(len).repeat(at_once);
        peer.write_steps(&[WAIT, ALL]);
        let piece = bytes.len() / at_once;
        assert!(poll_write_once(&mut stream, &wakes, &bytes, piece).is_pending());
        sleep(ms(110)).await;
        assert!(peer.wire().written.is_empty(), "{what}: a ping in between");
        assert_eq!(live.health(), Health::WriteStalled, "{what}");
        peer.kick();
        sleep(ms(1)).await;
        assert!(wakes.count() > 0, "{what}: not woken");
        let mut wrote = 0;
        while wrote < bytes.len() {
            if let Poll::Ready(more) = poll_write_once(&mut stream, &wakes, &bytes[wrote..], piece)
            {
                wrote += more;
            }
            settle(&peer).await;
        }
        settle(&peer).await;
        assert_eq!(peer.wire().bad_retries, 0, "{what}");
        assert_eq!(data(&peer), bytes, "{what}");
        assert_eq!(peer.pings().len(), 1, "{what}");
        assert_ne!(live.health(), Health::Ended, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_never_replaces_a_refused_write() {
    for len in [SHORT_PAYLOAD_BYTES, LONG_PAYLOAD_BYTES] {
        let (mut stream, live, peer) = wrap_repeating(heartbeat(), false);
        let wakes = Wakes::new();
        peer.write_steps(&[ALL, WAIT, ALL]);
        let first = text(len);
        assert!(poll_write(&mut stream, &wakes, &first).is_ready());
        assert!(poll_write(&mut stream, &wakes, &text(len)).is_pending());
        assert!(live.evict(4000, "bye"));
        peer.kick();
        sleep(ms(1_000)).await;
        assert!(peer.is_dropped());
        assert_eq!(peer.wire().written, first);
        assert_eq!(peer.wire().bad_retries, 0);
        assert!(wakes.count() > 0, "the handler was not woken");
    }
}

/// A refused ping must be repeated as well, even if frame boundaries are lost in the meantime or
/// the connection is evicted.
#[tokio::test(start_paused = true)]
async fn a_refused_ping_is_sent_before_anything_else() {
    for evicts in [false, true] {
        let (mut stream, live, peer) = wrap_repeating(heartbeat().timeout(ms(500)), false);
        peer.write_steps(&[WAIT, ALL]);
        sleep(ms(110)).await;
        assert!(peer.pings().is_empty());
        let wakes = Wakes::new();
        if evicts {
            assert!(live.evict(4000, "bye"));
        } else {
            // A reserved opcode.
            peer.send(&[0x83, 0x80, 0, 0, 0, 0]);
            got(poll_read(&mut stream, &wakes, 64));
            assert_eq!(live.health(), Health::WriteStalled);
        }
        let bytes = text(LONG_PAYLOAD_BYTES);
        let wrote = (!evicts).then(|| poll_write(&mut stream, &wakes, &bytes));
        assert!(wrote.is_none_or(|wrote| wrote.is_pending()));
        settle(&peer).await;
        assert_eq!(peer.wire().bad_retries, 0);
        assert_eq!(peer.pings().len(), 1, "evicts: {evicts}");
        if evicts {
            let last = peer.frames().pop().expect("a frame");
            assert_eq!(last.opcode(), CLOSE);
        } else {
            peer.write_steps(&[]);
            assert!(poll_write(&mut stream, &wakes, &bytes).is_ready());
            assert_eq!(data(&peer), bytes);
        }
    }
}

/// Abandons a refused write. Returns the eviction reason and the milliseconds until then.
async fn abandon_refused_write(builder: HeartbeatLayerBuilder) -> (Option<Reason>, u64) {
    let begun = Instant::now();
    let (mut stream, live, peer) = wrap_repeating(builder, false);
    peer.write_steps(&[WAIT, ALL]);
    assert!(poll_write(&mut stream, &Wakes::new(), &text(LONG_PAYLOAD_BYTES)).is_pending());
    // The transport is writable again, but a ping must not be written.
    peer.kick();
    let end = timeout(ms(60_000), live.evicted()).await;
    assert!(peer.wire().written.is_empty(), "only the retry is allowed");
    assert_eq!(peer.wire().bad_retries, 0);
    let reason = end.ok().map(|eviction| eviction.reason());
    (reason, begun.elapsed().as_millis() as u64)
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_refused_write_is_bounded_by_the_write_timeout() {
    let (reason, at) = abandon_refused_write(heartbeat().write_timeout(ms(1_000))).await;
    assert_eq!(reason, Some(Reason::WriteStalled));
    assert!((1_100..1_110).contains(&at), "{at}");
    let unbounded = || heartbeat().write_timeout(None);
    let (reason, at) = abandon_refused_write(unbounded().handler_stall_timeout(ms(1_000))).await;
    assert_eq!(reason, Some(Reason::HandlerStalled));
    assert!((1_100..1_110).contains(&at), "{at}");
    assert_eq!(
        abandon_refused_write(unbounded()).await.0,
        None,
        "no bound is set"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_that_is_retried_in_time_is_not_a_stall() {
    let (mut stream, live, peer) = wrap_repeating(heartbeat().write_timeout(ms(1_000)), false);
    peer.write_steps(&[WAIT, ALL]);
    let wakes = Wakes::new();
    assert!(poll_write(&mut stream, &wakes, &text(LONG_PAYLOAD_BYTES)).is_pending());
    sleep(ms(900)).await;
    peer.kick();
    assert!(poll_write(&mut stream, &wakes, &text(LONG_PAYLOAD_BYTES)).is_ready());
    peer.write_steps(&[]);
    let answering = peer.clone();
    let answers = tokio::spawn(async move {
        for answered in 0.. {
            while answering.pings().len() == answered {
                sleep(ms(5)).await;
            }
            answering.send(&Role::Server.pong(&answering.last_ping()));
        }
    });
    sleep(ms(5_000)).await;
    answers.abort();
    assert_ne!(live.health(), Health::Ended);
    assert!(live.stats().pings_sent() > 10);
}

/// A drain waits for the end of a frame whose write the transport has kept but not accepted.
#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_refused_write() {
    let layer = heartbeat()
        .interval(ms(60_000))
        .takes_any_bytes(false)
        .build()
        .unwrap();
    let (io, peer) = script();
    peer.wire().repeats_writes = true;
    let (mut stream, live) = layer.wrap_server(io);
    peer.write_steps(&[WAIT, ALL]);
    let wakes = Wakes::new();
    let bytes = text(LONG_PAYLOAD_BYTES).repeat(2);
    assert!(poll_write(&mut stream, &wakes, &bytes).is_pending());
    let registry = layer.registry();
    let drain = tokio::spawn(async move { registry.drain(Drain::default()).await });
    sleep(ms(10)).await;
    assert_ne!(live.health(), Health::Ended);
    peer.kick();
    // The refused write holds two frames, and both must be repeated.
    assert!(
        matches!(poll_write(&mut stream, &wakes, &bytes), Poll::Ready(Ok(len)) if len == bytes.len())
    );
    let error = stream.write_all(&bytes).await.unwrap_err();
    assert_eq!(
        Evicted::from_error(&error).map(|evicted| evicted.reason()),
        Some(Reason::Drained)
    );
    settle(&peer).await;
    let last = peer.frames().pop().expect("a frame");
    assert_eq!((data(&peer), last.opcode()), (bytes, CLOSE));
    peer.end(Ok(()));
    drain.await.unwrap();
}

/// The completed flush of a ping does not complete the handler's refused write behind it.
#[tokio::test(start_paused = true)]
async fn a_refused_write_behind_a_ping_is_not_forgotten_with_its_flush() {
    for flush_waits in [false, true] {
        let (mut stream, live, peer) = wrap_repeating(heartbeat().write_timeout(ms(1_000)), false);
        let wakes = Wakes::new();
        peer.wire().flush_waits = flush_waits;
        peer.write_steps(if flush_waits { &[ALL] } else { &[WAIT, ALL] });
        sleep(ms(101)).await;
        assert_eq!(peer.pings().len(), usize::from(flush_waits));
        // Only the rest of the ping fits.
        peer.write_steps(if flush_waits {
            &[WAIT, ALL]
        } else {
            &[ALL, WAIT, ALL]
        });
        assert!(poll_write(&mut stream, &wakes, &text(LONG_PAYLOAD_BYTES)).is_pending());
        assert_eq!(peer.pings().len(), 1);
        // The handler abandons its write. The peer answers the ping, and then nothing more.
        peer.wire().flush_waits = false;
        peer.kick();
        sleep(ms(1)).await;
        peer.send(&Role::Server.pong(&peer.last_ping()));
        let begun = Instant::now();
        let end = timeout(ms(60_000), live.evicted()).await.expect("an end");
        assert_eq!(end.reason(), Reason::WriteStalled);
        assert!(begun.elapsed() <= ms(1_110), "{:?}", begun.elapsed());
        assert_eq!(peer.wire().bad_retries, 0);
    }
}

/// A handler writes frames over a transport that refuses at random, while pings are due.
async fn write_with_refusals(
    lens: Vec<usize>,
    steps: Vec<usize>,
    piece: usize,
    vectored: bool,
    gap: u64,
) {
    let builder = heartbeat()
        .interval(ms(3))
        .timeout(ms(60_000))
        .write_timeout(None);
    let (mut stream, live, peer) = wrap_repeating(builder, vectored);
    peer.write_steps(&steps);
    let wakes = Wakes::new();
    let bytes: Vec<u8> = lens.iter().flat_map(|len| text(*len)).collect();
    let mut wrote = 0;
    while wrote < bytes.len() {
        if let Poll::Ready(more) = poll_write_once(&mut stream, &wakes, &bytes[wrote..], piece) {
            wrote += more;
        } else {
            sleep(ms(gap)).await;
            peer.kick();
        }
        for ping in peer.pings() {
            peer.send(&Role::Server.pong(&ping));
        }
    }
    peer.write_steps(&[]);
    settle(&peer).await;
    assert_eq!(peer.wire().bad_retries, 0);
    assert!(data(&peer) == bytes, "{:02x?}", peer.wire().written);
    assert_ne!(live.health(), Health::Ended);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_peer_receives_whole_frames_whichever_writes_are_refused(
        lens in prop::collection::vec(0..200_usize, 1..12),
        mut steps in prop::collection::vec(prop_oneof![Just(WAIT), Just(ALL), 1..40_usize], 1..8),
        piece in 1..100_usize,
        vectored in any::<bool>(),
        gap in 0..12_u64,
    ) {
        steps.push(ALL);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(write_with_refusals(lens, steps, piece, vectored, gap));
    }
}
