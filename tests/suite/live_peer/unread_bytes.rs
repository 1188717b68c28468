//! Bytes that the handler leaves unread, and how the driver reads and dates them.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, advance, sleep, timeout};
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, Reason};

use crate::script::*;
use crate::support::recorder::Recorder;

fn recorded(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let (stream, live, peer) = wrap_with(builder.on_evict(recorder.hook()));
    (stream, live, peer, recorder)
}

fn peer_frame(payload: &[u8]) -> Vec<u8> {
    frame(0x80 | BINARY, Some([1, 2, 3, 4]), payload)
}

/// Polls a read once. The handler is woken later, but does not poll again.
fn poll_read_once(stream: &mut Stream) {
    assert!(poll_read(stream, &Wakes::new(), 64).is_pending());
}

/// A transport may return its bytes in pieces (TLS: in records). All pieces that the driver finds
/// in one visit count as old as the first of them.
#[tokio::test(start_paused = true)]
async fn bytes_that_one_drain_finds_in_pieces_are_one_proof_of_life() {
    for piece in [3, 10, ALL] {
        let (mut stream, _live, peer, recorder) = recorded(heartbeat());
        peer.read_steps(&[piece]);
        poll_read_once(&mut stream);
        sleep(ms(10)).await;
        let last = Instant::now();
        peer.send(&[peer_frame(b"one"), peer_frame(b"two"), peer_frame(b"three")].concat());
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        let after = event.at - last;
        assert!(after <= ms(152), "pieces of {piece}: {after:?}");
    }
}

