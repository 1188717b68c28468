//! Compares the scanner with the reference parser, on whole and on split streams.

use tower_ws_liveness::fuzzing::{FuzzFrameEnd, FuzzProbe, FuzzScanner, probe_pong};

use crate::frames::{CLOSE, Frame, PONG, ParsedStream};

/// The expected [`FuzzFrameEnd`] of a frame.
fn expected_end(frame: &Frame, stream: &[u8]) -> FuzzFrameEnd {
    let data = frame.data(stream);
    let code = data.first_chunk().map(|code| u16::from_be_bytes(*code));
    FuzzFrameEnd {
        opcode: frame.opcode,
        fin: frame.fin,
        close_code: code.filter(|_| frame.opcode == CLOSE),
    }
}

/// Checks any bytes, fed at once.
pub fn whole(stream: &[u8]) {
    let parsed = ParsedStream::parse(stream);
    feed(stream, &parsed, [stream.len()]);
    for frame in &parsed.frames {
        probe(&stream[frame.start..], Some((frame, stream)));
    }
    let rest = parsed.frames.last().map_or(0, |last| last.end() as usize);
    probe(&stream[rest..], None);
}

/// Checks bytes fed at once, byte by byte, and in chunks. The input starts with the number of
/// chunks and their sizes.
pub fn split(input: &[u8]) {
    let Some((&head, rest)) = input.split_first() else {
        return;
    };
    let count = usize::from(head % 32).min(rest.len());
    let (sizes, stream) = rest.split_at(count);
    let parsed = ParsedStream::parse(stream);
    feed(stream, &parsed, [stream.len()]);
    feed(stream, &parsed, std::iter::repeat(1));
    // Empty chunks must not change the scanner.
    let sizes = sizes.iter().map(|size| usize::from(*size));
    feed(stream, &parsed, sizes.chain([stream.len()]));
}

/// Feeds all of `stream` in chunks, and compares every step with the reference.
fn feed(stream: &[u8], parsed: &ParsedStream, sizes: impl IntoIterator<Item = usize>) {
    let mut scanner = FuzzScanner::default();
    let mut frames = parsed.frames.iter();
    let mut fed = 0;
    for size in sizes {
        let until = stream.len().min(fed + size);
        loop {
            let chunk = &stream[fed..until];
            let ahead = scanner.boundary_within(chunk);
            let (consumed, end) = scanner.advance(chunk);
            fed += consumed;
            assert!(fed <= until, "consumed more bytes than the chunk has");
            assert_eq!(ahead, end.map(|_| consumed), "wrong look-ahead");
            match end {
                Some(end) => {
                    let frame = frames
                        .next()
                        .expect("the reference has a frame that ends here");
                    assert_eq!(fed as u128, frame.end(), "wrong end of a frame");
                    assert_eq!(end, expected_end(frame, stream));
                }
                None => assert_eq!(fed, until, "stopped short of a boundary"),
            }
            let violation = parsed.violation_after(fed);
            assert_eq!(scanner.malformed(), violation, "after {fed} bytes");
            let boundary = violation.is_none() && parsed.is_boundary(fed);
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
    assert_eq!(frames.next(), None, "the end of a frame was not reported");

    // A malformed stream stays malformed.
    if let Some(rule) = scanner.malformed() {
        for more in [&stream[..stream.len().min(20)], &[0x81, 0]] {
            assert_eq!(scanner.boundary_within(more), None);
            assert_eq!(scanner.advance(more), (more.len(), None));
        }
        assert_eq!(scanner.malformed(), Some(rule));
        assert!(!scanner.at_boundary());
    }
}

/// Checks the recognition of pongs on each prefix of `bytes`, which start at a boundary with
/// `frame` or, if it is `None`, with an incomplete frame.
fn probe(bytes: &[u8], frame: Option<(&Frame, &[u8])>) {
    let masked = bytes.get(1).is_some_and(|second| *second >= 128);
    let size = if masked { 14 } else { 10 };
    let header = [0x80 | PONG, if masked { 0x80 | 8 } else { 8 }];
    for len in 0..=bytes.len().min(size + 2) {
        let prefix = &bytes[..len];
        let want = if prefix.iter().zip(header).any(|(byte, want)| *byte != want) {
            FuzzProbe::No
        } else if len < size {
            FuzzProbe::NeedMore
        } else {
            let (frame, stream) = frame.expect("a pong of this length is complete");
            assert_eq!((frame.opcode, frame.rsv), (PONG, 0));
            let data = frame.data(stream);
            FuzzProbe::Pong(data.try_into().expect("a payload of eight bytes"), size)
        };
        assert_eq!(probe_pong(prefix), want, "{prefix:x?}");
    }
}
