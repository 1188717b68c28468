//! WebSocket frames on the wire ([RFC 6455 section 5]), without I/O.
//!
//! The middleware sits between the transport and the application's WebSocket library, so it needs
//! only three facts about a byte stream: where frames begin and end, which frames passed, and
//! whether the current frame is a pong that answers one of our own pings. This module derives them
//! from byte slices alone: no runtime, no clock, no allocation per frame, and no panic on any
//! input.
//!
//! * [`header`]: the frame header of section 5.2 and the rules that a peer can violate in it.
//! * [`scanner`]: an incremental scanner of a stream in chunks of any size, down to single bytes.
//! * [`control`]: our own pings and Close frames, and the recognition of pongs (section 5.5).
//!
//! Only violations that affect frame boundaries are detected. RSV bits belong to extensions
//! (permessage-deflate sets RSV1). Masking by the right side (section 5.1), the order of fragments,
//! the encoding of text, minimal lengths and the validity of close codes are checked by the
//! application's codec.
//!
//! [RFC 6455 section 5]: https://www.rfc-editor.org/rfc/rfc6455#section-5

mod control;
mod header;
mod scanner;
#[cfg(test)]
mod tests;

pub(crate) use control::{MAX_PING_FRAME, PingFrame, Probe, encode_close, probe_pong};
pub(crate) use header::Malformed;
pub(crate) use scanner::{FrameEnd, Scanner};
#[cfg(feature = "test-util")]
pub(crate) use {control::MAX_CONTROL_PAYLOAD_BYTES, header::Header};

/// Our end of the connection.
///
/// A client masks every frame it sends and a server masks none (RFC 6455 section 5.1). The role
/// decides only whether our own frames are masked; received frames may be masked or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// We accepted the opening handshake.
    Server,
    /// We started the opening handshake.
    Client,
}

impl Role {
    /// Whether frames that we write must be masked.
    pub(crate) const fn outbound_masked(self) -> bool {
        matches!(self, Role::Client)
    }
}

/// The opcodes that RFC 6455 section 5.2 defines; the discriminants are the values on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpCode {
    /// A further fragment of a data message.
    Continuation = 0x0,
    /// A text message, or its first fragment.
    Text = 0x1,
    /// A binary message, or its first fragment.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// A request for a pong.
    Ping = 0x9,
    /// The answer to a ping, or an unsolicited sign of life.
    Pong = 0xA,
}

impl OpCode {
    /// The opcode of a header's first byte; `None` when the value is reserved.
    const fn of(first: u8) -> Option<Self> {
        match first & 0x0F {
            0x0 => Some(OpCode::Continuation),
            0x1 => Some(OpCode::Text),
            0x2 => Some(OpCode::Binary),
            0x8 => Some(OpCode::Close),
            0x9 => Some(OpCode::Ping),
            0xA => Some(OpCode::Pong),
            _ => None,
        }
    }

    /// Whether this is a control frame (section 5.5), allowed between two fragments. All other
    /// frames carry application data (section 5.6).
    pub(crate) const fn is_control(self) -> bool {
        matches!(self, OpCode::Close | OpCode::Ping | OpCode::Pong)
    }
}
