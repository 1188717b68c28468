//! What the bridge hands to the handler: nearly always our stream, and otherwise hyper's own.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::transport::Transport;
use crate::connection::LivenessStream;

/// The stream behind the handler's `Upgraded`.
pub(super) enum Either {
    /// A WebSocket.
    WebSocket(TokioIo<LivenessStream<Transport>>),
    /// The client offered several protocols, and the handler chose another one: none of ours. Boxed,
    /// since it is so rare and the larger one.
    Other(Box<Upgraded>),
}

// It stays allocated with every connection.
#[cfg(all(test, target_pointer_width = "64"))]
const _: () = assert!(size_of::<Either>() == 16);

/// Calls the same method on whichever stream it is.
macro_rules! either {
    ($this:expr, $io:ident => $call:expr) => {
        match $this.get_mut() {
            Either::WebSocket($io) => {
                let $io = Pin::new($io);
                $call
            }
            Either::Other($io) => {
                let $io = Pin::new($io);
                $call
            }
        }
    };
}

impl Read for Either {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl Write for Either {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::WebSocket(io) => io.is_write_vectored(),
            Self::Other(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }
}
