//! A reference parser of frames, written only from the figure in RFC 6455 section 5.2.
//!
//! It is slow and parses a whole stream at once. The crate's scanner is compared with it.

use std::ops::Range;

use tower_ws_liveness::fuzzing::FuzzMalformed;

pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// A frame and its position in the stream. The payload may extend beyond the end of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub rsv: u8,
    pub opcode: u8,
    pub key: [u8; 4],
    pub start: usize,
    pub payload: Range<u128>,
}

/// The frames of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedStream {
    /// The complete frames.
    pub frames: Vec<Frame>,
    /// The rule that is violated after them, and the number of bytes after which that is known.
    pub violation: Option<(usize, FuzzMalformed)>,
}

impl Frame {
    pub fn end(&self) -> u128 {
        self.payload.end
    }

    /// The unmasked payload; empty if it is incomplete.
    pub fn data(&self, stream: &[u8]) -> Vec<u8> {
        let range = self.payload.start as usize..self.payload.end as usize;
        let bytes = stream.get(range).unwrap_or_default();
        let masked = bytes.iter().enumerate();
        masked.map(|(at, byte)| byte ^ self.key[at % 4]).collect()
    }

    /// The bytes on the wire.
    pub fn raw<'a>(&self, stream: &'a [u8]) -> &'a [u8] {
        &stream[self.start..self.end() as usize]
    }
}

impl ParsedStream {
    pub fn parse(stream: &[u8]) -> Self {
        let mut parsed = Self {
            frames: Vec::new(),
            violation: None,
        };
        let mut start = 0;
        while start < stream.len() {
            match frame(stream, start) {
                Ok(Some(frame)) if frame.end() <= stream.len() as u128 => {
                    start = frame.end() as usize;
                    parsed.frames.push(frame);
                }
                Ok(_) => break,
                Err((known_after, rule)) => {
                    parsed.violation = Some((start + known_after, rule));
                    break;
                }
            }
        }
        parsed
    }

    /// The rule that the first `len` bytes violate.
    pub fn violation_after(&self, len: usize) -> Option<FuzzMalformed> {
        let violation = self
            .violation
            .filter(|(known_after, _)| *known_after <= len);
        violation.map(|(_, rule)| rule)
    }

    /// Whether a frame ends with the first `len` bytes, or `len` is 0.
    pub fn is_boundary(&self, len: usize) -> bool {
        let mut ends = self.frames.iter().map(|frame| frame.end() as usize);
        len == 0 || ends.any(|end| end == len)
    }
}

/// Parses the frame at `start`. `None` if its header is incomplete. The error is the rule that the
/// frame violates, and after how many of its bytes that is known.
fn frame(stream: &[u8], start: usize) -> Result<Option<Frame>, (usize, FuzzMalformed)> {
    let byte = |at: usize| stream.get(start + at).copied();
    let number = |from: usize, count: usize| {
        (from..from + count).try_fold(0_u128, |sum, at| Some(sum * 256 + u128::from(byte(at)?)))
    };

    let Some(first) = byte(0) else {
        return Ok(None);
    };
    let (fin, rsv, opcode) = (first / 128 == 1, first / 16 % 8, first % 16);
    let control = opcode >= 8;
    if !matches!(opcode, 0 | 1 | 2 | 8 | 9 | 10) {
        return Err((1, FuzzMalformed::ReservedOpcode(opcode)));
    }
    if control && !fin {
        return Err((1, FuzzMalformed::FragmentedControl));
    }

    let Some(second) = byte(1) else {
        return Ok(None);
    };
    let (masked, short) = (second / 128 == 1, second % 128);
    if control && short > 125 {
        return Err((2, FuzzMalformed::OversizedControl));
    }
    if short == 127 && byte(2).is_some_and(|most| most >= 128) {
        return Err((3, FuzzMalformed::LengthTopBit));
    }
    let extended = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let len = match extended {
        0 => Some(u128::from(short)),
        count => number(2, count),
    };
    let header = 2 + extended + if masked { 4 } else { 0 };
    let key = match masked {
        true => number(header - 4, 4),
        false => Some(0),
    };
    let (Some(len), Some(key)) = (len, key) else {
        return Ok(None);
    };
    let from = (start + header) as u128;
    Ok(Some(Frame {
        fin,
        rsv,
        opcode,
        key: (key as u32).to_be_bytes(),
        start,
        payload: from..from + len,
    }))
}
