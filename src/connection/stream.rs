//! [`LivenessStream`]: the stream that the application's WebSocket library reads and writes.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::handle::Liveness;
use super::handler_polls::Routine;
use super::io::{Outgoing, TransportTraits};
use super::layers::{ErasedConnection, LayerConfig};
use crate::driver::Driver;
use crate::eviction::ConnectionId;
use crate::wire::Role;

/// A stream of WebSocket frames under liveness.
///
/// Give it to a WebSocket library in place of the stream it was made of. Reads return exactly the
/// bytes of the peer, without the pongs to the layer's own pings. Writes reach the peer unchanged,
/// with whole control frames between the frames. Between two fragments of a message (RFC 6455
/// section 5.4) a ping is sent only after it has waited a heartbeat's `timeout` for the end of the
/// message.
///
/// After an eviction (by a timeout, through the handle, or because the runtime in which the
/// connection was opened is shut down) every operation but `poll_shutdown` fails with an
/// [`io::Error`] that holds [`Evicted`](crate::Evicted), except for the flush that follows a write
/// from before it, where the transport is a socket and has nothing to flush. After an end by the
/// peer, reads and writes continue as the transport allows, for `close_timeout` at most.
///
/// Dropping the stream ends the connection and drops the transport, unless a ping of the layer is
/// unanswered: its pong would arrive at a closed socket, and the kernel would reset the connection
/// and discard the bytes that were written last. In that case the driver shuts the transport down
/// and discards inbound bytes, until the peer ends its direction or `close_timeout` has passed. It
/// does the same after an eviction, unless the peer is dead. After a shutdown of the runtime there
/// is no driver, and the transport is dropped immediately.
///
/// The stream may be split (`tokio::io::split`, or the library's own halves): one task may read
/// while another writes.
///
/// Memory: at most 16 KiB are read ahead, while a ping waits for its pong and the handler does not
/// read. Outbound bytes are not buffered: a full transport makes the writer wait, for
/// `write_timeout` at most.
///
/// Made by [`HeartbeatLayer::wrap_server`](crate::HeartbeatLayer::wrap_server) and
/// [`wrap_client`](crate::HeartbeatLayer::wrap_client). Behind the layers, hyper's `Upgraded` holds
/// it.
///
/// # Cancel safety
///
/// That of the transport: a read or write that is dropped before it is ready has taken no bytes
/// from the stream, and written none of the caller's.
///
/// # Panics
///
/// The transport is polled under the connection's lock. During a poll it must not use this stream,
/// call [`Registry::snapshot`](crate::Registry::snapshot), which locks all connections, or use the
/// connection's own handle for anything but [`Liveness::id`], its session slot and its `Debug`.
/// That would be a deadlock, so it panics with a message that says so; the connection then ends as
/// after any panic of its transport. The same applies to a waker while it is *cloned* and while the
/// transport drops it. While it is woken it may use all of these.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tokio::io::duplex;
/// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
/// use tower_ws_liveness::HeartbeatLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (io, _peer) = duplex(1024);
/// let layer = HeartbeatLayer::new(Duration::from_secs(30), Duration::from_secs(15));
/// let (io, live) = layer.wrap_server(io);
/// let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
/// # drop(socket);
/// println!("connection {} is {}", live.id(), live.health());
/// # }
/// ```
pub struct LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection: Arc<Connection<T>>,
    vectored: bool,
    /// The last write was routine, and there is nothing to flush after it.
    flushed: bool,
}

