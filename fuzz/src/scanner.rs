//! The scanner against a second reading of the same bytes, in one piece and in many.

use tower_ws_liveness::fuzzing::{FrameEnd, Probe, Scanner, probe_pong};

use crate::frames::{CLOSE, Frame, PONG, Reading};

/// What the scanner has to say of a frame.
fn told(frame: &Frame, stream: &[u8]) -> FrameEnd {
    let data = frame.data(stream);
    let code = data.first_chunk().map(|code| u16::from_be_bytes(*code));
    FrameEnd {
        opcode: frame.opcode,
        fin: frame.fin,
        close_code: code.filter(|_| frame.opcode == CLOSE),
    }
}

/// Any bytes, in one piece.
pub fn whole(stream: &[u8]) {
    let reading = Reading::of(stream);
    feed(stream, &reading, [stream.len()]);
    for frame in &reading.frames {
        probe(&stream[frame.start..], Some((frame, stream)));
    }
    let rest = reading.frames.last().map_or(0, |last| last.end() as usize);
    probe(&stream[rest..], None);
}

/// The number of pieces, their sizes, and then bytes that are fed in such pieces and bytewise.
pub fn split(input: &[u8]) {
    let Some((&head, rest)) = input.split_first() else {
        return;
    };
    let count = usize::from(head % 32).min(rest.len());
    let (sizes, stream) = rest.split_at(count);
    let reading = Reading::of(stream);
    feed(stream, &reading, [stream.len()]);
    feed(stream, &reading, std::iter::repeat(1));
    // Pieces of no byte are allowed, and change nothing.
    let sizes = sizes.iter().map(|size| usize::from(*size));
    feed(stream, &reading, sizes.chain([stream.len()]));
}

/// Feeds pieces until all of `stream` is through, and compares every step.
fn feed(stream: &[u8], reading: &Reading, sizes: impl IntoIterator<Item = usize>) {
    let mut scanner = Scanner::default();
    let mut frames = reading.frames.iter();
    let mut fed = 0;
    for size in sizes {
        let until = stream.len().min(fed + size);
        loop {
            let piece = &stream[fed..until];
            let ahead = scanner.boundary_within(piece);
            let (consumed, end) = scanner.advance(piece);
            fed += consumed;
            assert!(fed <= until, "consumed bytes that it was not given");
            assert_eq!(ahead, end.map(|_| consumed), "looked ahead wrongly");
            match end {
                Some(end) => {
                    let frame = frames.next().expect("a frame where none ends");
                    assert_eq!(fed as u128, frame.end(), "a frame's end is elsewhere");
                    assert_eq!(end, told(frame, stream));
                }
                None => assert_eq!(fed, until, "stopped short of a boundary"),
            }
            let broken = reading.broken_after(fed);
            assert_eq!(scanner.malformed(), broken, "after {fed} bytes");
            let boundary = broken.is_none() && reading.is_boundary(fed);
            assert_eq!(scanner.at_boundary(), boundary, "after {fed} bytes");
            if fed == until {
                break;
            }
            assert!(consumed > 0, "no progress");
        }
        if fed == stream.len() {
            break;
        }
    }
    assert_eq!(frames.next(), None, "a frame's end was not told");

    // What is malformed stays so, whatever comes.
    if let Some(rule) = scanner.malformed() {
        for more in [&stream[..stream.len().min(20)], &[0x81, 0]] {
            assert_eq!(scanner.boundary_within(more), None);
            assert_eq!(scanner.advance(more), (more.len(), None));
        }
        assert_eq!(scanner.malformed(), Some(rule));
        assert!(!scanner.at_boundary());
    }
}

/// The recognition of pongs, on each prefix of what begins at a boundary with `frame`, or with
/// nothing that is whole.
fn probe(bytes: &[u8], frame: Option<(&Frame, &[u8])>) {
    let masked = bytes.get(1).is_some_and(|second| *second >= 128);
    let size = if masked { 14 } else { 10 };
    let header = [0x80 | PONG, if masked { 0x80 | 8 } else { 8 }];
    for len in 0..=bytes.len().min(size + 2) {
        let prefix = &bytes[..len];
        let want = if prefix.iter().zip(header).any(|(byte, want)| *byte != want) {
            Probe::No
        } else if len < size {
            Probe::NeedMore
        } else {
            let (frame, stream) = frame.expect("a pong is whole at its length");
            assert_eq!((frame.opcode, frame.rsv), (PONG, 0));
            let data = frame.data(stream);
            Probe::Pong(data.try_into().expect("a payload of eight bytes"), size)
        };
        assert_eq!(probe_pong(prefix), want, "{prefix:x?}");
    }
}
