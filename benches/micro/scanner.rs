//! The frame scanner over masked frames, whole and split across reads.
//!
//! One iteration is one frame. The throughput counts all bytes of the frame.
//!
//! There are two baselines. `memcpy` of the same bytes is the minimum cost of any layer with a
//! buffer of its own. `tungstenite's header` parses the same header with the WebSocket library's
//! parser, which does not find the end of the frame.
//!
//! The scanner skips payloads, so its time for a whole frame must be the same for 2 bytes and for
//! 64 KiB. In pieces it must grow with the number of pieces.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{Criterion, Throughput};
use tungstenite::protocol::frame::FrameHeader;

use crate::wire::Scanner;
use crate::{frame, size};

/// Payload sizes in bytes, and the piece sizes into which their frames are split.
const FRAMES: [(usize, &[usize]); 4] = [
    (2, &[1]),
    (125, &[1, 7]),
    (4 * 1024, &[7, 1024]),
    (64 * 1024, &[1024, 4 * 1024]),
];

pub(crate) fn run(criterion: &mut Criterion) {
    for (payload, pieces) in FRAMES {
        let frame = frame(payload, true);
        let mut group = criterion.benchmark_group(format!("scanner/{}", size(payload)));
        group.throughput(Throughput::Bytes(frame.len() as u64));

        let mut copy = vec![0; frame.len()];
        group.bench_function("memcpy", |bencher| {
            bencher.iter(|| {
                copy.copy_from_slice(black_box(&frame));
                black_box(&mut copy);
            });
        });
        group.bench_function("tungstenite's header", |bencher| {
            bencher.iter(|| header(black_box(&frame)));
        });

        let mut scanner = Scanner::new();
        assert_eq!(scan(&mut scanner, &frame), 1);
        group.bench_function("whole", |bencher| {
            bencher.iter(|| scan(&mut scanner, black_box(&frame)));
        });
        for &piece in pieces {
            group.bench_function(format!("in pieces of {}", size(piece)), |bencher| {
                bencher.iter(|| {
                    let pieces = black_box(&frame).chunks(piece);
                    pieces.map(|piece| scan(&mut scanner, piece)).sum::<usize>()
                });
            });
        }
        assert!(scanner.at_boundary(), "every frame was scanned to its end");
        group.finish();
    }
}

/// Feeds the bytes of one read to the scanner. Returns the number of frames that end in it.
fn scan(scanner: &mut Scanner, mut read: &[u8]) -> usize {
    let mut frames = 0;
    while !read.is_empty() {
        let (passed, end) = scanner.advance(read);
        frames += usize::from(end.is_some());
        read = &read[passed..];
    }
    frames
}

fn header(bytes: &[u8]) -> Option<(FrameHeader, u64)> {
    FrameHeader::parse(&mut Cursor::new(bytes)).expect("tungstenite encoded the header")
}
