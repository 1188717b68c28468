//! An incremental scanner that finds the frames of a byte stream (RFC 6455 section 5.2).
//!
//! The scanner is a `Copy` value that holds at most one incomplete header and a countdown of
//! payload bytes. A copy of it is a cheap look-ahead, and two of them (inbound, outbound) cost a
//! connection 32 bytes.

use super::OpCode;
use super::header::{Header, MAX_HEADER_BYTES, Malformed, is_final_data_frame};

/// The end of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameEnd {
    /// The type of the frame.
    pub(crate) opcode: OpCode,
    /// Whether the frame is the last fragment of its message; always set on control frames.
    pub(crate) fin: bool,
    /// The status code of a Close frame, if it has one (section 5.5.1). It is not validated.
    pub(crate) close_code: Option<u16>,
}

/// Finds the frame boundaries of one direction of a connection.
///
/// Bytes are fed in chunks of any size. A header that is complete in one chunk is parsed in place,
/// and the payload is skipped by its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanner {
    state: ScanState,
}

// Every connection has two.
#[cfg(test)]
const _: () = assert!(size_of::<Scanner>() <= 16);

#[derive(Clone, Copy, Debug)]
enum ScanState {
    /// At a frame boundary, or inside a header.
    Header(PartialHeader),
    /// Inside a payload. Between calls `remaining` is not zero: a frame ends with its last byte.
    Payload { frame: OpenFrame, remaining: u64 },
    /// A rule was violated. Frame boundaries are unknown from here on.
    Malformed(Malformed),
}

impl Scanner {
    /// A scanner at the first frame boundary, directly after the opening handshake.
    pub(crate) const fn new() -> Self {
        Scanner {
            state: ScanState::Header(PartialHeader::EMPTY),
        }
    }

    /// Whether the stream is at a frame boundary, where a control frame may be inserted.
    #[inline]
    pub(crate) const fn at_boundary(&self) -> bool {
        matches!(self.state, ScanState::Header(PartialHeader { len: 0, .. }))
    }

    /// The opcode of the current, unfinished frame. `None` at a frame boundary, and after malformed
    /// input.
    #[inline]
    pub(crate) fn open_frame(&self) -> Option<OpCode> {
        match &self.state {
            ScanState::Header(PartialHeader { len: 0, .. }) | ScanState::Malformed(_) => None,
            ScanState::Header(partial) => OpCode::of(partial.bytes[0]),
            ScanState::Payload { frame, .. } => Some(frame.opcode),
        }
    }

    /// The rule that the stream has violated. Once set, it stays set, and no more frames are
    /// reported.
    #[inline]
    pub(crate) const fn malformed(&self) -> Option<Malformed> {
        match self.state {
            ScanState::Malformed(malformed) => Some(malformed),
            _ => None,
        }
    }

