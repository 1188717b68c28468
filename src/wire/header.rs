//! The frame header: RFC 6455 section 5.2, with the limits on control frames of section 5.5.
//!
//! ```text
//! byte 0        FIN, RSV1-3, opcode
//! byte 1        MASK, 7-bit payload length (126 and 127 announce an extended length)
//! 0, 2 or 8     extended payload length, big-endian
//! 0 or 4        masking key
//! ```

use std::fmt;

use super::OpCode;

/// The longest header: 2 bytes, a 64-bit length and a masking key.
pub(super) const MAX_HEADER_BYTES: usize = 2 + 8 + 4;

/// FIN, in a header's first byte.
pub(super) const FIN: u8 = 0x80;
/// MASK, in a header's second byte.
pub(super) const MASK: u8 = 0x80;
/// A 16-bit length follows the second byte.
const LENGTH_16: u8 = 126;
/// A 64-bit length follows the second byte.
const LENGTH_64: u8 = 127;

/// The rule that a stream violates, so that it is not a sequence of WebSocket frames.
///
/// After a violation the next frame boundary cannot be trusted, or the peer does not conform to RFC
/// 6455. The crate then passes the stream through unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// An opcode of 0x3-0x7 or 0xB-0xF.
    ReservedOpcode(u8),
    /// A control frame without FIN.
    FragmentedControl,
    /// A control frame with an extended payload length, that is, of more than 125 bytes.
    OversizedControl,
    /// A 64-bit payload length with its most significant bit set.
    LengthTopBit,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::ReservedOpcode(opcode) => write!(f, "reserved opcode {opcode:#x}"),
            Malformed::FragmentedControl => f.write_str("fragmented control frame"),
            Malformed::OversizedControl => f.write_str("control frame of more than 125 bytes"),
            Malformed::LengthTopBit => f.write_str("payload length of more than 63 bits"),
        }
    }
}

/// A complete header, without the RSV bits, which this crate ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Whether this is the last fragment of its message.
    pub(crate) fin: bool,
    /// The type of the frame.
    pub(crate) opcode: OpCode,
    /// The masking key; `None` if the frame is not masked.
    pub(crate) mask: Option<[u8; 4]>,
    /// The number of bytes after the header; less than 2^63.
    pub(crate) payload_len: u64,
}

impl Header {
    /// Parses the header at the beginning of `bytes`. Returns it with its length in bytes.
    ///
    /// `None` means that the header is incomplete, which [`MAX_HEADER_BYTES`] bytes never are.
    ///
    /// Each rule is checked as soon as the bytes that it concerns are present, in their order. So
    /// the result for a stream does not depend on how the stream is split into reads.
    ///
    /// The MASK bit is not checked against the sender's role (section 5.1), only used to find the
    /// end of the frame; a violation is left to the application's codec.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let Some((&first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let fin = first & FIN != 0;
        let Some(opcode) = OpCode::of(first) else {
            return Err(Malformed::ReservedOpcode(first & 0x0F));
        };
        if opcode.is_control() && !fin {
            return Err(Malformed::FragmentedControl);
        }

        let Some((&second, rest)) = rest.split_first() else {
            return Ok(None);
        };
        let short_len = second & !MASK;
        if opcode.is_control() && short_len >= LENGTH_16 {
            return Err(Malformed::OversizedControl);
        }

        let (payload_len, rest) = match short_len {
            LENGTH_16 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Ok(None),
            },
            LENGTH_64 => {
                if rest.first().is_some_and(|byte| byte & 0x80 != 0) {
                    return Err(Malformed::LengthTopBit);
                }
                match rest.split_first_chunk() {
                    Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                    None => return Ok(None),
                }
            }
            len => (u64::from(len), rest),
        };

        let (mask, rest) = if second & MASK != 0 {
            match rest.split_first_chunk() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Ok(None),
            }
        } else {
            (None, rest)
        };

        let header = Header {
            fin,
            opcode,
            mask,
            payload_len,
        };
        Ok(Some((header, bytes.len() - rest.len())))
    }

    /// Encodes the header with the shortest length that fits, and with all RSV bits 0.
    #[cfg(feature = "test-util")]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let fin = if self.fin { FIN } else { 0 };
        let mask = if self.mask.is_some() { MASK } else { 0 };
        let first = fin | self.opcode as u8;
        let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES);
        match (
            u8::try_from(self.payload_len),
            u16::try_from(self.payload_len),
        ) {
            (Ok(len), _) if len < LENGTH_16 => bytes.extend([first, mask | len]),
            (_, Ok(len)) => {
                bytes.extend([first, mask | LENGTH_16]);
                bytes.extend(len.to_be_bytes());
            }
            _ => {
                bytes.extend([first, mask | LENGTH_64]);
                bytes.extend(self.payload_len.to_be_bytes());
            }
        }
        bytes.extend(self.mask.into_iter().flatten());
        bytes
    }
}

