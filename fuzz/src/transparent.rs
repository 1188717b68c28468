//! Promise P1, judged from the bytes at both ends alone.

use std::collections::{BTreeSet, HashSet};

use crate::frames::{CLOSE, PING, PONG, Reading};

/// What the handler has to read of what the peer has `sent`: all but the pongs to `pings`. The
/// second value is how many of the last bytes may be held back, since a pong may come of them.
pub(crate) fn inbound(sent: &[u8], pings: &[[u8; 8]]) -> (Vec<u8>, usize) {
    let reading = Reading::of(sent);
    let mut left = Vec::new();
    let mut end = 0;
    for frame in &reading.frames {
        let raw = frame.raw(sent);
        end += raw.len();
        let ours = may_be_pong(raw) && pings.iter().any(|ping| ping[..] == frame.data(sent)[..]);
        if !ours {
            left.extend_from_slice(raw);
        }
    }
    let tail = &sent[end..];
    left.extend_from_slice(tail);
    // A whole one would be among the frames.
    (left, if may_be_pong(tail) { tail.len() } else { 0 })
}

/// Whether `bytes` begin as a pong with the length of ours does, masked or not.
fn may_be_pong(bytes: &[u8]) -> bool {
    let headers = [[0x80 | PONG, 8], [0x80 | PONG, 0x88]];
    headers
        .iter()
        .any(|header| bytes.iter().zip(header).all(|(byte, want)| byte == want))
}

/// What was put between the handler's frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct Injected {
    pub(crate) pings: Vec<[u8; 8]>,
    /// Nothing may follow.
    closed: bool,
}

/// What the peer has received, as the bytes that the wrapper has accepted from the handler and
/// whole control frames at boundaries, the last of which may still be on its way. `None` if it
/// cannot be read like that.
pub(crate) fn outbound(received: &[u8], accepted: &[u8], masked: bool) -> Option<Injected> {
    let reading = Reading::of(accepted);
    // Nothing may be said after a Close frame.
    let close = reading.frames.iter().find(|frame| frame.opcode == CLOSE);
    let close = close.map_or(usize::MAX, |frame| frame.end() as usize);
    let ends = reading.frames.iter().map(|frame| frame.end() as usize);
    let boundaries: BTreeSet<usize> = ends.chain([0]).filter(|end| *end < close).collect();

    // Between two boundaries there is nothing but the handler's bytes. What stands at one may be
    // the handler's or the wrapper's, if the handler writes anything.
    let mut tried = HashSet::new();
    let mut ways = vec![(0, 0, Injected::default())];
    while let Some((at, own, injected)) = ways.pop() {
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
                ways.push((at, own, injected.clone()));
            }
        }
        if injected.closed || !boundaries.contains(&own) {
            continue;
        }
        match control(&received[at..], masked) {
            Control::Part if own == accepted.len() => return Some(injected),
            Control::Whole { len, ping } => {
                let mut injected = injected;
                injected.closed = ping.is_none();
                injected.pings.extend(ping);
                ways.push((at + len, own, injected));
            }
            Control::Part | Control::No => {}
        }
    }
    None
}

enum Control {
    No,
    Part,
    Whole { len: usize, ping: Option<[u8; 8]> },
}

/// Whether `bytes` begin with a frame that the wrapper may have made.
fn control(bytes: &[u8], masked: bool) -> Control {
    let header = [0x80 | PING, if masked { 0x88 } else { 8 }];
    let ping = bytes.iter().zip(header).all(|(byte, want)| *byte == want);
    if !ping && bytes.first() != Some(&(0x80 | CLOSE)) {
        return Control::No;
    }
    match Reading::of(bytes) {
        reading if reading.frames.is_empty() && reading.broken.is_some() => Control::No,
        reading => match reading.frames.first() {
            None => Control::Part,
            Some(frame) => Control::Whole {
                len: frame.end() as usize,
                ping: ping
                    .then(|| frame.data(bytes))
                    .and_then(|data| data.try_into().ok()),
            },
        },
    }
}
