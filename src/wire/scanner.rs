//! An incremental walk over a stream of frames (RFC 6455 section 5.2).
//!
//! The scanner is a value: it holds at most one incomplete header and a countdown, so a copy of it
//! is a cheap look-ahead, and two of them (inbound, outbound) cost a connection 48 bytes.

use super::OpCode;
use super::header::{Header, MAX_HEADER, Malformed};

/// A whole frame has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameEnd {
    /// What the frame was.
    pub(crate) opcode: OpCode,
    /// Whether it was the last fragment of its message; always set on control frames.
    pub(crate) fin: bool,
    /// The status code of a Close frame that has one (section 5.5.1), as the peer wrote it.
    pub(crate) close_code: Option<u16>,
}

/// Finds the frame boundaries of one direction of a connection.
///
/// Bytes are fed in any chunking, headers are read in place where they are whole, and payload is
/// skipped by its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanner {
    state: State,
}

// Every connection carries two for as long as it lives.
#[cfg(test)]
const _: () = assert!(size_of::<Scanner>() <= 24);

#[derive(Clone, Copy, Debug)]
enum State {
    /// At a frame boundary, or inside a header.
    Header(PartialHeader),
    /// Inside a payload. Between calls `remaining` is not zero: a frame ends with its last byte.
    Payload { frame: OpenFrame, remaining: u64 },
    /// Frame boundaries are lost for good.
    Malformed(Malformed),
}

impl Scanner {
    /// A scanner at the first frame boundary, right behind the opening handshake.
    pub(crate) const fn new() -> Self {
        Scanner {
            state: State::Header(PartialHeader::EMPTY),
        }
    }

    /// Whether no byte of an unfinished frame has passed, so that a control frame may stand here.
    #[inline]
    pub(crate) const fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header(PartialHeader { len: 0, .. }))
    }

    /// The opcode of the current, unfinished frame. `None` at a frame boundary, and once the boundaries are
    /// lost.
    #[inline]
    pub(crate) fn open_frame(&self) -> Option<OpCode> {
        match &self.state {
            State::Header(PartialHeader { len: 0, .. }) | State::Malformed(_) => None,
            State::Header(partial) => OpCode::of(partial.bytes[0]),
            State::Payload { frame, .. } => Some(frame.opcode),
        }
    }

    /// The rule that the stream broke. Once set it stays, and nothing is reported any more.
    #[inline]
    pub(crate) const fn malformed(&self) -> Option<Malformed> {
        match self.state {
            State::Malformed(malformed) => Some(malformed),
            _ => None,
        }
    }

    /// Consumes `bytes` up to and including the end of the next frame, or all of them.
    ///
    /// Returns how many were consumed, and the frame if one ended with the last of those. The cost
    /// does not depend on the size of the payload.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> (usize, Option<FrameEnd>) {
        if self.at_boundary() {
            if let Some((len, end)) = whole_frame(bytes) {
                return (len, Some(end));
            }
        }
        self.advance_in_part(bytes)
    }

    /// The same for a frame whose beginning or end is not in `bytes`, or of which more is to be known.
    fn advance_in_part(&mut self, bytes: &[u8]) -> (usize, Option<FrameEnd>) {
        let mut header_len = 0;
        if let State::Header(partial) = &mut self.state {
            match partial.complete(bytes) {
                Ok(Some((header, used))) => {
                    self.state = State::Payload {
                        frame: OpenFrame::new(&header),
                        remaining: header.payload_len,
                    };
                    header_len = used;
                }
                Ok(None) => return (bytes.len(), None),
                Err(malformed) => self.state = State::Malformed(malformed),
            }
        }
        let State::Payload { frame, remaining } = &mut self.state else {
            return (bytes.len(), None);
        };

        let rest = bytes.get(header_len..).unwrap_or_default();
        // A payload that does not fit the address space is longer than any slice.
        let payload = match usize::try_from(*remaining) {
            Ok(remaining) => rest.get(..remaining).unwrap_or(rest),
            Err(_) => rest,
        };
        if frame.opcode == OpCode::Close {
            frame.note_code(payload);
        }
        *remaining -= payload.len() as u64;

        let end = (*remaining == 0).then(|| frame.end());
        if end.is_some() {
            self.state = State::Header(PartialHeader::EMPTY);
        }
        (header_len + payload.len(), end)
    }

    /// How many of `bytes` lead to the first frame boundary after at least one of them; `None`
    /// when they hold none, or the stream is malformed.
    pub(crate) fn boundary_within(&self, bytes: &[u8]) -> Option<usize> {
        let mut ahead = *self;
        let (consumed, end) = ahead.advance(bytes);
        end.map(|_| consumed)
    }
}

