//! Random conversations in random chunks: only whole pings are added, only their pongs removed.

use std::io::IoSlice;

use axum::Router;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tower_ws_liveness::{HeartbeatLayer, ProofOfLife};

use crate::support::raw::{Answer, BINARY, CONTINUATION, Frame, PING, PONG, RawClient, TEXT};
use crate::support::recorder::Recorder;
use crate::support::{bytes_route, in_memory, ms, within};

/// Data messages, whole or in fragments, with control frames in between.
fn conversation() -> impl Strategy<Value = Vec<Frame>> {
    let payload = prop_oneof![
        8 => vec(any::<u8>(), 0..20),
        2 => vec(any::<u8>(), 120..130),
        1 => vec(any::<u8>(), 65_530..65_540),
    ];
    let control = (
        prop_oneof![Just(PING), Just(PONG)],
        vec(any::<u8>(), 0..126),
    );
    let piece = (
        payload,
        0..8_u8,
        any::<bool>(),
        proptest::option::of(control),
    );
    vec(piece, 0..12).prop_map(|pieces| {
        let mut frames = Vec::new();
        let mut inside = false;
        for (payload, rsv, more, control) in pieces {
            let first = if rsv % 2 == 0 { TEXT } else { BINARY };
            let opcode = if inside { CONTINUATION } else { first };
            let frame = Frame::new(opcode, payload).with_rsv(rsv);
            frames.push(if more { frame.unfinished() } else { frame });
            inside = more;
            if let Some((opcode, payload)) = control {
                frames.push(Frame::new(opcode, payload));
            }
        }
        frames
    })
}

/// The sizes of writes, repeated cyclically, and the pause after each in milliseconds.
fn chunks() -> impl Strategy<Value = Vec<(usize, u64)>> {
    let size = prop_oneof![1..4_usize, 1..200_usize, Just(100_000)];
    let pause = prop_oneof![4 => Just(0), 1 => 1..12_u64];
    vec((size, pause), 1..20)
}

fn cut<'a>(
    mut bytes: &'a [u8],
    chunks: &'a [(usize, u64)],
) -> impl Iterator<Item = (&'a [u8], u64)> {
    let mut chunks = chunks.iter().cycle();
    std::iter::from_fn(move || {
        let &(size, pause) = chunks.next()?;
        let (chunk, rest) = bytes.split_at_checked(size).unwrap_or((bytes, &[]));
        bytes = rest;
        // Pauses between tiny pieces of a large frame would take too long.
        let pause = if rest.len() > 500 { 0 } else { pause };
        (!chunk.is_empty()).then_some((chunk, pause))
    })
}

