//! Encodes our own control frames and recognises pongs to our pings (RFC 6455 section 5.5).
//!
//! A client's frames are masked (section 5.3). The caller passes the masking key, so that this
//! module needs no source of randomness.

use super::OpCode;
use super::header::{FIN, MASK};

/// The longest payload of a control frame.
pub(crate) const MAX_CONTROL_PAYLOAD_BYTES: usize = 125;
/// The longest control frame: header, masking key, payload.
pub(crate) const MAX_CONTROL_FRAME_BYTES: usize = 2 + 4 + MAX_CONTROL_PAYLOAD_BYTES;

/// The payload of our pings. A pong of any other length does not answer one.
pub(crate) const PING_PAYLOAD_BYTES: usize = 8;
/// The longest of our pings, and of the pongs that answer them.
pub(crate) const MAX_PING_FRAME: usize = 2 + 4 + PING_PAYLOAD_BYTES;

/// Encodes one control frame at the beginning of `out` and returns its length.
///
/// The caller must pass the opcode of a control frame and a payload of at most 125 bytes; debug
/// builds assert both. In release builds a longer payload is truncated, so the frame is
/// well-formed.
pub(crate) fn encode(
    opcode: OpCode,
    payload: &[u8],
    mask: Option<[u8; 4]>,
    out: &mut [u8; MAX_CONTROL_FRAME_BYTES],
) -> usize {
    debug_assert!(opcode.is_control(), "{opcode:?} is not a control frame");
    debug_assert!(
        payload.len() <= MAX_CONTROL_PAYLOAD_BYTES,
        "the payload of a control frame is at most 125 bytes"
    );
    let payload = payload.get(..MAX_CONTROL_PAYLOAD_BYTES).unwrap_or(payload);

    let mask_bit = if mask.is_some() { MASK } else { 0 };
    // At most 125, so the conversion keeps the value.
    let header = [FIN | opcode as u8, mask_bit | payload.len() as u8];
    let mut rest = put(out, &header);
    if let Some(key) = mask {
        rest = put(rest, &key);
    }
    for (slot, byte) in rest.iter_mut().zip(payload) {
        *slot = *byte;
    }
    if let Some(key) = mask {
        for (slot, key) in rest
            .iter_mut()
            .zip(key.into_iter().cycle())
            .take(payload.len())
        {
            *slot ^= key;
        }
    }
    header.len() + mask.map_or(0, |key| key.len()) + payload.len()
}

/// Copies `bytes` to the beginning of `out` and returns the remaining slice.
fn put<'a, const N: usize>(out: &'a mut [u8], bytes: &[u8; N]) -> &'a mut [u8] {
    match out.split_first_chunk_mut() {
        Some((slot, rest)) => {
            *slot = *bytes;
            rest
        }
        None => &mut [],
    }
}

/// One of our pings, encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PingFrame([u8; MAX_PING_FRAME]);

impl PingFrame {
    pub(crate) fn new(payload: [u8; PING_PAYLOAD_BYTES], mask: Option<[u8; 4]>) -> Self {
        let mut frame = [0; MAX_CONTROL_FRAME_BYTES];
        encode(OpCode::Ping, &payload, mask, &mut frame);
        let mut ping = [0; MAX_PING_FRAME];
        ping.copy_from_slice(&frame[..MAX_PING_FRAME]);
        Self(ping)
    }

    /// The frame, whose MASK bit tells its length.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.0[1] & MASK {
            0 => &self.0[..2 + PING_PAYLOAD_BYTES],
            _ => &self.0,
        }
    }
}

/// Encodes a Close frame with a status code and a reason (section 5.5.1).
///
/// A reason of more than 123 bytes is truncated after the last character that fits completely,
/// since it must be valid UTF-8.
pub(crate) fn encode_close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut payload = [0; MAX_CONTROL_PAYLOAD_BYTES];
    let (status, room) = payload.split_at_mut(size_of::<u16>());
    status.copy_from_slice(&code.to_be_bytes());
    let mut end = reason.len().min(room.len());
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    for (slot, byte) in room.iter_mut().zip(reason.bytes().take(end)) {
        *slot = byte;
    }
    let payload = &payload[..size_of::<u16>() + end];

    let mut frame = [0; MAX_CONTROL_FRAME_BYTES];
    let len = encode(OpCode::Close, payload, mask, &mut frame);
    frame[..len].to_vec()
}