    /// Consumes `bytes` up to and including the end of the next frame, or all of them.
    ///
    /// Returns the number of bytes consumed, and the frame if it ends with the last of them. The
    /// cost does not depend on the size of the payload.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> (usize, Option<FrameEnd>) {
        if self.at_boundary() {
            if let Some((len, end)) = complete_frame(bytes) {
                return (len, Some(end));
            }
        }
        self.advance_partial(bytes)
    }

    /// [`advance`](Self::advance) for a Close frame, and for a frame that is not completely in
    /// `bytes`.
    fn advance_partial(&mut self, bytes: &[u8]) -> (usize, Option<FrameEnd>) {
        let mut header_len = 0;
        if let ScanState::Header(partial) = &mut self.state {
            match partial.complete(bytes) {
                Ok(Some((header, used))) => {
                    self.state = ScanState::Payload {
                        frame: OpenFrame::new(&header),
                        remaining: header.payload_len,
                    };
                    header_len = used;
                }
                Ok(None) => return (bytes.len(), None),
                Err(malformed) => self.state = ScanState::Malformed(malformed),
            }
        }
        let ScanState::Payload { frame, remaining } = &mut self.state else {
            return (bytes.len(), None);
        };

        let rest = bytes.get(header_len..).unwrap_or_default();
        // A length that does not fit a `usize` exceeds any slice.
        let payload = match usize::try_from(*remaining) {
            Ok(remaining) => rest.get(..remaining).unwrap_or(rest),
            Err(_) => rest,
        };
        if frame.opcode == OpCode::Close {
            frame.read_close_code(payload);
        }
        *remaining -= payload.len() as u64;

        let end = (*remaining == 0).then(|| frame.end());
        if end.is_some() {
            self.state = ScanState::Header(PartialHeader::EMPTY);
        }
        (header_len + payload.len(), end)
    }

    /// Whether `bytes` are exactly one data frame that ends its message. Consuming them would not
    /// change the scanner. False also for such a frame of more than 64 KiB.
    #[inline]
    pub(crate) fn is_message(&self, bytes: &[u8]) -> bool {
        self.at_boundary() && is_final_data_frame(bytes)
    }

    /// The number of bytes up to the first frame boundary after at least one byte. `None` if there
    /// is no boundary in `bytes`, or the stream is malformed.
    pub(crate) fn boundary_within(&self, bytes: &[u8]) -> Option<usize> {
        let mut ahead = *self;
        let (consumed, end) = ahead.advance(bytes);
        end.map(|_| consumed)
    }
}

/// The common case: `bytes` begin with a complete frame other than a Close frame. The state of the
/// scanner does not change.
fn complete_frame(bytes: &[u8]) -> Option<(usize, FrameEnd)> {
    let (header, header_len) = Header::parse(bytes).ok()??;
    let payload_len = usize::try_from(header.payload_len).ok()?;
    let is_complete = payload_len <= bytes.len() - header_len;
    (is_complete && header.opcode != OpCode::Close).then_some((
        header_len + payload_len,
        FrameEnd {
            opcode: header.opcode,
            fin: header.fin,
            close_code: None,
        },
    ))
}

/// The received part of an incomplete header.
#[derive(Clone, Copy, Debug)]
struct PartialHeader {
    bytes: [u8; MAX_HEADER_BYTES],
    /// How many of `bytes` are set. Less than [`MAX_HEADER_BYTES`], which always hold a complete
    /// header.
    len: u8,
}

impl PartialHeader {
    const EMPTY: Self = PartialHeader {
        bytes: [0; MAX_HEADER_BYTES],
        len: 0,
    };

    /// Continues with `more`. Returns the header and how many bytes of `more` it took, or `None` if
    /// the header is still incomplete and all of `more` was buffered.
    fn complete(&mut self, more: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
        if self.len == 0 {
            // A header in one piece is not copied.
            let parsed = Header::parse(more)?;
            if parsed.is_some() {
                return Ok(parsed);
            }
        }
        self.buffer(more)
    }

    /// The rare case of [`complete`](Self::complete): a header in several pieces.
    #[cold]
    fn buffer(&mut self, more: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
        let buffered = usize::from(self.len);
        for (slot, byte) in self.bytes.iter_mut().skip(buffered).zip(more) {
            *slot = *byte;
            self.len += 1;
        }
        let known = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        // The bytes buffered before were an incomplete header, so a complete one ends inside
        // `more`.
        Ok(Header::parse(known)?.map(|(header, len)| (header, len - buffered)))
    }
}

/// The current frame: what its [`FrameEnd`] will report.
#[derive(Clone, Copy, Debug)]
struct OpenFrame {
    opcode: OpCode,
    fin: bool,
    /// The first two bytes of the masking key. The first two payload bytes of a Close frame are
    /// XORed into them as they arrive (section 5.3), which yields the unmasked status code.
    code: [u8; 2],
    /// How many bytes of `code` are unmasked; stays 0 in other frames.
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

    /// Reads the status code of a Close frame from the next piece of its payload.
    #[cold]
    fn read_close_code(&mut self, payload: &[u8]) {
        let known = usize::from(self.code_len);
        for (slot, byte) in self.code.iter_mut().skip(known).zip(payload) {
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