#[derive(Clone, Debug)]
struct Case {
    up: Vec<Frame>,
    up_chunks: Vec<(usize, u64)>,
    down: Vec<Frame>,
    down_chunks: Vec<(usize, u64)>,
    vectored: bool,
    read_buffer: usize,
    pipe: usize,
    matching: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let up = (conversation(), chunks());
    let down = (conversation(), chunks());
    let sizes = (
        prop_oneof![1..9_usize, Just(8_192)],
        prop_oneof![1..9_usize, Just(4_096)],
    );
    (up, down, any::<bool>(), sizes, any::<bool>()).prop_map(
        |((up, up_chunks), (down, down_chunks), vectored, (read_buffer, pipe), matching)| Case {
            up,
            up_chunks,
            down,
            down_chunks,
            vectored,
            read_buffer,
            pipe,
            matching,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn both_directions_are_transparent(case in case()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(converse(case));
    }
}

async fn converse(case: Case) {
    let recorder = Recorder::new();
    let proof = if case.matching {
        ProofOfLife::MatchingPong
    } else {
        ProofOfLife::AnyBytes
    };
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(5))
        // Longer than the transfer of any frame, including its pauses.
        .timeout(ms(60_000))
        .proof_of_life(proof)
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let (received_tx, mut received_rx) = mpsc::unbounded_channel();
    let (flushed_tx, mut flushed_rx) = mpsc::unbounded_channel();
    let server = case.clone();
    let route = bytes_route(move |io| {
        let (case, received_tx, flushed_tx) =
            (server.clone(), received_tx.clone(), flushed_tx.clone());
        async move {
            let (mut read, mut write) = tokio::io::split(io);
            let down = case
                .down
                .iter()
                .flat_map(Frame::unmasked)
                .collect::<Vec<u8>>();
            let send = async {
                for (chunk, pause) in cut(&down, &case.down_chunks) {
                    let mut done = 0;
                    while done < chunk.len() {
                        let left = &chunk[done..];
                        done += if case.vectored {
                            let (head, tail) = left.split_at(left.len() / 2);
                            let slices = [IoSlice::new(head), IoSlice::new(tail)];
                            write.write_vectored(&slices).await.unwrap()
                        } else {
                            write.write(left).await.unwrap()
                        };
                    }
                    write.flush().await.unwrap();
                    if pause > 0 {
                        sleep(ms(pause)).await;
                    }
                }
                flushed_tx.send(()).unwrap();
            };
            let receive = async {
                let mut received = Vec::new();
                let mut buffer = vec![0; case.read_buffer];
                loop {
                    match read.read(&mut buffer).await.unwrap() {
                        0 => break received,
                        count => received.extend_from_slice(&buffer[..count]),
                    }
                }
            };
            let ((), received) = tokio::join!(send, receive);
            received_tx.send(received).unwrap();
        }
    });
    let app = Router::new().route("/ws", route).layer(heartbeat);
    let io = in_memory(app, case.pipe);
    let mut client = RawClient::handshake(io, "/ws")
        .await
        .answering(Answer::Nothing);

    // The handler's frames arrive in order. A frame that is not the next one must be our ping.
    let mut expected = case.down.iter();
    let mut next = expected.next();
    let mut ours: Vec<Vec<u8>> = Vec::new();
    let mut on_frame = |frame: Frame, ours: &mut Vec<Vec<u8>>| {
        if next == Some(&frame) {
            next = expected.next();
        } else {
            assert_eq!(
                frame.opcode, PING,
                "neither a frame of the handler nor a ping: {frame:?}"
            );
            ours.push(frame.payload);
        }
        next.is_none()
    };

    let mut all_received = case.down.is_empty();
    for frame in &case.up {
        let bytes = frame.masked();
        for (chunk, pause) in cut(&bytes, &case.up_chunks) {
            // Reads while it writes, or both sides might wait for buffer space.
            let mut sent = 0;
            while sent < chunk.len() {
                sent += client.send_or_receive(&chunk[sent..]).await.unwrap();
                while let Some(frame) = client.received_frame() {
                    all_received |= on_frame(frame, &mut ours);
                }
            }
            if pause > 0 {
                let _ = timeout(ms(pause), async {
                    loop {
                        let frame = client.read_frame().await.unwrap().unwrap();
                        all_received |= on_frame(frame, &mut ours);
                    }
                })
                .await;
            }
        }
        // At a frame boundary the client answers the pings received so far.
        for ping in ours.drain(..) {
            client.send(&Frame::new(PONG, ping)).await.unwrap();
        }
    }
    while !all_received {
        let frame = within("the handler's frames", client.read_frame()).await;
        all_received |= on_frame(frame.unwrap().unwrap(), &mut ours);
    }
    // The end of the peer's stream ends the connection, so the handler must flush first. The client
    // reads on because a ping may block that flush.
    let read_on = async {
        loop {
            client.read_frame().await.unwrap().unwrap();
        }
    };
    tokio::select! {
        flushed = within("the handler's last flush", flushed_rx.recv()) => flushed.unwrap(),
        () = read_on => {}
    }
    client.shutdown().await.unwrap();
    let received: Vec<u8> = within("the handler's end", received_rx.recv())
        .await
        .unwrap();
    let sent: Vec<u8> = case.up.iter().flat_map(Frame::masked).collect();
    assert!(
        received == sent,
        "the handler read {} bytes of {}",
        received.len(),
        sent.len()
    );
    recorder.nth(1).await;
    recorder.stays_at(1).await;
}
