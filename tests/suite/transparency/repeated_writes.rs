//! Transports over which a pending write must be repeated, such as OpenSSL.
//!
//! Such a transport keeps the bytes of a write that returned `Pending`, and the same bytes must be written
//! again before any others. The layer must not write a frame in between.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{Drain, Evicted, Health, HeartbeatLayerBuilder, Liveness, Reason};

use crate::script::*;

/// A frame that the handler writes, shorter than a ping.
const SHORT: usize = 3;
/// A frame that the handler writes, longer than a ping.
const LONG: usize = 40;

/// A server's end over a transport that keeps refused writes.
fn claimed(builder: HeartbeatLayerBuilder, vectored: bool) -> (Stream, Liveness, Peer) {
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

/// The handler's bytes that the peer received. Panics if these are not a sequence of frames.
fn data(peer: &Peer) -> Vec<u8> {
    let frames = peer.frames().into_iter();
    let data = frames.filter(|frame| frame.opcode() < CLOSE);
    data.flat_map(|frame| frame.raw).collect()
}

/// One poll of a write of `bytes`, cut into slices of `piece` if the transport takes these.
fn offer(
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

/// Makes room a few times, so that no write waits for it any more.
async fn settle(peer: &Peer) {
    for _ in 0..4 {
        peer.kick();
        sleep(ms(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_waits_for_the_retry_of_a_refused_write() {
    for (len, at_once, vectored) in [
        (SHORT, 1, false),
        (SHORT, 5, false),
        (SHORT, 5, true),
        (LONG, 1, false),
        (LONG, 2, false),
        (LONG, 2, true),
    ] {
        let what = format!("{at_once} frames of {len} bytes, vectored: {vectored}");
        let (mut stream, live, peer) = claimed(heartbeat(), vectored);
        let wakes = Wakes::new();
        let bytes = text(len).repeat(at_once);
        peer.write_steps(&[WAIT, ALL]);
        let piece = bytes.len() / at_once;
        assert!(offer(&mut stream, &wakes, &bytes, piece).is_pending());
        sleep(ms(110)).await;
        assert!(peer.wire().written.is_empty(), "{what}: a ping in between");
        assert_eq!(live.health(), Health::WriteStalled, "{what}");
        peer.kick();
        sleep(ms(1)).await;
        assert!(wakes.count() > 0, "{what}: not woken");
        let mut wrote = 0;
        while wrote < bytes.len() {
            if let Poll::Ready(more) = offer(&mut stream, &wakes, &bytes[wrote..], piece) {
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
async fn a_close_frame_does_not_come_in_the_place_of_a_refused_write() {
    for len in [SHORT, LONG] {
        let (mut stream, live, peer) = claimed(heartbeat(), false);
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
        assert!(wakes.count() > 0, "the handler learns of the end");
    }
}

/// A refused ping of ours must be repeated as well, even if frame boundaries are lost in the meantime or
/// the connection is evicted.
#[tokio::test(start_paused = true)]
async fn a_refused_ping_goes_out_before_anything_else() {
    for evicts in [false, true] {
        let (mut stream, live, peer) = claimed(heartbeat().timeout(ms(500)), false);
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
        let bytes = text(LONG);
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

/// Returns when the connection ended under a handler that abandons its write at once.
async fn given_up(builder: HeartbeatLayerBuilder) -> (Option<Reason>, u64) {
    let begun = Instant::now();
    let (mut stream, live, peer) = claimed(builder, false);
    peer.write_steps(&[WAIT, ALL]);
    assert!(poll_write(&mut stream, &Wakes::new(), &text(LONG)).is_pending());
    // There is room again, but a ping must not be written.
    peer.kick();
    let end = timeout(ms(60_000), live.evicted()).await;
    assert!(peer.wire().written.is_empty(), "nothing but the retry fits");
    assert_eq!(peer.wire().bad_retries, 0);
    let reason = end.ok().map(|eviction| eviction.reason());
    (reason, begun.elapsed().as_millis() as u64)
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_that_is_given_up_is_bounded_by_the_write_timeout() {
    let (reason, at) = given_up(heartbeat().write_timeout(ms(1_000))).await;
    assert_eq!(reason, Some(Reason::WriteStalled));
    assert!((1_100..1_110).contains(&at), "{at}");
    let unbounded = || heartbeat().write_timeout(None);
    let (reason, at) = given_up(unbounded().handler_stall_timeout(ms(1_000))).await;
    assert_eq!(reason, Some(Reason::HandlerStalled));
    assert!((1_100..1_110).contains(&at), "{at}");
    assert_eq!(given_up(unbounded()).await.0, None, "no bound is set");
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_that_is_retried_in_time_is_no_stall() {
    let (mut stream, live, peer) = claimed(heartbeat().write_timeout(ms(1_000)), false);
    peer.write_steps(&[WAIT, ALL]);
    let wakes = Wakes::new();
    assert!(poll_write(&mut stream, &wakes, &text(LONG)).is_pending());
    sleep(ms(900)).await;
    peer.kick();
    assert!(poll_write(&mut stream, &wakes, &text(LONG)).is_ready());
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

/// A drain waits for the end of a frame of which the transport has kept, but not accepted, a write.
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
    let bytes = text(LONG).repeat(2);
    assert!(poll_write(&mut stream, &wakes, &bytes).is_pending());
    let registry = layer.registry();
    let drain = tokio::spawn(async move { registry.drain(Drain::default()).await });
    sleep(ms(10)).await;
    assert_ne!(live.health(), Health::Ended);
    peer.kick();
    // More than one frame was offered: none of that can be taken back.
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

/// A ping's flush that is confirmed says nothing of the handler's write that was refused behind it.
#[tokio::test(start_paused = true)]
async fn a_refused_write_behind_a_ping_is_not_forgotten_with_its_flush() {
    for flush_waits in [false, true] {
        let (mut stream, live, peer) = claimed(heartbeat().write_timeout(ms(1_000)), false);
        let wakes = Wakes::new();
        peer.wire().flush_waits = flush_waits;
        peer.write_steps(if flush_waits { &[ALL] } else { &[WAIT, ALL] });
        sleep(ms(101)).await;
        assert_eq!(peer.pings().len(), usize::from(flush_waits));
        // Room for the rest of the ping and for nothing else.
        peer.write_steps(if flush_waits {
            &[WAIT, ALL]
        } else {
            &[ALL, WAIT, ALL]
        });
        assert!(poll_write(&mut stream, &wakes, &text(LONG)).is_pending());
        assert_eq!(peer.pings().len(), 1);
        // The handler gives its write up; the peer answers, and dies.
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

/// A handler writes frames over a transport that refuses at random, while pings keep becoming due.
async fn storm(lens: Vec<usize>, steps: Vec<usize>, piece: usize, vectored: bool, gap: u64) {
    let builder = heartbeat()
        .interval(ms(3))
        .timeout(ms(60_000))
        .write_timeout(None);
    let (mut stream, live, peer) = claimed(builder, vectored);
    peer.write_steps(&steps);
    let wakes = Wakes::new();
    let bytes: Vec<u8> = lens.iter().flat_map(|len| text(*len)).collect();
    let mut wrote = 0;
    while wrote < bytes.len() {
        if let Poll::Ready(more) = offer(&mut stream, &wakes, &bytes[wrote..], piece) {
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
    fn whatever_is_refused_the_peer_receives_whole_frames(
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
        runtime.block_on(storm(lens, steps, piece, vectored, gap));
    }
}
