//! A minimal RFC 6455 client, cheap enough not to be the bottleneck of a bench.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// A client with an open WebSocket.
pub(crate) struct Peer {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// Range of the buffer that has been read and not been parsed yet.
    unparsed: Range<usize>,
    close_code: Option<u16>,
    last_ping: Vec<u8>,
}

/// A frame from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A data frame, with the length of its payload in bytes.
    Data(usize),
    /// A ping, which has been answered.
    Ping,
    /// A Close frame.
    Close,
}

/// A key of zeros, with which masking changes no byte (RFC 6455 section 5.3 leaves the choice to
/// the client). It saves time in the peers and none in the server.
const MASK: [u8; 4] = [0; 4];

impl Peer {
    /// Connects to `addr` from `local` (port 0 for any) and completes the opening handshake.
    pub(crate) async fn connect(addr: SocketAddr, local: SocketAddr) -> io::Result<Self> {
        // A server that hangs must fail the bench.
        const WAIT_LIMIT: Duration = Duration::from_secs(60);
        timeout(WAIT_LIMIT, Self::upgrade(addr, local)).await?
    }

    async fn upgrade(addr: SocketAddr, local: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if !local.ip().is_unspecified() {
            socket.set_reuseaddr(true)?;
            socket.bind(local)?;
        }
        let mut socket = socket.connect(addr).await?;
        socket.set_nodelay(true)?;
        let request = "GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
            upgrade: websocket\r\nsec-websocket-version: 13\r\n\
            sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(request.as_bytes()).await?;
        let mut peer = Self {
            socket,
            buffer: vec![0; 512],
            unparsed: 0..0,
            close_code: None,
            last_ping: Vec::new(),
        };
        let head = peer.read_parsed(|bytes| {
            let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
            Some((end + 4, bytes.starts_with(b"HTTP/1.1 101")))
        });
        if !head.await? {
            return Err(io::Error::other("the upgrade was refused"));
        }
        Ok(peer)
    }

    /// Connects `count` clients, each from any port, and yields them as they connect.
    pub(crate) fn connect_many(
        addr: SocketAddr,
        count: usize,
    ) -> impl Stream<Item = io::Result<Self>> + Unpin {
        // Below the listener's backlog.
        const MAX_CONNECTING: usize = 64;
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        Box::pin(
            stream::iter(0..count)
                .map(move |_| Self::connect(addr, any))
                .buffer_unordered(MAX_CONNECTING),
        )
    }

    /// Makes drop reset the connection, so that its port is free immediately.
    pub(crate) fn reset_on_drop(&self) -> io::Result<()> {
        self.socket.set_zero_linger()
    }

