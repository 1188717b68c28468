//! The layers add no heap allocation to a frame, also where somebody wants to hear of the
//! connection's health.
//!
//! One test alone in its process, since the allocator counts for the whole process.

mod support;

use std::alloc::System;
use std::io::IoSlice;

use axum::Router;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::raw::{BINARY, Frame};
use support::scene::{patient, quiet};
use support::{Server, bytes_route, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_ws_liveness::HealthChange;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How often memory was asked for so far.
fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

const FRAMES: usize = 1_000;

/// How the handler writes its echo.
#[derive(Clone, Copy, Debug)]
enum Write {
    AtOnce,
    Vectored,
    InPieces,
}

/// Echoes frames of one size without an allocation of its own: the payload is not looked at.
async fn echo_frames<I>(mut io: I, read_len: usize, answer: &[u8], write: Write)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = vec![0; read_len];
    while io.read_exact(&mut buffer).await.is_ok() {
        match write {
            Write::AtOnce => io.write_all(answer).await.unwrap(),
            Write::Vectored => {
                let mut done = 0;
                while done < answer.len() {
                    let (head, tail) = answer[done..].split_at((answer.len() - done) / 2);
                    let slices = [IoSlice::new(head), IoSlice::new(tail)];
                    done += io.write_vectored(&slices).await.unwrap();
                }
            }
            Write::InPieces => {
                for piece in answer.chunks(answer.len() / 3 + 1) {
                    io.write_all(piece).await.unwrap();
                }
            }
        }
        io.flush().await.unwrap();
    }
}

/// The allocations that `FRAMES` echoed frames take in the whole process, client included.
async fn allocations_of(app: Router, request: &[u8], answer: &[u8]) -> usize {
    let server = Server::start(app).await;
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    client.set_nodelay(true).unwrap();
    let opening = support::raw::opening("/ws");
    client.write_all(opening.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let mut buffer = vec![0; answer.len()];
    let mut counted = 0;
    // The first round warms up whatever grows once.
    for _ in 0..2 {
        let before = allocations();
        for _ in 0..FRAMES {
            let (mut read, mut write) = client.split();
            // Both at once: a large frame is more than the buffers in between take.
            let (written, echoed) =
                tokio::join!(write.write_all(request), read.read_exact(&mut buffer));
            written.unwrap();
            echoed.unwrap();
        }
        counted = allocations() - before;
        assert!(buffer == answer, "the echo changed");
    }
    counted
}

#[test]
fn the_layers_allocate_nothing_per_echoed_frame() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // That the counter counts at all.
    let before = allocations();
    drop(std::hint::black_box(Box::new(7)));
    assert!(allocations() > before);

    for len in [0, 125, 126, 4_096, 65_536] {
        for write in [Write::AtOnce, Write::Vectored, Write::InPieces] {
            let frame = Frame::new(BINARY, vec![0x5a; len]);
            let (request, answer) = (frame.masked(), frame.unmasked());
            let (read_len, reply) = (request.len(), answer.clone());
            let route = bytes_route(move |io| {
                let reply = reply.clone();
                async move { echo_frames(io, read_len, &reply, write).await }
            });
            let bare = Router::new().route("/ws", route);
            let layered = bare
                .clone()
                .layer(patient().on_health(|_: &HealthChange| {}).build().unwrap())
                .layer(quiet().build().unwrap());
            let (bare, layered) = runtime.block_on(async {
                (
                    within("bare", allocations_of(bare, &request, &answer)).await,
                    within("layered", allocations_of(layered, &request, &answer)).await,
                )
            });
            // A handful may fall to whatever is left of the connection's start. A frame's worth is
            // a thousand.
            assert!(
                layered <= bare + 5,
                "{len} bytes, {write:?}: {layered} allocations for {FRAMES} frames, {bare} bare"
            );
        }
    }
}