/// The result of [`probe_pong`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Another frame.
    No,
    /// Possibly such a pong, but the frame is incomplete.
    NeedMore,
    /// A pong whose payload has the size of our pings'.
    Pong {
        /// The payload, unmasked. The caller must check that it was sent in a ping.
        payload: [u8; PING_PAYLOAD_BYTES],
        /// The length of the frame; at most [`MAX_PING_FRAME`].
        frame_len: usize,
    },
}

/// Whether `prefix`, which starts at a frame boundary, may be a pong that answers one of our pings.
///
/// An unrecognised frame stays in the stream, so the test is strict: a frame with an RSV bit set or
/// with a length that is not minimal does not match. Returns `No` at the first byte that differs.
/// The MASK bit is not checked against the sender's role (section 5.1).
pub(crate) fn probe_pong(prefix: &[u8]) -> Probe {
    let Some((&first, rest)) = prefix.split_first() else {
        return Probe::NeedMore;
    };
    if first != FIN | OpCode::Pong as u8 {
        return Probe::No;
    }
    let Some((&second, rest)) = rest.split_first() else {
        return Probe::NeedMore;
    };
    if usize::from(second & !MASK) != PING_PAYLOAD_BYTES {
        return Probe::No;
    }

    let (key, rest) = if second & MASK != 0 {
        match rest.split_first_chunk::<4>() {
            Some((key, rest)) => (*key, rest),
            None => return Probe::NeedMore,
        }
    } else {
        ([0; 4], rest)
    };
    let Some((payload, rest)) = rest.split_first_chunk::<PING_PAYLOAD_BYTES>() else {
        return Probe::NeedMore;
    };

    let mut payload = *payload;
    for (byte, key) in payload.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
    Probe::Pong {
        payload,
        frame_len: prefix.len() - rest.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::protocol::frame::coding::{CloseCode, Control, OpCode as OracleOpCode};
    use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};

    use super::super::scanner::{FrameEnd, Scanner};
    use super::super::tests::{KEY, oracle_frame, oracle_opcode, oracle_parse};
    use super::*;

    /// Parses one frame with tungstenite: header, unmasked payload, length of the frame.
    fn oracle_read(bytes: &[u8]) -> (FrameHeader, Vec<u8>, usize) {
        let (header, payload_len, len) = oracle_parse(bytes).expect("accepted").expect("complete");
        let end = len + payload_len as usize;
        let key = header.mask.unwrap_or_default().into_iter().cycle();
        let payload = bytes[len..end]
            .iter()
            .zip(key)
            .map(|(byte, key)| byte ^ key)
            .collect();
        (header, payload, end)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

        #[test]
        fn encoded_frames_equal_those_of_tungstenite(
            opcode in prop::sample::select(vec![OpCode::Close, OpCode::Ping, OpCode::Pong]),
            payload in prop::collection::vec(any::<u8>(), 0..=125),
            mask: Option<[u8; 4]>,
        ) {
            let mut out = [0xAA; MAX_CONTROL_FRAME_BYTES];
            let len = encode(opcode, &payload, mask, &mut out);
            prop_assert_eq!(&out[..len], &oracle_frame(true, 0, opcode, mask, &payload)[..]);
            prop_assert!(out[len..].iter().all(|byte| *byte == 0xAA), "wrote beyond the frame");

            let (header, data, end) = oracle_read(&out);
            prop_assert_eq!(header.opcode, oracle_opcode(opcode));
            prop_assert!(header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3);
            prop_assert_eq!((header.mask, data, end), (mask, payload, len));
        }

        #[test]
        fn the_pong_to_an_encoded_ping_is_recognised(
            payload: [u8; PING_PAYLOAD_BYTES],
            mask: Option<[u8; 4]>,
            key: Option<[u8; 4]>,
        ) {
            let ping = PingFrame::new(payload, mask);
            let (header, data, end) = oracle_read(ping.bytes());
            prop_assert_eq!(header.opcode, OracleOpCode::Control(Control::Ping));
            prop_assert_eq!((header.mask, end), (mask, ping.bytes().len()));
            prop_assert_eq!(&data[..], &payload[..]);

            // The pong has the payload of the ping, masked or not, and another frame follows it.
            let pong = oracle_frame(true, 0, OpCode::Pong, key, &data);
            let stream = [&pong[..], b"\x81\x00"].concat();
            for end in 0..pong.len() {
                prop_assert_eq!(probe_pong(&stream[..end]), Probe::NeedMore);
            }
            for end in pong.len()..=stream.len() {
                let want = Probe::Pong { payload, frame_len: pong.len() };
                prop_assert_eq!(probe_pong(&stream[..end]), want);
            }
        }

        #[test]
        #[cfg_attr(miri, ignore = "building the strategy for the reason takes minutes")]
        fn a_close_frame_has_the_code_and_the_reason(
            code: u16,
            reason in "\\PC{0,60}",
            mask: Option<[u8; 4]>,
        ) {
            let frame = encode_close(code, &reason, mask);
            let (header, data, end) = oracle_read(&frame);
            prop_assert_eq!(header.opcode, OracleOpCode::Control(Control::Close));
            prop_assert_eq!((header.mask, end), (mask, frame.len()));
            prop_assert_eq!(&data[..2], &code.to_be_bytes()[..]);
            let sent = std::str::from_utf8(&data[2..]).expect("a truncated reason is valid UTF-8");
            prop_assert!(reason.starts_with(sent));
            // The next character would not have fitted.
            let next = reason[sent.len()..].chars().next();
            prop_assert!(next.is_none_or(|next| sent.len() + next.len_utf8() > 123));
            let end = FrameEnd { opcode: OpCode::Close, fin: true, close_code: Some(code) };
            let mut scanner = Scanner::new();
            prop_assert_eq!(scanner.advance(&frame), (frame.len(), Some(end)));
        }
    }

    #[test]
    fn a_close_frame_equals_that_of_tungstenite() {
        let close = CloseFrame {
            code: CloseCode::Error,
            reason: "heartbeat timeout".into(),
        };
        let mut want = Vec::new();
        Frame::close(Some(close))
            .format(&mut want)
            .expect("writing to a Vec");
        assert_eq!(encode_close(1011, "heartbeat timeout", None), want);
        assert_eq!(encode_close(1001, &"é".repeat(62), None).len(), 2 + 2 + 122);
        assert_eq!(
            encode_close(1001, &"a".repeat(123), Some(KEY)).len(),
            MAX_CONTROL_FRAME_BYTES
        );
        assert_eq!(
            encode_close(1001, &"a".repeat(900), Some(KEY)).len(),
            MAX_CONTROL_FRAME_BYTES
        );
    }

    #[test]
    fn probe_pong_rejects_a_frame_at_the_first_byte_that_differs() {
        for masked in [false, true] {
            let good = oracle_frame(true, 0, OpCode::Pong, masked.then_some(KEY), b"01234567");
            for index in 0..2 {
                // A flipped MASK bit makes another pong, of another length.
                let is_pong = |value: u8| index == 1 && value ^ good[1] == MASK;
                for value in (0..=255).filter(|value| *value != good[index] && !is_pong(*value)) {
                    let mut bytes = good.clone();
                    bytes[index] = value;
                    for end in 0..=bytes.len() {
                        let want = if end <= index {
                            Probe::NeedMore
                        } else {
                            Probe::No
                        };
                        assert_eq!(probe_pong(&bytes[..end]), want, "{:x?}", &bytes[..end]);
                    }
                }
            }
        }
        // A pong to an application's ping of another length, and data that looks like a pong.
        assert_eq!(
            probe_pong(&oracle_frame(true, 0, OpCode::Pong, None, b"0123456")),
            Probe::No
        );
        assert_eq!(
            probe_pong(&oracle_frame(true, 0, OpCode::Binary, None, b"01234567")),
            Probe::No
        );
    }
}
