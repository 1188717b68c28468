//! What the program of a client does with the server's bytes: messages, pongs, Close frames.

use std::collections::VecDeque;
use std::mem;

use crate::wire::{Header, OpCode, Scanner, encode_close};

/// The reserved bits of a header's first byte, for extensions (RFC 6455 section 5.2).
const RSV_BITS: u8 = 0x70;

/// A message from the server.
///
/// Fragments are assembled (RFC 6455 section 5.4). Pings are not among the messages: the client
/// answers them, and [`Client::pings_received`](super::Client::pings_received) counts them.
///
/// ```
/// use tower_ws_liveness::HeartbeatLayer;
/// use tower_ws_liveness::test_util::{self, ServerMessage};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (io, mut client) = test_util::pair();
/// let (_io, live) = HeartbeatLayer::default().wrap_server(io);
/// live.evict(4000, "kicked");
/// let close = ServerMessage::Close {
///     code: Some(4000),
///     reason: "kicked".to_owned(),
/// };
/// assert_eq!(client.recv().await, Some(close));
/// assert_eq!(client.recv().await, None);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerMessage {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A pong, with its payload.
    Pong(Vec<u8>),
    /// The server's Close frame.
    Close {
        /// The status code. `None` if the frame has no body.
        code: Option<u16>,
        /// The reason, empty if there is none.
        reason: String,
    },
}

/// The state of a client's program. It reads frames, and answers as a stock client does.
pub(super) struct Program {
    pub(super) answers_pings: bool,
    pub(super) pings_received: u64,
    /// The beginning of a frame whose rest has not arrived.
    partial: Vec<u8>,
    /// The fragments so far of a message that is not complete.
    fragments: Option<(OpCode, Vec<u8>)>,
    messages: VecDeque<ServerMessage>,
    /// The frame that the client is sending: a test may send its parts one by one.
    sent: Scanner,
    /// Answers that wait for the end of that frame. A control frame may be sent between fragments,
    /// but not inside a frame (RFC 6455 section 5.4).
    answers: Vec<u8>,
    close_received: bool,
    /// After its Close frame a client sends no other (RFC 6455 section 5.5.1).
    close_sent: bool,
    /// The rule of RFC 6455 that the server has violated. Later bytes are ignored.
    violation: Option<String>,
}

impl Program {
    pub(super) fn new() -> Self {
        Self {
            answers_pings: true,
            pings_received: 0,
            partial: Vec::new(),
            fragments: None,
            messages: VecDeque::new(),
            sent: Scanner::new(),
            answers: Vec::new(),
            close_received: false,
            close_sent: false,
            violation: None,
        }
    }

