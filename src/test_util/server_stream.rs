//! [`ServerStream`]: the server's end of a WebSocket in memory.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use super::pipe::Pipe;

/// The server's end of a WebSocket in memory: a stream of frames whose other end is a
/// [`Client`](super::Client).
///
/// Made by [`pair`](super::pair). Layers wrap it, and WebSocket libraries read and write it, like a
/// `TcpStream` after the opening handshake. Dropping it ends the stream for the client.
///
/// Reads return `ConnectionReset` after [`Client::reset`](super::Client::reset), and the end of the
/// stream after the client's last byte if it has disconnected. Writes then fail with
/// `ConnectionReset` or `BrokenPipe`; they wait while the client does not read and its window is full.
///
/// Like tokio's sockets it takes part in [cooperative scheduling](tokio::task::coop): a handler that
/// writes in a loop yields to the test. Paused time does not pass while such a handler can write.
///
/// To the layers it is a stream like TLS, not a `TcpStream`: behind a write that the handler has
/// abandoned they send nothing, unless
/// [`takes_any_bytes(true)`](crate::HeartbeatLayerBuilder::takes_any_bytes) is set.
///
/// # Cancel safety
///
/// A read or write that is dropped while it is pending has neither taken bytes nor written any.
///
/// ```
/// use tower_ws_liveness::test_util::{self, ServerStream};
/// use tower_ws_liveness::{HeartbeatLayer, LivenessStream, Reason};
///
/// /// The code under test.
/// async fn serve(io: LivenessStream<ServerStream>) {
///     drop(io);
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (io, _client) = test_util::pair();
/// let (io, live) = HeartbeatLayer::default().wrap_server(io);
/// serve(io).await;
/// assert_eq!(live.reason(), Some(Reason::HandlerDropped));
/// # }
/// ```
pub struct ServerStream {
    pipe: Arc<Pipe>,
}

impl ServerStream {
    pub(super) fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe }
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        let read = self.pipe.with(|transit| transit.poll_read(cx, buf));
        if read.is_ready() {
            budget.made_progress();
        }
        read
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A client that reads accepts any number of writes, so that nothing else ends such a loop.
        let budget = ready!(coop::poll_proceed(cx));
        let written = self.pipe.with(|transit| transit.poll_write(cx, buf));
        if written.is_ready() {
            budget.made_progress();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.with(|transit| transit.shut_down_server());
        Poll::Ready(Ok(()))
    }
}

impl Drop for ServerStream {
    fn drop(&mut self) {
        self.pipe.with(|transit| transit.drop_server());
    }
}

impl fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerStream").finish_non_exhaustive()
    }
}
