//! Wakers: a transport keeps one per direction, which the handler and the driver share.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split};
use tokio::time::{advance, sleep, timeout};
use tower_ws_liveness::{Health, HeartbeatLayer, Liveness, ProofOfLife, Reason};

use crate::script::*;

/// A frame from the handler of a server.
fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// A frame from the peer to a server.
fn peer_frame(payload: &[u8]) -> Vec<u8> {
    frame(0x80 | BINARY, Some([1, 2, 3, 4]), payload)
}

// A waker can run arbitrary code when it is dropped.

/// A waker that evicts the connection when its last clone is dropped.
struct EvictsOnDrop(Liveness);

impl Wake for EvictsOnDrop {
    fn wake(self: Arc<Self>) {}
}

impl Drop for EvictsOnDrop {
    fn drop(&mut self) {
        self.0.evict(4000, "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_waker_may_evict_the_connection_when_it_is_dropped() {
    type Polls = fn(&mut Stream, &Waker) -> bool;
    let polls: [Polls; 3] = [
        |stream, waker| {
            let cx = &mut Context::from_waker(waker);
            let mut room = [0; 8];
            let mut buf = ReadBuf::new(&mut room);
            Pin::new(stream).poll_read(cx, &mut buf).is_pending()
        },
        |stream, waker| {
            let cx = &mut Context::from_waker(waker);
            Pin::new(stream).poll_write(cx, &hello()).is_pending()
        },
        |stream, waker| {
            let cx = &mut Context::from_waker(waker);
            Pin::new(stream).poll_flush(cx).is_pending()
        },
    ];
    for poll in polls {
        let (mut stream, live, peer) = wrapped();
        peer.write_steps(&[WAIT]);
        peer.wire().flush_waits = true;
        let waker = Waker::from(Arc::new(EvictsOnDrop(live.clone())));
        assert!(poll(&mut stream, &waker));
        drop(waker);
        assert_ne!(live.health(), Health::Ended);
        assert!(poll(&mut stream, &Waker::from(Wakes::new())));
        let reason = live.evicted().await.reason();
        assert_eq!(reason, Reason::Kicked { code: 4000 });
    }
}

// The reader.

#[tokio::test(start_paused = true)]
async fn data_during_a_ping_wakes_the_reader_and_a_lone_pong_does_not() {
    for role in [Role::Server, Role::Client] {
        for chunk in [1, ALL] {
            let (io, peer) = script();
            peer.read_steps(&[chunk]);
            let (mut stream, live) = role.wrap(&heartbeat().build().unwrap(), io);
            let wakes = Wakes::new();
            assert!(poll_read(&mut stream, &wakes, 64).is_pending());
            for round in 1..=5 {
                sleep(ms(105)).await;
                assert_eq!(peer.pings().len(), round, "{role:?}");
                peer.send(&role.pong(&peer.last_ping()));
                sleep(ms(1)).await;
            }
            assert_eq!(
                wakes.count(),
                0,
                "{role:?}: a pong must not wake the handler"
            );
            assert_eq!(live.stats().pongs_received(), 5);

            // Data arrives while a ping is outstanding.
            sleep(ms(105)).await;
            let bytes = frame(0x80 | TEXT, role.inbound([7; 4]), b"data");
            peer.send(&bytes);
            sleep(ms(1)).await;
            assert_eq!(wakes.count(), 1, "{role:?}, {chunk} at a time");
            let mut read = got(poll_read(&mut stream, &wakes, 64));
            while read.len() < bytes.len() {
                read.extend(got(poll_read(&mut stream, &wakes, 64)));
            }
            assert_eq!(read, bytes);

            // No ping is outstanding, not even one whose pong would only measure the round trip. So
            // the transport wakes the handler directly.
            sleep(ms(55)).await;
            assert!(poll_read(&mut stream, &wakes, 64).is_pending());
            peer.send(&bytes);
            assert_eq!(wakes.count(), 2, "woken by the transport");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_lone_pong_data_wakes_the_reader() {
    let (mut stream, _live, peer) = wrapped();
    let wakes = Wakes::new();
    assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    sleep(ms(105)).await;
    peer.send(&Role::Server.pong(&peer.last_ping()));
    sleep(ms(1)).await;
    assert_eq!(wakes.count(), 0);
    // No ping is outstanding now.
    peer.send(&peer_frame(b"x"));
    sleep(ms(1)).await;
    assert_eq!(wakes.count(), 1);
    assert_eq!(got(poll_read(&mut stream, &wakes, 64)), peer_frame(b"x"));
}

#[tokio::test(start_paused = true)]
async fn a_pong_with_data_behind_it_wakes_the_reader_for_the_data() {
    let (mut stream, _live, peer) = wrapped();
    let wakes = Wakes::new();
    assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    sleep(ms(105)).await;
    let pong = Role::Server.pong(&peer.last_ping());
    peer.send(&[pong, peer_frame(b"x")].concat());
    sleep(ms(1)).await;
    assert_eq!(wakes.count(), 1);
    assert_eq!(got(poll_read(&mut stream, &wakes, 64)), peer_frame(b"x"));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_polls_while_a_ping_is_outstanding_is_woken() {
    let (mut stream, _live, peer) = wrapped();
    sleep(ms(105)).await;
    peer.last_ping();
    let (first, second) = (Wakes::new(), Wakes::new());
    assert!(poll_read(&mut stream, &first, 64).is_pending());
    // The reader has moved to another task.
    assert!(poll_read(&mut stream, &second, 64).is_pending());
    peer.send(&peer_frame(b"x"));
    sleep(ms(1)).await;
    assert_eq!((first.count(), second.count()), (0, 1));
    assert_eq!(got(poll_read(&mut stream, &second, 64)), peer_frame(b"x"));
}

#[tokio::test(start_paused = true)]
async fn the_end_during_a_ping_wakes_the_reader() {
    for end in [Ok(()), Err(std::io::ErrorKind::ConnectionReset)] {
        let (mut stream, live, peer) = wrapped();
        let wakes = Wakes::new();
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
        sleep(ms(105)).await;
        let pong = Role::Server.pong(&peer.last_ping());
        peer.send(&pong[..5]);
        peer.end(end);
        sleep(ms(1)).await;
        assert_eq!(wakes.count(), 1);
        // The incomplete pong can never be completed, so the handler reads it before the end.
        assert_eq!(got(poll_read(&mut stream, &wakes, 64)), &pong[..5]);
        match end {
            Ok(()) => {
                assert_eq!(got(poll_read(&mut stream, &wakes, 64)), b"");
                assert_eq!(live.evicted().await.reason(), Reason::PeerVanished);
            }
            Err(kind) => {
                let Poll::Ready(Err(error)) = poll_read(&mut stream, &wakes, 64) else {
                    panic!("the error is lost");
                };
                assert_eq!(error.kind(), kind);
                assert_eq!(live.evicted().await.reason(), Reason::Transport(kind));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn both_halves_of_a_split_stream_make_progress() {
    let (stream, live, peer) = wrap_with(heartbeat().interval(ms(3)).jitter(1.0));
    peer.read_steps(&[1, WAIT, 5]);
    peer.write_steps(&[2, WAIT, 1, WAIT, WAIT, 9]);
    let (mut reader, mut writer) = split(stream);
    let out = hello().repeat(60);
    let expected = peer_frame(b"something").repeat(60);
    let writing = tokio::spawn({
        let out = out.clone();
        async move {
            for chunk in out.chunks(5) {
                writer.write_all(chunk).await.unwrap();
                sleep(ms(1)).await;
            }
            writer.flush().await.unwrap();
        }
    });
    let reading = tokio::spawn({
        let mut read = vec![0; expected.len()];
        async move {
            reader.read_exact(&mut read).await.unwrap();
            (read, reader)
        }
    });
    let direct = tokio::spawn({
        let (peer, expected) = (peer.clone(), expected.clone());
        async move {
            let mut answered = 0;
            for tick in 0.. {
                sleep(ms(5)).await;
                peer.kick();
                let pings = peer.pings();
                for ping in &pings[answered..] {
                    peer.send(&Role::Server.pong(ping));
                }
                answered = pings.len();
                if let Some(next) = expected.chunks(15).nth(tick) {
                    peer.send(next);
                }
            }
        }
    });
    let both = async { tokio::join!(writing, reading) };
    let (wrote, read) = timeout(ms(60_000), both).await.expect("a half is stuck");
    wrote.unwrap();
    assert_eq!(read.unwrap().0, expected);
    direct.abort();
    assert!(live.stats().pings_sent() > 10);
    let theirs = peer
        .frames()
        .into_iter()
        .filter(|frame| !frame.may_be_ours());
    assert!(theirs.map(|frame| frame.raw).eq(vec![hello(); 60]));
}

// The writer.

#[tokio::test(start_paused = true)]
async fn a_writer_pending_at_a_frame_boundary_is_woken_after_a_ping() {
    let (mut stream, live, peer) = wrapped();
    peer.write_steps(&[WAIT]);
    let wakes = Wakes::new();
    assert!(poll_write(&mut stream, &wakes, &hello()).is_pending());
    // A ping is due. The transport accepts none of it and now holds the driver's waker.
    sleep(ms(110)).await;
    peer.drain();
    sleep(ms(10)).await;
    assert_eq!(live.stats().pings_sent(), 1);
    assert!(
        wakes.count() > 0,
        "the transport is writable, and the handler was not woken"
    );
    assert!(poll_write(&mut stream, &wakes, &hello()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_writer_pending_in_its_flush_is_woken_after_a_ping() {
    let (mut stream, _live, peer) = wrapped();
    peer.wire().flush_waits = true;
    let wakes = Wakes::new();
    assert!(poll_write(&mut stream, &wakes, &hello()).is_ready());
    assert!(poll_flush(&mut stream, &wakes).is_pending());
    sleep(ms(110)).await;
    peer.drain();
    sleep(ms(10)).await;
    assert!(
        wakes.count() > 0,
        "the transport is flushed, and the handler was not woken"
    );
    assert!(poll_flush(&mut stream, &wakes).is_ready());
}

/// A buffering transport (TLS, HTTP/2) accepts writes while a flush is pending.
#[tokio::test(start_paused = true)]
async fn a_writer_behind_a_ping_is_woken_while_the_ping_is_not_flushed() {
    let (mut stream, live, peer) = wrapped();
    peer.write_steps(&[WAIT, ALL, ALL, ALL]);
    let wakes = Wakes::new();
    assert!(poll_write(&mut stream, &wakes, &hello()).is_pending());
    sleep(ms(110)).await;
    peer.wire().flush_waits = true;
    peer.kick();
    sleep(ms(1)).await;
    assert_eq!((peer.pings().len(), live.stats().pings_sent()), (1, 0));
    assert!(
        wakes.count() > 0,
        "the transport is writable, and the handler was not woken"
    );
    assert!(poll_write(&mut stream, &wakes, &hello()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_writer_pending_inside_a_frame_is_woken_while_a_ping_is_due() {
    // The handler polls before the ping is due, and in the second case also after.
    for again in [false, true] {
        let (mut stream, _live, peer) = wrapped();
        peer.write_steps(&[3, WAIT]);
        let wakes = Wakes::new();
        assert!(poll_write(&mut stream, &wakes, &hello()).is_ready());
        assert!(poll_write(&mut stream, &wakes, &hello()[3..]).is_pending());
        sleep(ms(110)).await;
        if again {
            assert!(poll_write(&mut stream, &wakes, &hello()[3..]).is_pending());
        }
        let before = wakes.count();
        peer.drain();
        sleep(ms(1)).await;
        assert!(wakes.count() > before, "again: {again}");
        // The ping is sent after the last byte of the handler's frame, and not before.
        assert_eq!(peer.wire().written, &hello()[..3]);
        assert!(poll_write(&mut stream, &wakes, &hello()[3..]).is_ready());
        let frames = peer.frames();
        assert_eq!(frames.len(), 2);
        assert!(frames[0].raw == hello() && frames[1].may_be_ours());
    }
}

#[tokio::test(start_paused = true)]
async fn the_driver_waits_for_the_pong_to_a_ping_sent_in_the_handlers_write() {
    // With and without a pending read of the handler, which does not poll again afterwards.
    for has_pending_read in [false, true] {
        let (mut stream, live, peer) = wrapped();
        assert!(poll_write(&mut stream, &Wakes::new(), &hello()[..3]).is_ready());
        let reads = Wakes::new();
        if has_pending_read {
            assert!(poll_read(&mut stream, &reads, 64).is_pending());
        }
        // A ping is due, and waits for the end of the handler's frame.
        sleep(ms(110)).await;
        assert!(peer.pings().is_empty());
        assert!(poll_write(&mut stream, &Wakes::new(), &hello()[3..]).is_ready());
        let ping = peer.last_ping();
        sleep(ms(5)).await;
        peer.send(&Role::Server.pong(&ping));
        sleep(ms(1)).await;
        let rtt = live.rtt().expect("the pong was not read").last();
        assert!(rtt <= ms(6), "pending read: {has_pending_read}, {rtt:?}");
        assert_eq!(reads.count(), 0, "a pong must not wake the handler");
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_written_ping_is_completed_before_the_handlers_bytes() {
    let (mut stream, _live, peer) = wrapped();
    peer.write_steps(&[3, WAIT, 2, WAIT, WAIT, ALL]);
    sleep(ms(110)).await;
    assert_eq!(peer.wire().written.len(), 3);
    let wakes = Wakes::new();
    let mut rounds = 0;
    let written = loop {
        if let Poll::Ready(written) = poll_write(&mut stream, &wakes, &hello()) {
            break written.unwrap();
        }
        let before = wakes.count();
        for _ in 0..5 {
            peer.kick();
            sleep(ms(1)).await;
        }
        rounds += 1;
        assert!(wakes.count() > before && rounds < 5, "the handler is stuck");
    };
    assert!(peer.frames()[0].may_be_ours());
    assert_eq!(peer.wire().written[10..], hello()[..written]);
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_a_cancelled_write_had_begun_is_finished_by_the_driver() {
    let (mut stream, live, peer) = wrapped();
    // The transport is full when the ping is due. The handler's write then sends part of the ping.
    peer.write_steps(&[WAIT, 3, WAIT]);
    sleep(ms(110)).await;
    assert!(peer.wire().written.is_empty());
    peer.kick();
    assert!(
        timeout(ms(1), stream.write(&hello())).await.is_err(),
        "cancelled"
    );
    assert_eq!(peer.wire().written.len(), 3);
    peer.drain();
    sleep(ms(1)).await;
    assert_eq!(peer.wire().written.len(), 10);
    assert_eq!(live.stats().pings_sent(), 1);
    stream.write_all(&hello()).await.unwrap();
    assert_eq!(peer.frames()[1].raw, hello());
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_was_cancelled_is_finished_by_the_driver() {
    let (mut stream, live, peer) = wrapped();
    peer.wire().flush_waits = true;
    sleep(ms(110)).await;
    assert_eq!(peer.wire().written.len(), 10);
    assert_eq!(live.stats().pings_sent(), 0, "the ping is not flushed yet");
    assert!(timeout(ms(1), stream.flush()).await.is_err(), "cancelled");
    peer.drain();
    sleep(ms(1)).await;
    assert_eq!(live.stats().pings_sent(), 1);
}

// Reading ahead.

#[tokio::test(start_paused = true)]
async fn bytes_read_ahead_keep_their_order() {
    for chunk in [1, 7, 1_000, ALL] {
        let (mut stream, live, peer) = wrapped();
        peer.read_steps(&[chunk]);
        let mut expected = Vec::new();
        // The handler does not read for ten intervals, while its peer is alive.
        for round in 0..10 {
            sleep(ms(110)).await;
            let bytes = peer_frame(&[round; 1_500]);
            peer.send(&bytes[..700]);
            peer.send(&bytes[700..]);
            peer.send(&Role::Server.pong(&peer.last_ping()));
            expected.extend(bytes);
        }
        sleep(ms(110)).await;
        assert!(
            peer.wire().incoming.is_empty(),
            "not all of it was read ahead"
        );
        assert!(live.stats().pongs_received() >= 9);
        let mut read = vec![0; expected.len()];
        timeout(ms(10), stream.read_exact(&mut read))
            .await
            .unwrap()
            .unwrap();
        assert!(read == expected, "{chunk} at a time");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_read_ahead_buffer_is_not_a_heartbeat_timeout() {
    for proof in [ProofOfLife::AnyBytes, ProofOfLife::MatchingPong] {
        let (mut stream, live, peer) = wrap_with(heartbeat().proof_of_life(proof));
        let expected = peer_frame(&[5; 100]).repeat(400);
        peer.send(&expected);
        sleep(ms(20_000)).await;
        let waiting = peer.wire().incoming.len();
        assert_eq!(expected.len() - waiting, 16 * 1024, "{proof:?}: read ahead");
        assert_eq!(live.health(), Health::HandlerStalled);
        // The pongs are queued behind the unread data.
        for ping in peer.pings() {
            peer.send(&Role::Server.pong(&ping));
        }
        let mut read = vec![0; expected.len()];
        timeout(ms(10), stream.read_exact(&mut read))
            .await
            .unwrap()
            .unwrap();
        assert!(read == expected);
        assert!(poll_read(&mut stream, &Wakes::new(), 64).is_pending());
    }
}

/// The peer answers in time, but the runtime is busy for 10 ms past the deadline. Other frames,
/// which the transport returns one at a time, precede the pong.
async fn pong_behind(messages: usize, handler_waits: bool) {
    let (mut stream, live, peer) = wrap_with(heartbeat().proof_of_life(ProofOfLife::MatchingPong));
    let wakes = Wakes::new();
    if handler_waits {
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    }
    sleep(ms(148)).await;
    let sent = peer_frame(b"message").repeat(messages);
    peer.read_steps(&[peer_frame(b"message").len()]);
    peer.send(&[&sent[..], &Role::Server.pong(&peer.last_ping())].concat());
    advance(ms(10)).await;
    sleep(ms(5)).await;
    let case = (messages, handler_waits);
    assert_ne!(live.health(), Health::Ended, "{case:?}: evicted");
    assert_eq!(live.stats().pongs_received(), 1, "{case:?}");
    let mut read = vec![0; sent.len()];
    let done = timeout(ms(10), stream.read_exact(&mut read)).await;
    assert!(done.is_ok() && read == sent, "{case:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pong_behind_a_message_is_seen_before_the_verdict() {
    pong_behind(1, true).await;
    pong_behind(1, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_pong_behind_many_messages_is_seen_before_the_verdict() {
    pong_behind(100, false).await;
    pong_behind(100, true).await;
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_coop_budget_is_not_a_silent_peer() {
    // tokio's transports return `Pending` to a task that has exhausted its coop budget, even if
    // bytes are available. The driver polls many connections in one go.
    let layer: HeartbeatLayer = heartbeat().build().unwrap();
    let connections: Vec<_> = (0..60)
        .map(|_| {
            let (io, peer) = script();
            peer.read_steps(&[1]);
            peer.wire().cooperative = true;
            let (stream, live) = layer.wrap_server(io);
            (stream, live, peer)
        })
        .collect();
    sleep(ms(148)).await;
    for (_, _, peer) in &connections {
        peer.send(&Role::Server.pong(&peer.last_ping()));
    }
    advance(ms(10)).await;
    sleep(ms(20)).await;
    let alive = connections
        .iter()
        .filter(|(_, live, peer)| live.stats().pongs_received() == 1 && !peer.is_dropped());
    assert_eq!(
        alive.count(),
        connections.len(),
        "a peer that answered in time was evicted"
    );
}