    /// Reads bytes of the server, and returns the answers that can be sent now.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut received = mem::take(&mut self.partial);
        received.extend_from_slice(bytes);
        let mut rest = &*received;
        while self.violation.is_none() {
            match take_frame(&mut rest) {
                Ok(Some((header, payload))) => {
                    self.violation = self.receive_frame(header, payload).err();
                }
                Ok(None) => {
                    // In place, since a long frame arrives in many pieces.
                    received.drain(..received.len() - rest.len());
                    self.partial = received;
                    break;
                }
                Err(violation) => self.violation = Some(violation),
            }
        }
        self.take_answers()
    }

    /// Sends `bytes` of the client, and the answers that waited for the end of a frame among them.
    pub(super) fn send(&mut self, mut bytes: &[u8], to_server: &mut VecDeque<u8>) {
        while !bytes.is_empty() {
            let (len, end) = self.sent.advance(bytes);
            let (sent, rest) = bytes.split_at(len);
            to_server.extend(sent);
            if end.is_some_and(|end| end.opcode == OpCode::Close) {
                self.close_sent = true;
                self.answers.clear();
            }
            to_server.extend(self.take_answers());
            bytes = rest;
        }
    }

    /// Takes the answers if the client is not inside a frame. After malformed bytes it is inside
    /// none.
    fn take_answers(&mut self) -> Vec<u8> {
        match self.sent.open_frame() {
            Some(_) => Vec::new(),
            None => mem::take(&mut self.answers),
        }
    }

    fn receive_frame(&mut self, header: Header, payload: &[u8]) -> Result<(), String> {
        let payload = payload.to_vec();
        match header.opcode {
            OpCode::Ping => {
                self.pings_received += 1;
                if self.answers_pings {
                    let pong = self.frame(OpCode::Pong, &payload);
                    self.answers.extend(pong);
                }
            }
            OpCode::Pong => self.messages.push_back(ServerMessage::Pong(payload)),
            // Pings and pongs may still follow: section 5.5.1 forbids data frames.
            _ if self.close_received => {
                return Err("a frame after the Close frame".to_owned());
            }
            OpCode::Close if payload.len() == 1 => {
                return Err("a Close frame with a body of one byte".to_owned());
            }
            OpCode::Close => {
                self.close_received = true;
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let reason = text(payload.get(2..).unwrap_or_default().to_vec())?;
                let answer = match code {
                    Some(code) => self.close_frame(code, ""),
                    None => self.frame(OpCode::Close, &[]),
                };
                self.answers.extend(answer);
                self.messages
                    .push_back(ServerMessage::Close { code, reason });
            }
            OpCode::Text | OpCode::Binary if self.fragments.is_some() => {
                return Err("a message began inside a fragmented message".to_owned());
            }
            OpCode::Text | OpCode::Binary => {
                self.receive_fragment(header.opcode, payload, header.fin)?;
            }
            OpCode::Continuation => match self.fragments.take() {
                Some((opcode, mut message)) => {
                    message.extend(payload);
                    self.receive_fragment(opcode, message, header.fin)?;
                }
                None => return Err("a continuation without a message".to_owned()),
            },
        }
        Ok(())
    }

    /// Handles a message up to and including its latest fragment.
    fn receive_fragment(
        &mut self,
        opcode: OpCode,
        message: Vec<u8>,
        fin: bool,
    ) -> Result<(), String> {
        if !fin {
            self.fragments = Some((opcode, message));
            return Ok(());
        }
        self.messages.push_back(match opcode {
            OpCode::Text => ServerMessage::Text(text(message)?),
            _ => ServerMessage::Binary(message),
        });
        Ok(())
    }

    /// Takes the next message. `None` if there is none yet.
    ///
    /// # Panics
    ///
    /// Panics if the server has violated RFC 6455, after the messages from before.
    pub(super) fn take_message(&mut self) -> Option<ServerMessage> {
        let message = self.messages.pop_front();
        if let (None, Some(violation)) = (&message, &self.violation) {
            panic!("the server violated RFC 6455: {violation}");
        }
        message
    }

    /// Encodes a frame that the client sends. Empty after a Close frame.
    pub(super) fn frame(&mut self, opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        if self.close_sent {
            return Vec::new();
        }
        self.close_sent = opcode == OpCode::Close;
        let key = masking_key();
        let header = Header {
            fin: true,
            opcode,
            mask: Some(key),
            payload_len: payload.len() as u64,
        };
        let mut bytes = header.encode();
        let masked = payload.iter().zip(key.into_iter().cycle());
        bytes.extend(masked.map(|(byte, key)| byte ^ key));
        bytes
    }

    /// Encodes the client's Close frame. Empty after a Close frame.
    pub(super) fn close_frame(&mut self, code: u16, reason: &str) -> Vec<u8> {
        if mem::replace(&mut self.close_sent, true) {
            return Vec::new();
        }
        encode_close(code, reason, Some(masking_key()))
    }
}

/// A client masks each frame with a new key (RFC 6455 section 5.3).
fn masking_key() -> [u8; 4] {
    fastrand::u32(..).to_ne_bytes()
}

