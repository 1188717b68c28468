//! A wrapped stream over a scripted transport: all bytes pass, and pings stand at frame boundaries.
//!
//! The transport cuts and delays the bytes, and some of them are malformed.

use std::future::Future;
use std::io::{self, IoSlice};

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{HeartbeatLayerBuilder, ProofOfLife, Reason};

use crate::script::*;

/// Never evicts within a test.
fn patient(interval: u64) -> HeartbeatLayerBuilder {
    let days = ms(100 * 24 * 60 * 60 * 1000);
    heartbeat()
        .interval(ms(interval))
        .timeout(days)
        .close_timeout(days)
        .write_timeout(None)
}

fn paused(test: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

/// Runs `work` and resumes the transport every `every` milliseconds.
async fn with_kicks<F: Future>(peer: &Peer, every: u64, work: F) -> F::Output {
    let kicks = async {
        loop {
            sleep(ms(every)).await;
            peer.kick();
        }
    };
    tokio::select! {
        done = work => done,
        () = kicks => unreachable!(),
    }
}

/// Runs an operation of the handler, which must complete after a few kicks.
async fn soon<T>(operation: impl Future<Output = io::Result<T>>) -> T {
    let done = timeout(ms(500), operation).await;
    done.expect("the handler is stuck").unwrap()
}

#[derive(Clone, Debug)]
struct SentFrame {
    first: u8,
    key: [u8; 4],
    payload: Vec<u8>,
    /// The pause before the frame, in milliseconds.
    pause: u64,
}

fn sent_frame(closing: bool) -> impl Strategy<Value = SentFrame> {
    let len = prop_oneof![
        6 => 0..20_usize,
        2 => Just(8),
        2 => 124..128_usize,
        1 => 65_534..65_538_usize,
    ];
    let opcodes = match closing {
        true => vec![0, 1, 2, 8, 9, 10],
        false => vec![0, 1, 2, 9, 10],
    };
    let opcode = prop::sample::select(opcodes);
    (opcode, any::<u8>(), any::<[u8; 4]>(), len, 0..6_u64).prop_map(
        |(opcode, bits, key, len, pause)| {
            let control = opcode >= 8;
            let len = if control { len.min(125) } else { len };
            let fin = if control { 0x80 } else { bits & 0x80 };
            SentFrame {
                first: fin | bits & 0x70 | opcode,
                key,
                payload: (0..len)
                    .map(|at| (at as u8).wrapping_mul(bits | 1))
                    .collect(),
                pause,
            }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<usize>> {
    let step = prop_oneof![3 => Just(1), 3 => 2..30_usize, 1 => Just(ALL), 2 => Just(WAIT)];
    // At least one step moves bytes.
    (
        vec(step, 0..6),
        prop_oneof![Just(1), 1..20_usize, Just(ALL)],
    )
        .prop_map(|(mut steps, last)| {
            steps.push(last);
            steps
        })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

/// What the peer does before a frame of its own.
#[derive(Clone, Debug)]
enum Aside {
    Nothing,
    /// Answers one of our pings, counted back from the latest.
    Pong(usize),
    /// Sends a frame that only resembles a pong to our ping.
    NearMiss(u8),
}

fn aside() -> impl Strategy<Value = Aside> {
    prop_oneof![
        3 => Just(Aside::Nothing),
        4 => (0..3_usize).prop_map(Aside::Pong),
        2 => (0..4_u8).prop_map(Aside::NearMiss),
    ]
}

/// A frame that differs from the pong to `ping` in one respect.
fn near_miss(role: Role, mut ping: [u8; 8], kind: u8) -> Vec<u8> {
    let key = role.inbound([1, 2, 3, 4]);
    match kind {
        0 => {
            ping[0] ^= 1;
            frame(0x80 | PONG, key, &ping)
        }
        1 => frame(0xC0 | PONG, key, &ping),
        2 => frame(0x80 | PING, key, &ping),
        _ => frame(0x80 | PONG, key, &ping[..7]),
    }
}

#[derive(Clone, Debug)]
struct InboundCase {
    role: Role,
    matching: bool,
    frames: Vec<(Aside, SentFrame)>,
    reads: Vec<usize>,
    /// The sizes of the handler's buffer, and its pause before each read in milliseconds.
    buffers: Vec<(usize, u64)>,
    /// The number of bytes of a pong to our ping before the end.
    tail: usize,
}

fn inbound_case() -> impl Strategy<Value = InboundCase> {
    let buffer = (
        prop_oneof![Just(1), 2..40_usize, Just(65_536)],
        prop_oneof![6 => Just(0), 1 => 1..20_u64],
    );
    (
        role(),
        any::<bool>(),
        vec((aside(), sent_frame(true)), 0..14),
        steps(),
        vec(buffer, 1..5),
        0..14_usize,
    )
        .prop_map(
            |(role, matching, frames, reads, buffers, tail)| InboundCase {
                role,
                matching,
                frames,
                reads,
                buffers,
                tail,
            },
        )
}

async fn read_exactly_the_peers_bytes(case: InboundCase) -> Result<(), TestCaseError> {
    let role = case.role;
    let (io, peer) = script();
    peer.read_steps(&case.reads);
    let proof = match case.matching {
        true => ProofOfLife::MatchingPong,
        false => ProofOfLife::AnyBytes,
    };
    let layer = patient(2).proof_of_life(proof).build().unwrap();
    let (mut stream, live) = role.wrap(&layer, io);

    let send = async {
        let mut expected = Vec::new();
        for (aside, sent) in &case.frames {
            sleep(ms(sent.pause)).await;
            let pings = peer.pings();
            match (aside, pings.last()) {
                (Aside::Pong(back), Some(_)) => {
                    peer.send(&role.pong(&pings[pings.len().saturating_sub(back + 1)]));
                }
                (Aside::NearMiss(kind), Some(last)) => {
                    let bytes = near_miss(role, *last, *kind);
                    peer.send(&bytes);
                    expected.extend(bytes);
                }
                _ => {}
            }
            let bytes = frame(sent.first, role.inbound(sent.key), &sent.payload);
            // The frame arrives in two parts, as on a network.
            let (head, rest) = bytes.split_at(bytes.len() / 2);
            peer.send(head);
            sleep(ms(sent.pause / 2)).await;
            peer.send(rest);
            expected.extend(bytes);
        }
        if let Some(last) = peer.pings().last() {
            let pong = role.pong(last);
            let part = &pong[..case.tail.min(pong.len() - 1)];
            peer.send(part);
            expected.extend(part);
        }
        peer.end(Ok(()));
        expected
    };
    let receive = async {
        let mut read = Vec::new();
        let mut buf = vec![0; 65_536];
        for (size, pause) in case.buffers.iter().cycle() {
            // Pauses with a tiny buffer and a large frame would take too long.
            if *pause > 0 && read.len() < 2_000 {
                sleep(ms(*pause)).await;
            }
            // A read of zero bytes must mean the end of the stream.
            let count = soon(stream.read(&mut buf[..*size])).await;
            if count == 0 {
                break;
            }
            read.extend_from_slice(&buf[..count]);
        }
        // The end of the stream is permanent.
        assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
        read
    };
    let (expected, read) = with_kicks(&peer, 1, async { tokio::join!(send, receive) }).await;
    prop_assert!(
        read == expected,
        "read {} of {} bytes",
        read.len(),
        expected.len()
    );
    prop_assert!(peer.wire().incoming.is_empty());
    let closed = case
        .frames
        .iter()
        .any(|(_, sent)| sent.first & 0xF == CLOSE);
    let reason = live.evicted().await.reason();
    match closed {
        true => prop_assert!(matches!(reason, Reason::PeerClosed { .. }), "{reason}"),
        false => prop_assert_eq!(reason, Reason::PeerVanished),
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct OutboundCase {
    role: Role,
    frames: Vec<SentFrame>,
    close: bool,
    /// The sizes of the handler's writes, and its pause before each in milliseconds.
    slices: Vec<(usize, u64)>,
    vectored: (bool, bool),
    flushes: bool,
    writes: Vec<usize>,
    kicks: u64,
}

fn outbound_case() -> impl Strategy<Value = OutboundCase> {
    let slice = (
        prop_oneof![Just(1), 2..50_usize, Just(100_000)],
        prop_oneof![3 => Just(0), 1 => 1..4_u64],
    );
    (
        role(),
        vec(sent_frame(false), 1..14),
        any::<bool>(),
        vec(slice, 1..6),
        any::<(bool, bool)>(),
        any::<bool>(),
        (steps(), 1..4_u64),
    )
        .prop_map(
            |(role, frames, close, slices, vectored, flushes, (mut writes, kicks))| {
                // At one byte per millisecond a large frame would take too long.
                if frames.iter().any(|sent| sent.payload.len() > 1_000) {
                    writes.push(ALL);
                }
                OutboundCase {
                    role,
                    frames,
                    close,
                    slices,
                    vectored,
                    flushes,
                    writes,
                    kicks,
                }
            },
        )
}

async fn the_peer_sees_frames_and_whole_pings(case: OutboundCase) -> Result<(), TestCaseError> {
    let role = case.role;
    let (io, peer) = script();
    peer.write_steps(&case.writes);
    if case.vectored.0 {
        peer.vectored();
    }
    // Every ping is answered immediately. The interval is long enough for the handler to write to
    // this slow transport before the next ping is due.
    let waits = case.writes.iter().filter(|size| **size == WAIT).count() as u64;
    let proof = ProofOfLife::MatchingPong;
    let layer = patient(1 + waits * case.kicks)
        .proof_of_life(proof)
        .build()
        .unwrap();
    let (mut stream, live) = role.wrap(&layer, io);
    prop_assert_eq!(stream.is_write_vectored(), case.vectored.0);

    let mut expected: Vec<Vec<u8>> = case
        .frames
        .iter()
        .map(|sent| frame(sent.first, role.outbound(sent.key), &sent.payload))
        .collect();
    if case.close {
        let close = frame(0x80 | CLOSE, role.outbound([5; 4]), &1000_u16.to_be_bytes());
        expected.push(close);
    }
    let bytes = expected.concat();
    let write = async {
        let mut left = &bytes[..];
        for (size, pause) in case.slices.iter().cycle() {
            if left.is_empty() {
                break;
            }
            if *pause > 0 && bytes.len() - left.len() < 2_000 {
                sleep(ms(*pause)).await;
            }
            let chunk = &left[..left.len().min(*size)];
            let written = if case.vectored.1 {
                let (a, rest) = chunk.split_at(chunk.len() / 3);
                let (b, c) = rest.split_at(rest.len() / 2);
                let slices = [a, &[], b, c].map(IoSlice::new);
                soon(stream.write_vectored(&slices)).await
            } else {
                soon(stream.write(chunk)).await
            };
            left = &left[written..];
            if case.flushes {
                soon(stream.flush()).await;
            }
        }
        soon(stream.flush()).await;
        // Time for one more ping, on the slowest transport here.
        sleep(ms(300)).await;
    };
    let answer = async {
        let mut seen = 0;
        loop {
            sleep(ms(1)).await;
            let (frames, end) = {
                let wire = peer.wire();
                let (frames, rest) = parse(&wire.written[seen..]);
                (frames, wire.written.len() - rest.len())
            };
            seen = end;
            for frame in frames.iter().filter(|frame| frame.may_be_ours()) {
                peer.send(&role.pong(&frame.payload));
            }
        }
    };
    let both = async {
        tokio::select! {
            () = write => (),
            () = answer => (),
        }
    };
    with_kicks(&peer, case.kicks, both).await;

    let wire = peer.wire();
    let (frames, _) = parse(&wire.written);
    let mut own = 0;
    let mut mid_message = false;
    let mut expected = expected.iter().peekable();
    for frame in &frames {
        prop_assert_eq!(frame.masked, role == Role::Client);
        if expected.next_if(|next| **next == frame.raw).is_some() {
            if frame.opcode() < CLOSE {
                mid_message = frame.first & 0x80 == 0;
            }
            continue;
        }
        prop_assert!(!mid_message, "a ping inside a message");
        prop_assert!(
            frame.may_be_ours(),
            "neither a frame of the handler nor a ping: {:?}",
            frame
        );
        prop_assert!(
            !case.close || expected.peek().is_some(),
            "after the Close frame"
        );
        own += 1;
    }
    prop_assert!(
        expected.next().is_none(),
        "frames of the handler are missing"
    );
    let sent = live.stats().pings_sent();
    // The last ping may be incomplete when the test stops.
    prop_assert!(
        own == sent || own == sent + 1,
        "{} pings seen, {} counted",
        own,
        sent
    );
    let held = case.close || mid_message;
    prop_assert!(held || own > 0, "no ping was sent, though one was due");
    Ok(())
}

/// Frame headers that violate RFC 6455, masked as the direction requires.
fn malformed(masked: bool) -> Vec<(&'static str, Vec<u8>)> {
    let mask = if masked { 0x80 } else { 0 };
    vec![
        ("reserved data opcode", vec![0x83, mask]),
        ("reserved control opcode", vec![0x8B, mask]),
        ("fragmented control frame", vec![0x09, mask]),
        ("control frame of 126 bytes", vec![0x89, mask | 126, 0, 126]),
        ("64-bit control frame", vec![0x8A, mask | 127, 0]),
        (
            "length with the top bit",
            vec![0x82, mask | 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn after_malformed_bytes_from_the_peer_no_pong_is_removed() {
    for role in [Role::Server, Role::Client] {
        for (what, broken) in malformed(role == Role::Server) {
            for chunk in [1, 3, ALL] {
                let (io, peer) = script();
                peer.read_steps(&[chunk]);
                let (mut stream, live) = role.wrap(&heartbeat().build().unwrap(), io);
                sleep(ms(105)).await;
                let pong = role.pong(&peer.last_ping());
                let good = frame(0x80 | TEXT, role.inbound([1; 4]), b"good");
                // The first pong is removed. The second is behind the malformed frame, where frame
                // boundaries are unknown, so it passes.
                let kept = [&good[..], &broken, &[0xFF; 20], &pong, &good].concat();
                peer.send(&[&pong[..], &kept].concat());
                peer.end(Ok(()));
                let mut read = Vec::new();
                stream.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, kept, "{role:?}, {what}, {chunk} at a time");
                assert_eq!(live.stats().pongs_received(), 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_ping_is_inserted_after_malformed_bytes_of_the_handler() {
    for role in [Role::Server, Role::Client] {
        for (what, broken) in malformed(role == Role::Client) {
            for chunk in [1, ALL] {
                let (io, peer) = script();
                peer.write_steps(&[chunk]);
                let (mut stream, live) = role.wrap(&patient(10).build().unwrap(), io);
                let good = frame(0x80 | TEXT, role.outbound([1; 4]), b"good");
                stream.write_all(&good).await.unwrap();
                sleep(ms(15)).await;
                assert_eq!(peer.pings().len(), 1, "{what}: a ping is sent before");
                peer.send(&role.pong(&peer.last_ping()));
                let written = peer.wire().written.len();
                let rest = [&broken[..], &[0xFF; 20], &good].concat();
                for piece in rest.chunks(4) {
                    stream.write_all(piece).await.unwrap();
                    sleep(ms(25)).await;
                }
                stream.flush().await.unwrap();
                assert_eq!(peer.wire().written[written..], rest, "{role:?}, {what}");
                assert!(live.evict(4000, "no Close frame either"));
                sleep(ms(50)).await;
                assert_eq!(peer.wire().written[written..], rest, "{role:?}, {what}");
                assert!(peer.wire().shutdown);
            }
        }
    }
}

/// Whether `seen` is `own` with whole pings inserted. Their positions in garbage are unknown.
fn is_own_with_pings(own: &[u8], seen: &[u8], ping: usize) -> bool {
    let Some(extra) = seen.len().checked_sub(own.len()) else {
        return false;
    };
    if extra % ping != 0 {
        return false;
    }
    // `matches[k]`: the prefix of `own` with `k` inserted pings equals the prefix of `seen`.
    let mut matches = vec![false; extra / ping + 1];
    for at in 0..=own.len() {
        let mut next = vec![false; matches.len()];
        for pings in 0..matches.len() {
            let seen_at = at + pings * ping;
            let copied = match at {
                0 => pings == 0,
                _ => matches[pings] && own[at - 1] == seen[seen_at - 1],
            };
            let inserted = pings > 0 && next[pings - 1] && seen[seen_at - ping] == 0x89;
            next[pings] = copied || inserted;
        }
        matches = next;
    }
    matches[extra / ping]
}

async fn garbage_passes(
    role: Role,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    (reads, writes): (Vec<usize>, Vec<usize>),
) -> Result<(), TestCaseError> {
    let (io, peer) = script();
    peer.read_steps(&reads);
    peer.write_steps(&writes);
    let (stream, _live) = role.wrap(&patient(60).build().unwrap(), io);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        for chunk in inbound.chunks(30) {
            peer.send(chunk);
            sleep(ms(20)).await;
        }
        peer.end(Ok(()));
    };
    let receive = async {
        let (mut read, mut buf) = (Vec::new(), [0; 64]);
        loop {
            match soon(reader.read(&mut buf)).await {
                0 => break read,
                count => read.extend_from_slice(&buf[..count]),
            }
        }
    };
    let write = async {
        for chunk in outbound.chunks(30) {
            soon(writer.write_all(chunk)).await;
            sleep(ms(50)).await;
        }
        soon(writer.flush()).await;
    };
    let ((), read, ()) = with_kicks(&peer, 1, async { tokio::join!(send, receive, write) }).await;
    prop_assert_eq!(read, inbound);
    let ping = if role == Role::Client { 14 } else { 10 };
    let written = peer.wire().written.clone();
    prop_assert!(
        is_own_with_pings(&outbound, &written, ping),
        "{:x?}",
        written
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_handler_reads_the_peers_bytes_minus_our_pongs(case in inbound_case()) {
        paused(read_exactly_the_peers_bytes(case))?;
    }

    #[test]
    fn the_peer_reads_the_handlers_frames_plus_whole_pings(case in outbound_case()) {
        paused(the_peer_sees_frames_and_whole_pings(case))?;
    }

    #[test]
    fn garbage_passes_unchanged_in_both_directions(
        role in role(),
        inbound in vec(any::<u8>(), 0..200),
        outbound in vec(any::<u8>(), 0..200),
        cuts in (steps(), steps()),
    ) {
        paused(garbage_passes(role, inbound, outbound, cuts))?;
    }
}
