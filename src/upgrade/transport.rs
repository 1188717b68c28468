//! [`Transport`]: the upgraded stream from hyper, as a TCP socket where possible.
//!
//! hyper's `Upgraded` boxes a stream of any type. A tokio `TcpStream` is taken out of the box:
//! calls to it then need no dynamic dispatch, and its socket options can be set. All other streams
//! (HTTP/2, TLS, Unix sockets, in-memory pipes) stay boxed. Writes to HTTP/2 streams are limited in
//! size.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
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

use super::detect::HandshakeKind;
use crate::connection::TransportTraits;
use crate::monitor::{HeartbeatPolicy, KernelView, Moment};
#[cfg(feature = "tcp")]
use crate::tcp::{self, TcpOptions};

/// The most bytes of one write to an HTTP/2 stream: the DATA frame size that every peer accepts
/// (RFC 9113 section 6.5.2).
#[cfg(feature = "http2")]
const MAX_HTTP2_WRITE_BYTES: usize = 16 * 1024;

/// The transport of an upgraded connection.
pub(super) enum Transport {
    /// A plain TCP socket.
    #[cfg(feature = "tcp")]
    Tcp {
        /// Bytes that hyper read after the request head: the peer sent them without waiting for
        /// the response. Never empty, because even an empty `Bytes` keeps the read buffer of
        /// hyper's connection allocated.
        early: Option<Box<Bytes>>,
        socket: TcpStream,
    },
    /// A stream of an HTTP/2 connection.
    ///
    /// hyper accepts a write of any length, and buffers a copy while the peer's flow-control window
    /// is closed. Pings would be queued behind it, and an accepted write would not show that the
    /// peer drains earlier ones.
    #[cfg(feature = "http2")]
    Http2Stream(Box<TokioIo<Upgraded>>),
    /// Any other stream. Boxed because the variant would otherwise be twice the size of `Tcp`.
    Upgraded(Box<TokioIo<Upgraded>>),
}

#[cfg(feature = "tcp")]
impl Transport {
    /// Returns the socket of a plain TCP transport.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp { socket, .. } => Some(socket),
            #[cfg(feature = "http2")]
            Self::Http2Stream(_) => None,
            Self::Upgraded(_) => None,
        }
    }

    /// Moves as many early bytes into `buf` as fit. Only the first reads return any.
    #[cold]
    fn take_early(early: &mut Option<Box<Bytes>>, buf: &mut ReadBuf<'_>) {
        let Some(bytes) = early else {
            return;
        };
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        bytes.advance(count);
        if bytes.is_empty() {
            *early = None;
        }
    }

    fn from_socket(socket: TokioIo<TcpStream>, early: Bytes) -> Self {
        Self::Tcp {
            early: (!early.is_empty()).then(|| Box::new(early)),
            socket: socket.into_inner(),
        }
    }
}

impl Transport {
    pub(super) const TRAITS: &'static TransportTraits<Self> = &TransportTraits {
        tune: Self::tune,
        takes_any_bytes: Self::takes_any_bytes,
        flushes_nothing: Self::flushes_nothing,
        poll_writable: Self::poll_writable,
        kernel_view: Self::kernel_view,
        peer_addr: Self::peer_addr,
        widen_receive_window: Self::widen_receive_window,
    };

    /// Sets the socket options that follow from the heartbeat's times, on a plain TCP transport.
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

    /// False for a boxed stream, which may be TLS by OpenSSL.
    fn takes_any_bytes(&self) -> bool {
        !matches!(self, Self::Upgraded(_))
    }

    #[cfg(feature = "tcp")]
    fn flushes_nothing(&self) -> bool {
        self.tcp().is_some()
    }

    #[cfg(not(feature = "tcp"))]
    fn flushes_nothing(&self) -> bool {
        false
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

    #[cfg(feature = "tcp")]
    fn kernel_view(&self, now: &dyn Fn() -> Moment) -> Option<KernelView> {
        tcp::kernel_view(self.tcp()?, now)
    }

    #[cfg(not(feature = "tcp"))]
    fn kernel_view(&self, _: &dyn Fn() -> Moment) -> Option<KernelView> {
        None
    }

    #[cfg(feature = "tcp")]
    fn peer_addr(&self) -> Option<SocketAddr> {
        self.tcp()?.peer_addr().ok()
    }

    #[cfg(not(feature = "tcp"))]
    fn peer_addr(&self) -> Option<SocketAddr> {
        None
    }

    #[cfg(feature = "tcp")]
    fn widen_receive_window(&self, heartbeat: &HeartbeatPolicy) {
        match self.tcp() {
            Some(socket) if heartbeat.tune_tcp => tcp::widen_receive_window(socket),
            _ => {}
        }
    }

    #[cfg(not(feature = "tcp"))]
    fn widen_receive_window(&self, _: &HeartbeatPolicy) {}

    /// Wraps the upgraded stream of a handshake of this kind.
    pub(super) fn new(kind: HandshakeKind, upgraded: Upgraded) -> Self {
        match kind {
            HandshakeKind::Http1 => Self::from(upgraded),
            #[cfg(feature = "http2")]
            HandshakeKind::ExtendedConnect => Self::Http2Stream(Box::new(TokioIo::new(upgraded))),
        }
    }
}

impl From<Upgraded> for Transport {
    fn from(upgraded: Upgraded) -> Self {
        // hyper-util, which `axum::serve` uses, wraps the socket in a type of its own; hyper's own
        // connections do not. A failed downcast only compares type ids and returns its argument.
        #[cfg(feature = "tcp")]
        let upgraded = match auto::downcast::<TokioIo<TcpStream>>(upgraded) {
            Ok(parts) => return Self::from_socket(parts.io, parts.read_buf),
            Err(upgraded) => match upgraded.downcast::<TokioIo<TcpStream>>() {
                Ok(parts) => return Self::from_socket(parts.io, parts.read_buf),
                Err(upgraded) => upgraded,
            },
        };
        Self::Upgraded(Box::new(TokioIo::new(upgraded)))
    }
}

/// Evaluates `$call` with `$io` pinned, for the stream of any variant.
macro_rules! with_stream {
    ($this:expr, $io:ident => $call:expr) => {
        match $this {
            #[cfg(feature = "tcp")]
            Transport::Tcp { socket, .. } => {
                let $io = Pin::new(socket);
                $call
            }
            #[cfg(feature = "http2")]
            Transport::Http2Stream(stream) => {
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
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        #[cfg(feature = "tcp")]
        if let Self::Tcp {
            early: early @ Some(_),
            ..
        } = this
        {
            Self::take_early(early, buf);
            return Poll::Ready(Ok(()));
        }
        with_stream!(this, io => io.poll_read(cx, buf))
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
        if let Self::Http2Stream(stream) = this {
            return Pin::new(stream).poll_write(cx, &buf[..buf.len().min(MAX_HTTP2_WRITE_BYTES)]);
        }
        with_stream!(this, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        #[cfg(feature = "http2")]
        if matches!(*self, Self::Http2Stream(_)) {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |buf| &**buf));
        }
        with_stream!(self.get_mut(), io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            #[cfg(feature = "tcp")]
            Self::Tcp { socket, .. } => socket.is_write_vectored(),
            #[cfg(feature = "http2")]
            Self::Http2Stream(_) => false,
            Self::Upgraded(upgraded) => upgraded.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self.get_mut(), io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self.get_mut(), io => io.poll_shutdown(cx))
    }
}

#[cfg(all(test, feature = "tcp"))]
mod tests;
