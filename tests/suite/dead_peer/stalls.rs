//! The right verdict, in time, and what is left to the handler after it: once wrong, found by a
//! hostile review, and mended.

use std::future::pending;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio::task::consume_budget;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, advance, sleep, timeout};
use tower_ws_liveness::{Evicted, Health, HeartbeatLayerBuilder, Liveness, ProofOfLife, Reason};

use crate::script::*;
use crate::support::recorder::Recorder;
use crate::support::within;

/// What deadlines under `heartbeat()` are rounded up to, and a millisecond to act.
const TICK: Duration = Duration::from_millis(2);

/// A frame of the handler's, at a server.
fn hello() -> Vec<u8> {
    frame(0x80 | TEXT, None, b"hello")
}

/// A frame of the peer's, to a server.
fn said(payload: &[u8]) -> Vec<u8> {
    frame(0x80 | BINARY, Some([1, 2, 3, 4]), payload)
}

/// A server's end, with a hook.
fn recorded(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let (stream, live, peer) = wrap_with(builder.on_evict(recorder.hook()));
    (stream, live, peer, recorder)
}

/// The one eviction so far: how long after `from`, and why.
#[track_caller]
fn only(recorder: &Recorder, from: Instant) -> (Duration, Reason) {
    let events = recorder.all();
    assert_eq!(events.len(), 1, "{events:?}");
    (events[0].at - from, events[0].reason)
}

// What was read ahead.

