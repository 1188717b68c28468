//! What fuzz targets need of the crate's inside. It is compiled for them alone (`--cfg fuzzing`),
//! and no part of the public API: thin wrappers, so that nothing else has to be visible.

use crate::wire;

/// The scanner of one direction of a connection.
#[derive(Clone, Debug)]
pub struct Scanner(wire::Scanner);

/// A whole frame has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEnd {
    /// The value on the wire.
    pub opcode: u8,
    /// Whether it was the last fragment of its message.
    pub fin: bool,
    /// The status code of a Close frame that has one.
    pub close_code: Option<u16>,
}

/// The rule that a stream broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The value is reserved.
    ReservedOpcode(u8),
    /// A control frame without FIN.
    FragmentedControl,
    /// A control frame with an extended length.
    OversizedControl,
    /// A length of more than 63 bits.
    LengthTopBit,
}

/// What a prefix is to our pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Something else.
    No,
    /// Too short to tell.
    NeedMore,
    /// A pong with a payload of the size of ours, and the length of its frame.
    Pong([u8; 8], usize),
}

impl Default for Scanner {
    /// At the first frame boundary.
    fn default() -> Self {
        Self(wire::Scanner::new())
    }
}

impl Scanner {
    /// Up to the end of the next frame, or of `bytes`.
    pub fn advance(&mut self, bytes: &[u8]) -> (usize, Option<FrameEnd>) {
        let (consumed, end) = self.0.advance(bytes);
        let end = end.map(|end| FrameEnd {
            opcode: end.opcode as u8,
            fin: end.fin,
            close_code: end.close_code,
        });
        (consumed, end)
    }

    /// Where the next boundary is in `bytes`.
    #[must_use]
    pub fn boundary_within(&self, bytes: &[u8]) -> Option<usize> {
        self.0.boundary_within(bytes)
    }

    /// Whether a control frame may stand here.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.0.at_boundary()
    }

    /// Whether and why boundaries are lost.
    #[must_use]
    pub fn malformed(&self) -> Option<Malformed> {
        self.0.malformed().map(|rule| match rule {
            wire::Malformed::ReservedOpcode(opcode) => Malformed::ReservedOpcode(opcode),
            wire::Malformed::FragmentedControl => Malformed::FragmentedControl,
            wire::Malformed::OversizedControl => Malformed::OversizedControl,
            wire::Malformed::LengthTopBit => Malformed::LengthTopBit,
        })
    }
}

/// Whether `prefix` may be the answer to one of our pings.
#[must_use]
pub fn probe_pong(prefix: &[u8]) -> Probe {
    match wire::probe_pong(prefix) {
        wire::Probe::No => Probe::No,
        wire::Probe::NeedMore => Probe::NeedMore,
        wire::Probe::Pong { payload, frame_len } => Probe::Pong(payload, frame_len),
    }
}
