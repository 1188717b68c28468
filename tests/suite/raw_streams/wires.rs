//! Transports of every kind that a WebSocket may be spoken over, each as the server's and the
//! client's end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{
    AsyncRead, AsyncWrite, BufReader, BufStream, DuplexStream, Join, ReadBuf, ReadHalf, WriteHalf,
    duplex, join, split,
};
use tokio::net::unix::pipe::{Receiver, Sender, pipe};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// What a stream has to be.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// So small that frames and heads do not fit.
const TIGHT: usize = 16;

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
    duplex(TIGHT)
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
    // The client's bytes go through a socket of another kind, and a relay.
    tokio::spawn(async move {
        let (mut far, mut client) = (far, client);
        let _ = tokio::io::copy_bidirectional(&mut far, &mut client).await;
    });
    (join(read, write), join(near_read, near_write))
}

/// Two pipes, each in one direction.
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

/// tungstenite takes a handshake in more than 64 pieces for an attack.
const FEW: usize = 5;

/// A few bytes at a time in each direction, and a pause before each.
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

    /// Every second call has to come again, which it is told at once.
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
        let mut some = [0; FEW];
        let room = some.len().min(out.remaining());
        let mut some = ReadBuf::new(&mut some[..room]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut some))?;
        out.put_slice(some.filled());
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
        let some = &bytes[..bytes.len().min(FEW)];
        Pin::new(&mut self.io).poll_write(cx, some)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