/// A peer whose bytes never end is alive, however fast they are read.
#[tokio::test(start_paused = true)]
async fn a_peer_whose_bytes_never_end_is_not_pinged() {
    let (mut stream, live, peer, recorder) = recorded(heartbeat());
    peer.send(&peer_frame(&[7; 125]).repeat(1_000));
    let mut piece = [0; 100];
    for _ in 0..1_000 {
        stream.read_exact(&mut piece).await.unwrap();
        advance(Duration::from_micros(500)).await;
    }
    assert_eq!((recorder.total(), live.stats().pings_sent()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pong_in_pieces_is_read_for_a_handler_that_has_stopped_reading() {
    let (mut stream, live, peer, _recorder) = recorded(heartbeat());
    poll_read_once(&mut stream);
    sleep(ms(101)).await;
    let pong = Role::Server.pong(&peer.last_ping());
    sleep(ms(5)).await;
    peer.send(&pong[..5]);
    sleep(ms(10)).await;
    peer.send(&pong[5..]);
    sleep(ms(1)).await;
    assert_eq!(live.stats().pongs_received(), 1);
    let rtt = live.rtt().unwrap().last();
    assert!((ms(15)..=ms(17)).contains(&rtt), "{rtt:?}");
}

/// Other bytes end the silence, but not the wait for the pong: the driver must read the pong before
/// a handler that has dropped its read polls again.
#[tokio::test(start_paused = true)]
async fn a_pong_behind_other_bytes_gives_its_own_round_trip() {
    let (mut stream, live, peer, _recorder) = recorded(heartbeat());
    sleep(ms(101)).await;
    let ping = peer.last_ping();
    let pinged = Instant::now();
    peer.send(&peer_frame(b"hello"));
    let mut hello = vec![0; peer_frame(b"hello").len()];
    stream.read_exact(&mut hello).await.unwrap();
    poll_read_once(&mut stream);
    sleep(ms(10)).await;
    peer.send(&Role::Server.pong(&ping));
    let trip = pinged.elapsed();
    sleep(ms(30)).await;
    assert!(poll_read(&mut stream, &Wakes::new(), 64).is_pending());
    let rtt = live.rtt().unwrap().last();
    assert!(rtt <= trip + ms(2), "{rtt:?}, expected {trip:?}");
}

/// A write that the driver retries has been refused since its first poll. The bytes that the peer
/// takes at last therefore prove that it is alive.
#[tokio::test(start_paused = true)]
async fn a_write_refusal_counts_from_its_start_though_the_driver_retried() {
    let builder = heartbeat()
        .write_timeout(None)
        .handler_stall_timeout(ms(20));
    let (mut stream, _live, peer, recorder) = recorded(builder);
    sleep(ms(102)).await;
    assert_eq!(peer.pings().len(), 1);
    peer.write_steps(&[WAIT]);
    let writing = tokio::spawn(async move {
        stream.write_all(b"\x81\x00").await.unwrap();
        stream
    });
    // The driver's retry was refused 1 ms ago.
    sleep(ms(41)).await;
    let drained = Instant::now();
    peer.drain();
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.at - drained >= ms(50), "{:?}", event.at - drained);
    drop(writing);
}

/// The reprieve for a suspended runtime lasts when the timeout is changed.
#[tokio::test(start_paused = true)]
async fn a_new_timeout_does_not_cancel_a_reprieve() {
    let (_stream, live, peer, recorder) = recorded(heartbeat());
    sleep(ms(102)).await;
    advance(ms(300)).await;
    live.set_timeout(ms(60)).unwrap();
    sleep(ms(2)).await;
    assert_eq!((peer.pings().len(), recorder.total()), (2, 0));
}

/// While a ping waits for the end of the handler's frame, the driver must still detect the end.
#[tokio::test(start_paused = true)]
async fn the_end_is_detected_while_a_ping_cannot_be_sent() {
    let reset = ErrorKind::ConnectionReset;
    for (end, reason) in [
        (Ok(()), Reason::PeerVanished),
        (Err(reset), Reason::Transport(reset)),
    ] {
        let (mut stream, _live, peer, recorder) = recorded(heartbeat());
        stream
            .write_all(&frame(0x80 | TEXT, None, b"hello")[..3])
            .await
            .unwrap();
        poll_read_once(&mut stream);
        sleep(ms(1_000)).await;
        assert_eq!((peer.pings().len(), recorder.total()), (0, 0));
        let ended = Instant::now();
        peer.end(end);
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, reason);
        assert!(event.at - ended <= ms(1), "{:?}", event.at - ended);
    }
}

/// Without a write timeout, the handler must still finish a frame whose write it has cancelled.
#[tokio::test(start_paused = true)]
async fn a_cancelled_write_is_a_handler_stall_without_a_write_timeout() {
    let builder = heartbeat()
        .write_timeout(None)
        .handler_stall_timeout(ms(300));
    let (mut stream, _live, peer, recorder) = recorded(builder);
    peer.write_steps(&[3, WAIT]);
    let hello = frame(0x80 | TEXT, None, b"hello");
    let cancelled = timeout(ms(10), stream.write_all(&hello)).await;
    assert!(cancelled.is_err());
    let begun = Instant::now();
    peer.drain();
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HandlerStalled);
    // A retry after the stall timeout, a second one, and then the stall timeout again.
    assert!(
        event.at - begun <= ms(300 + 100 + 300 + 110),
        "{:?}",
        event.at - begun
    );
}

/// Without a write timeout, a pending write must not hide a dead peer that was pinged before.
#[tokio::test(start_paused = true)]
async fn a_pending_write_does_not_hide_a_dead_peer_that_was_pinged() {
    let builder = heartbeat()
        .timeout(ms(200))
        .write_timeout(None)
        .handler_stall_timeout(ms(50));
    let (mut stream, _live, peer, recorder) = recorded(builder);
    sleep(ms(102)).await;
    assert_eq!(peer.pings().len(), 1);
    peer.write_steps(&[WAIT]);
    let waiting = tokio::spawn(async move { stream.write_all(b"\x81\x00").await });
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.eviction.lifetime() <= ms(304), "{:?}", event.eviction);
    assert!(waiting.await.unwrap().is_err());
}