#[tokio::test(start_paused = true)]
async fn what_was_read_ahead_is_served_after_the_cut_however_the_peer_ended() {
    let closed = frame(0x80 | CLOSE, Some([4; 4]), &1000_u16.to_be_bytes());
    let reset = ErrorKind::ConnectionReset;
    let cases = [
        (closed, None, Reason::PeerClosed { code: Some(1000) }),
        (Vec::new(), Some(Ok(())), Reason::PeerVanished),
        (Vec::new(), Some(Err(reset)), Reason::Transport(reset)),
    ];
    for (goodbye, end, reason) in cases {
        let (mut stream, live, peer, recorder) = recorded(heartbeat());
        let sent = [said(b"payment confirmed"), goodbye].concat();
        peer.send(&sent);
        if let Some(end) = end {
            peer.end(end);
        }
        // The handler is busy for long enough to be cut off.
        sleep(ms(20_000)).await;
        assert_eq!(recorder.nth(1).await.reason, reason);
        assert!(peer.is_dropped(), "{reason}: cut");

        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read, sent, "{reason}");
        assert_eq!(Evicted::from_error(&error).unwrap().reason(), reason);
        assert_eq!(live.health(), Health::Ended);
        recorder.stays_at(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_ahead_is_gone_with_an_eviction() {
    for kicked in [false, true] {
        let (mut stream, live, peer, recorder) = recorded(heartbeat());
        peer.send(&said(b"last words"));
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
async fn half_a_pong_and_then_the_end_is_the_end_at_once_though_nobody_reads() {
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
        let (after, why) = only(&recorder, ended);
        assert_eq!(why, reason);
        assert!(after <= TICK, "{reason} after {after:?}");
        // It never became a pong, so it is the handler's.
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(read, half);
    }
}

// The bound.

/// The peer says its last words at 100 ms. When is it evicted, counted from them, if the handler
/// first reads after `reads_at`, or never?
async fn evicted_after(waits_before: bool, reads_at: Option<u64>) -> Duration {
    let builder = heartbeat().interval(ms(30_000)).timeout(ms(15_000));
    let (mut stream, _live, peer, recorder) = recorded(builder.close_timeout(ms(5_000)));
    let wakes = Wakes::new();
    if waits_before {
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
    }
    sleep(ms(100)).await;
    peer.send(&said(b"last words"));
    let died = Instant::now();
    if let Some(millis) = reads_at {
        sleep(ms(millis)).await;
        assert_eq!(got(poll_read(&mut stream, &wakes, 64)), said(b"last words"));
    }
    sleep(ms(300_000)).await;
    let (after, reason) = only(&recorder, died);
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    after
}

/// Interval and timeout, and one tick.
const BOUND: Duration = Duration::from_millis(45_000 + 256);

#[tokio::test(start_paused = true)]
async fn the_bound_holds_though_the_handler_reads_nothing_or_once_and_late() {
    for reads_at in [None, Some(1), Some(20_000), Some(29_800)] {
        let after = evicted_after(false, reads_at).await;
        assert!(after <= BOUND, "{after:?}, read at {reads_at:?}");
    }
    let after = evicted_after(true, Some(1)).await;
    assert!(after <= BOUND, "{after:?}, read when it was woken");
}

#[tokio::test(start_paused = true)]
async fn the_bound_holds_though_a_handler_that_was_woken_does_not_come() {
    let after = evicted_after(true, None).await;
    assert!(after <= BOUND, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn the_bound_counts_from_the_read_of_a_handler_that_was_woken_and_comes_late() {
    // Nobody can tell afterwards when the bytes came for which it was woken: the handler, which is
    // presumed to come when it is called, has the benefit of the doubt.
    let after = evicted_after(true, Some(20_000)).await;
    assert!(after > BOUND && after <= BOUND + ms(20_000), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_late_every_time_still_evicts() {
    let builder = heartbeat().interval(ms(10_000)).timeout(ms(1_000));
    let (_stream, live, peer, recorder) = recorded(builder);
    sleep(ms(10_100)).await;
    assert_eq!(peer.pings().len(), 1);
    // As late as that, it may be the runtime that was away: the peer is asked once more.
    advance(ms(2_000)).await;
    sleep(ms(1)).await;
    assert_eq!((peer.pings().len(), recorder.total()), (2, 0));
    // That answer was waited for, and the next time it makes no difference.
    peer.send(&Role::Server.pong(&peer.last_ping()));
    sleep(ms(10_100)).await;
    assert_eq!(peer.pings().len(), 3, "{live:?}");
    advance(ms(2_000)).await;
    sleep(ms(1)).await;
    assert_eq!((peer.pings().len(), recorder.total()), (4, 0));
    advance(ms(2_000)).await;
    sleep(ms(1)).await;
    assert_eq!(peer.pings().len(), 4, "one reprieve in a silence");
    let (_, reason) = only(&recorder, Instant::now() - ms(1));
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
async fn a_runtime_that_is_late_every_time_still_finds_stalls() {
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
                    "a read" => peer.send(&said(b"who is there?")),
                    _ => stream.write_all(&hello()[..3]).await.unwrap(),
                }
                pending::<()>().await;
                drop(stream);
            }
        });
        // The first ping has become due by then.
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
        // A verdict that late may be due to the runtime, so it is postponed, but once per stall.
        assert_eq!(reasons, [None, Some(reason), Some(reason)], "{stall}");
        handler.abort();
    }
}

// Writers.

#[tokio::test(start_paused = true)]
async fn short_refusals_do_not_hide_a_dead_peer_and_long_ones_say_that_it_drains() {
    for (refused_for, dies) in [(1, true), (3, true), (20, false)] {
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
        if dies {
            let (after, reason) = only(&recorder, begun);
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
async fn a_writers_used_up_budget_is_not_taken_for_a_peer_that_drains() {
    let recorder = Recorder::new();
    // Room for everything; the peer never reads it, nor answers.
    let (io, _peer) = duplex(1 << 24);
    let layer = heartbeat().on_evict(recorder.hook()).build().unwrap();
    let (mut stream, _live) = layer.wrap_server(io);
    let (begun, wakes) = (Instant::now(), Wakes::new());
    while begun.elapsed() < ms(1_000) && recorder.total() == 0 {
        while has_budget_remaining() {
            assert!(poll_write(&mut stream, &wakes, &hello()).is_ready());
        }
        // The scheduler's word. The runtime has others to look after for a while.
        assert!(poll_write(&mut stream, &wakes, &hello()).is_pending());
        sleep(ms(10)).await;
    }
    let (after, reason) = only(&recorder, begun);
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(after <= ms(150) + TICK, "{after:?}");
}

/// A handler pushes a queue of messages, each in its own write. The transport accepts `take` bytes of the
/// last one, and then the peer drains nothing any more. Returns when and why the connection ended.
///
/// 128 messages spend a task's cooperative budget: after that tokio's own transports return `Pending` in any
/// state. This transport does not take part in the budget, and neither do HTTP/2 streams and most TLS.
async fn pushes(queued: usize, take: usize, interval: Duration) -> Option<(Duration, Reason)> {
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
    ended.ok().map(|_| only(&recorder, begun))
}

#[tokio::test(start_paused = true)]
async fn a_write_stall_is_found_in_time_though_the_writers_budget_is_spent() {
    for queued in [127, 128] {
        for take in [0, 3] {
            for interval in [ms(100), ms(30_000)] {
                let what = format!("{queued} messages, {take} bytes of the last, {interval:?}");
                let Some((after, reason)) = pushes(queued, take, interval).await else {
                    panic!("{what}: no end");
                };
                assert_eq!(reason, Reason::WriteStalled, "{what}");
                assert!(after <= ms(400) + ms(20), "{what}: {after:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_budget_is_spent_has_its_transport_looked_at_at_once() {
    for spent in [false, true] {
        // A byte a minute is no flood, though nothing shows when each came.
        let (mut stream, live, peer) = wrap_with(heartbeat().interval(ms(1_000)));
        let wakes = Wakes::new();
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
        sleep(ms(100)).await;
        peer.send(&said(b"x"));
        got(poll_read(&mut stream, &wakes, 64));
        while spent && has_budget_remaining() {
            consume_budget().await;
        }
        assert!(poll_read(&mut stream, &wakes, 64).is_pending());
        sleep(ms(900)).await;
        // It was seen empty right after the last byte, so what comes now came now: the next ping is due
        // an interval later, and not before.
        peer.send(&said(b"y"));
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

#[tokio::test(start_paused = true)]
async fn a_send_that_was_given_up_is_no_write_stall_if_the_peer_drains_it_all() {
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
        assert!(sent.is_err(), "given up");
        peer.drain();
        // The peer goes on talking, and answers what it is asked.
        let mut answered = 0;
        for _ in 0..40 {
            sleep(ms(50)).await;
            peer.send(&said(b"hi"));
            for ping in &peer.pings()[answered..] {
                peer.send(&Role::Server.pong(ping));
                answered += 1;
            }
            let mut read = [0; 64];
            within("a message", stream.read(&mut read)).await.unwrap();
        }
        assert_eq!(recorder.total(), 0, "{taken} taken: {:?}", recorder.all());
        // In the middle of its frame it keeps the pings back, and may be asked why.
        let health = match taken {
            0 => Health::Live,
            _ => Health::HandlerStalled,
        };
        assert_eq!(live.health(), health, "{taken} taken");
        // It may still think better of it.
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
async fn a_send_that_is_wanted_and_refused_is_a_write_stall_at_the_write_timeout() {
    // In the middle of a frame and at a boundary, with a ping due before and without.
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
        let (after, reason) = only(&recorder, begun);
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
async fn a_frame_that_the_handler_never_finishes_is_a_stalled_handler() {
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
        "it can be seen to come"
    );
    sleep(ms(20_000)).await;
    // Counted from the ping that could not be put in.
    let (after, reason) = only(&recorder, begun);
    assert_eq!(reason, Reason::HandlerStalled);
    assert!(after >= ms(400) && after <= ms(400) + TICK, "{after:?}");
}

/// A ping waits between two fragments, and then inside the second one.
#[tokio::test(start_paused = true)]
async fn a_frame_that_is_left_unfinished_behind_a_held_ping_is_a_stalled_handler() {
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
    let (after, reason) = only(&recorder, begun);
    assert_eq!(reason, Reason::HandlerStalled);
    assert!(after <= ms(1_200), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_held_ping_follows_a_timeout_that_is_set_meanwhile() {
    let (mut stream, live, peer, recorder) = recorded(heartbeat().timeout(ms(60_000)));
    assert!(poll_write(&mut stream, &Wakes::new(), &frame(TEXT, None, b"first")).is_ready());
    sleep(ms(200)).await;
    assert!(peer.pings().is_empty());
    let begun = Instant::now();
    live.set_timeout(ms(50)).unwrap();
    live.evicted().await;
    let (after, reason) = only(&recorder, begun);
    assert_eq!(reason, Reason::HeartbeatTimeout { missed: 1 });
    assert!(after <= ms(50) + 2 * TICK, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn of_a_peer_that_sends_more_than_is_read_only_the_handler_is_to_blame() {
    for limit in [None, Some(ms(300))] {
        let builder = heartbeat().handler_stall_timeout(limit);
        let (mut stream, live, peer, recorder) = recorded(builder);
        let begun = Instant::now();
        for _ in 0..20 {
            // More than is read ahead, so that nobody can see whether a pong is behind it.
            peer.send(&said(&[7; 4_000]).repeat(10));
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
        // Counted from the first look, when the first ping was due.
        let (after, reason) = only(&recorder, begun);
        assert_eq!(reason, Reason::HandlerStalled);
        assert!(after <= ms(100) + limit + TICK, "{after:?}");
    }
}
