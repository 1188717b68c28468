//! A WebSocket client that controls every byte and every pong.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// One frame (RFC 6455 section 5.2), unmasked.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) fin: bool,
    pub(crate) rsv: u8,
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fin, rsv, opcode) = (u8::from(self.fin), self.rsv, self.opcode);
        // Shortened: large payloads make messages unreadable.
        let len = self.payload.len();
        let head = self.payload[..len.min(130)].escape_ascii();
        write!(
            f,
            "Frame(fin {fin}, rsv {rsv:03b}, opcode {opcode:#x}, {len} bytes: \"{head}\")"
        )
    }
}

impl Frame {
    pub(crate) fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            fin: true,
            rsv: 0,
            opcode,
            payload: payload.into(),
        }
    }

    pub(crate) fn text(text: &str) -> Self {
        Self::new(TEXT, text)
    }

    pub(crate) fn close(code: u16, reason: &str) -> Self {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        Self::new(CLOSE, payload)
    }

    /// The frame as a fragment that is not the last.
    pub(crate) fn unfinished(mut self) -> Self {
        self.fin = false;
        self
    }

    pub(crate) fn with_rsv(mut self, rsv: u8) -> Self {
        self.rsv = rsv;
        self
    }

    pub(crate) fn is_control(&self) -> bool {
        self.opcode & 0x8 != 0
    }

    /// The code of a Close frame.
    pub(crate) fn close_code(&self) -> Option<u16> {
        let code = self.payload.get(..2)?;
        (self.opcode == CLOSE).then(|| u16::from_be_bytes([code[0], code[1]]))
    }

    /// The bytes as a client sends them.
    pub(crate) fn masked(&self) -> Vec<u8> {
        let mut bytes = self.head(0x80);
        bytes.extend_from_slice(&MASK);
        let payload = self.payload.iter().zip(MASK.iter().cycle());
        bytes.extend(payload.map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// The bytes as a server sends them.
    pub(crate) fn unmasked(&self) -> Vec<u8> {
        let mut bytes = self.head(0);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    fn head(&self, mask_bit: u8) -> Vec<u8> {
        let mut head = vec![u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode];
        match self.payload.len() {
            len @ 0..=125 => head.push(mask_bit | len as u8),
            len @ 126..=0xffff => {
                head.push(mask_bit | 126);
                head.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                head.push(mask_bit | 127);
                head.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        head
    }

    /// Removes the first frame from `bytes` if it is complete.
    pub(crate) fn parse(bytes: &mut Vec<u8>) -> Option<Self> {
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        let (len, at) = match second & 0x7f {
            126 => (
                u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize,
                4,
            ),
            127 => (
                u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
                10,
            ),
            len => (len as usize, 2),
        };
        let masked = second & 0x80 != 0;
        let start = at + if masked { 4 } else { 0 };
        let mut payload = bytes.get(start..start + len)?.to_vec();
        if masked {
            let mask = &bytes[at..start];
            let pairs = payload.iter_mut().zip(mask.iter().cycle());
            pairs.for_each(|(byte, mask)| *byte ^= mask);
        }
        bytes.drain(..start + len);
        Some(Self {
            fin: first & 0x80 != 0,
            rsv: first >> 4 & 0x7,
            opcode: first & 0xf,
            payload,
        })
    }
}

/// Which of the server's pings the client answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// Every ping, immediately.
    All,
    /// Waits until this many pings are unanswered, then answers only the newest.
    LatestOf(usize),
    /// Waits until this many pings are unanswered, then answers only the oldest.
    OldestOf(usize),
    /// No ping.
    Nothing,
}

/// The client.
#[derive(Debug)]
pub(crate) struct RawClient<S = TcpStream> {
    io: S,
    inbound: Vec<u8>,
    answer: Answer,
    waiting: Vec<Vec<u8>>,
    chunk: usize,
    /// Number of pings received so far.
    pub(crate) pings: usize,
}

impl RawClient {
    /// Connects over TCP and performs the opening handshake at `path`.
    pub(crate) async fn connect(addr: SocketAddr, path: &str) -> Self {
        let io = TcpStream::connect(addr).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self::handshake(io, path).await
    }

    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(self) {
        self.io.set_zero_linger().unwrap();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawClient<S> {
    /// A client over `io`, after the opening handshake.
    pub(crate) fn over(io: S) -> Self {
        Self {
            io,
            inbound: Vec::new(),
            answer: Answer::All,
            waiting: Vec::new(),
            chunk: usize::MAX,
            pings: 0,
        }
    }

    /// Performs the opening handshake (RFC 6455 section 4.1) over `io`.
    pub(crate) async fn handshake(io: S, path: &str) -> Self {
        let mut client = Self::over(io);
        client.send_bytes(opening(path).as_bytes()).await.unwrap();
        let head = within("the response to the opening handshake", client.read_head()).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // The accept value of the key in RFC 6455 section 1.3.
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        client
    }

    pub(crate) fn answering(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }

    /// Limits each write to `chunk` bytes.
    pub(crate) fn in_chunks_of(mut self, chunk: usize) -> Self {
        self.chunk = chunk;
        self
    }

    /// The transport.
    pub(crate) fn io(&mut self) -> &mut S {
        &mut self.io
    }

    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.send_bytes(&frame.masked()).await
    }

    /// Writes raw bytes in chunks, and yields to other tasks between them.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(self.chunk) {
            self.io.write_all(chunk).await?;
            self.io.flush().await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Writes some of the bytes or reads some, whichever is possible first, so that two peers with
    /// full buffers do not deadlock. Returns the number of bytes written.
    pub(crate) async fn send_or_receive(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut read, mut write) = tokio::io::split(&mut self.io);
        tokio::select! {
            biased;
            written = write.write(bytes) => written,
            received = read.read_buf(&mut self.inbound) => match received? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(0),
            },
        }
    }

    /// A complete frame that has been read already.
    pub(crate) fn received_frame(&mut self) -> Option<Frame> {
        Frame::parse(&mut self.inbound)
    }

    /// Shuts down the sending direction, without a Close frame.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }

    /// The next frame of any kind, `None` at the end of the stream. Sends no pong.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn read_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = Frame::parse(&mut self.inbound) {
                return Ok(Some(frame));
            }
            if self.io.read_buf(&mut self.inbound).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads `count` bytes into the buffer without parsing them; fewer only at the end of the
    /// stream.
    pub(crate) async fn fill(&mut self, count: usize) -> io::Result<()> {
        let mut limited = (&mut self.io).take(count as u64);
        limited.read_to_end(&mut self.inbound).await?;
        Ok(())
    }

    /// Reads exactly `count` bytes that are not frames.
    pub(crate) async fn read_exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.inbound.len() < count {
            if self.io.read_buf(&mut self.inbound).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.inbound.drain(..count).collect())
    }

    /// The next frame that is not a ping. Pings are counted, and answered according to [`Answer`].
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            match self.read_frame().await? {
                Some(ping) if ping.opcode == PING => self.answer(ping.payload).await?,
                other => return Ok(other),
            }
        }
    }

    /// Waits for a frame that is not a ping. Panics if there is none.
    pub(crate) async fn expect_frame(&mut self) -> Frame {
        let frame = within("a frame from the server", self.next()).await;
        frame.unwrap().expect("a frame, not the end of the stream")
    }

    /// Waits for the next ping, and returns its payload. Sends no pong.
    pub(crate) async fn expect_ping(&mut self) -> Vec<u8> {
        let frame = within("a ping from the server", self.read_frame()).await;
        let frame = frame.unwrap().expect("a ping, not the end of the stream");
        assert_eq!(frame.opcode, PING, "{frame:?}");
        self.pings += 1;
        frame.payload
    }

    /// Reads until `pings` pings have been received in total, and answers them according to
    /// [`Answer`].
    pub(crate) async fn live_until_ping(&mut self, pings: usize) {
        while self.pings < pings {
            let frame = within("a ping from the server", self.read_frame()).await;
            let frame = frame.unwrap().expect("a ping, not the end of the stream");
            assert_eq!(frame.opcode, PING, "{frame:?}");
            self.answer(frame.payload).await.unwrap();
        }
    }

    /// Reads until the connection ends, and answers pings according to [`Answer`]. Returns the
    /// Close frame, if there was one.
    pub(crate) async fn closed(&mut self) -> Option<Frame> {
        let end = async {
            let mut close = None;
            while let Ok(Some(frame)) = self.next().await {
                if frame.opcode == CLOSE {
                    close = Some(frame);
                }
            }
            close
        };
        within("the end of the connection", end).await
    }

    /// Counts a ping, and sends the pong that is due by [`Answer`].
    async fn answer(&mut self, ping: Vec<u8>) -> io::Result<()> {
        self.pings += 1;
        self.waiting.push(ping);
        let pong = match self.answer {
            Answer::All => self.waiting.pop(),
            Answer::LatestOf(n) if self.waiting.len() >= n => self.waiting.pop(),
            Answer::OldestOf(n) if self.waiting.len() >= n => Some(self.waiting.swap_remove(0)),
            _ => return Ok(()),
        };
        self.waiting.clear();
        self.send(&Frame::new(PONG, pong.unwrap_or_default())).await
    }

    async fn read_head(&mut self) -> String {
        loop {
            if let Some(end) = self.inbound.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.inbound.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            let count = self.io.read_buf(&mut self.inbound).await.unwrap();
            assert_ne!(count, 0, "the server closed during the opening handshake");
        }
    }
}

/// A request for the opening handshake, with the key of RFC 6455 section 1.3.
pub(crate) fn opening(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\n\
         Host: localhost\r\n\
         Connection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         \r\n"
    )
}
