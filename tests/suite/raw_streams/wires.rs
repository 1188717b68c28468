//! Transports of many kinds, each as a pair of the server's and the client's end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{
    AsyncRead, AsyncWrite, BufReader, BufStream, DuplexStream, Join, ReadBuf, ReadHalf, WriteHalf,
    duplex, join, split,
};
use tokio::net::unix::pipe::{Receiver, Sender, pipe};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// The bounds on a wrapped transport.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// Smaller than a frame or a request head.
const TIGHT_BUFFER_BYTES: usize = 16;

pub(crate) async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, client) = tokio::join!(listener.accept(), client);
    let (server, client) = (accepted.unwrap().0, client.unwrap());
    server.set_nodelay(true).unwrap();
    client.set_nodelay(true).unwrap();
    (server, client)
}

pub(crate) async fn unix() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

pub(crate) async fn memory() -> (DuplexStream, DuplexStream) {
    duplex(TIGHT_BUFFER_BYTES)
}

pub(crate) async fn boxed() -> (Box<dyn Io>, Box<dyn Io>) {
    let (server, client) = tcp().await;
    (Box::new(server), Box::new(client))
}

pub(crate) async fn joined_halves() -> (
    Join<ReadHalf<TcpStream>, WriteHalf<TcpStream>>,
    Join<ReadHalf<UnixStream>, WriteHalf<UnixStream>>,
) {
    let (server, client) = tcp().await;
    let ((read, write), (near, far)) = (split(server), unix().await);
    let (near_read, near_write) = split(near);
    // The client's bytes pass through a Unix socket and a relay.
    tokio::spawn(async move {
        let (mut far, mut client) = (far, client);
        let _ = tokio::io::copy_bidirectional(&mut far, &mut client).await;
    });
    (join(read, write), join(near_read, near_write))
}

/// Two unidirectional pipes.
pub(crate) async fn two_pipes() -> (Join<Receiver, Sender>, Join<Receiver, Sender>) {
    let (from_client, to_server) = pipe().unwrap();
    let (from_server, to_client) = pipe().unwrap();
    (join(to_server, from_server), join(to_client, from_client))
}

pub(crate) async fn buffered() -> (BufStream<TcpStream>, BufStream<TcpStream>) {
    let (server, client) = tcp().await;
    (BufStream::new(server), BufStream::new(client))
}

pub(crate) async fn read_buffered() -> (BufReader<UnixStream>, BufReader<UnixStream>) {
    let (server, client) = unix().await;
    (BufReader::new(server), BufReader::new(client))
}

pub(crate) async fn trickle() -> (Trickle<DuplexStream>, Trickle<DuplexStream>) {
    let (server, client) = duplex(1024);
    (Trickle::new(server), Trickle::new(client))
}

/// tungstenite rejects a handshake in more than 64 pieces as an attack.
const PIECE_BYTES: usize = 5;

/// Passes `PIECE_BYTES` at a time in each direction, and returns `Pending` before each piece.
#[derive(Debug)]
pub(crate) struct Trickle<T> {
    io: T,
    paused: [bool; 2],
}

impl<T> Trickle<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            paused: [false; 2],
        }
    }

    /// Every second call wakes its task and returns `Pending`.
    fn poll_pause(&mut self, direction: usize, cx: &Context<'_>) -> Poll<()> {
        self.paused[direction] = !self.paused[direction];
        if self.paused[direction] {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Trickle<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_pause(0, cx));
        let mut piece = [0; PIECE_BYTES];
        let room = piece.len().min(out.remaining());
        let mut piece = ReadBuf::new(&mut piece[..room]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
        out.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Trickle<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pause(1, cx));
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        Pin::new(&mut self.io).poll_write(cx, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
