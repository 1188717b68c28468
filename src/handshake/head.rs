//! [`Head`]: finds the end of an HTTP/1.1 message head that arrives in pieces.

/// The length of `HTTP/1.1 101`: enough of the first line for a method, or for a version and a
/// status.
const START_BYTES: usize = 12;

/// Finds the end of one head, and keeps the start of its first line.
///
/// As lenient as HTTP parsers (RFC 9112 section 2.2): a line may end with LF alone, and empty lines
/// before the first line do not end the head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    start: [u8; START_BYTES],
    /// How many bytes of `start` are filled.
    start_len: u8,
    first_line_begun: bool,
    first_line_ended: bool,
    /// Whether the current line is not empty.
    in_line: bool,
}

impl Head {
    /// Returns how many of `bytes` belong to the head if it ends there.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.first_line_begun && !self.in_line => return Some(index + 1),
                b'\n' => {
                    self.first_line_ended = self.first_line_begun;
                    self.in_line = false;
                }
                b'\r' => {}
                _ => {
                    self.first_line_begun = true;
                    self.in_line = true;
                    if !self.first_line_ended && usize::from(self.start_len) < START_BYTES {
                        self.start[usize::from(self.start_len)] = byte;
                        self.start_len += 1;
                    }
                }
            }
        }
        None
    }

    /// Whether the method is that of an opening handshake (RFC 6455 section 4.2.1).
    pub(super) fn is_get(&self) -> bool {
        self.start.starts_with(b"GET ")
    }

    /// Returns the status of a response. `None` if the first line contains none.
    pub(super) fn status(&self) -> Option<u16> {
        let (version, digits) = self.start.split_at(9);
        let is_response = version.starts_with(b"HTTP/") && version[8] == b' ';
        let digits = std::str::from_utf8(digits).ok().filter(|_| is_response);
        digits?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_its_empty_line_for_every_split_into_pieces() {
        let heads: [&[u8]; 4] = [
            b"GET /chat HTTP/1.1\r\nhost: a\r\nx: \r\n\r\n",
            b"\r\n\nGET / HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\nupgrade: websocket\n\n",
            b"HTTP/1.1 101\r\na: b\n\r\n",
        ];
        for head in heads {
            for rest in [&b""[..], b"\x81\x01a", b"\r\n\r\n"] {
                let wire = [head, rest].concat();
                for cut in 1..=wire.len() {
                    let (mut scanned, mut at, mut end) = (Head::default(), 0, None);
                    for piece in wire.chunks(cut) {
                        if end.is_none() {
                            end = scanned.advance(piece).map(|count| at + count);
                        }
                        at += piece.len();
                    }
                    assert_eq!(end, Some(head.len()), "{} by {cut}", head.escape_ascii());
                }
                let unfinished = &head[..head.len() - 1];
                assert_eq!(Head::default().advance(unfinished), None);
            }
        }
    }

    #[test]
    fn only_the_first_line_sets_the_method_and_the_status() {
        let start = |line: &str| {
            let mut head = Head::default();
            head.advance(line.as_bytes());
            (head.is_get(), head.status())
        };
        assert_eq!(start("GET / HTTP/1.1\r\n"), (true, None));
        assert_eq!(start("\r\nGET / HTTP/1.1\r\n"), (true, None));
        assert_eq!(start("POST / HTTP/1.1\r\nGET \r\n"), (false, None));
        assert_eq!(start("HTTP/1.1 101 Switching\r\n"), (false, Some(101)));
        assert_eq!(start("HTTP/1.0 404\r\n"), (false, Some(404)));
        assert_eq!(start("HTTP/1.1 10\r\n1"), (false, None));
        assert_eq!(start("SSH-2.0-x\r\n"), (false, None));
        assert_eq!(start(""), (false, None));
    }
}
