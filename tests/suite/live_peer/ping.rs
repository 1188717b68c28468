//! Pings on demand with `Liveness::ping`, in addition to the heartbeat's.

use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::any;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{
    Evicted, Health, HeartbeatLayerBuilder, IdleTimeoutLayer, Liveness, Reason,
};

use crate::script::*;
use crate::support::raw::RawClient;
use crate::support::recorder::Recorder;
use crate::support::{self, echo, in_memory, within};

type Call = JoinHandle<Result<Duration, Evicted>>;

/// A heartbeat that sends no ping of its own for an hour.
fn quiet() -> HeartbeatLayerBuilder {
    heartbeat().interval(ms(3_600_000))
}

/// Spawns a call of `ping` and lets the driver act on it.
async fn call(live: &Liveness) -> Call {
    let live = live.clone();
    let call = tokio::spawn(async move { live.ping().await });
    settle().await;
    call
}

/// Lets all tasks run until they wait for time to pass.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

async fn result(call: Call) -> Result<Duration, Evicted> {
    within("the call's result", call).await.unwrap()
}

fn answer(peer: &Peer, payload: [u8; 8]) {
    peer.send(&Role::Server.pong(&payload));
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_sent_at_once_and_returns_the_round_trip() {
    for handler_reads in [false, true] {
        let (mut stream, live, peer) = wrap_with(quiet());
        let (start, started) = tokio::sync::oneshot::channel();
        let reader = tokio::spawn(async move {
            if !handler_reads {
                started.await.unwrap();
            }
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            read
        });
        sleep(ms(33)).await;
        let called = Instant::now();
        let call = call(&live).await;
        assert_eq!(peer.pings().len(), 1, "sent at once");
        assert_eq!(called.elapsed(), Duration::ZERO);

        sleep(ms(7)).await;
        assert!(!call.is_finished());
        answer(&peer, peer.last_ping());
        assert_eq!(result(call).await, Ok(ms(7)));
        assert_eq!(live.rtt().unwrap().last(), ms(7));
        assert_eq!(
            (live.stats().pings_sent(), live.health()),
            (1, Health::Live)
        );

        // Fails if the handler reads already, since nothing waits for the start then.
        let _ = start.send(());
        peer.end(Ok(()));
        let read = within("the end", reader).await.unwrap();
        assert!(read.is_empty(), "pongs are not delivered to the handler");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_before_the_ping_share_it_and_later_ones_do_not() {
    let (mut stream, live, peer) = wrap_with(quiet());
    // In the middle of a frame no ping can be sent (RFC 6455 section 5.4).
    let hello = frame(0x80 | TEXT, None, b"hello");
    stream.write_all(&hello[..3]).await.unwrap();
    let calls = [call(&live).await, call(&live).await, call(&live).await];
    sleep(ms(1_000)).await;
    assert!(peer.pings().is_empty());

    stream.write_all(&hello[3..]).await.unwrap();
    settle().await;
    assert_eq!(peer.frames()[0].raw, hello);
    assert_eq!(peer.pings().len(), 1);
    let first = peer.last_ping();
    let late = call(&live).await;
    assert_eq!(peer.pings().len(), 2);
    sleep(ms(5)).await;
    answer(&peer, first);
    for call in calls {
        assert_eq!(
            result(call).await,
            Ok(ms(5)),
            "without the wait for the frame"
        );
    }
    assert!(!late.is_finished(), "its ping was sent later");
    answer(&peer, peer.last_ping());
    assert_eq!(result(late).await, Ok(ms(5)));
}

#[tokio::test(start_paused = true)]
async fn a_pong_to_the_latest_ping_answers_all_calls() {
    let (_stream, live, peer) = wrap_with(quiet().timeout(ms(500)));
    let first = call(&live).await;
    sleep(ms(10)).await;
    let second = call(&live).await;
    assert_eq!(peer.pings().len(), 2);
    sleep(ms(4)).await;
    answer(&peer, peer.last_ping());
    assert_eq!(
        result(first).await,
        Ok(ms(4)),
        "the round trip of the answered ping"
    );
    assert_eq!(result(second).await, Ok(ms(4)));
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_is_answered_before_it_is_flushed_answers_no_later_call() {
    let (_stream, live, peer) = wrap_with(quiet());
    peer.wire().flush_waits = true;
    let first = call(&live).await;
    sleep(ms(3)).await;
    answer(&peer, peer.last_ping());
    assert_eq!(
        result(first).await,
        Ok(ms(3)),
        "at most the time since the call"
    );
    let second = call(&live).await;
    assert!(!second.is_finished());
    peer.drain();
    settle().await;
    assert_eq!(peer.pings().len(), 2);
    answer(&peer, peer.last_ping());
    assert_eq!(result(second).await, Ok(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_only_the_oldest_ping_is_pinged_again_in_time() {
    let (_stream, live, peer) = wrap_with(heartbeat());
    let first = call(&live).await;
    let second = call(&live).await;
    let [oldest, _dropped] = peer.pings()[..] else {
        panic!("{:?}", peer.pings());
    };
    answer(&peer, oldest);
    assert_eq!(result(first).await, Ok(Duration::ZERO));
    sleep(ms(99)).await;
    assert!(!second.is_finished());
    // The heartbeat's next ping.
    sleep(ms(6)).await;
    assert_eq!(peer.pings().len(), 3);
    answer(&peer, peer.last_ping());
    assert!(result(second).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn repeated_calls_do_not_keep_a_dead_peer() {
    let recorder = Recorder::new();
    let (_stream, live, _peer) = wrap_with(heartbeat().missed_pings(2).on_evict(recorder.hook()));
    let begun = Instant::now();
    let caller = tokio::spawn(async move {
        loop {
            match timeout(ms(10), live.ping()).await {
                Ok(Ok(rtt)) => panic!("an answer from a dead peer: {rtt:?}"),
                Ok(Err(evicted)) => return evicted,
                Err(_) => {}
            }
        }
    });
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::HeartbeatTimeout { missed: 2 });
    let after = event.at - begun;
    assert!((ms(100)..=ms(104)).contains(&after), "{after:?}");
    assert_eq!(caller.await.unwrap().reason(), event.reason);
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_cannot_be_sent_does_not_keep_a_dead_peer() {
    for missed in [1, 2] {
        let recorder = Recorder::new();
        let builder = heartbeat()
            .missed_pings(missed)
            .handler_stall_timeout(ms(500));
        let (mut stream, live, peer) = wrap_with(builder.on_evict(recorder.hook()));
        sleep(ms(105)).await;
        assert_eq!(peer.pings().len(), 1, "the heartbeat's ping");
        stream
            .write_all(&frame(0x80 | TEXT, None, b"hello")[..3])
            .await
            .unwrap();
        let call = call(&live).await;
        let event = recorder.nth(1).await;
        // The handler's unfinished frame holds back the second ping, so it cannot be missed.
        let (reason, bound) = match missed {
            1 => (Reason::HeartbeatTimeout { missed: 1 }, ms(152)),
            _ => (Reason::HandlerStalled, ms(620)),
        };
        assert_eq!(event.reason, reason);
        assert!(event.eviction.lifetime() <= bound, "{:?}", event.eviction);
        assert_eq!(result(call).await.unwrap_err().reason(), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_written_ping_is_finished_before_the_next() {
    let (_stream, live, peer) = wrap_with(heartbeat().missed_pings(3));
    peer.write_steps(&[3, WAIT]);
    let call = call(&live).await;
    // Timeouts expire and another call is made while only 3 bytes of the ping are written.
    sleep(ms(400)).await;
    let _another = self::call(&live).await;
    peer.drain();
    settle().await;
    let pings = peer.pings();
    assert_eq!(pings.len(), peer.frames().len(), "only whole pings");
    answer(&peer, pings[0]);
    assert!(result(call).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_has_no_effect_on_later_calls() {
    let (_stream, live, peer) = wrap_with(quiet().timeout(ms(500)));
    for _ in 0..3 {
        assert!(timeout(ms(1), live.ping()).await.is_err());
    }
    let call = call(&live).await;
    answer(&peer, peer.last_ping());
    assert!(result(call).await.is_ok());
    assert_eq!(live.health(), Health::Live);
}

#[tokio::test(start_paused = true)]
async fn a_call_fails_with_the_reason_of_the_end() {
    let closed = frame(0x80 | CLOSE, Some([4; 4]), &1000_u16.to_be_bytes());
    let recorder = Recorder::new();
    let (stream, live, _peer) = wrap_with(quiet().on_evict(recorder.hook()));
    let call = self::call(&live).await;
    drop(stream);
    assert_eq!(
        result(call).await.unwrap_err().reason(),
        Reason::HandlerDropped
    );
    assert_eq!(recorder.total(), 1, "the hook was called before");
    let again = within("an immediate result", live.ping()).await;
    assert_eq!(again.unwrap_err().reason(), Reason::HandlerDropped);

    let (mut stream, live, peer) = wrap_with(quiet());
    let call = self::call(&live).await;
    peer.send(&closed);
    let mut read = [0; 64];
    assert_eq!(stream.read(&mut read).await.unwrap(), closed.len());
    let reason = Reason::PeerClosed { code: Some(1000) };
    assert_eq!(result(call).await.unwrap_err().reason(), reason);

    let (_stream, live, _peer) = wrap_with(quiet());
    let call = self::call(&live).await;
    assert!(live.evict(4000, "go"));
    let reason = Reason::Kicked { code: 4000 };
    assert_eq!(result(call).await.unwrap_err().reason(), reason);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_end_where_no_ping_can_be_sent() {
    let (mut stream, live, peer) = wrap_with(heartbeat());
    // A reserved opcode: frame boundaries are lost (RFC 6455 section 5.2).
    peer.send(&frame(0x80 | 0x3, None, b"hello"));
    stream.read_exact(&mut [0; 7]).await.unwrap();
    let call = call(&live).await;
    sleep(ms(10_000)).await;
    assert!(peer.pings().is_empty() && !call.is_finished());
    drop(stream);
    assert_eq!(
        result(call).await.unwrap_err().reason(),
        Reason::HandlerDropped
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_works_before_the_upgrade_and_without_a_heartbeat() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
        let early = tokio::spawn({
            let live = live.clone();
            async move { live.ping().await }
        });
        settle().await;
        tx.send((live, early)).unwrap();
        ws.on_upgrade(echo)
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(IdleTimeoutLayer::new(ms(3_600_000)));
    let mut client = RawClient::handshake(in_memory(app, 64 * 1024), "/ws").await;
    let (live, early) = rx.recv().await.unwrap();
    let answering = tokio::spawn(async move {
        // Answers pings, and expects no other frame.
        let frame = timeout(ms(60_000), client.next()).await;
        assert!(frame.is_err(), "{frame:?}");
        client.pings
    });
    assert!(result(early).await.unwrap() <= ms(1));
    let call = tokio::spawn(async move { live.ping().await });
    assert!(result(call).await.unwrap() <= ms(1));
    assert_eq!(answering.await.unwrap(), 2, "one ping per call");
}

#[tokio::test(start_paused = true)]
async fn a_failed_upgrade_fails_the_call() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let route = any(move |_: WebSocketUpgrade, live: Liveness| async move {
        let call = tokio::spawn(async move { live.ping().await });
        settle().await;
        tx.send(call).unwrap();
        "no"
    });
    let app = Router::new()
        .route("/ws", route)
        .layer(IdleTimeoutLayer::new(ms(1_000)));
    let mut client = in_memory(app, 64 * 1024);
    client
        .write_all(support::raw::opening("/ws").as_bytes())
        .await
        .unwrap();
    let call = rx.recv().await.unwrap();
    assert_eq!(
        result(call).await.unwrap_err().reason(),
        Reason::UpgradeFailed
    );
}

fn peer_sends(peer: &Peer, bytes: &[u8]) {
    peer.send(&frame(0x80 | BINARY, Some([1, 2, 3, 4]), bytes));
}

/// Reads the available bytes, polls for more, and then does not poll again.
fn read_then_stop(stream: &mut Stream) {
    let wakes = Wakes::new();
    assert!(!got(poll_read(stream, &wakes, 100)).is_empty());
    assert!(poll_read(stream, &wakes, 100).is_pending());
}

#[tokio::test(start_paused = true)]
async fn a_pong_behind_other_bytes_is_seen_though_the_handler_does_not_read() {
    let (mut stream, live, peer) = wrap_with(quiet().timeout(ms(60_000)));
    let call = call(&live).await;
    peer_sends(&peer, b"x");
    settle().await;
    read_then_stop(&mut stream);
    sleep(ms(10)).await;
    answer(&peer, peer.last_ping());
    settle().await;
    assert!(call.is_finished(), "answered at once");
    assert_eq!(result(call).await, Ok(ms(10)));
}

/// The driver does not watch for a pong after its timeout. A pong that the handler reads later
/// gives no round trip.
#[tokio::test(start_paused = true)]
async fn the_handlers_delay_is_not_measured_as_a_round_trip() {
    let (mut stream, live, peer) = wrap_with(heartbeat().interval(ms(1_000)).timeout(ms(100)));
    sleep(ms(1_005)).await;
    peer_sends(&peer, b"x");
    settle().await;
    read_then_stop(&mut stream);
    sleep(ms(101)).await;
    peer_sends(&peer, b"y");
    sleep(ms(5)).await;
    read_then_stop(&mut stream);
    answer(&peer, peer.last_ping());
    sleep(ms(500)).await;
    assert!(poll_read(&mut stream, &Wakes::new(), 100).is_pending());
    assert_eq!(
        (live.stats().pings_sent(), live.stats().pongs_received()),
        (1, 1)
    );
    assert_eq!(live.rtt(), None);
}

/// Some peers answer only the oldest of several pings, and their other traffic would suppress any
/// further one.
#[tokio::test(start_paused = true)]
async fn a_sending_peer_that_answers_only_the_oldest_ping_is_pinged_again() {
    let (mut stream, live, peer) = wrap_with(heartbeat().interval(ms(1_000)).timeout(ms(900)));
    let reading = tokio::spawn(async move {
        let mut sink = [0; 1_000];
        while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    });
    let (first, second) = (call(&live).await, call(&live).await);
    sleep(ms(5)).await;
    answer(&peer, peer.pings()[0]);
    assert_eq!(result(first).await, Ok(ms(5)));
    for _ in 0..11 {
        sleep(ms(100)).await;
        peer_sends(&peer, b"x");
    }
    assert_eq!(peer.pings().len(), 3, "one interval after the last ping");
    answer(&peer, peer.last_ping());
    assert!(result(second).await.is_ok());
    for _ in 0..50 {
        sleep(ms(100)).await;
        peer_sends(&peer, b"x");
    }
    assert_eq!(peer.pings().len(), 3, "traffic suppresses pings again");
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_round_trip_counts_from_the_write_with_several_pings_outstanding() {
    let (mut stream, live, peer) = wrap_with(quiet().timeout(ms(60_000)));
    let hello = frame(0x80 | TEXT, None, b"hello");
    stream.write_all(&hello[..3]).await.unwrap();
    let first = call(&live).await;
    sleep(ms(10_000)).await;
    stream.write_all(&hello[3..]).await.unwrap();
    settle().await;
    let payload = peer.last_ping();
    for _ in 0..4 {
        sleep(ms(1)).await;
        call(&live).await;
    }
    sleep(ms(6)).await;
    answer(&peer, payload);
    assert_eq!(result(first).await, Ok(ms(10)));
}