/// Takes a frame of the server, its header and its payload, from the beginning of `bytes`. `None` if
/// it is not complete.
fn take_frame<'a>(bytes: &mut &'a [u8]) -> Result<Option<(Header, &'a [u8])>, String> {
    if bytes.first().is_some_and(|first| first & RSV_BITS != 0) {
        return Err("a reserved bit, without an extension".to_owned());
    }
    let parsed = Header::parse(bytes).map_err(|malformed| malformed.to_string())?;
    let Some((header, len)) = parsed else {
        return Ok(None);
    };
    if header.mask.is_some() {
        return Err("a masked frame".to_owned());
    }
    // A length that does not fit a `usize` exceeds any slice.
    let payload_len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
    let body = bytes.get(len..).unwrap_or_default();
    let Some((payload, rest)) = body.split_at_checked(payload_len) else {
        return Ok(None);
    };
    *bytes = rest;
    Ok(Some((header, payload)))
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| format!("a text is not UTF-8: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(program: &mut Program, bytes: &[u8]) -> Vec<ServerMessage> {
        program.receive(bytes);
        std::iter::from_fn(|| program.take_message()).collect()
    }

    #[test]
    fn fragments_are_assembled_around_control_frames_in_pieces_of_any_size() {
        let bytes = b"\x01\x02he\x89\x01p\x80\x03llo\x8a\x01q\x82\x01\x07";
        let expected = [
            ServerMessage::Text("hello".to_owned()),
            ServerMessage::Pong(b"q".to_vec()),
            ServerMessage::Binary(vec![7]),
        ];
        for piece in 1..=bytes.len() {
            let mut program = Program::new();
            let chunks = bytes.chunks(piece);
            let messages: Vec<_> = chunks
                .flat_map(|chunk| receive(&mut program, chunk))
                .collect();
            assert_eq!(messages, expected, "{piece} bytes at a time");
            assert_eq!(program.pings_received, 1);
        }
    }

    #[test]
    fn a_violation_panics_after_the_messages_before_it() {
        let violations: [(&[u8], &str); 10] = [
            (b"\xc2\x00", "reserved bit"),
            (b"\x88\x01\x03", "one byte"),
            (b"\x88\x00\x81\x00", "after the Close frame"),
            (b"\x88\x00\x88\x00", "after the Close frame"),
            (b"\x83\x00", "reserved opcode 0x3"),
            (b"\x81\x81\x00\x00\x00\x00a", "masked"),
            (b"\x80\x00", "continuation"),
            (b"\x01\x00\x81\x00", "inside a fragmented message"),
            (b"\x81\x01\xff", "UTF-8"),
            (b"\x88\x03\x03\xe8\xff", "UTF-8"),
        ];
        for (bytes, expected) in violations {
            let mut program = Program::new();
            program.receive(b"\x82\x00");
            program.receive(bytes);
            program.receive(b"\x82\x00");
            let first = program.take_message();
            assert_eq!(first, Some(ServerMessage::Binary(Vec::new())));
            if expected == "after the Close frame" {
                let close = program.take_message();
                assert!(
                    matches!(close, Some(ServerMessage::Close { .. })),
                    "{close:?}"
                );
            }
            let take = std::panic::AssertUnwindSafe(|| program.take_message());
            let panic = std::panic::catch_unwind(take).expect_err("a violation");
            let message = panic.downcast_ref::<String>().expect("a message");
            assert!(message.contains(expected), "{message}");
        }
    }

    /// The opcodes and payload lengths of the frames that a client has sent.
    fn frames(mut bytes: &[u8]) -> Vec<(OpCode, u64)> {
        let mut frames = Vec::new();
        while let Ok(Some((header, len))) = Header::parse(bytes) {
            frames.push((header.opcode, header.payload_len));
            bytes = bytes.split_at(len + header.payload_len as usize).1;
        }
        assert_eq!(bytes, b"", "a part of a frame");
        frames
    }

    #[test]
    fn answers_wait_for_the_end_of_the_frame_that_the_client_is_sending() {
        let two = b"\x82\x83\0\0\0\0abc\x81\x82\0\0\0\0de";
        let (binary, text) = ((OpCode::Binary, 3), (OpCode::Text, 2));
        for split in 0..=two.len() {
            let (begin, rest) = two.split_at(split);
            let mut program = Program::new();
            let mut sent = VecDeque::new();
            program.send(begin, &mut sent);
            sent.extend(program.receive(b"\x89\x01p"));
            program.send(rest, &mut sent);
            let pong = (OpCode::Pong, 1);
            let expected = match split {
                0 => [pong, binary, text],
                1..=9 => [binary, pong, text],
                _ => [binary, text, pong],
            };
            assert_eq!(frames(sent.make_contiguous()), expected, "{split}");
        }
    }

    #[test]
    fn a_close_frame_that_is_sent_in_parts_is_the_last_frame() {
        let close = b"\x88\x82\0\0\0\0\x03\xe8";
        for split in 0..close.len() {
            let (begin, rest) = close.split_at(split);
            let mut program = Program::new();
            let mut sent = VecDeque::new();
            program.send(begin, &mut sent);
            if split > 0 {
                sent.extend(program.receive(b"\x89\x01p\x88\x00"));
            }
            program.send(rest, &mut sent);
            sent.extend(program.receive(b"\x89\x01q"));
            assert_eq!(program.frame(OpCode::Text, b"late"), b"");
            let expected = [(OpCode::Close, 2)];
            assert_eq!(frames(sent.make_contiguous()), expected, "{split}");
        }
    }

    #[test]
    fn answers_do_not_wait_after_malformed_bytes() {
        let mut program = Program::new();
        let mut sent = VecDeque::new();
        program.send(b"\x83", &mut sent);
        assert_eq!(frames(&program.receive(b"\x89\x01p")), [(OpCode::Pong, 1)]);
    }
}