/// Whether `bytes` are exactly one data frame with FIN and a length of at most 16 bits. A fraction of
/// the cost of [`Header::parse`].
#[inline]
pub(super) fn is_final_data_frame(bytes: &[u8]) -> bool {
    let [first, second, rest @ ..] = bytes else {
        return false;
    };
    let (payload_len, length_bytes) = match (second & !MASK, rest) {
        (LENGTH_64, _) => return false,
        (LENGTH_16, [high, low, ..]) => (u16::from_be_bytes([*high, *low]), 2),
        (LENGTH_16, _) => return false,
        (len, _) => (u16::from(len), 0),
    };
    let key_bytes = if second & MASK == 0 { 0 } else { 4 };
    // FIN, any RSV bits, and an opcode of 0x0-0x2.
    first & FIN != 0
        && first & 0x0F <= OpCode::Binary as u8
        && rest.len() == length_bytes + key_bytes + usize::from(payload_len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::error::{Error, ProtocolError};
    use tungstenite::protocol::frame::coding::OpCode as OracleOpCode;

    #[cfg(feature = "test-util")]
    use super::super::tests::oracle_frame;
    use super::super::tests::{KEY, any_header_bytes, oracle_opcode, oracle_parse};
    use super::*;

    #[cfg(feature = "test-util")]
    #[test]
    fn encoded_headers_equal_those_of_tungstenite() {
        for len in [0, 1, 125, 126, 255, 256, 65_535, 65_536] {
            for mask in [None, Some(KEY)] {
                for (fin, opcode) in [(true, OpCode::Text), (false, OpCode::Continuation)] {
                    let header = Header {
                        fin,
                        opcode,
                        mask,
                        payload_len: len as u64,
                    };
                    let head = header.encode();
                    let frame = oracle_frame(fin, 0, opcode, mask, &vec![0; len]);
                    assert_eq!(head, frame[..frame.len() - len], "{header:?}");
                }
            }
        }
    }

    #[test]
    fn each_class_of_headers_is_parsed() {
        let [a, b, c, d] = KEY;
        // (bytes, masked, FIN, opcode, payload length)
        let table: &[(&[u8], bool, bool, OpCode, u64)] = &[
            (&[0x81, 0], false, true, OpCode::Text, 0),
            (&[0x01, 5], false, false, OpCode::Text, 5),
            (&[0x82, 125], false, true, OpCode::Binary, 125),
            (&[0x00, 1], false, false, OpCode::Continuation, 1),
            (&[0x80, 1], false, true, OpCode::Continuation, 1),
            (&[0x88, 2], false, true, OpCode::Close, 2),
            (&[0x89, 125], false, true, OpCode::Ping, 125),
            (&[0x8A, 0], false, true, OpCode::Pong, 0),
            (&[0x82, 126, 0, 126], false, true, OpCode::Binary, 126),
            (&[0x82, 126, 0xFF, 0xFF], false, true, OpCode::Binary, 65535),
            (
                &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0],
                false,
                true,
                OpCode::Binary,
                65536,
            ),
            (
                &[0x82, 127, 0x7F, 255, 255, 255, 255, 255, 255, 255],
                false,
                true,
                OpCode::Binary,
                u64::MAX >> 1,
            ),
            // Lengths that are not minimal do not move the frame boundaries.
            (&[0x82, 126, 0, 7], false, true, OpCode::Binary, 7),
            (
                &[0x82, 127, 0, 0, 0, 0, 0, 0, 0, 7],
                false,
                true,
                OpCode::Binary,
                7,
            ),
            // RSV bits are opaque, on control frames too.
            (&[0xC1, 3], false, true, OpCode::Text, 3),
            (&[0xF9, 3], false, true, OpCode::Ping, 3),
            (&[0x70, 3], false, false, OpCode::Continuation, 3),
            // The same with a masking key.
            (&[0x81, 0x80, a, b, c, d], true, true, OpCode::Text, 0),
            (&[0x8A, 0x88, a, b, c, d], true, true, OpCode::Pong, 8),
            (
                &[0x82, 0xFE, 1, 0, a, b, c, d],
                true,
                true,
                OpCode::Binary,
                256,
            ),
            (
                &[0x02, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, a, b, c, d],
                true,
                false,
                OpCode::Binary,
                1 << 32,
            ),
        ];
        for &(bytes, masked, fin, opcode, payload_len) in table {
            let header = Header {
                fin,
                opcode,
                mask: masked.then_some(KEY),
                payload_len,
            };
            for end in 0..bytes.len() {
                assert_eq!(
                    Header::parse(&bytes[..end]),
                    Ok(None),
                    "{bytes:x?}[..{end}]"
                );
            }
            assert_eq!(
                Header::parse(bytes),
                Ok(Some((header, bytes.len()))),
                "{bytes:x?}"
            );
            let more = [bytes, &[0xFF; 3]].concat();
            assert_eq!(
                Header::parse(&more),
                Ok(Some((header, bytes.len()))),
                "{bytes:x?}"
            );
        }
    }

    #[test]
    fn malformed_displays_the_violation() {
        let table = [
            (Malformed::ReservedOpcode(0xB), "reserved opcode 0xb"),
            (Malformed::FragmentedControl, "fragmented control frame"),
            (
                Malformed::OversizedControl,
                "control frame of more than 125 bytes",
            ),
            (
                Malformed::LengthTopBit,
                "payload length of more than 63 bits",
            ),
        ];
        for (malformed, text) in table {
            assert_eq!(malformed.to_string(), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 2048 }))]

        #[test]
        fn parse_agrees_with_tungstenite(bytes in any_header_bytes()) {
            match Header::parse(&bytes) {
                Ok(Some((ours, len))) => {
                    let (theirs, payload_len, their_len) =
                        oracle_parse(&bytes).expect("accepted").expect("complete");
                    prop_assert_eq!(len, their_len);
                    prop_assert_eq!(ours.payload_len, payload_len);
                    prop_assert_eq!(ours.fin, theirs.is_final);
                    prop_assert_eq!(oracle_opcode(ours.opcode), theirs.opcode);
                    prop_assert_eq!(ours.mask, theirs.mask);
                }
                Ok(None) => prop_assert!(matches!(oracle_parse(&bytes), Ok(None))),
                Err(verdict) => {
                    // tungstenite's parser checks only reserved opcodes, and only in a complete
                    // header; its codec checks some of the other rules. So it parses the padded
                    // header, and the rule is checked on the fields that it returns.
                    let mut padded = bytes.clone();
                    padded.resize(bytes.len().max(MAX_HEADER_BYTES), 0);
                    match (verdict, oracle_parse(&padded)) {
                        (
                            Malformed::ReservedOpcode(opcode),
                            Err(Error::Protocol(ProtocolError::InvalidOpcode(theirs))),
                        ) => prop_assert_eq!(opcode, theirs),
                        (verdict, Ok(Some((header, payload_len, _)))) => {
                            let control = matches!(header.opcode, OracleOpCode::Control(_));
                            let violated = match verdict {
                                Malformed::ReservedOpcode(_) => false,
                                // Section 5.5: control frames MUST NOT be fragmented.
                                Malformed::FragmentedControl => control && !header.is_final,
                                // Section 5.5: a payload of 125 bytes or less, hence section 5.2's
                                // minimal encoding never uses an extended length.
                                Malformed::OversizedControl => control && padded[1] & 0x7F > 125,
                                // Section 5.2: the most significant bit MUST be 0.
                                Malformed::LengthTopBit => payload_len >> 63 == 1,
                            };
                            prop_assert!(violated, "{}", verdict);
                        }
                        (verdict, theirs) => prop_assert!(false, "{verdict} but {theirs:?}"),
                    }
                }
            }
        }
    }
}
