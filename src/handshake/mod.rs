//! [`HandshakeStream`]: liveness for a stream whose opening handshake is not complete yet.
//!
//! Bytes pass unchanged up to the end of a 101 response. The connection opens there: the next byte
//! is the first of a frame.

mod exchange;
mod head;
mod rewind;

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::exchange::{Exchange, Outcome};
use self::rewind::Rewind;
use crate::connection::{LayerConfig, Liveness, LivenessStream};
use crate::panic_guard;
use crate::wire::Role;

/// A stream that comes under liveness when its opening handshake completes.
///
/// Pass it, in place of the transport, to a WebSocket library that performs the handshake itself.
/// Up to the end of the response head (RFC 6455 section 4.2.2) the stream passes bytes on, and the
/// layer sends nothing and sets no deadline. After that it behaves like a [`LivenessStream`].
/// Frames that arrive in one piece with the handshake are neither lost nor skipped by the layer.
///
/// A final response other than 101 means that there is no connection. In that case, and if the
/// stream is dropped before the response is complete, the layer's hooks are not called and the
/// registry's streams yield no event; a task that waits for the end on the [`Liveness`] gets
/// [`UpgradeFailed`](crate::Reason::UpgradeFailed). Bytes after such a response pass through.
///
/// **The layer does not bound the handshake**: a peer may never finish it. Put a timeout around the
/// handshake; dropping its future drops this stream and releases all resources. If the connection
/// is evicted during the handshake, the Close frame is sent when the handshake completes. A
/// handshake in progress counts in the registry, as it does behind the layers, and
/// [`Registry::wait_idle`](crate::Registry::wait_idle) waits for it.
///
/// A client must wait for the response before it sends frames (RFC 6455 section 4.1). A server's
/// read between the request and its own response is therefore pending: it returns no bytes, and
/// returns the end of the stream only if no bytes came before it. A client's write of frames is
/// pending until the response arrives. The head of the request must be the first bytes on the
/// stream, and the request has no body: exchanges with a proxy and the TLS handshake must be
/// complete before.
///
/// Memory: the two heads are not stored. Of the bytes behind them at most one read is stored, whose
/// size the caller's buffer bounds.
///
/// # Cancel safety
///
/// That of the transport: a read or write that is dropped while it is pending has neither filled
/// the caller's buffer nor written bytes from it.
///
/// # Examples
///
/// See [`HeartbeatLayer::wrap_server_handshake`](crate::HeartbeatLayer::wrap_server_handshake) and
/// [`wrap_client_handshake`](crate::HeartbeatLayer::wrap_client_handshake), which create it.
///
/// ```
/// use tokio::io::{DuplexStream, duplex};
/// use tokio_tungstenite::{WebSocketStream, accept_async, client_async, tungstenite::Error};
/// use tower_ws_liveness::{HandshakeStream, Health, HeartbeatLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let (io, peer) = duplex(1024);
/// let (io, live) = HeartbeatLayer::default().wrap_server_handshake(io);
/// assert_eq!(live.health(), Health::Opening);
/// let client = client_async("ws://localhost/ws", peer);
/// let (socket, _client) = tokio::join!(accept_async(io), client);
/// let socket: WebSocketStream<HandshakeStream<DuplexStream>> = socket?;
/// assert_eq!(live.health(), Health::Live);
/// # drop(socket);
/// # Ok(())
/// # }
/// ```
pub struct HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// `None` once the handshake is complete. Boxed because it lasts only for a fraction of the
    /// stream's lifetime. Declared before `stream`, so that after a failed handshake the transport
    /// is dropped before the failure is reported.
    handshake: Option<Box<PendingHandshake<T>>>,
    stream: LivenessStream<Rewind<T>>,
}

