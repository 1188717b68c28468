//! Thin public wrappers of the frame scanner for the fuzz targets.
//!
//! Compiled only with `--cfg fuzzing`, and not part of the public API. The wrapped types of `wire`
//! stay private.

use crate::wire;

/// The scanner of one direction of a connection.
#[derive(Clone, Debug)]
pub struct FuzzScanner(wire::Scanner);

/// The end of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuzzFrameEnd {
    /// The opcode's value on the wire.
    pub opcode: u8,
    /// Whether the frame is the last fragment of its message.
    pub fin: bool,
    /// The status code of a Close frame, if it has one.
    pub close_code: Option<u16>,
}

/// The rule of RFC 6455 that a stream violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuzzMalformed {
    /// A reserved opcode.
    ReservedOpcode(u8),
    /// A control frame without FIN.
    FragmentedControl,
    /// A control frame with an extended payload length.
    OversizedControl,
    /// A payload length of more than 63 bits.
    LengthTopBit,
}

/// Whether a prefix may be a pong that answers a ping of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuzzProbe {
    /// Another frame.
    No,
    /// Possibly such a pong, but incomplete.
    NeedMore,
    /// The payload of a pong whose payload has the size of this crate's pings, and the length of
    /// the frame.
    Pong([u8; 8], usize),
}

impl Default for FuzzScanner {
    /// A scanner at the first frame boundary.
    fn default() -> Self {
        Self(wire::Scanner::new())
    }
}

impl FuzzScanner {
    /// Scans up to the end of the next frame or of `bytes`. Returns the number of bytes scanned.
    pub fn advance(&mut self, bytes: &[u8]) -> (usize, Option<FuzzFrameEnd>) {
        let (consumed, end) = self.0.advance(bytes);
        let end = end.map(|end| FuzzFrameEnd {
            opcode: end.opcode as u8,
            fin: end.fin,
            close_code: end.close_code,
        });
        (consumed, end)
    }

    /// The position of the next frame boundary in `bytes`.
    #[must_use]
    pub fn boundary_within(&self, bytes: &[u8]) -> Option<usize> {
        self.0.boundary_within(bytes)
    }

    /// Whether the scanner is at a frame boundary, where a control frame may be inserted.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.0.at_boundary()
    }

    /// The rule that was violated, after which frame boundaries are unknown.
    #[must_use]
    pub fn malformed(&self) -> Option<FuzzMalformed> {
        self.0.malformed().map(|rule| match rule {
            wire::Malformed::ReservedOpcode(opcode) => FuzzMalformed::ReservedOpcode(opcode),
            wire::Malformed::FragmentedControl => FuzzMalformed::FragmentedControl,
            wire::Malformed::OversizedControl => FuzzMalformed::OversizedControl,
            wire::Malformed::LengthTopBit => FuzzMalformed::LengthTopBit,
        })
    }
}

/// Whether `prefix` may be a pong that answers a ping of this crate.
#[must_use]
pub fn probe_pong(prefix: &[u8]) -> FuzzProbe {
    match wire::probe_pong(prefix) {
        wire::Probe::No => FuzzProbe::No,
        wire::Probe::NeedMore => FuzzProbe::NeedMore,
        wire::Probe::Pong { payload, frame_len } => FuzzProbe::Pong(payload, frame_len),
    }
}
