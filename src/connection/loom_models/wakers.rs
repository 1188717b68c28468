//! Wake-ups while the driver's waker replaces the handler's.
//!
//! The transport keeps one waker per direction. While the handler is pending, the driver registers
//! its own for a ping, a read or a retry; at that moment the peer's bytes come, or room for the
//! handler's.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::AsyncWrite;

use super::{FROM_PEER, NEVER, Peer, TIME, TO_PEER, Wire, flush, read_exactly, wire, write_all};
use crate::connection::{LayerConfig, LayerHooks, LivenessStream};
use crate::eviction::{Evicted, Reason};
use crate::monitor::{HeartbeatPolicy, Policy};
use crate::sync::modelled::{advance, all_done, block_on, check, thread};
use crate::wire::Role;

/// The length of a ping: a header and eight bytes.
const PING: usize = 10;

/// After `TIME` of silence a ping is sent; its pong has no deadline.
fn pinging() -> HeartbeatPolicy {
    HeartbeatPolicy {
        interval: TIME,
        timeout: NEVER,
        jitter: 0.0,
        write_timeout: None,
        takes_any_bytes: true,
        ..HeartbeatPolicy::default()
    }
}

/// A connection whose transport accepts `room` bytes.
fn open(heartbeat: HeartbeatPolicy, room: usize) -> (LivenessStream<Wire>, Peer) {
    let policy = Policy {
        heartbeat: Some(Arc::new(heartbeat)),
        idle: None,
    };
    let (wire, peer) = wire(room);
    let layer = LayerConfig::new(policy, None, LayerHooks::default());
    let (stream, _) = LivenessStream::wrap(wire, Role::Server, &layer);
    (stream, peer)
}

fn is_ping(frame: &[u8]) -> bool {
    frame.len() == PING && frame.starts_with(&[0x89, 8])
}

/// The payload of the first complete ping.
fn ping(written: &[u8]) -> Option<[u8; 8]> {
    let frame = written.windows(PING).find(|frame| is_ping(frame))?;
    frame[2..].try_into().ok()
}

/// Asserts that the handler's message is complete, with only pings around it.
fn assert_whole(written: &[u8]) {
    let frames = [written, &[]].concat();
    let at = frames
        .windows(3)
        .position(|frame| frame == TO_PEER)
        .unwrap();
    for ours in [&frames[..at], &frames[at + TO_PEER.len()..]] {
        assert!(ours.is_empty() || is_ping(ours), "{written:?}");
    }
}

#[test]
fn loom_a_lingering_transport_is_dropped_at_the_peers_end() {
    check(
        "the handler drops its stream while a ping is sent",
        3,
        || {
            let (stream, peer) = open(pinging(), PING);
            thread(move || drop(stream));
            advance(TIME);
            all_done();
            assert!(peer.is_transport_dropped());
            let written = peer.written();
            assert!(written.is_empty() || is_ping(&written), "{written:?}");
        },
    );
}

#[test]
fn loom_bytes_beside_a_ping_are_read() {
    check("bytes come while a ping is sent", 3, || {
        let (mut stream, peer) = open(pinging(), PING);
        thread(move || assert_eq!(read_exactly(&mut stream, FROM_PEER.len()), FROM_PEER));
        thread(move || peer.send(&FROM_PEER));
        advance(TIME);
    });
}

#[test]
fn loom_bytes_behind_a_pong_are_read() {
    check("bytes come behind the pong", 3, || {
        let (mut stream, peer) = open(pinging(), PING);
        thread(move || assert_eq!(read_exactly(&mut stream, FROM_PEER.len()), FROM_PEER));
        thread(move || {
            let payload = peer.until_written(ping);
            peer.send(&[&[0x8A, 0x88, 0, 0, 0, 0], &payload[..]].concat());
            peer.send(&FROM_PEER);
        });
        advance(TIME);
    });
}

#[test]
fn loom_a_message_in_two_reads_stays_in_order() {
    check("a message comes in two reads", 3, || {
        let (mut stream, peer) = open(pinging(), PING);
        thread(move || assert_eq!(read_exactly(&mut stream, FROM_PEER.len()), FROM_PEER));
        thread(move || {
            peer.send(&FROM_PEER[..3]);
            peer.send(&FROM_PEER[3..]);
        });
        advance(TIME);
    });
}

#[test]
fn loom_a_write_beside_a_ping_completes() {
    check("room comes while a ping waits for it", 3, || {
        let (mut stream, peer) = open(pinging(), 0);
        let seen = peer.clone();
        thread(move || {
            write_all(&mut stream, &TO_PEER).unwrap();
            // The handler does not write again, so the driver must finish the ping.
            seen.until_written(ping);
        });
        let drained = peer.clone();
        thread(move || drained.drain(usize::MAX));
        advance(TIME);
        all_done();
        assert_whole(&peer.written());
    });
}

#[test]
fn loom_a_write_behind_half_a_ping_completes() {
    check("room comes bit by bit", 3, || {
        let (mut stream, peer) = open(pinging(), 1);
        let seen = peer.clone();
        thread(move || {
            write_all(&mut stream, &TO_PEER).unwrap();
            seen.until_written(ping);
        });
        let drained = peer.clone();
        thread(move || {
            drained.drain(1);
            drained.drain(PING + TO_PEER.len());
        });
        advance(TIME);
        all_done();
        assert_whole(&peer.written());
    });
}

#[test]
fn loom_a_ping_completes_after_the_handler_abandons_its_write() {
    check("a write is abandoned beside a ping", 3, || {
        let (mut stream, peer) = open(pinging(), 0);
        let drained = peer.clone();
        thread(move || {
            // Polls once and never again. The transport may have this waker by then.
            let once = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &TO_PEER)));
            drop(block_on(once));
            peer.until_written(ping);
        });
        thread(move || drained.drain(usize::MAX));
        advance(TIME);
    });
}

#[test]
fn loom_a_flush_beside_a_ping_completes() {
    check("what is held is flushed", 3, || {
        let (mut stream, peer) = open(pinging(), usize::MAX);
        peer.0.ends().holds = true;
        thread(move || {
            write_all(&mut stream, &TO_PEER).unwrap();
            flush(&mut stream);
        });
        thread(move || peer.drain(0));
        advance(TIME);
    });
}

#[test]
fn loom_a_retried_write_completes_or_fails() {
    check("room comes at the retry", 3, || {
        let heartbeat = HeartbeatPolicy {
            interval: NEVER,
            write_timeout: Some(TIME),
            ..pinging()
        };
        // In the middle of a frame, where the driver can only poll for room.
        let (mut stream, peer) = open(heartbeat, 1);
        thread(move || {
            if let Err(error) = write_all(&mut stream, &TO_PEER) {
                let reason = Evicted::from_error(&error).map(|evicted| evicted.reason());
                assert_eq!(reason, Some(Reason::WriteStalled));
            }
        });
        thread(move || peer.drain(TO_PEER.len()));
        advance(TIME);
    });
}
