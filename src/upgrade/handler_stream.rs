//! [`HandlerStream`]: the stream that the handler's `Upgraded` wraps.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::transport::Transport;
use crate::connection::LivenessStream;

/// The stream that the bridge passes to the handler.
pub(super) enum HandlerStream {
    /// A WebSocket, under liveness.
    WebSocket(TokioIo<LivenessStream<Transport>>),
    /// hyper's own stream: the client offered several protocols, and the handler chose another one.
    /// Boxed because it is the larger variant, and rare.
    Other(Box<Upgraded>),
}

// Stays allocated as long as the connection.
#[cfg(all(test, target_pointer_width = "64"))]
const _: () = assert!(size_of::<HandlerStream>() == 16);

/// Evaluates `$call` with `$io` pinned, for the stream of either variant.
macro_rules! with_stream {
    ($this:expr, $io:ident => $call:expr) => {
        match $this.get_mut() {
            HandlerStream::WebSocket($io) => {
                let $io = Pin::new($io);
                $call
            }
            HandlerStream::Other($io) => {
                let $io = Pin::new($io);
                $call
            }
        }
    };
}

impl Read for HandlerStream {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        with_stream!(self, io => io.poll_read(cx, buf))
    }
}

impl Write for HandlerStream {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::WebSocket(io) => io.is_write_vectored(),
            Self::Other(io) => io.is_write_vectored(),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, io => io.poll_shutdown(cx))
    }
}
