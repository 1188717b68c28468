//! Where the head of an HTTP/1.1 message ends, in whatever pieces it comes.

/// Enough of the first line for a method, or for a version and a status: `HTTP/1.1 101`.
const START: usize = 12;

/// Looks for the end of one head.
///
/// As lenient as parsers are (RFC 9112 section 2.2): a line may end with LF alone, and empty lines
/// before the first are no end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    start: [u8; START],
    len: u8,
    /// The first line has begun.
    begun: bool,
    /// It has ended.
    started: bool,
    /// The current line is not empty.
    in_line: bool,
}

impl Head {
    /// Returns how many of `bytes` belong to the head if it ends there.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.begun && !self.in_line => return Some(index + 1),
                b'\n' => {
                    self.started = self.begun;
                    self.in_line = false;
                }
                b'\r' => {}
                _ => {
                    self.begun = true;
                    self.in_line = true;
                    if !self.started && usize::from(self.len) < START {
                        self.start[usize::from(self.len)] = byte;
                        self.len += 1;
                    }
                }
            }
        }
        None
    }

    /// A request that may be an opening handshake (RFC 6455 section 4.2.1), as far as its method tells.
    pub(super) fn is_get(&self) -> bool {
        self.start.starts_with(b"GET ")
    }

    /// The status of a response; `None` if its first line has none.
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
    fn ends_at_the_empty_line_however_it_is_cut() {
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
                    let (mut scan, mut at, mut end) = (Head::default(), 0, None);
                    for piece in wire.chunks(cut) {
                        if end.is_none() {
                            end = scan.advance(piece).map(|count| at + count);
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
    fn knows_the_first_line_and_nothing_else() {
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
