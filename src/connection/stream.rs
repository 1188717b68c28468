//! What the application's WebSocket library reads and writes instead of the transport.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;
use crate::connection::handle::Liveness;
use crate::connection::io::Outgoing;
use crate::connection::io::TransportTraits;
use crate::connection::metadata::ErasedConnection;
use crate::connection::metadata::LayerConfig;
use crate::driver::Driver;
use crate::wire::Role;

/// A stream of WebSocket frames under liveness.
///
/// Give it to a WebSocket library in place of the stream it was made of. What is read is exactly
/// what the peer sent, without the pongs to the layer's own pings; what is written reaches the peer
/// as it is, with whole control frames in between. A ping goes between two fragments of a message
/// (RFC 6455 section 5.4) only after it has waited a heartbeat's `timeout` for the message's end.
///
/// When the connection is evicted (by a timeout, through its handle, or because the runtime in which it
/// was opened is shut down) every operation but `poll_shutdown` fails with an [`io::Error`] that holds
/// [`Evicted`](crate::Evicted). When it was the peer who ended it, reads and writes go on as the
/// transport lets them, for `close_timeout`.
///
/// Dropping the stream ends the connection and drops the transport, unless a ping of the layer is
/// unanswered: its pong would arrive at a closed socket, and the kernel would reset the connection and
/// discard what was written last. In that case the driver shuts the transport down and discards inbound
/// bytes, until the peer ends its direction or `close_timeout` is over. It does the same after an
/// eviction, unless the peer is dead. After the shutdown of the runtime there is no driver, and the
/// transport is dropped at once.
///
/// It may be split (`tokio::io::split`, or the library's own halves): one task may read while another
/// writes. Cancel safety is that of the transport: a read or a write that was dropped before it was
/// ready has taken and written nothing of the caller's.
///
/// Memory: at most 16 KiB are read ahead, while a ping waits for its pong and nobody reads. Nothing of
/// what is written is buffered, so a transport that is full holds the writer up, for `write_timeout` at
/// most.
///
/// # Panics
///
/// The transport is polled under the connection's lock. During a poll it must not use this stream, call
/// [`Registry::snapshot`](crate::Registry::snapshot), which looks at all connections, or use the
/// connection's own handle for anything but [`Liveness::id`], its session slot and its `Debug`. That would
/// be a deadlock, so it panics instead, with a message that says so; the connection then ends as after any
/// panic of its transport. The same applies to a waker that does this while it is *cloned*; or while the transport
/// itself drops it; while it is woken it may.
///
/// Made by [`HeartbeatLayer::wrap_server`](crate::HeartbeatLayer::wrap_server) and
/// [`wrap_client`](crate::HeartbeatLayer::wrap_client). Behind the layers, it is what hyper's
/// `Upgraded` holds.
pub struct LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection: Arc<Connection<T>>,
    vectored: bool,
}

impl<T> LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Opens `connection` over `io`. `None` if it was evicted before it came so far.
    pub(crate) fn open(connection: Arc<Connection<T>>, io: T) -> Option<Self> {
        let vectored = io.is_write_vectored();
        if !connection.open(io) {
            return None;
        }
        let stream = Self::new(connection, vectored);
        stream.connection.heed_drain();
        Some(stream)
    }

    /// Puts a stream that speaks frames already under a layer.
    pub(crate) fn wrap(io: T, role: Role, layer: &LayerConfig) -> (Self, Liveness) {
        // If this panics, it must do so before anything is counted.
        let _driver = Driver::expect_current();
        let (stream, live) = Self::promise(role, io.is_write_vectored(), layer);
        // Somebody may find it in a registry and evict it at once: its stream then says so.
        stream.keep(io);
        (stream, live)
    }

    /// A stream that cannot be used yet: its handshake is under way. Dropped before it is
    /// [kept](Self::keep), it was [not upgraded](Self::not_upgraded).
    pub(crate) fn promise(role: Role, vectored: bool, layer: &LayerConfig) -> (Self, Liveness) {
        let connection = Connection::new(role, TransportTraits::FOREIGN);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(layer, layer.take_in());
        (Self::new(connection, vectored), live)
    }

    /// The handshake is complete, and `io` speaks frames from now on. If the connection was ended
    /// meanwhile, the stream says so.
    pub(crate) fn keep(&self, io: T) {
        self.connection.open(io);
        self.connection.heed_drain();
    }

    /// The handshake has failed: for the layer there was no connection.
    pub(crate) fn not_upgraded(&self) {
        self.connection.not_upgraded();
    }

    fn new(connection: Arc<Connection<T>>, vectored: bool) -> Self {
        connection.hold_session();
        Self {
            connection,
            vectored,
        }
    }
}

impl<T> AsyncRead for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let connection = &self.connection;
        let mut spent = None;
        connection.enter(|state| state.poll_read(cx, buf, || connection.waker(), &mut spent))
    }
}

impl<T> AsyncWrite for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (connection, bytes) = (&self.connection, Outgoing::Slice(buf));
        let mut spent = None;
        connection.enter(|state| state.poll_write(cx, || connection.waker(), bytes, &mut spent))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (connection, bytes) = (&self.connection, Outgoing::Slices(bufs));
        let mut spent = None;
        connection.enter(|state| state.poll_write(cx, || connection.waker(), bytes, &mut spent))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        let mut spent = None;
        connection.enter(|state| state.poll_flush(cx, || connection.waker(), &mut spent))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        let mut spent = None;
        connection.enter(|state| state.poll_shutdown(cx, || connection.waker(), &mut spent))
    }
}

impl<T> Drop for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn drop(&mut self) {
        let kept = self.connection.enter(|state| state.dropped());
        if !kept {
            self.connection.not_upgraded();
        }
        self.connection.release_session();
    }
}

impl<T> fmt::Debug for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LivenessStream").finish_non_exhaustive()
    }
}