    /// Grows the buffer so that one read takes at least `bytes`.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
    }

    /// The underlying socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The status code of the received Close frame.
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    /// The payload of the last received ping.
    pub(crate) fn last_ping(&self) -> &[u8] {
        &self.last_ping
    }

    /// Encodes a masked binary message with `payload` bytes.
    pub(crate) fn message(payload: usize) -> Vec<u8> {
        let mut frame = vec![0x82];
        match payload {
            0..126 => frame.push(0x80 | payload as u8),
            126..65_536 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        frame.resize(frame.len() + payload, b'x');
        frame
    }

    /// Writes `bytes`, which must be whole frames.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    /// Sends `message` and waits for an echo with a payload of the same length.
    pub(crate) async fn echo(&mut self, message: &[u8]) -> io::Result<()> {
        self.send(message).await?;
        loop {
            match self.receive().await? {
                Frame::Data(len) if masked_header_len(len) + len == message.len() => return Ok(()),
                Frame::Data(_) => return Err(io::ErrorKind::InvalidData.into()),
                Frame::Ping => {}
                Frame::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }

    /// Receives the next frame. Answers a ping.
    ///
    /// Cancel safe except while it answers a ping.
    pub(crate) async fn receive(&mut self) -> io::Result<Frame> {
        let (frame, payload) = self.read_parsed(parse).await?;
        match (frame, payload) {
            (Frame::Ping, Some((payload, len))) => {
                self.last_ping.clear();
                self.last_ping.extend_from_slice(&payload[..len]);
                self.control(0x8a, &payload[..len]).await?;
            }
            (Frame::Close, Some((payload, 2..))) => {
                self.close_code = Some(u16::from_be_bytes([payload[0], payload[1]]));
            }
            _ => {}
        }
        Ok(frame)
    }

    /// Whether the buffer holds a whole frame, so that [`receive`](Self::receive) makes no read.
    pub(crate) fn has_frame(&self) -> bool {
        parse(&self.buffer[self.unparsed.clone()]).is_some()
    }

    /// Stops reading and answering, like a stopped process: the kernel goes on to acknowledge
    /// segments. The socket leaves tokio, so that it wakes no task of the bench either.
    pub(crate) fn fall_silent(self) -> io::Result<std::net::TcpStream> {
        self.socket.into_std()
    }

    /// Echoes the code of the received Close frame (RFC 6455 section 5.5.1).
    pub(crate) async fn answer_close(&mut self) -> io::Result<()> {
        let code = self.close_code.map(u16::to_be_bytes);
        self.control(0x88, code.as_ref().map_or(&[], |code| code))
            .await
    }

    async fn control(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        self.socket.write_all(&short_frame(first, payload)).await
    }

    /// Reads until `parse` succeeds on the unparsed bytes, and consumes the length that it returns.
    async fn read_parsed<R>(
        &mut self,
        parse: impl Fn(&[u8]) -> Option<(usize, R)>,
    ) -> io::Result<R> {
        loop {
            if let Some((consumed, found)) = parse(&self.buffer[self.unparsed.clone()]) {
                self.unparsed.start += consumed;
                return Ok(found);
            }
            self.make_room();
            let room = &mut self.buffer[self.unparsed.end..];
            match self.socket.read(room).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unparsed.end += count,
            }
        }
    }

    /// Moves the unparsed bytes to the start of the buffer, and doubles a full buffer.
    fn make_room(&mut self) {
        if self.unparsed.start > 0 {
            self.buffer.copy_within(self.unparsed.clone(), 0);
            self.unparsed = 0..self.unparsed.len();
        }
        if self.unparsed.end == self.buffer.len() {
            self.buffer.resize(2 * self.unparsed.end, 0);
        }
    }
}

/// Encodes a masked frame whose first byte is `first`, with at most 125 bytes.
pub(crate) fn short_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | payload.len() as u8];
    frame.extend_from_slice(&MASK);
    frame.extend_from_slice(payload);
    frame
}

/// Length of a masked frame's header (RFC 6455 section 5.2).
fn masked_header_len(payload: usize) -> usize {
    match payload {
        0..126 => 6,
        126..65_536 => 8,
        _ => 14,
    }
}

/// The payload of a control frame, at most 125 bytes, and its length.
type Payload = ([u8; 125], usize);

/// Parses the frame at the start of `bytes`; `None` if it is incomplete.
fn parse(bytes: &[u8]) -> Option<(usize, (Frame, Option<Payload>))> {
    let &[first, second, ref rest @ ..] = bytes else {
        return None;
    };
    let (head, len) = match second {
        126 => (4, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*rest.first_chunk()?)),
        len => (2, u64::from(len)),
    };
    let len = usize::try_from(len).ok()?;
    let payload = bytes.get(head..)?.get(..len)?;
    let frame = match first & 0x0f {
        9 => Frame::Ping,
        8 => Frame::Close,
        _ => return Some((head + len, (Frame::Data(len), None))),
    };
    let mut copy = [0; 125];
    copy.get_mut(..len)?.copy_from_slice(payload);
    let found = (frame, Some((copy, len)));
    Some((head + len, found))
}
