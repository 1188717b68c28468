//! Closing is bounded in time, whichever side starts or abandons it.
//!
//! It is bounded also in the middle of a frame and on a transport that takes no more bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{Evicted, Liveness, LivenessStream, Reason};

use crate::recorded::{only_eviction, recorded};
use crate::script::*;
use crate::support::recorder::Recorder;
use crate::support::within;

/// Lateness allowed under `heartbeat()`: the driver's tick, and 1 ms to act.
const TICK: Duration = Duration::from_millis(2);

/// The close timeout of `heartbeat()`.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

const MASKING_KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// A Close frame sent by the handler.
fn handler_close() -> Vec<u8> {
    frame(0x80 | CLOSE, None, &1_000_u16.to_be_bytes())
}

fn peer_close() -> Vec<u8> {
    frame(0x80 | CLOSE, MASKING_KEY, &1_000_u16.to_be_bytes())
}

/// A server-side stream that is never pinged, with a recording hook.
fn never_pinged() -> (Stream, Liveness, Peer, Recorder) {
    recorded(heartbeat().interval(ms(60_000)))
}

/// The time from `from` until the transport was dropped.
#[track_caller]
fn dropped_after(peer: &Peer, from: Instant) -> Duration {
    peer.wire().dropped.expect("the transport is dropped") - from
}

#[track_caller]
fn reason_of<T: std::fmt::Debug>(result: io::Result<T>) -> Reason {
    let error = result.unwrap_err();
    Evicted::from_error(&error).expect("an eviction").reason()
}

