//! The control frame limit evicts peers that exceed it, and only those.
//!
//! Frames of a peer within the limit may be read late and all at once.

use std::io::ErrorKind;

use tokio::io::AsyncReadExt;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{advance, sleep};
use tower_ws_liveness::{Evicted, HeartbeatLayer, HeartbeatLayerBuilder, Reason};

use crate::script::*;
use crate::support::recorder::Recorder;
use crate::support::within;

fn limited(limit: u32) -> HeartbeatLayerBuilder {
    HeartbeatLayer::builder()
        .interval(ms(10_000))
        .timeout(ms(5_000))
        .close_timeout(ms(1_000))
        .jitter(0.0)
        .control_frame_limit(limit)
}

fn ping() -> Vec<u8> {
    frame(0x80 | PING, Some([1, 2, 3, 4]), b"are you there")
}

fn pings(count: usize) -> Vec<u8> {
    ping().repeat(count)
}

/// Spawns a handler that reads to the end and returns the error of its last read.
fn spawn_reader(mut stream: Stream) -> JoinHandle<std::io::Error> {
    tokio::spawn(async move {
        let mut buf = [0; 4096];
        loop {
            match stream.read(&mut buf).await {
                Ok(0) => return ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn the_control_frame_limit_is_off_by_default() {
    let (stream, live, peer) = wrap_with(heartbeat());
    let _handler = spawn_reader(stream);
    peer.send(&pings(100_000));
    sleep(ms(10)).await;
    assert_eq!(live.stats().bytes_received(), pings(100_000).len() as u64);
    assert!(live.health() != tower_ws_liveness::Health::Ended);
}

#[tokio::test(start_paused = true)]
async fn one_frame_more_than_the_limit_is_a_flood() {
    for limit in [1, 5, 1_000] {
        for chunk in [1, 7, ALL] {
            let recorder = Recorder::new();
            let (stream, _live, peer) = wrap_with(limited(limit).on_evict(recorder.hook()));
            peer.read_steps(&[chunk]);
            let handler = spawn_reader(stream);
            sleep(ms(5_000)).await;
            // Too much for one second, but five have passed.
            peer.send(&pings(5 * limit as usize));
            sleep(ms(500)).await;
            assert_eq!(recorder.total(), 0, "limit {limit}");
            peer.send(&pings(2 * limit as usize + 1));
            let event = recorder.nth(1).await;
            assert_eq!(event.reason, Reason::ControlFlood);

            let error = within("the handler's error", handler).await.unwrap();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            assert_eq!(Evicted::from_error(&error).unwrap().reason(), event.reason);
            sleep(ms(2_000)).await;
            let close = peer.frames().pop().unwrap();
            assert_eq!(
                (close.opcode(), &close.payload[..2]),
                (CLOSE, &1008_u16.to_be_bytes()[..])
            );
            assert!(
                peer.is_dropped(),
                "dropped without an answer to the Close frame"
            );
            recorder.stays_at(1).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_steady_rate_is_limited_by_its_mean() {
    for (interval, flooded) in [(100, false), (101, false), (80, true), (99, true)] {
        let recorder = Recorder::new();
        let (stream, _live, peer) = wrap_with(limited(10).on_evict(recorder.hook()));
        let _handler = spawn_reader(stream);
        for _ in 0..1_500 {
            sleep(ms(interval)).await;
            peer.send(&ping());
        }
        assert_eq!(
            recorder.total(),
            usize::from(flooded),
            "every {interval} ms"
        );
    }
}

/// Pings of a peer within the limit queue up and are read all at once.
#[tokio::test(start_paused = true)]
async fn frames_that_queued_up_are_not_a_flood() {
    // The handler is busy: the driver reads from time to time into the read-ahead buffer.
    let recorder = Recorder::new();
    let (stream, _live, peer) = wrap_with(limited(2).on_evict(recorder.hook()));
    for _ in 0..2_000 {
        sleep(ms(500)).await;
        peer.send(&ping());
    }
    let handler = spawn_reader(stream);
    sleep(ms(1_000)).await;
    assert!(!handler.is_finished(), "busy handler: {:?}", recorder.all());

    // The runtime was suspended while the handler waited to read. Bytes arrive in small reads.
    for chunk in [3, 100, ALL] {
        let recorder = Recorder::new();
        let (stream, _live, peer) = wrap_with(limited(2).on_evict(recorder.hook()));
        let handler = spawn_reader(stream);
        sleep(ms(1_000)).await;
        peer.read_steps(&[chunk]);
        advance(ms(600_000)).await;
        peer.send(&pings(1_200));
        for _ in 0..100 {
            yield_now().await;
        }
        sleep(ms(100)).await;
        assert!(
            !handler.is_finished(),
            "reads of {chunk}: {:?}",
            recorder.all()
        );
        // Frames that arrive from now on count again.
        peer.send(&pings(1_300));
        assert_eq!(recorder.nth(1).await.reason, Reason::ControlFlood);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_detected_though_the_handler_reads_nothing() {
    let recorder = Recorder::new();
    let (_stream, _live, peer) = wrap_with(limited(2).on_evict(recorder.hook()));
    peer.send(&pings(300));
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::ControlFlood);
    assert!(
        event.eviction.lifetime() <= ms(10_200),
        "{:?}",
        event.eviction
    );
}

#[tokio::test(start_paused = true)]
async fn pongs_to_our_pings_do_not_count_unless_repeated() {
    let recorder = Recorder::new();
    let builder = limited(2).interval(ms(10)).on_evict(recorder.hook());
    let (stream, live, peer) = wrap_with(builder);
    let _handler = spawn_reader(stream);
    for _ in 0..200 {
        sleep(ms(11)).await;
        peer.send(&Role::Server.pong(&peer.last_ping()));
    }
    sleep(ms(1)).await;
    assert_eq!(live.stats().pongs_received(), 200);
    assert_eq!(recorder.total(), 0);

    let repeated = Role::Server.pong(&peer.last_ping());
    peer.send(&repeated.repeat(100));
    assert_eq!(recorder.nth(1).await.reason, Reason::ControlFlood);
}

#[tokio::test(start_paused = true)]
async fn unsolicited_pongs_count_and_data_frames_do_not() {
    let recorder = Recorder::new();
    let (stream, live, peer) = wrap_with(limited(2).on_evict(recorder.hook()));
    let _handler = spawn_reader(stream);
    let data = frame(0x80 | BINARY, Some([1; 4]), b"12345678").repeat(10_000);
    let fragments = [
        frame(TEXT, Some([1; 4]), b"a"),
        frame(CONTINUATION, Some([1; 4]), b"").repeat(10_000),
        frame(0x80 | CONTINUATION, Some([1; 4]), b""),
    ];
    peer.send(&data);
    peer.send(&fragments.concat());
    sleep(ms(10)).await;
    assert_eq!(live.stats().messages_received(), 10_001);
    assert_eq!(recorder.total(), 0);
    peer.send(&frame(0x80 | PONG, Some([1; 4]), b"12345678").repeat(100));
    assert_eq!(recorder.nth(1).await.reason, Reason::ControlFlood);
}

#[tokio::test(start_paused = true)]
async fn control_frames_between_fragments_count() {
    let recorder = Recorder::new();
    let (stream, _live, peer) = wrap_with(limited(2).on_evict(recorder.hook()));
    let _handler = spawn_reader(stream);
    let between = [frame(CONTINUATION, Some([1; 4]), b"x"), ping()].concat();
    peer.send(&frame(TEXT, Some([1; 4]), b"a"));
    peer.send(&between.repeat(20));
    assert_eq!(recorder.nth(1).await.reason, Reason::ControlFlood);
}

#[tokio::test(start_paused = true)]
async fn control_frames_after_the_close_frame_do_not_count() {
    let closed = frame(0x80 | CLOSE, Some([4; 4]), &1000_u16.to_be_bytes());
    let recorder = Recorder::new();
    let (stream, _live, peer) = wrap_with(limited(2).on_evict(recorder.hook()));
    let handler = spawn_reader(stream);
    peer.send(&[closed, pings(1_000)].concat());
    let event = recorder.nth(1).await;
    assert_eq!(event.reason, Reason::PeerClosed { code: Some(1000) });
    sleep(ms(5_000)).await;
    assert!(peer.is_dropped() && handler.is_finished());
    recorder.stays_at(1).await;
}
