//! What hyper hands out, as concrete as it can be had.
//!
//! hyper's `Upgraded` is a box of something. Where that is a tokio `TcpStream` it is taken out: calls
//! to it need no dynamic dispatch then, and it has socket options to set. Everything else (HTTP/2,
//! TLS, Unix sockets, streams in memory) stays in its box; HTTP/2 is given a little at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

#[cfg(feature = "tcp")]
use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
#[cfg(feature = "tcp")]
use hyper_util::server::conn::auto::upgrade as auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(feature = "tcp")]
use tokio::net::TcpStream;

use super::detect::Handshake;
use crate::connection::TransportTraits;
use crate::monitor::HeartbeatPolicy;
#[cfg(feature = "tcp")]
use crate::tcp::TcpOptions;

/// What a stream of HTTP/2 is given at once: a DATA frame of the size that every peer accepts
/// (RFC 9113 section 6.5.2).
#[cfg(feature = "http2")]
const MOST: usize = 16 * 1024;

/// The transport of an upgraded connection.
pub(super) enum Transport {
    /// A plain TCP socket.
    #[cfg(feature = "tcp")]
    Tcp {
        /// What hyper read after the request head, which the peer sent without waiting for the
        /// answer. Never empty: it keeps the buffer of hyper's connection alive.
        early: Option<Box<Bytes>>,
        socket: TcpStream,
    },
    /// A stream of an HTTP/2 connection. hyper accepts all of a write, however long, and keeps a copy
    /// of it for as long as the peer's window is closed. Pings would wait behind that, and accepted
    /// bytes would not say that the peer drains others.
    #[cfg(feature = "http2")]
    Stream(Box<TokioIo<Upgraded>>),
    /// Anything else. In a box of its own, or it would be twice the size of a socket.
    Upgraded(Box<TokioIo<Upgraded>>),
}

#[cfg(feature = "tcp")]
impl Transport {
    /// The socket, if that is what it is.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp { socket, .. } => Some(socket),
            #[cfg(feature = "http2")]
            Self::Stream(_) => None,
            Self::Upgraded(_) => None,
        }
    }

    /// DeadlineMove early bytes into `buf`, as far as they fit. False if there are none left.
    fn take_early(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Self::Tcp { early, .. } = self else {
            return false;
        };
        let Some(bytes) = early else {
            return false;
        };
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        bytes.advance(count);
        if bytes.is_empty() {
            *early = None;
        }
        true
    }

    fn over(socket: TokioIo<TcpStream>, early: Bytes) -> Self {
        Self::Tcp {
            early: (!early.is_empty()).then(|| Box::new(early)),
            socket: socket.into_inner(),
        }
    }
}

impl Transport {
    pub(super) const CAPABILITIES: &'static TransportTraits<Self> = &TransportTraits {
        tune: Self::tune,
        takes_any_bytes: Self::takes_any_bytes,
        poll_writable: Self::poll_writable,
    };

    /// Sets the socket options that follow from the heartbeat's times, if the transport is a TCP socket.
    #[cfg(feature = "tcp")]
    fn tune(&self, heartbeat: &HeartbeatPolicy) -> io::Result<()> {
        match self.tcp() {
            Some(socket) if heartbeat.tune_tcp => TcpOptions::of(heartbeat).replace(socket),
            _ => Ok(()),
        }
    }

    #[cfg(not(feature = "tcp"))]
    fn tune(&self, _: &HeartbeatPolicy) -> io::Result<()> {
        Ok(())
    }

    /// False for hyper's boxed stream, which may be TLS by OpenSSL.
    fn takes_any_bytes(&self) -> bool {
        !matches!(self, Self::Upgraded(_))
    }

    #[cfg(feature = "tcp")]
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.tcp() {
            Some(socket) => socket.poll_write_ready(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    #[cfg(not(feature = "tcp"))]
    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// What became of an opening handshake of this kind.
    pub(super) fn of(handshake: Handshake, upgraded: Upgraded) -> Self {
        match handshake {
            Handshake::Http1 => Self::from(upgraded),
            #[cfg(feature = "http2")]
            Handshake::ExtendedConnect => Self::Stream(Box::new(TokioIo::new(upgraded))),
        }
    }
}

impl From<Upgraded> for Transport {
    fn from(upgraded: Upgraded) -> Self {
        // The connections of `axum::serve` are of hyper-util's making, which puts a wrapper of its
        // own around the socket; those of hyper itself have none. An attempt that fails only
        // compares two type ids, and gives back what it was given.
        #[cfg(feature = "tcp")]
        let upgraded = match auto::downcast::<TokioIo<TcpStream>>(upgraded) {
            Ok(parts) => return Self::over(parts.io, parts.read_buf),
            Err(upgraded) => match upgraded.downcast::<TokioIo<TcpStream>>() {
                Ok(parts) => return Self::over(parts.io, parts.read_buf),
                Err(upgraded) => upgraded,
            },
        };
        Self::Upgraded(Box::new(TokioIo::new(upgraded)))
    }
}

/// Calls the same method on whichever stream it is.
macro_rules! transport {
    ($this:expr, $io:ident => $call:expr) => {
        match $this {
            #[cfg(feature = "tcp")]
            Transport::Tcp { socket, .. } => {
                let $io = Pin::new(socket);
                $call
            }
            #[cfg(feature = "http2")]
            Transport::Stream(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            Transport::Upgraded(upgraded) => {
                let $io = Pin::new(upgraded);
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        #[cfg(feature = "tcp")]
        if this.take_early(buf) {
            return Poll::Ready(Ok(()));
        }
        transport!(this, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        #[cfg(feature = "http2")]
        if let Self::Stream(stream) = this {
            return Pin::new(stream).poll_write(cx, &buf[..buf.len().min(MOST)]);
        }
        transport!(this, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        #[cfg(feature = "http2")]
        if matches!(*self, Self::Stream(_)) {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |buf| &**buf));
        }
        transport!(self.get_mut(), io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            #[cfg(feature = "tcp")]
            Self::Tcp { socket, .. } => socket.is_write_vectored(),
            #[cfg(feature = "http2")]
            Self::Stream(_) => false,
            Self::Upgraded(upgraded) => upgraded.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        transport!(self.get_mut(), io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        transport!(self.get_mut(), io => io.poll_shutdown(cx))
    }
}

#[cfg(all(test, feature = "tcp"))]
mod tests;
