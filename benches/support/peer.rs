//! Peers that speak just enough of RFC 6455 to load a server without being the bottleneck.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// One client.
pub(crate) struct Peer {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// Where in the buffer the bytes are that are not used up.
    unused: Range<usize>,
    close_code: Option<u16>,
}

/// What a server has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A data frame with so many bytes of payload.
    Data(usize),
    /// A ping, which was answered.
    Ping,
    /// A Close frame.
    Close,
}

/// With this key masking changes nothing (RFC 6455 section 5.3 leaves the choice to the client): what
/// peers save is not the server's doing.
const MASK: [u8; 4] = [0; 4];

impl Peer {
    /// Connects to `addr` from `local` (port 0 for any), and completes the opening handshake.
    pub(crate) async fn connect(addr: SocketAddr, local: SocketAddr) -> io::Result<Self> {
        // A server that is stuck is to end the bench.
        const PATIENCE: Duration = Duration::from_secs(60);
        timeout(PATIENCE, Self::upgrade(addr, local)).await?
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
            unused: 0..0,
            close_code: None,
        };
        let head = peer.until(|bytes| {
            let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
            Some((end + 4, bytes.starts_with(b"HTTP/1.1 101")))
        });
        if !head.await? {
            return Err(io::Error::other("the upgrade was refused"));
        }
        Ok(peer)
    }

    /// `count` clients, each from any port, as they connect.
    pub(crate) fn connect_many(
        addr: SocketAddr,
        count: usize,
    ) -> impl Stream<Item = io::Result<Self>> + Unpin {
        // Fewer than a listener lets wait.
        const AT_ONCE: usize = 64;
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        Box::pin(
            stream::iter(0..count)
                .map(move |_| Self::connect(addr, any))
                .buffer_unordered(AT_ONCE),
        )
    }

    /// Lets the connection end in a reset when this is dropped, so that its port is free at once.
    pub(crate) fn reset_on_drop(&self) -> io::Result<()> {
        self.socket.set_zero_linger()
    }

    /// Lets at least so many bytes be read at once.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The status code of the Close frame that came.
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    /// A binary message as it goes over the wire.
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

    /// Writes `bytes`, which are whole frames.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    /// Sends `message`, and waits until as many bytes of payload have come back.
    pub(crate) async fn echo(&mut self, message: &[u8]) -> io::Result<()> {
        self.send(message).await?;
        loop {
            match self.receive().await? {
                Frame::Data(len) if masked_head(len) + len == message.len() => return Ok(()),
                Frame::Data(_) => return Err(io::ErrorKind::InvalidData.into()),
                Frame::Ping => {}
                Frame::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }

    /// The next frame. A ping is answered.
    ///
    /// Cancel safe while no ping comes.
    pub(crate) async fn receive(&mut self) -> io::Result<Frame> {
        let (frame, payload) = self.until(parse).await?;
        match (frame, payload) {
            (Frame::Ping, Some((payload, len))) => self.control(0x8a, &payload[..len]).await?,
            (Frame::Close, Some((payload, 2..))) => {
                self.close_code = Some(u16::from_be_bytes([payload[0], payload[1]]));
            }
            _ => {}
        }
        Ok(frame)
    }

    /// Whether the next frame is here already, so that [`receive`](Self::receive) reads nothing.
    pub(crate) fn has_frame(&self) -> bool {
        parse(&self.buffer[self.unused.clone()]).is_some()
    }

    /// Neither reads nor answers any more, like a process that was stopped: its kernel goes on to
    /// acknowledge what comes. Nothing wakes the bench for it either.
    pub(crate) fn fall_silent(self) -> io::Result<std::net::TcpStream> {
        self.socket.into_std()
    }

    /// Answers a Close frame with its own code (RFC 6455 section 5.5.1).
    pub(crate) async fn answer_close(&mut self) -> io::Result<()> {
        let code = self.close_code.map(u16::to_be_bytes);
        self.control(0x88, code.as_ref().map_or(&[], |code| code))
            .await
    }

    async fn control(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![first, 0x80 | payload.len() as u8];
        frame.extend_from_slice(&MASK);
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).await
    }

    /// Reads until `parse` finds what it looks for at the beginning of the buffer, and takes as many
    /// bytes as it says.
    async fn until<R>(&mut self, parse: impl Fn(&[u8]) -> Option<(usize, R)>) -> io::Result<R> {
        loop {
            if let Some((taken, found)) = parse(&self.buffer[self.unused.clone()]) {
                self.unused.start += taken;
                return Ok(found);
            }
            self.make_room();
            let room = &mut self.buffer[self.unused.end..];
            match self.socket.read(room).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unused.end += count,
            }
        }
    }

    /// Moves what is not used up to the beginning of the buffer, which grows if it is full.
    fn make_room(&mut self) {
        if self.unused.start > 0 {
            self.buffer.copy_within(self.unused.clone(), 0);
            self.unused = 0..self.unused.len();
        }
        if self.unused.end == self.buffer.len() {
            self.buffer.resize(2 * self.unused.end, 0);
        }
    }
}

/// Length of the header of a masked frame with so much payload (RFC 6455 section 5.2).
fn masked_head(payload: usize) -> usize {
    match payload {
        0..126 => 6,
        126..65_536 => 8,
        _ => 14,
    }
}

/// The payload of a ping or a Close frame, and its length.
type Payload = ([u8; 125], usize);

/// The frame that `bytes` begin with, if it is whole.
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