impl<T> LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Opens `connection` over `io`. `None` if it was evicted before.
    pub(crate) fn open(
        connection: Arc<Connection<T>>,
        io: T,
        driver: &Arc<Driver>,
    ) -> Option<Self> {
        let vectored = io.is_write_vectored();
        // Before the open hooks: they may end the connection, and the handler may read its session
        // then.
        connection.metadata.handler_has_stream();
        if !connection.open(io, driver) {
            connection.metadata.handler_dropped_stream();
            return None;
        }
        let stream = Self::new(connection, vectored);
        stream.connection.evict_if_draining();
        Some(stream)
    }

    /// Puts a stream of frames under a layer.
    pub(crate) fn wrap(io: T, role: Role, layer: &LayerConfig) -> (Self, Liveness) {
        // Panics without a runtime, before a registry counts the connection.
        let driver = Driver::expect_current();
        let vectored = io.is_write_vectored();
        let (stream, live) = Self::opening(role, TransportTraits::FOREIGN, vectored, layer);
        // If another task finds it in a registry and evicts it immediately, the stream fails.
        stream.open_in(io, &driver);
        (stream, live)
    }

    /// A stream whose opening handshake is in progress. Dropping it before
    /// [`complete`](Self::complete) counts as [not upgraded](Self::not_upgraded).
    pub(crate) fn opening(
        role: Role,
        transport: &'static TransportTraits<T>,
        vectored: bool,
        layer: &LayerConfig,
    ) -> (Self, Liveness) {
        let connection = Connection::new(role, transport);
        let live = Liveness::new(Arc::clone(&connection) as Arc<dyn ErasedConnection>);
        live.attach(layer, layer.admit_always());
        (Self::new(connection, vectored), live)
    }

    /// The opening handshake is complete, and `io` carries frames from now on. If the connection
    /// was evicted meanwhile, the stream fails.
    ///
    /// # Panics
    ///
    /// If the current thread has no driver.
    pub(crate) fn complete(&self, io: T) {
        self.open_in(io, &Driver::expect_current());
    }

    fn open_in(&self, io: T, driver: &Arc<Driver>) {
        self.connection.open(io, driver);
        self.connection.evict_if_draining();
    }

    /// The opening handshake failed, so for the layer there was no connection.
    pub(crate) fn not_upgraded(&self) {
        self.connection.not_upgraded();
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.connection.metadata.id()
    }

    fn new(connection: Arc<Connection<T>>, vectored: bool) -> Self {
        connection.metadata.handler_has_stream();
        Self {
            connection,
            vectored,
            flushed: false,
        }
    }
}

impl<T> AsyncRead for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let connection = &self.connection;
        let mut state = connection.lock_for_handler();
        let polled = match state.poll_routine_read(cx, buf) {
            Routine::Done(read) => {
                state.unlock();
                return read;
            }
            Routine::Unusual(polled) => polled,
        };
        connection.continue_operation(state, |state, report| {
            state.poll_read(cx, buf, polled, || connection.waker(), report)
        })
    }
}

impl<T> AsyncWrite for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            connection,
            flushed,
            ..
        } = self.get_mut();
        let mut state = connection.lock_for_handler();
        let polled = match state.poll_routine_write(cx, buf) {
            Routine::Done(written) => {
                *flushed = state.write_half.flushes_nothing();
                state.unlock();
                return written;
            }
            Routine::Unusual(polled) => polled,
        };
        *flushed = false;
        let bytes = Outgoing::Slice(buf);
        connection.continue_operation(state, |state, report| {
            state.poll_write(cx, bytes, polled, || connection.waker(), report)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self {
            connection,
            flushed,
            ..
        } = self.get_mut();
        *flushed = false;
        let bytes = Outgoing::Slices(bufs);
        connection.continue_operation(connection.lock_for_handler(), |state, report| {
            state.poll_write(cx, bytes, None, || connection.waker(), report)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            connection,
            flushed,
            ..
        } = self.get_mut();
        if std::mem::take(flushed) {
            return Poll::Ready(Ok(()));
        }
        let mut state = connection.lock_for_handler();
        let polled = match state.poll_routine_flush(cx) {
            Routine::Done(done) => {
                state.unlock();
                return done;
            }
            Routine::Unusual(polled) => polled,
        };
        connection.continue_operation(state, |state, report| {
            state.poll_flush(cx, polled, || connection.waker(), report)
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        connection.enter(|state, report| state.poll_shutdown(cx, || connection.waker(), report))
    }
}

impl<T> Drop for LivenessStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn drop(&mut self) {
        let had_transport = self.connection.enter(|state, _| state.handler_dropped());
        if !had_transport {
            self.connection.not_upgraded();
        }
        self.connection.metadata.handler_dropped_stream();
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

#[cfg(all(test, not(liveness_loom)))]
mod tests;
