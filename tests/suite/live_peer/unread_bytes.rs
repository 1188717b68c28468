//! What lay unread for a while, and who looks meanwhile: found by the simulation, and mended.

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

fn said(payload: &[u8]) -> Vec<u8> {
    frame(0x80 | BINARY, Some([1, 2, 3, 4]), payload)
}

/// A handler that waits to read, is woken, and does not come.
fn reads_and_goes(stream: &mut Stream) {
    assert!(poll_read(stream, &Wakes::new(), 64).is_pending());
}

/// A transport gives its bytes out in pieces (TLS in records): what a single look finds is as old
/// as its first piece may be.
#[tokio::test(start_paused = true)]
async fn what_a_look_finds_in_pieces_is_one_sign_of_life() {
    for piece in [3, 10, ALL] {
        let (mut stream, _live, peer, recorder) = recorded(heartbeat());
        peer.read_steps(&[piece]);
        reads_and_goes(&mut stream);
        sleep(ms(10)).await;
        let last = Instant::now();
        peer.send(&[said(b"one"), said(b"two"), said(b"three")].concat());
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
        let after = event.at - last;
        assert!(after <= ms(152), "pieces of {piece}: {after:?}");
    }
}

/// But a peer whose bytes never end is alive, however fast they are read.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_never_done_is_not_pinged() {
    let (mut stream, live, peer, recorder) = recorded(heartbeat());
    peer.send(&said(&[7; 125]).repeat(1_000));
    let mut piece = [0; 100];
    for _ in 0..1_000 {
        stream.read_exact(&mut piece).await.unwrap();
        advance(Duration::from_micros(500)).await;
    }
    assert_eq!((recorder.total(), live.stats().pings_sent()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pong_in_pieces_is_fetched_whole_for_a_handler_that_has_gone() {
    let (mut stream, live, peer, _recorder) = recorded(heartbeat());
    reads_and_goes(&mut stream);
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

/// Other bytes end the silence, and not the round trip: the pong is not to lie there until a handler
/// that has dropped its read comes back.
#[tokio::test(start_paused = true)]
async fn a_pong_behind_other_bytes_gives_its_own_round_trip() {
    let (mut stream, live, peer, _recorder) = recorded(heartbeat());
    sleep(ms(101)).await;
    let ping = peer.last_ping();
    let pinged = Instant::now();
    peer.send(&said(b"hello"));
    let mut hello = vec![0; said(b"hello").len()];
    stream.read_exact(&mut hello).await.unwrap();
    reads_and_goes(&mut stream);
    sleep(ms(10)).await;
    peer.send(&Role::Server.pong(&ping));
    let trip = pinged.elapsed();
    sleep(ms(30)).await;
    assert!(poll_read(&mut stream, &Wakes::new(), 64).is_pending());
    let rtt = live.rtt().unwrap().last();
    assert!(rtt <= trip + ms(2), "{rtt:?}, and it took {trip:?}");
}

/// Whoever is asked again whether the peer drains has not been refused since then only: the bytes
/// that go out at last do say that it lives.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_as_long_as_it_is_though_it_was_asked_about() {
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
    // Asked again, and refused again, 1 ms ago.
    sleep(ms(41)).await;
    let drained = Instant::now();
    peer.drain();
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(event.at - drained >= ms(50), "{:?}", event.at - drained);
    drop(writing);
}

/// And the runtime was away, if that was before.
#[tokio::test(start_paused = true)]
async fn a_change_of_the_times_does_not_undo_a_reprieve() {
    let (_stream, live, peer, recorder) = recorded(heartbeat());
    sleep(ms(102)).await;
    advance(ms(300)).await;
    live.set_timeout(ms(60)).unwrap();
    sleep(ms(2)).await;
    assert_eq!((peer.pings().len(), recorder.total()), (2, 0));
}

/// While a ping waits for the end of the handler's frame, somebody has to see that the peer is gone.
#[tokio::test(start_paused = true)]
async fn the_end_is_seen_behind_a_ping_that_cannot_go_out() {
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
        reads_and_goes(&mut stream);
        sleep(ms(1_000)).await;
        assert_eq!((peer.pings().len(), recorder.total()), (0, 0));
        let ended = Instant::now();
        peer.end(end);
        let event = recorder.nth(1).await;
        assert_eq!(event.reason, reason);
        assert!(event.at - ended <= ms(1), "{:?}", event.at - ended);
    }
}

/// Without a bound on writes, a write that was given up in the middle of its frame is still the
/// handler's to finish.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_stalls_the_handler_where_writes_have_no_bound() {
    let builder = heartbeat()
        .write_timeout(None)
        .handler_stall_timeout(ms(300));
    let (mut stream, _live, peer, recorder) = recorded(builder);
    peer.write_steps(&[3, WAIT]);
    let hello = frame(0x80 | TEXT, None, b"hello");
    let given_up = timeout(ms(10), stream.write_all(&hello)).await;
    assert!(given_up.is_err());
    let begun = Instant::now();
    peer.drain();
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HandlerStalled);
    // Asked again after the timeout, with a second try, and then the timeout.
    assert!(
        event.at - begun <= ms(300 + 100 + 300 + 110),
        "{:?}",
        event.at - begun
    );
}

/// And a write that still waits there does not hide a dead peer who was pinged before.
#[tokio::test(start_paused = true)]
async fn a_write_that_waits_does_not_take_the_place_of_a_ping() {
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
