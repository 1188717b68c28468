//! One case of the corpus: the bytes that a client sends, and the expected outcome.

use super::support::raw::Frame;

/// Expected outcome without the layers, so that the comparison does not compare two failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// This many messages are echoed, without an error before the client's end of the stream.
    Echoes(usize),
    /// The codec reports an error.
    Refused,
    /// The codec answers with a Close frame.
    Closed,
    /// As `Refused` or `Closed`, and the server closes before it has read everything, so that the
    /// connection is reset (if the client does not wait until it is read).
    Reset,
}

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) want: Want,
    pieces: Vec<Vec<u8>>,
}

/// How the bytes of a case are cut into parts. The client pauses after each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// As written in the case, mostly whole frames.
    Pieces,
    /// Byte by byte, except the middle of long frames.
    Bytes,
    /// In parts of odd lengths, across frame boundaries.
    Odd,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, want: Want) -> Self {
        Self {
            name: name.into(),
            want,
            pieces: Vec::new(),
        }
    }

    pub(crate) fn frame(self, frame: &Frame) -> Self {
        self.raw(frame.masked())
    }

    /// Adds several frames in one segment.
    pub(crate) fn together(self, frames: &[Frame]) -> Self {
        self.raw(frames.iter().flat_map(Frame::masked).collect::<Vec<_>>())
    }

    pub(crate) fn raw(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.pieces.push(bytes.into());
        self
    }

    /// The parts to send. The first byte is a part of its own, so that a ping can follow it even if
    /// the second byte is malformed.
    pub(crate) fn cut(&self, cut: Cut) -> Vec<Vec<u8>> {
        match cut {
            Cut::Pieces => {
                let (first, rest) = self.pieces[0].split_at(1);
                let mut parts = vec![first.to_vec(), rest.to_vec()];
                parts.extend_from_slice(&self.pieces[1..]);
                parts.retain(|part| !part.is_empty());
                parts
            }
            Cut::Bytes => self.pieces.iter().flat_map(|piece| bytes(piece)).collect(),
            Cut::Odd => odd(&self.pieces.concat()),
        }
    }
}

/// The header and the last bytes one by one. The middle has no boundaries.
fn bytes(piece: &[u8]) -> Vec<Vec<u8>> {
    let head = piece.len().min(40);
    let tail = piece.len().saturating_sub(8).max(head);
    let singly = |part: &[u8]| part.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
    let middle = piece[head..tail].chunks(4_099).map(<[u8]>::to_vec);
    let mut parts = singly(&piece[..head]);
    parts.extend(middle);
    parts.extend(singly(&piece[tail..]));
    parts
}

fn odd(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    for size in [1, 3, 7, 2, 13, 5, 61, 11, 127, 9_973].iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (part, rest) = bytes.split_at(bytes.len().min(*size));
        parts.push(part.to_vec());
        bytes = rest;
    }
    parts
}

/// Position of the client's stream within its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Boundary,
    /// Inside a frame, where the client can send no pong.
    Inside,
    /// After a Close frame.
    Closed,
    /// After malformed bytes: no frame boundary is known, and the layers send nothing more
    /// (documented limit).
    Broken,
}

/// A parser by RFC 6455 section 5.2 that shares no code with the crate's.
pub(crate) fn place(mut bytes: &[u8]) -> Place {
    loop {
        let [first, rest @ ..] = bytes else {
            return Place::Boundary;
        };
        let is_control = first & 0x8 != 0;
        if first & 0x7 > 2 || (is_control && first & 0x80 == 0) {
            return Place::Broken;
        }
        let [second, rest @ ..] = rest else {
            return Place::Inside;
        };
        if is_control && second & 0x7f > 125 {
            return Place::Broken;
        }
        // A client must not send unmasked frames (section 5.1), but their boundaries are known.
        let key = if second & 0x80 == 0 { 0 } else { 4 };
        let digits = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if digits == 8 && rest.first().is_some_and(|digit| *digit > 0x7f) {
            return Place::Broken;
        }
        let Some(length) = rest.get(..digits) else {
            return Place::Inside;
        };
        let length = match digits {
            0 => usize::from(second & 0x7f),
            _ => length
                .iter()
                .fold(0, |n, digit| n << 8 | usize::from(*digit)),
        };
        match rest.get(digits + key + length..) {
            None => return Place::Inside,
            Some(_) if first & 0xf == 0x8 => return Place::Closed,
            Some(rest) => bytes = rest,
        }
    }
}
