//! Malicious peers: floods, forged pongs, and frames after the Close frame.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower_ws_liveness::{ProofOfLife, Reason};

use crate::recorded::{only_eviction, recorded};
use crate::script::*;
use crate::support::within;

/// Lateness allowed under `heartbeat()`: the driver's tick, and 1 ms to act.
const TICK: Duration = Duration::from_millis(2);

/// The bound on detecting a dead peer under `heartbeat()`: interval plus timeout.
const DETECTION_BOUND: Duration = Duration::from_millis(150);

const ONE_MISSED_PING: Reason = Reason::HeartbeatTimeout { missed: 1 };

/// What the driver reads ahead at most for a handler that does not read.
const MAX_READ_AHEAD_BYTES: usize = 16 * 1024;

const MASKING_KEY: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// Spawns a handler that reads to the end and returns the number of bytes.
fn spawn_reader(mut stream: Stream) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let (mut count, mut buffer) = (0, [0; 4_096]);
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            count += read;
        }
        count
    })
}

// Floods.

/// A hundred control frames.
fn flood(opcode: u8) -> Vec<u8> {
    frame(0x80 | opcode, MASKING_KEY, &[7; 125]).repeat(100)
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_control_frames_is_no_proof_of_life_where_pongs_are_required() {
    for opcode in [PING, PONG] {
        for (proof, is_evicted) in [
            (ProofOfLife::MatchingPong, true),
            (ProofOfLife::AnyBytes, false),
        ] {
            let (stream, live, peer, recorder) = recorded(heartbeat().proof_of_life(proof));
            let handler = spawn_reader(stream);
            let begun = Instant::now();
            let mut sent = 0;
            while begun.elapsed() < ms(300) && recorder.total() == 0 {
                peer.send(&flood(opcode));
                sent += flood(opcode).len();
                sleep(ms(1)).await;
            }
            if is_evicted {
                let (after, reason) = only_eviction(&recorder, begun);
                assert_eq!(reason, ONE_MISSED_PING);
                assert!(after <= DETECTION_BOUND + TICK, "{after:?}");
                continue;
            }
            assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
            assert_eq!(live.stats().messages_received(), 0);
            peer.end(Ok(()));
            assert_eq!(
                within("the handler's end", handler).await.unwrap(),
                sent,
                "the handler receives all bytes"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_read_ahead_within_the_limit_only() {
    for opcode in [PING, PONG] {
        let stalls = heartbeat().handler_stall_timeout(ms(500));
        let (_unread, _live, peer, recorder) = recorded(stalls);
        let begun = Instant::now();
        let mut sent = 0;
        for _ in 0..400 {
            peer.send(&flood(opcode));
            sent += flood(opcode).len();
            sleep(ms(1)).await;
        }
        let left = peer.wire().incoming.len();
        assert!(
            sent - left <= MAX_READ_AHEAD_BYTES,
            "{} read ahead",
            sent - left
        );
        assert_eq!(recorder.total(), 0, "{:?}", recorder.all());
        sleep(ms(1_000)).await;
        // Counted from the driver's first read, when the first ping was due.
        let (after, reason) = only_eviction(&recorder, begun);
        assert_eq!(reason, Reason::HandlerStalled, "only the handler stalls");
        assert!(after <= ms(100) + ms(500) + TICK, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_does_not_delay_a_neighbours_eviction() {
    let layer = heartbeat().build().unwrap();
    let mut floods = Vec::new();
    for opcode in [PING, PONG] {
        let (io, peer) = script();
        let (stream, live) = layer.wrap_server(io);
        floods.push((spawn_reader(stream), live, peer, opcode));
    }
    let (_stream, dead, _peer) = wrapped();
    let begun = Instant::now();
    while begun.elapsed() < ms(500) {
        for (.., peer, opcode) in &floods {
            peer.send(&flood(*opcode));
        }
        sleep(ms(1)).await;
    }
    let eviction = dead.evicted().await;
    assert_eq!(eviction.reason(), ONE_MISSED_PING);
    let after = eviction.lifetime();
    assert!(after <= DETECTION_BOUND + TICK, "{after:?}");
}

// Forged pongs.

#[tokio::test(start_paused = true)]
async fn a_forged_pong_is_no_proof_of_life() {
    type Forge = fn(&Peer, [u8; 8]) -> Vec<u8>;
    let forgeries: [(&str, Forge); 6] = [
        ("to a ping answered before", |_, first| {
            Role::Server.pong(&first)
        }),
        ("to the next ping", |peer, _| {
            // The payload is a tag xor a number, so one ping reveals the payloads of all.
            let number = peer.pings().len() as u64;
            let tag = u64::from_be_bytes(peer.last_ping()) ^ number;
            Role::Server.pong(&(tag ^ (number + 1)).to_be_bytes())
        }),
        ("one bit off", |peer, _| {
            let mut ping = peer.last_ping();
            ping[0] ^= 1;
            Role::Server.pong(&ping)
        }),
        ("one byte short", |peer, _| {
            Role::Server.pong(&peer.last_ping()[..7])
        }),
        ("with a reserved bit", |peer, _| {
            frame(0xC0 | PONG, MASKING_KEY, &peer.last_ping())
        }),
        ("in a data frame", |peer, _| {
            frame(
                0x80 | BINARY,
                MASKING_KEY,
                &Role::Server.pong(&peer.last_ping()),
            )
        }),
    ];
    for (what, forge) in forgeries {
        let builder = heartbeat().proof_of_life(ProofOfLife::MatchingPong);
        let (stream, live, peer, recorder) = recorded(builder);
        let handler = spawn_reader(stream);
        sleep(ms(110)).await;
        let first = peer.last_ping();
        peer.send(&Role::Server.pong(&first));
        sleep(ms(1)).await;
        let (proven, rtt) = (Instant::now(), live.rtt());
        assert!(rtt.is_some());
        let mut forged = 0;
        while proven.elapsed() < ms(1_000) && recorder.total() == 0 {
            let bytes = forge(&peer, first);
            peer.send(&bytes);
            forged += bytes.len();
            sleep(ms(5)).await;
        }
        let (after, reason) = only_eviction(&recorder, proven);
        assert_eq!(reason, ONE_MISSED_PING, "{what}");
        assert!(after <= DETECTION_BOUND + TICK, "{what}: {after:?}");
        assert_eq!(
            (live.stats().pongs_received(), live.rtt()),
            (1, rtt),
            "{what}"
        );
        // The layer withholds only pongs to its own pings, repeated ones as well.
        let read = within("the handler's end", handler).await.unwrap();
        let expected = if what == "to a ping answered before" {
            0
        } else {
            forged
        };
        assert!(
            read <= expected && read + 64 >= expected,
            "{what}: {read} of {forged}"
        );
    }
}

// Frames after the Close frame.

/// Bytes that a peer may send after its Close frame.
fn frames_after_close() -> [(&'static str, Vec<u8>); 5] {
    [
        ("texts", frame(0x80 | TEXT, MASKING_KEY, b"one more thing")),
        ("pings", frame(0x80 | PING, MASKING_KEY, b"8 bytes!")),
        ("pongs", frame(0x80 | PONG, MASKING_KEY, b"8 bytes!")),
        (
            "Close frames",
            frame(0x80 | CLOSE, MASKING_KEY, &4_000_u16.to_be_bytes()),
        ),
        ("nonsense", vec![0xFF; 20]),
    ]
}

#[tokio::test(start_paused = true)]
async fn frames_after_a_close_frame_do_not_delay_the_end() {
    for (what, after) in frames_after_close() {
        for handler_reads in [true, false] {
            let (mut stream, _live, peer, recorder) = recorded(heartbeat());
            let close = frame(0x80 | CLOSE, MASKING_KEY, &1_000_u16.to_be_bytes());
            let begun = Instant::now();
            peer.send(&[close, after.clone()].concat());
            // The handler neither answers the Close frame nor drops its stream in time.
            let handler = tokio::spawn(async move {
                let mut read = 0;
                while handler_reads && stream.read_u8().await.is_ok() {
                    read += 1;
                }
                sleep(ms(10_000)).await;
                drop(stream);
                read
            });
            while begun.elapsed() < ms(1_000) {
                sleep(ms(5)).await;
                peer.send(&after);
            }
            let case = format!("{what}, handler reads: {handler_reads}");
            let (took, reason) = only_eviction(&recorder, begun);
            assert_eq!(reason, Reason::PeerClosed { code: Some(1_000) }, "{case}");
            let dropped = peer.wire().dropped.expect("closed") - begun;
            // If the handler does not read, the driver first reads when a ping is due.
            let seen = if handler_reads { ms(0) } else { ms(100) };
            assert!(took <= seen + TICK, "{case}: {took:?}");
            assert!(dropped <= seen + ms(200) + TICK, "{case}: {dropped:?}");
            assert_eq!(peer.wire().written, b"", "{case}: no frame is sent");
            if handler_reads {
                let at_least = 8 + after.len() * 30;
                let read = within("the handler's end", handler).await.unwrap();
                assert!(
                    read >= at_least,
                    "{case}: the handler receives only {read} bytes"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn frames_behind_the_answer_to_a_close_frame_do_not_delay_the_end() {
    for (what, after) in frames_after_close() {
        let (mut stream, live, peer, recorder) = recorded(heartbeat());
        // The peer is in the middle of a message, whose rest follows later.
        peer.send(&frame(TEXT, MASKING_KEY, b"first"));
        let mut first = [0; 11];
        stream.read_exact(&mut first).await.unwrap();
        assert!(live.evict(4_000, "out"));
        let kicked = Instant::now();
        sleep(ms(20)).await;
        assert!(!peer.is_dropped(), "{what}: the answer is awaited");
        let answer = frame(0x80 | CLOSE, MASKING_KEY, &4_000_u16.to_be_bytes());
        peer.send(&[after.clone(), answer, after.repeat(100)].concat());
        sleep(ms(300)).await;
        let dropped = peer.wire().dropped.expect("closed") - kicked;
        // Behind nonsense the answer cannot be recognised.
        let bound = if what == "nonsense" { ms(200) } else { ms(20) };
        assert!(dropped <= bound + TICK, "{what}: {dropped:?}");
        let frames = peer.frames();
        assert_eq!(frames.len(), 1, "{what}: {frames:?}");
        assert_eq!(frames[0].first, 0x80 | CLOSE);
        stream.write_all(b"x").await.unwrap_err();
        let (_, reason) = only_eviction(&recorder, kicked);
        assert_eq!(reason, Reason::Kicked { code: 4_000 });
    }
}
