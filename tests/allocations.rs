//! The layers add no heap allocation per frame, also with a health hook.
//!
//! The only test of its process, since the allocator counts for the whole process.

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

/// Number of allocations and reallocations of the process so far.
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

/// Echoes frames of one size without an allocation: it does not parse them.
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

/// Number of allocations of the process, client included, while `FRAMES` frames are echoed.
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
    // The first round grows the buffers that grow only once.
    for _ in 0..2 {
        let before = allocations();
        for _ in 0..FRAMES {
            let (mut read, mut write) = client.split();
            // Concurrently: a large frame exceeds the buffers in between.
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
    // Checks the counter itself.
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
            // Some allocations may be left from the connection's start. One per frame would be a
            // thousand.
            assert!(
                layered <= bare + 5,
                "{len} bytes, {write:?}: {layered} allocations for {FRAMES} frames, {bare} bare"
            );
        }
    }
}
