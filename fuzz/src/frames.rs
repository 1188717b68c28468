//! A second reading of RFC 6455 section 5.2, to judge the crate's by: slow, over the whole stream at
//! once, and made of nothing but the figure in the RFC.

use std::ops::Range;

use tower_ws_liveness::fuzzing::Malformed;

pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// A frame and where it lies in its stream. Its payload may go beyond the stream's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub rsv: u8,
    pub opcode: u8,
    pub key: [u8; 4],
    pub start: usize,
    pub payload: Range<u128>,
}

/// What there is of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The whole frames.
    pub frames: Vec<Frame>,
    /// The rule that is broken after them, and how many bytes it takes to see that.
    pub broken: Option<(usize, Malformed)>,
}

impl Frame {
    pub fn end(&self) -> u128 {
        self.payload.end
    }

    /// The unmasked payload; empty if it is not all there.
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

impl Reading {
    pub fn of(stream: &[u8]) -> Self {
        let mut reading = Self {
            frames: Vec::new(),
            broken: None,
        };
        let mut start = 0;
        while start < stream.len() {
            match frame(stream, start) {
                Ok(Some(frame)) if frame.end() <= stream.len() as u128 => {
                    start = frame.end() as usize;
                    reading.frames.push(frame);
                }
                Ok(_) => break,
                Err((seen, rule)) => {
                    reading.broken = Some((start + seen, rule));
                    break;
                }
            }
        }
        reading
    }

    /// The rule that the first `len` bytes are known to have broken.
    pub fn broken_after(&self, len: usize) -> Option<Malformed> {
        let broken = self.broken.filter(|(seen, _)| *seen <= len);
        broken.map(|(_, rule)| rule)
    }

    /// Whether a frame ends with the first `len` bytes, or none has begun.
    pub fn is_boundary(&self, len: usize) -> bool {
        let mut ends = self.frames.iter().map(|frame| frame.end() as usize);
        len == 0 || ends.any(|end| end == len)
    }
}

/// The frame at `start`, as far as its header is there; or the rule that it breaks, and how many
/// of its bytes say so.
fn frame(stream: &[u8], start: usize) -> Result<Option<Frame>, (usize, Malformed)> {
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
        return Err((1, Malformed::ReservedOpcode(opcode)));
    }
    if control && !fin {
        return Err((1, Malformed::FragmentedControl));
    }

    let Some(second) = byte(1) else {
        return Ok(None);
    };
    let (masked, short) = (second / 128 == 1, second % 128);
    if control && short > 125 {
        return Err((2, Malformed::OversizedControl));
    }
    if short == 127 && byte(2).is_some_and(|most| most >= 128) {
        return Err((3, Malformed::LengthTopBit));
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
