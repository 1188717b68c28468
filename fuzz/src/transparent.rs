//! Checks transparency (promise P1) from the bytes at both ends of a connection.

use std::collections::{BTreeSet, HashSet};

use crate::frames::{CLOSE, PING, PONG, ParsedStream};

/// The bytes that the handler must read if the peer has `sent` these: all but the pongs to `pings`.
/// The second value is how many of the last bytes may be held back, since they may be part of a
/// pong.
pub(crate) fn inbound(sent: &[u8], pings: &[[u8; 8]]) -> (Vec<u8>, usize) {
    let parsed = ParsedStream::parse(sent);
    let mut expected = Vec::new();
    let mut end = 0;
    for frame in &parsed.frames {
        let raw = frame.raw(sent);
        end += raw.len();
        let removed = may_be_pong(raw) && pings.iter().any(|ping| ping[..] == frame.data(sent)[..]);
        if !removed {
            expected.extend_from_slice(raw);
        }
    }
    let tail = &sent[end..];
    expected.extend_from_slice(tail);
    // The tail is incomplete: a complete pong would be among the frames.
    let held_back = if may_be_pong(tail) { tail.len() } else { 0 };
    (expected, held_back)
}

/// Whether `bytes` start like a pong to one of the layer's pings, masked or not.
fn may_be_pong(bytes: &[u8]) -> bool {
    let headers = [[0x80 | PONG, 8], [0x80 | PONG, 0x88]];
    headers
        .iter()
        .any(|header| bytes.iter().zip(header).all(|(byte, want)| byte == want))
}

/// The control frames that the layer has inserted between the handler's frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct Injected {
    pub(crate) pings: Vec<[u8; 8]>,
    /// A Close frame was inserted, so no frame may follow.
    closed: bool,
}

/// Explains the bytes that the peer has `received` as those that the layer has `accepted` from the
/// handler, plus complete control frames at frame boundaries, the last of which may be incomplete.
/// `None` if there is no such explanation.
pub(crate) fn outbound(received: &[u8], accepted: &[u8], masked: bool) -> Option<Injected> {
    let parsed = ParsedStream::parse(accepted);
    // No frame may follow a Close frame (RFC 6455 section 5.5.1).
    let close = parsed.frames.iter().find(|frame| frame.opcode == CLOSE);
    let close = close.map_or(usize::MAX, |frame| frame.end() as usize);
    let ends = parsed.frames.iter().map(|frame| frame.end() as usize);
    let boundaries: BTreeSet<usize> = ends.chain([0]).filter(|end| *end < close).collect();

    // Between two boundaries there are only the handler's bytes. A frame at a boundary may be the
    // handler's or the layer's, so both are tried.
    let mut tried = HashSet::new();
    let mut candidates = vec![(0, 0, Injected::default())];
    while let Some((at, own, injected)) = candidates.pop() {
        if !tried.insert((at, own)) {
            continue;
        }
        let next = boundaries.range(own + 1..).next();
        let rest = &accepted[own..*next.unwrap_or(&accepted.len())];
        if received[at..].starts_with(rest) {
            let (at, own) = (at + rest.len(), own + rest.len());
            if (at, own) == (received.len(), accepted.len()) {
                return Some(injected);
            }
            if !rest.is_empty() {
                candidates.push((at, own, injected.clone()));
            }
        }
        if injected.closed || !boundaries.contains(&own) {
            continue;
        }
        match inserted_frame(&received[at..], masked) {
            InsertedFrame::Incomplete if own == accepted.len() => return Some(injected),
            InsertedFrame::Complete { len, ping } => {
                let mut injected = injected;
                injected.closed = ping.is_none();
                injected.pings.extend(ping);
                candidates.push((at + len, own, injected));
            }
            InsertedFrame::Incomplete | InsertedFrame::No => {}
        }
    }
    None
}

enum InsertedFrame {
    No,
    Incomplete,
    Complete { len: usize, ping: Option<[u8; 8]> },
}

/// Whether `bytes` start with a frame that the layer may have inserted.
fn inserted_frame(bytes: &[u8], masked: bool) -> InsertedFrame {
    let header = [0x80 | PING, if masked { 0x88 } else { 8 }];
    let ping = bytes.iter().zip(header).all(|(byte, want)| *byte == want);
    if !ping && bytes.first() != Some(&(0x80 | CLOSE)) {
        return InsertedFrame::No;
    }
    match ParsedStream::parse(bytes) {
        parsed if parsed.frames.is_empty() && parsed.violation.is_some() => InsertedFrame::No,
        parsed => match parsed.frames.first() {
            None => InsertedFrame::Incomplete,
            Some(frame) => InsertedFrame::Complete {
                len: frame.end() as usize,
                ping: ping
                    .then(|| frame.data(bytes))
                    .and_then(|data| data.try_into().ok()),
            },
        },
    }
}