// The handler closes.

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_the_handlers_close_is_evicted_at_the_close_timeout() {
    let instead = [
        ("nothing", Vec::new()),
        (
            "texts",
            frame(0x80 | TEXT, MASKING_KEY, b"and another thing"),
        ),
        ("pings", frame(0x80 | PING, MASKING_KEY, b"8 bytes!")),
        ("pongs", frame(0x80 | PONG, MASKING_KEY, b"8 bytes!")),
        ("one long frame", vec![0x82; 500]),
    ];
    for (what, bytes) in instead {
        for handler_reads in [true, false] {
            let (mut stream, _live, peer, recorder) = never_pinged();
            if what == "one long frame" {
                peer.send(&[0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4]);
            }
            stream.write_all(&handler_close()).await.unwrap();
            let closed = Instant::now();
            let handler = tokio::spawn(async move {
                if !handler_reads {
                    sleep(ms(10_000)).await;
                }
                loop {
                    stream.read_u8().await?;
                }
            });
            for _ in 0..100 {
                peer.send(&bytes);
                sleep(ms(10)).await;
            }
            let case = format!("{what}, handler reads: {handler_reads}");
            let (after, reason) = only_eviction(&recorder, closed);
            assert_eq!(reason, Reason::CloseTimeout, "{case}");
            let in_time = after >= CLOSE_TIMEOUT && after <= CLOSE_TIMEOUT + TICK;
            assert!(in_time, "{case}: {after:?}");
            assert!(
                dropped_after(&peer, closed) <= CLOSE_TIMEOUT + TICK,
                "{case}"
            );
            assert_eq!(peer.wire().written, handler_close(), "{case}");
            let read: io::Result<()> = within("the handler's end", handler).await.unwrap();
            assert_eq!(reason_of(read), reason, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_that_the_handler_does_not_read_completes_the_closing_handshake() {
    for with_end in [false, true] {
        let (mut stream, _live, peer, recorder) = never_pinged();
        stream.write_all(&handler_close()).await.unwrap();
        let closed = Instant::now();
        peer.send(&peer_close());
        if with_end {
            peer.end(Ok(()));
        }
        sleep(ms(1_000)).await;
        let (after, reason) = only_eviction(&recorder, closed);
        assert_eq!(reason, Reason::ServerClosed { code: Some(1_000) });
        assert!(after <= CLOSE_TIMEOUT + TICK, "{after:?}");
        // The handler has another close timeout to notice the end.
        assert!(dropped_after(&peer, closed) <= 2 * (CLOSE_TIMEOUT + TICK));
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_a_close_frame_is_bounded() {
    for (begun, answered) in [(0, false), (0, true), (3, false), (3, true)] {
        let (mut stream, _live, peer, recorder) = recorded(heartbeat());
        stream.write_all(&hello()[..begun]).await.unwrap();
        stream.shutdown().await.unwrap();
        let closed = Instant::now();
        if answered {
            peer.end(Ok(()));
        }
        sleep(ms(1_000)).await;
        let (after, reason) = only_eviction(&recorder, closed);
        let expected = match answered {
            true => Reason::ServerClosed { code: None },
            false => Reason::CloseTimeout,
        };
        assert_eq!(reason, expected, "{begun} bytes of a frame");
        assert!(after <= CLOSE_TIMEOUT + TICK, "{after:?}");
        assert!(dropped_after(&peer, closed) <= 2 * (CLOSE_TIMEOUT + TICK));
        assert_eq!(peer.wire().written, &hello()[..begun]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_drops_its_stream_ends_the_connection_at_once() {
    type Case = (&'static str, &'static [usize], u64, usize, usize);
    // Scenario, write steps, time of the write in ms, bytes written, bytes that the peer received.
    let cases: [Case; 4] = [
        ("at a boundary", &[], 0, 7, 7),
        ("in the middle of its frame", &[], 0, 3, 3),
        ("in the middle of its frame, stalled", &[3, WAIT], 0, 7, 3),
        ("while a ping waits for its frame", &[], 50, 3, 3),
    ];
    for (what, steps, at, writes, out) in cases {
        let (mut stream, _live, peer, recorder) = recorded(heartbeat());
        peer.write_steps(steps);
        sleep(ms(at)).await;
        let wakes = Wakes::new();
        if writes > 0 {
            assert!(poll_write(&mut stream, &wakes, &hello()[..writes]).is_ready());
            if out < writes {
                let rest = poll_write(&mut stream, &wakes, &hello()[out..writes]);
                assert!(rest.is_pending(), "{what}");
            }
        }
        if what == "while a ping waits for its frame" {
            sleep(ms(60)).await;
        }
        let dropped = Instant::now();
        drop(stream);
        let (after, reason) = only_eviction(&recorder, dropped);
        assert_eq!(
            (after, reason),
            (Duration::ZERO, Reason::HandlerDropped),
            "{what}"
        );
        assert_eq!(dropped_after(&peer, dropped), Duration::ZERO, "{what}");
        sleep(ms(1_000)).await;
        assert_eq!(
            peer.wire().written.len(),
            out,
            "{what}: nothing is sent after the drop"
        );
        assert_eq!(recorder.total(), 1, "{what}");
    }
}

// The handler drops its stream while a pong is outstanding: the transport lingers.

/// A connection whose handler has dropped its stream, with the first ping unanswered.
async fn dropped_after_a_ping() -> (Peer, Recorder, Instant) {
    let (mut stream, _live, peer, recorder) = recorded(heartbeat().timeout(ms(60_000)));
    sleep(ms(105)).await;
    assert_eq!(peer.pings().len(), 1);
    stream.write_all(&hello()).await.unwrap();
    let dropped = Instant::now();
    drop(stream);
    let (after, reason) = only_eviction(&recorder, dropped);
    assert_eq!((after, reason), (Duration::ZERO, Reason::HandlerDropped));
    sleep(ms(1)).await;
    assert!(peer.wire().shutdown, "the write half is shut down");
    assert!(!peer.is_dropped(), "the pong may still arrive");
    (peer, recorder, dropped)
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_may_still_receive_a_pong_lingers_until_the_peer_ends() {
    for end in [Ok(()), Err(io::ErrorKind::ConnectionReset)] {
        let (peer, recorder, dropped) = dropped_after_a_ping().await;
        sleep(ms(49)).await;
        peer.send(&Role::Server.pong(&peer.last_ping()));
        peer.send(&frame(0x80 | TEXT, MASKING_KEY, b"and another thing"));
        sleep(ms(50)).await;
        assert!(!peer.is_dropped());
        assert!(
            peer.wire().incoming.is_empty(),
            "the incoming bytes are drained"
        );
        peer.end(end);
        sleep(ms(100)).await;
        assert_eq!(dropped_after(&peer, dropped), ms(100), "{end:?}");
        assert!(peer.wire().written.ends_with(&hello()));
        assert_eq!(recorder.total(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_lingers_at_most_the_close_timeout() {
    for sends in [false, true] {
        let (peer, recorder, dropped) = dropped_after_a_ping().await;
        while !peer.is_dropped() {
            if sends {
                // More than the driver reads in one visit.
                peer.send(&[0x82; 300_000]);
            }
            sleep(ms(20)).await;
            assert!(dropped.elapsed() < ms(1_000), "sends: {sends}");
        }
        let after = dropped_after(&peer, dropped);
        let in_time = after >= CLOSE_TIMEOUT && after <= CLOSE_TIMEOUT + TICK;
        assert!(in_time, "sends: {sends}, {after:?}");
        assert_eq!(recorder.total(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_does_not_linger_after_the_pong_or_the_peers_end() {
    for ends in [false, true] {
        let (mut stream, _live, peer, _) = recorded(heartbeat().timeout(ms(60_000)));
        sleep(ms(105)).await;
        if ends {
            peer.end(Ok(()));
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        } else {
            peer.send(&Role::Server.pong(&peer.last_ping()));
            sleep(ms(1)).await;
        }
        let dropped = Instant::now();
        drop(stream);
        assert_eq!(
            dropped_after(&peer, dropped),
            Duration::ZERO,
            "ends: {ends}"
        );
        assert!(!peer.wire().shutdown, "dropped without a shutdown");
    }
}

/// A peer that has not seen our Close frame may answer a ping after sending its own (RFC 6455
/// section 5.5.2).
#[tokio::test(start_paused = true)]
async fn after_the_peers_close_a_pong_is_awaited_for_the_close_timeout() {
    let (mut stream, _live, peer, recorder) = recorded(heartbeat().timeout(ms(60_000)));
    sleep(ms(105)).await;
    let closed = Instant::now();
    peer.send(&peer_close());
    let mut read = vec![0; peer_close().len()];
    stream.read_exact(&mut read).await.unwrap();
    stream.write_all(&handler_close()).await.unwrap();
    sleep(ms(150)).await;
    drop(stream);
    sleep(ms(1)).await;
    assert!(peer.wire().shutdown && !peer.is_dropped());
    sleep(ms(1_000)).await;
    assert!(dropped_after(&peer, closed) <= CLOSE_TIMEOUT + TICK);
    let (_, reason) = only_eviction(&recorder, closed);
    assert_eq!(reason, Reason::PeerClosed { code: Some(1_000) });
}

#[tokio::test(start_paused = true)]
async fn a_half_written_ping_is_finished_or_followed_by_nothing() {
    for drains in [true, false] {
        let (stream, _live, peer, recorder) = recorded(heartbeat());
        peer.write_steps(&[3, WAIT]);
        sleep(ms(105)).await;
        let dropped = Instant::now();
        drop(stream);
        let (after, reason) = only_eviction(&recorder, dropped);
        assert_eq!((after, reason), (Duration::ZERO, Reason::HandlerDropped));
        sleep(ms(50)).await;
        assert!(!peer.is_dropped() && !peer.wire().shutdown);
        if drains {
            peer.drain();
            sleep(ms(50)).await;
            assert_eq!(peer.pings().len(), 1, "the ping is complete");
            assert!(peer.wire().shutdown);
            peer.end(Ok(()));
        }
        sleep(ms(1_000)).await;
        let after = dropped_after(&peer, dropped);
        let expected = if drains { ms(100) } else { CLOSE_TIMEOUT };
        assert!(after >= expected && after <= expected + TICK, "{after:?}");
        let written = if drains { 10 } else { 3 };
        assert_eq!(peer.wire().written.len(), written);
    }
}

#[test]
fn a_lingering_transport_is_dropped_with_its_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let (peer, ..) = runtime.block_on(dropped_after_a_ping());
    drop(runtime);
    assert!(peer.is_dropped());
}

// The peer closes.

#[tokio::test(start_paused = true)]
async fn a_handler_that_reads_on_after_the_peers_close_is_woken_within_the_close_timeout() {
    let (mut stream, _live, peer, recorder) = never_pinged();
    let closed = Instant::now();
    peer.send(&peer_close());
    let mut read = vec![0; peer_close().len()];
    stream.read_exact(&mut read).await.unwrap();
    let (after, reason) = only_eviction(&recorder, closed);
    let expected = Reason::PeerClosed { code: Some(1_000) };
    assert_eq!((after, reason), (Duration::ZERO, expected));
    // Until the close timeout the handler may still write.
    stream.write_all(&hello()).await.unwrap();
    let woken = within("the reader", stream.read(&mut read)).await;
    assert_eq!(reason_of(woken), expected);
    assert!(
        closed.elapsed() <= CLOSE_TIMEOUT + TICK,
        "{:?}",
        closed.elapsed()
    );
    assert_eq!(reason_of(stream.write_all(&hello()).await), expected);
    assert!(dropped_after(&peer, closed) <= CLOSE_TIMEOUT + TICK);
    assert_eq!(peer.wire().written, hello());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_writes_on_after_the_peers_half_close_fails_within_the_close_timeout() {
    for drains in [true, false] {
        let (mut stream, _live, peer, recorder) = never_pinged();
        if !drains {
            peer.write_steps(&[WAIT]);
        }
        let ended = Instant::now();
        peer.end(Ok(()));
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        let (after, reason) = only_eviction(&recorder, ended);
        assert_eq!((after, reason), (Duration::ZERO, Reason::PeerVanished));
        let mut written = 0;
        let failed = loop {
            match within("the writer", stream.write_all(&hello())).await {
                Ok(()) => written += 1,
                failed => break failed,
            }
            sleep(ms(10)).await;
        };
        assert_eq!(reason_of(failed), Reason::PeerVanished, "drains: {drains}");
        assert!(ended.elapsed() <= CLOSE_TIMEOUT + TICK + ms(10));
        assert!(dropped_after(&peer, ended) <= CLOSE_TIMEOUT + TICK);
        assert_eq!(peer.wire().written, hello().repeat(written));
        assert_eq!(written >= 19, drains, "{written}");
    }
}

// The layer closes in the middle of the handler's frame.

/// A transport whose shutdown never completes.
struct StuckShutdown(Script);

impl AsyncRead for StuckShutdown {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for StuckShutdown {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// Leaves the handler in the middle of a frame and asserts how the eviction for `why` proceeds.
async fn assert_evicted_mid_frame(what: &str, why: Reason, steps: &[usize]) {
    let builder = heartbeat()
        .write_timeout(ms(300))
        .handler_stall_timeout(ms(300))
        // The transport cannot report that it has room again.
        .takes_any_bytes(false);
    let recorder = Recorder::new();
    let layer = builder.on_evict(recorder.hook()).build().unwrap();
    let (io, peer) = script();
    let (mut stream, live): (LivenessStream<StuckShutdown>, _) =
        layer.wrap_server(StuckShutdown(io));
    let wakes = Wakes::new();
    if matches!(why, Reason::HeartbeatTimeout { .. }) {
        // A ping is sent before the frame.
        sleep(ms(105)).await;
    }
    let before = peer.wire().written.len();
    peer.write_steps(steps);
    assert!(poll_write(&mut stream, &wakes, &hello()[..3]).is_ready());
    if steps.contains(&WAIT) {
        assert!(poll_write(&mut stream, &wakes, &hello()[3..]).is_pending());
    }
    if let Reason::Kicked { code } = why {
        assert!(live.evict(code, "out"));
    }
    sleep(ms(1_000)).await;
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, why, "{what}");
    let after = dropped_after(&peer, event.at);
    assert!(after <= CLOSE_TIMEOUT + TICK, "{what}, {why}: {after:?}");
    assert_eq!(peer.wire().written[before..], hello()[..3], "{what}, {why}");
    let failed = within("the writer", stream.write_all(&hello()[3..])).await;
    assert_eq!(reason_of(failed), why, "{what}");
    assert_eq!(recorder.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn in_the_middle_of_a_frame_no_close_frame_is_sent_and_the_transport_is_dropped_in_time() {
    for why in [
        Reason::Kicked { code: 4_000 },
        Reason::HandlerStalled,
        Reason::HeartbeatTimeout { missed: 1 },
    ] {
        assert_evicted_mid_frame("the transport takes all bytes", why, &[]).await;
    }
    for why in [
        Reason::Kicked { code: 4_000 },
        Reason::WriteStalled,
        Reason::HeartbeatTimeout { missed: 1 },
    ] {
        assert_evicted_mid_frame("the transport stalls", why, &[3, WAIT]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn evicted_in_the_middle_of_a_frame_the_transport_lingers_until_the_peer_ends() {
    let (mut stream, live, peer, recorder) = never_pinged();
    stream.write_all(&hello()[..3]).await.unwrap();
    let kicked = Instant::now();
    assert!(live.evict(4_000, "out"));
    for _ in 0..10 {
        peer.send(&[0x82; 10_000]);
        sleep(ms(5)).await;
        assert!(peer.wire().shutdown && !peer.is_dropped());
        assert!(
            peer.wire().incoming.is_empty(),
            "the incoming bytes are drained"
        );
    }
    peer.end(Ok(()));
    sleep(ms(50)).await;
    assert_eq!(dropped_after(&peer, kicked), ms(50));
    assert_eq!(recorder.total(), 1);
}

/// A peer may read only when it has room to send, so the driver reads while its Close frame waits.
#[tokio::test(start_paused = true)]
async fn a_peer_is_read_while_our_close_frame_waits_for_room() {
    let (mut stream, live, peer, _) = never_pinged();
    stream.write_all(&hello()).await.unwrap();
    peer.write_steps(&[WAIT]);
    let kicked = Instant::now();
    assert!(live.evict(4_000, "out"));
    for _ in 0..10 {
        peer.send(&[0x82; 10_000]);
        sleep(ms(5)).await;
        assert!(
            peer.wire().incoming.is_empty(),
            "the incoming bytes are drained"
        );
    }
    peer.drain();
    sleep(ms(5)).await;
    let close = peer.frames().pop().expect("a frame");
    assert_eq!(close.opcode(), CLOSE);
    assert!(!peer.wire().shutdown, "the peer's Close frame is awaited");
    peer.end(Ok(()));
    sleep(ms(100)).await;
    assert_eq!(dropped_after(&peer, kicked), ms(55));
}

/// Without an unanswered ping no further frame can arrive, so the transport does not linger.
#[tokio::test(start_paused = true)]
async fn after_both_close_frames_the_transport_lingers_only_for_a_pong() {
    for pinged in [false, true] {
        let (stream, live, peer, _) = recorded(heartbeat().timeout(ms(60_000)));
        sleep(ms(if pinged { 105 } else { 5 })).await;
        let kicked = Instant::now();
        assert!(live.evict(4_000, "out"));
        peer.send(&peer_close());
        sleep(ms(50)).await;
        assert!(peer.wire().shutdown);
        assert_eq!(peer.is_dropped(), !pinged);
        peer.end(Ok(()));
        sleep(ms(1_000)).await;
        let expected = if pinged { ms(50) } else { Duration::ZERO };
        assert_eq!(dropped_after(&peer, kicked), expected);
        drop(stream);
    }
}

#[tokio::test(start_paused = true)]
async fn in_the_middle_of_the_handlers_close_frame_no_second_one_is_sent() {
    let (mut stream, live, peer, recorder) = never_pinged();
    stream.write_all(&handler_close()[..3]).await.unwrap();
    assert!(live.evict(4_000, "out"));
    let kicked = Instant::now();
    sleep(ms(1_000)).await;
    assert_eq!(peer.wire().written, &handler_close()[..3]);
    assert!(dropped_after(&peer, kicked) <= CLOSE_TIMEOUT + TICK);
    let (_, reason) = only_eviction(&recorder, kicked);
    assert_eq!(reason, Reason::Kicked { code: 4_000 });
}