impl<T> HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub(crate) fn wrap(io: T, role: Role, layer: &LayerConfig) -> (Self, Liveness) {
        let vectored = io.is_write_vectored();
        let (stream, live) = LivenessStream::opening(role, Rewind::TRAITS, vectored, layer);
        let handshake = Some(Box::new(PendingHandshake::new(role, io)));
        (Self { handshake, stream }, live)
    }

    /// Opens the connection, or reports that there is none.
    fn on_outcome(&mut self, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else { return };
        let Some(mut handshake) = self.handshake.take() else {
            return;
        };
        let wakers = handshake.take_wakers();
        match outcome {
            Outcome::Switched => self.stream.complete(handshake.io),
            Outcome::NotSwitched => {
                self.handshake = Some(handshake);
                self.stream.not_upgraded();
            }
        }
        let id = self.stream.id();
        for waker in wakers.into_iter().flatten() {
            panic_guard::wake(id, || waker.wake());
        }
    }
}

impl<T> AsyncRead for HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(handshake) = &mut self.handshake else {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        };
        let outcome = ready!(handshake.poll_read(cx, buf))?;
        self.on_outcome(outcome);
        Poll::Ready(Ok(()))
    }
}

impl<T> AsyncWrite for HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(handshake) = &mut self.handshake else {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        };
        let (written, outcome) = ready!(handshake.poll_write(cx, buf))?;
        self.on_outcome(outcome);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.handshake.is_none() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.poll_write(cx, first.map_or(&[], |buf| buf))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.handshake {
            Some(handshake) => handshake.poll_out(cx, |io, cx| io.poll_flush(cx)),
            None => Pin::new(&mut self.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.handshake {
            Some(handshake) => handshake.poll_out(cx, |io, cx| io.poll_shutdown(cx)),
            None => Pin::new(&mut self.stream).poll_shutdown(cx),
        }
    }
}

impl<T> fmt::Debug for HandshakeStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeStream")
            .field("is_complete", &self.handshake.is_none())
            .finish_non_exhaustive()
    }
}

/// The transport before a 101 response.
struct PendingHandshake<T> {
    exchange: Exchange,
    io: Rewind<T>,
    /// The wakers of pending reads and writes. They are woken when the connection opens: the driver
    /// then polls the transport too, and only polls through the [`LivenessStream`] share it.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> PendingHandshake<T> {
    fn new(role: Role, io: T) -> Self {
        Self {
            exchange: Exchange::new(role),
            io: Rewind::new(io),
            reader: None,
            writer: None,
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<Outcome>>> {
        let awaits_response = self.exchange.awaits_response(Role::Server);
        if awaits_response && self.io.has_early() {
            return park(&mut self.reader, cx);
        }
        let before = out.filled().len();
        if Pin::new(&mut self.io).poll_read(cx, out)?.is_pending() {
            return park(&mut self.reader, cx);
        }
        let read = &out.filled()[before..];
        if awaits_response && !read.is_empty() {
            self.io.take_back(out, before);
            return park(&mut self.reader, cx);
        }
        let Some((end, outcome)) = self.exchange.on_read(read) else {
            return Poll::Ready(Ok(None));
        };
        if outcome != Some(Outcome::NotSwitched) {
            self.io.take_back(out, before + end);
        }
        Poll::Ready(Ok(outcome))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<(usize, Option<Outcome>)>> {
        if self.exchange.awaits_response(Role::Client) {
            return park(&mut self.writer, cx);
        }
        // Bytes behind the head are frames: they are written through the open connection, or not
        // yet.
        let mut preview = self.exchange;
        let head = match preview.on_write(bytes) {
            Some((end, _)) => &bytes[..end],
            None => bytes,
        };
        let written = ready!(self.poll_out(cx, |io, cx| io.poll_write(cx, head)))?;
        let ended = self.exchange.on_write(&head[..written]);
        Poll::Ready(Ok((written, ended.and_then(|(_, outcome)| outcome))))
    }

    fn poll_out<R>(
        &mut self,
        cx: &mut Context<'_>,
        operation: impl FnOnce(Pin<&mut Rewind<T>>, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        let result = operation(Pin::new(&mut self.io), cx);
        if result.is_pending() {
            return park(&mut self.writer, cx);
        }
        result
    }

    fn take_wakers(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }
}

/// Registers the waker, and returns `Pending`.
fn park<R>(waker: &mut Option<Waker>, cx: &Context<'_>) -> Poll<R> {
    *waker = Some(cx.waker().clone());
    Poll::Pending
}
