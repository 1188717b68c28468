//! Stalls and silences get the right reason in time, and reads after the end return what is due.

use std::future::pending;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio::task::consume_budget;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, advance, sleep, timeout};
use tower_ws_liveness::{Evicted, Health, ProofOfLife, Reason};

use crate::recorded::{only_eviction, recorded};
use crate::script::*;
use crate::support::recorder::Recorder;
use crate::support::within;

/// Lateness allowed under `heartbeat()`: the driver's tick, and 1 ms to act.
const TICK: Duration = Duration::from_millis(2);

/// A frame sent by the handler.
fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// A frame sent by the peer.
fn peer_frame(payload: &[u8]) -> Vec<u8> {
    frame(0x80 | BINARY, Some([1, 2, 3, 4]), payload)
}

// Bytes that the driver has read ahead.

#[tokio::test(start_paused = true)]
async fn read_ahead_bytes_are_delivered_after_the_peers_close_end_or_reset() {
    let closed = frame(0x80 | CLOSE, Some([4; 4]), &1000_u16.to_be_bytes());
    let reset = ErrorKind::ConnectionReset;
    let cases = [
        (closed, None, Reason::PeerClosed { code: Some(1000) }),
        (Vec::new(), Some(Ok(())), Reason::PeerVanished),
        (Vec::new(), Some(Err(reset)), Reason::Transport(reset)),
    ];
    for (close, end, reason) in cases {
        let (mut stream, live, peer, recorder) = recorded(heartbeat());
        let sent = [peer_frame(b"payment confirmed"), close].concat();
        peer.send(&sent);
        if let Some(end) = end {
            peer.end(end);
        }
        // The handler is busy until the driver drops the transport.
        sleep(ms(20_000)).await;
        assert_eq!(recorder.nth(1).await.reason, reason);
        assert!(peer.is_dropped(), "{reason}: the transport is dropped");

        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read, sent, "{reason}");
        assert_eq!(Evicted::from_error(&error).unwrap().reason(), reason);
        assert_eq!(live.health(), Health::Ended);
        recorder.stays_at(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn read_ahead_bytes_are_discarded_by_an_eviction() {
    for kicked in [false, true] {
        let (mut stream, live, peer, recorder) = recorded(heartbeat());
        peer.send(&peer_frame(b"last words"));
        sleep(ms(120)).await;
        assert!(peer.wire().incoming.is_empty(), "read ahead");
        if kicked {
            assert!(live.evict(4000, "kicked"));
        }
        sleep(ms(20_000)).await;
        let reason = match kicked {
            true => Reason::Kicked { code: 4000 },
            false => Reason::HeartbeatTimeout { missed: 1 },
        };
        assert_eq!(recorder.nth(1).await.reason, reason);
        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read, b"", "{reason}");
        assert_eq!(Evicted::from_error(&error).unwrap().reason(), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_behind_half_a_pong_is_detected_at_once_though_the_handler_does_not_read() {
    let reset = ErrorKind::ConnectionReset;
    for (end, reason) in [
        (Ok(()), Reason::PeerVanished),
        (Err(reset), Reason::Transport(reset)),
    ] {
        let (mut stream, _live, peer, recorder) = recorded(heartbeat().timeout(ms(60_000)));
        sleep(ms(110)).await;
        let half = &Role::Server.pong(&peer.last_ping())[..7];
        peer.send(half);
        peer.end(end);
        let ended = Instant::now();
        sleep(ms(300_000)).await;
        let (after, why) = only_eviction(&recorder, ended);
        assert_eq!(why, reason);
        assert!(after <= TICK, "{reason} after {after:?}");
        // The pong is incomplete, so the handler gets its bytes.
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read, half);
    }
}

// The time to detect a dead peer.

/// The time from the peer's last bytes, sent at 100 ms, to its eviction, if the handler first reads
/// `reads_at` ms after them, or never with `None`.
async fn evicted_after(waits_before: bool, reads_at: Option<u64>) -> Duration {
    let builder = heartbeat().interval(ms(30_000)).timeout(ms(15_000));
    let (mut stream, _live, peer, recorder) = recorded(builder.close_timeout(ms(5_000)));
    let wakes = Wakes::new();
    if waits_before {
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    }
    sleep(ms(100)).await;
    peer.send(&peer_frame(b"last words"));
    let silent_since = Instant::now();
    if let Some(millis) = reads_at {
        sleep(ms(millis)).await;
        assert_eq!(
            got(poll_read(&mut stream, &wakes, 64)),
            peer_frame(b"last words")
        );
    }
    sleep(ms(300_000)).await;
    let (after, reason) = only_eviction(&recorder, silent_since);
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    after
}

/// Interval plus timeout, and one tick.
const DETECTION_BOUND: Duration = Duration::from_millis(45_000 + 256);

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_evicted_in_time_though_the_handler_reads_nothing_or_once_and_late() {
    for reads_at in [None, Some(1), Some(20_000), Some(29_800)] {
        let after = evicted_after(false, reads_at).await;
        assert!(after <= DETECTION_BOUND, "{after:?}, read at {reads_at:?}");
    }
    let after = evicted_after(true, Some(1)).await;
    assert!(after <= DETECTION_BOUND, "{after:?}, read when woken");
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_evicted_in_time_though_the_woken_handler_does_not_read() {
    let after = evicted_after(true, None).await;
    assert!(after <= DETECTION_BOUND, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn the_silence_counts_from_the_late_read_of_a_handler_that_was_woken() {
    // The arrival time of the bytes that woke the handler is unknown. The silence counts from the
    // read, since a handler normally reads as soon as it is woken.
    let after = evicted_after(true, Some(20_000)).await;
    assert!(
        after > DETECTION_BOUND && after <= DETECTION_BOUND + ms(20_000),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_late_every_time_still_evicts() {
    let builder = heartbeat().interval(ms(10_000)).timeout(ms(1_000));
    let (_stream, live, peer, recorder) = recorded(builder);
    sleep(ms(10_100)).await;
    assert_eq!(peer.pings().len(), 1);
    // So late, the runtime itself may have been suspended: the peer is pinged once more.
    advance(ms(2_000)).await;
    sleep(ms(1)).await;
    assert_eq!((peer.pings().len(), recorder.total()), (2, 0));
    // The pong ends this silence; the next silence gets one reprieve as well.
    peer.send(&Role::Server.pong(&peer.last_ping()));
    sleep(ms(10_100)).await;
    assert_eq!(peer.pings().len(), 3, "{live:?}");
    advance(ms(2_000)).await;
    sleep(ms(1)).await;
    assert_eq!((peer.pings().len(), recorder.total()), (4, 0));
    advance(ms(2_000)).await;
    sleep(ms(1)).await;
    assert_eq!(peer.pings().len(), 4, "one reprieve per silence");
    let (_, reason) = only_eviction(&recorder, Instant::now() - ms(1));
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_late_every_time_does_not_evict_a_peer_that_answers() {
    let builder = heartbeat().interval(ms(1_000)).timeout(ms(1_000));
    let (_stream, _live, peer, recorder) =
        recorded(builder.proof_of_life(ProofOfLife::MatchingPong));
    let mut answered = 0;
    for _ in 0..50 {
        advance(ms(2_500)).await;
        sleep(ms(1)).await;
        for ping in &peer.pings()[answered..] {
            peer.send(&Role::Server.pong(ping));
            answered += 1;
        }
    }
    assert!(answered >= 20, "{answered}");
    assert_eq!(recorder.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_late_every_time_still_detects_stalls() {
    for stall in ["a write", "a read", "half a frame"] {
        let builder = heartbeat().timeout(ms(600_000));
        let builder = match stall {
            "a write" => builder.write_timeout(ms(1_000)),
            _ => builder.handler_stall_timeout(ms(1_000)),
        };
        let (mut stream, _live, peer, recorder) = recorded(builder);
        let handler = tokio::spawn({
            let peer = peer.clone();
            async move {
                match stall {
                    "a write" => {
                        peer.write_steps(&[3, WAIT]);
                        let _ = stream.write_all(&hello()).await;
                    }
                    "a read" => peer.send(&peer_frame(b"an unread msg")),
                    _ => stream.write_all(&hello()[..3]).await.unwrap(),
                }
                pending::<()>().await;
                drop(stream);
            }
        });
        // By then the first ping is due.
        sleep(ms(200)).await;
        let mut reasons = Vec::new();
        for _ in 0..3 {
            advance(ms(2_000)).await;
            sleep(ms(1)).await;
            reasons.push(recorder.all().first().map(|event| event.reason));
        }
        let reason = match stall {
            "a write" => Reason::WriteStalled,
            _ => Reason::HandlerStalled,
        };
        // A deadline missed by so much may be the runtime's fault: postponed, but once per stall.
        assert_eq!(reasons, [None, Some(reason), Some(reason)], "{stall}");
        handler.abort();
    }
}

// Writers.

#[tokio::test(start_paused = true)]
async fn short_write_refusals_do_not_hide_a_dead_peer_and_long_ones_prove_that_it_drains() {
    for (refused_for, is_evicted) in [(1, true), (3, true), (20, false)] {
        let (mut stream, live, peer, recorder) = recorded(heartbeat());
        peer.write_steps(&[ALL, WAIT]);
        let begun = Instant::now();
        let writing =
            tokio::spawn(async move { while stream.write_all(&hello()).await.is_ok() {} });
        while begun.elapsed() < ms(2_000) {
            sleep(ms(refused_for)).await;
            peer.kick();
        }
        let case = format!("refused for {refused_for} ms at a time, {:?}", live.stats());
        if is_evicted {
            let (after, reason) = only_eviction(&recorder, begun);
            assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
            assert!(after <= ms(150 + refused_for) + TICK, "{after:?}, {case}");
            assert!(live.stats().messages_sent() > 20, "{case}");
        } else {
            assert_eq!(recorder.total(), 0, "{case}");
        }
        writing.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_writers_spent_budget_does_not_prove_that_the_peer_drains() {
    let recorder = Recorder::new();
    // Room for all writes; the peer neither reads nor answers.
    let (io, _peer) = duplex(1 << 24);
    let layer = heartbeat().on_evict(recorder.hook()).build().unwrap();
    let (mut stream, _live) = layer.wrap_server(io);
    let (begun, wakes) = (Instant::now(), Wakes::new());
    while begun.elapsed() < ms(1_000) && recorder.total() == 0 {
        while has_budget_remaining() {
            assert!(poll_write(&mut stream, &wakes, &hello()).is_ready());
        }
        // `Pending` from the spent budget. The task is polled again only after a while.
        assert!(poll_write(&mut stream, &wakes, &hello()).is_pending());
        sleep(ms(10)).await;
    }
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(after <= ms(150) + TICK, "{after:?}");
}

/// Runs a handler that writes a queue of messages, each in its own write. The transport accepts
/// `take` bytes of the last message and then no more. Returns when and why the connection ended.
///
/// 128 messages spend a task's cooperative budget: after that tokio's own transports return
/// `Pending` in any state. This transport does not take part in the budget, and neither do HTTP/2
/// streams and most TLS.
async fn push_queue(queued: usize, take: usize, interval: Duration) -> Option<(Duration, Reason)> {
    let builder = heartbeat().interval(interval).write_timeout(ms(300));
    let (mut stream, _live, peer, recorder) = recorded(builder);
    let mut steps = vec![ALL; queued - 1];
    steps.extend(
        [take, WAIT]
            .iter()
            .filter(|step| take > 0 || **step == WAIT),
    );
    peer.write_steps(&steps);
    let (tx, mut rx) = mpsc::unbounded_channel();
    for _ in 0..queued {
        tx.send(hello()).unwrap();
    }
    let begun = Instant::now();
    let handler = tokio::spawn(async move {
        while let Some(message) = rx.recv().await {
            if stream.write_all(&message).await.is_err() {
                return;
            }
        }
    });
    let ended = timeout(ms(60_000), recorder.reached(1)).await;
    handler.abort();
    ended.ok().map(|_| only_eviction(&recorder, begun))
}

#[tokio::test(start_paused = true)]
async fn a_write_stall_is_detected_in_time_though_the_writers_budget_is_spent() {
    for queued in [127, 128] {
        for take in [0, 3] {
            for interval in [ms(100), ms(30_000)] {
                let what = format!("{queued} messages, {take} bytes of the last, {interval:?}");
                let Some((after, reason)) = push_queue(queued, take, interval).await else {
                    panic!("{what}: not evicted");
                };
                assert_eq!(reason, Reason::WriteStalled, "{what}");
                assert!(after <= ms(400) + ms(20), "{what}: {after:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_transport_of_a_reader_with_a_spent_budget_is_polled_at_once() {
    for spent in [false, true] {
        // The arrival time of a byte is known only if the transport was polled empty before it.
        let (mut stream, live, peer) = wrap_with(heartbeat().interval(ms(1_000)));
        let wakes = Wakes::new();
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
        sleep(ms(100)).await;
        peer.send(&peer_frame(b"x"));
        got(poll_read(&mut stream, &wakes, 64));
        while spent && has_budget_remaining() {
            consume_budget().await;
        }
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
        sleep(ms(900)).await;
        // The transport was polled empty right after the last byte, so these bytes are new: the
        // next ping is due one interval later, and not before.
        peer.send(&peer_frame(b"y"));
        got(poll_read(&mut stream, &wakes, 64));
        let seen = Instant::now();
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
        while peer.pings().is_empty() {
            sleep(ms(1)).await;
        }
        let after = seen.elapsed();
        assert!(after >= ms(1_000), "spent: {spent}, {after:?}");
        drop(live);
    }
}

/// The handler's second read in a row that returns one message, or nothing, takes a shorter way.
#[tokio::test(start_paused = true)]
async fn a_routine_read_with_a_spent_budget_does_not_prove_that_nothing_came() {
    let (mut stream, live, peer) = wrap_with(heartbeat().interval(ms(1_000)));
    let wakes = Wakes::new();
    assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    peer.send(&peer_frame(b"x"));
    got(poll_read(&mut stream, &wakes, 64));
    assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    peer.wire().cooperative = true;
    peer.send(&peer_frame(b"y"));
    let arrived = Instant::now();
    while has_budget_remaining() {
        consume_budget().await;
    }
    assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    sleep(ms(900)).await;
    // The interval runs from the arrival, since the driver has looked at once.
    got(poll_read(&mut stream, &wakes, 64));
    while peer.pings().is_empty() {
        sleep(ms(1)).await;
    }
    let after = arrived.elapsed();
    assert!(after < ms(1_500), "{after:?}");
    drop(live);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_send_is_no_write_stall_if_the_peer_drains() {
    // In the middle of a frame, and before its first byte.
    for taken in [64, 0] {
        let (mut stream, live, peer, recorder) = recorded(heartbeat().write_timeout(ms(300)));
        let long = frame(0x80 | BINARY, None, &[7; 4_096]);
        peer.write_steps(&if taken > 0 {
            vec![taken, WAIT]
        } else {
            vec![WAIT]
        });
        let sent = timeout(ms(20), stream.write_all(&long)).await;
        assert!(sent.is_err(), "the send is cancelled");
        peer.drain();
        // The peer keeps sending, and answers pings.
        let mut answered = 0;
        for _ in 0..40 {
            sleep(ms(50)).await;
            peer.send(&peer_frame(b"hi"));
            for ping in &peer.pings()[answered..] {
                peer.send(&Role::Server.pong(ping));
                answered += 1;
            }
            let mut read = [0; 64];
            within("a message", stream.read(&mut read)).await.unwrap();
        }
        assert_eq!(recorder.total(), 0, "{taken} taken: {:?}", recorder.all());
        // An unfinished frame holds pings back, which shows as a handler stall.
        let health = match taken {
            0 => Health::Live,
            _ => Health::HandlerStalled,
        };
        assert_eq!(live.health(), health, "{taken} taken");
        // The handler may still finish its frame.
        stream.write_all(&long[taken..]).await.unwrap();
        let data: Vec<_> = peer
            .frames()
            .into_iter()
            .filter(|frame| !frame.may_be_ours())
            .collect();
        assert!(data.len() == 1 && data[0].raw == long);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_send_that_is_refused_is_a_write_stall_at_the_write_timeout() {
    // In the middle of a frame and at a boundary, with and without a ping due before.
    for (taken, interval) in [(3, 100), (0, 100), (3, 10_000), (0, 10_000)] {
        let builder = heartbeat().interval(ms(interval)).write_timeout(ms(300));
        let (mut stream, _live, peer, recorder) = recorded(builder);
        peer.write_steps(&if taken > 0 {
            vec![taken, WAIT]
        } else {
            vec![WAIT]
        });
        let begun = Instant::now();
        let writing = tokio::spawn(async move { stream.write_all(&hello()).await });
        sleep(ms(20_000)).await;
        let case = format!("{taken} taken, pings every {interval} ms");
        let (after, reason) = only_eviction(&recorder, begun);
        assert_eq!(reason, Reason::WriteStalled, "{case}");
        assert!(
            after >= ms(300) && after <= ms(300) + TICK,
            "{after:?}, {case}"
        );
        let error = within("the writer", writing).await.unwrap().unwrap_err();
        assert_eq!(Evicted::from_error(&error).unwrap().reason(), reason);
        assert!(peer.is_dropped());
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_the_handler_never_finishes_is_a_handler_stall() {
    let builder = heartbeat().handler_stall_timeout(ms(300));
    let (mut stream, live, _peer, recorder) = recorded(builder);
    let begun = Instant::now();
    stream.write_all(&hello()[..3]).await.unwrap();
    sleep(ms(90)).await;
    assert_eq!(live.health(), Health::Live);
    sleep(ms(100)).await;
    assert_eq!(
        live.health(),
        Health::HandlerStalled,
        "the stall shows before the eviction"
    );
    sleep(ms(20_000)).await;
    // Counted from the ping that the unfinished frame held back.
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::HandlerStalled);
    assert!(after >= ms(400) && after <= ms(400) + TICK, "{after:?}");
}

/// A ping waits between two fragments, and then inside the second one.
#[tokio::test(start_paused = true)]
async fn an_unfinished_frame_in_front_of_a_held_ping_is_a_handler_stall() {
    let builder = heartbeat()
        .timeout(ms(15_000))
        .handler_stall_timeout(ms(1_000));
    let (mut stream, live, _peer, recorder) = recorded(builder);
    let (begun, wakes) = (Instant::now(), Wakes::new());
    assert!(poll_write(&mut stream, &wakes, &frame(TEXT, None, b"first")).is_ready());
    sleep(ms(110)).await;
    assert_eq!(
        live.health(),
        Health::Live,
        "the ping waits for the message's end"
    );
    let next = frame(CONTINUATION, None, b"second");
    assert!(poll_write(&mut stream, &wakes, &next[..4]).is_ready());
    assert_eq!(live.health(), Health::HandlerStalled);
    live.evicted().await;
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::HandlerStalled);
    assert!(after <= ms(1_200), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_held_ping_uses_a_timeout_that_is_set_meanwhile() {
    let (mut stream, live, peer, recorder) = recorded(heartbeat().timeout(ms(60_000)));
    assert!(poll_write(&mut stream, &Wakes::new(), &frame(TEXT, None, b"first")).is_ready());
    sleep(ms(200)).await;
    assert!(peer.pings().is_empty());
    let begun = Instant::now();
    live.set_timeout(ms(50)).unwrap();
    live.evicted().await;
    let (after, reason) = only_eviction(&recorder, begun);
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(after <= ms(50) + 2 * TICK, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn unread_bytes_beyond_the_read_ahead_are_a_handler_stall_and_not_a_dead_peer() {
    for limit in [None, Some(ms(300))] {
        let builder = heartbeat().handler_stall_timeout(limit);
        let (mut stream, live, peer, recorder) = recorded(builder);
        let begun = Instant::now();
        for _ in 0..20 {
            // More than the read-ahead, so the driver cannot see whether a pong follows.
            peer.send(&peer_frame(&[7; 4_000]).repeat(10));
            // Ten times the timeout.
            sleep(ms(500)).await;
            if recorder.total() > 0 {
                break;
            }
            assert_eq!(live.health(), Health::HandlerStalled);
            assert_eq!(stream.read(&mut [0; 4_096]).await.unwrap(), 4_096);
        }
        let Some(limit) = limit else {
            assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
            continue;
        };
        // Counted from the driver's first read, when the first ping was due.
        let (after, reason) = only_eviction(&recorder, begun);
        assert_eq!(reason, Reason::HandlerStalled);
        assert!(after <= ms(100) + limit + TICK, "{after:?}");
    }
}