/// The usual case: `bytes` begin with a whole frame, of which nothing but its end is to be told. Passing
/// it leaves the scanner as it was.
fn whole_frame(bytes: &[u8]) -> Option<(usize, FrameEnd)> {
    let (header, header_len) = Header::parse(bytes).ok()??;
    let payload_len = usize::try_from(header.payload_len).ok()?;
    let whole = payload_len <= bytes.len() - header_len && header.opcode != OpCode::Close;
    whole.then_some((
        header_len + payload_len,
        FrameEnd {
            opcode: header.opcode,
            fin: header.fin,
            close_code: None,
        },
    ))
}

/// The beginning of a header whose end has not come yet.
#[derive(Clone, Copy, Debug)]
struct PartialHeader {
    bytes: [u8; MAX_HEADER],
    /// How many of `bytes` are set; less than [`MAX_HEADER`], which is always a whole header.
    len: u8,
}

impl PartialHeader {
    const EMPTY: Self = PartialHeader {
        bytes: [0; MAX_HEADER],
        len: 0,
    };

    /// Continues with `more`: the header, and how many bytes of `more` it took; or `None` when all
    /// of `more` was kept and the header is still not whole.
    fn complete(&mut self, more: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
        let held = usize::from(self.len);
        if held == 0 {
            // The header came in one piece and is not copied.
            let parsed = Header::parse(more)?;
            if parsed.is_some() {
                return Ok(parsed);
            }
        }
        self.hold(more)
    }

    /// The unusual case of [`complete`](Self::complete): a header in several pieces.
    #[cold]
    fn hold(&mut self, more: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
        let held = usize::from(self.len);
        for (slot, byte) in self.bytes.iter_mut().skip(held).zip(more) {
            *slot = *byte;
            self.len += 1;
        }
        let known = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        // What was held did not make a header, so a whole one ends inside `more`.
        Ok(Header::parse(known)?.map(|(header, len)| (header, len - held)))
    }
}

/// What is to be told about a frame once its payload has passed.
#[derive(Clone, Copy, Debug)]
struct OpenFrame {
    opcode: OpCode,
    fin: bool,
    /// The first two bytes of the masking key, into which the first two bytes of payload are
    /// XORed as they come (section 5.3): after both, these are the unmasked bytes.
    code: [u8; 2],
    /// How many bytes of `code` are unmasked; only a Close frame counts.
    code_len: u8,
}

impl OpenFrame {
    fn new(header: &Header) -> Self {
        let [a, b, _, _] = header.mask.unwrap_or_default();
        OpenFrame {
            opcode: header.opcode,
            fin: header.fin,
            code: [a, b],
            code_len: 0,
        }
    }

    /// Takes the status code of a Close frame out of the next piece of its payload.
    #[cold]
    fn note_code(&mut self, payload: &[u8]) {
        let seen = usize::from(self.code_len);
        for (slot, byte) in self.code.iter_mut().skip(seen).zip(payload) {
            *slot ^= byte;
            self.code_len += 1;
        }
    }

    fn end(&self) -> FrameEnd {
        let has_code = usize::from(self.code_len) == self.code.len();
        FrameEnd {
            opcode: self.opcode,
            fin: self.fin,
            close_code: has_code.then(|| u16::from_be_bytes(self.code)),
        }
    }
}
