//! Transports of a WebSocket: a TCP connection, or a stream of an HTTP/2 connection.
//!
//! A scenario is a function of its [`Wire`]. [`over_each_wire`] makes a test of it for each.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower_ws_liveness::Reason;

use super::h2_client::{H2Client, H2Stream};
use super::raw::RawClient;
use super::within;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// RFC 6455: the connection becomes the WebSocket.
    Http1,
    /// RFC 8441: a stream becomes the WebSocket.
    Http2,
}

/// A client over either transport.
pub(crate) type Client = RawClient<Carrier>;

/// Makes one test over HTTP/1.1 and one over HTTP/2 of each scenario.
#[allow(unused_macros)] // some test binaries do not use it
macro_rules! over_each_wire {
    ($(#[$test:meta] $($scenario:ident),+ $(,)?);+ $(;)?) => {
        mod http1 {
            $($(
                #[$test]
                async fn $scenario() {
                    super::$scenario($crate::support::wire::Wire::Http1).await;
                }
            )+)+
        }

        mod http2 {
            $($(
                #[$test]
                async fn $scenario() {
                    super::$scenario($crate::support::wire::Wire::Http2).await;
                }
            )+)+
        }
    };
}

#[allow(unused_imports)]
pub(crate) use over_each_wire;

impl Wire {
    /// A client on its own connection.
    pub(crate) async fn connect(self, addr: SocketAddr, path: &str) -> Client {
        match self {
            Self::Http1 => RawClient::handshake(Carrier::tcp(addr).await, path).await,
            Self::Http2 => RawClient::over(Carrier::stream(&h2(addr).await, path).await),
        }
    }

    /// The server's reason after [`Client::reset`]. hyper maps RST_STREAM to `ErrorKind::Other`.
    pub(crate) fn reset(self) -> Reason {
        Reason::Transport(match self {
            Self::Http1 => io::ErrorKind::ConnectionReset,
            Self::Http2 => io::ErrorKind::Other,
        })
    }
}

impl Client {
    /// Resets the connection: a TCP reset, or RST_STREAM.
    pub(crate) fn reset(mut self) {
        match self.io() {
            Carrier::Tcp(socket) => socket.set_zero_linger().unwrap(),
            Carrier::Stream { stream, .. } => stream.reset(h2::Reason::INTERNAL_ERROR),
        }
    }
}

/// A new HTTP/2 connection, for streams to share.
pub(crate) async fn h2(addr: SocketAddr) -> Arc<H2Client> {
    let connected = within("the connection", H2Client::connect(addr)).await;
    Arc::new(connected.unwrap())
}

/// Transport of one WebSocket. When dropped, sends FIN, or RST_STREAM with CANCEL.
#[derive(Debug)]
pub(crate) enum Carrier {
    Tcp(TcpStream),
    Stream {
        stream: H2Stream,
        /// Keeps the stream open. Dropped after it.
        _connection: Arc<H2Client>,
    },
}

impl Carrier {
    /// A TCP connection, before the opening handshake.
    pub(crate) async fn tcp(addr: SocketAddr) -> Self {
        let socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::Tcp(socket)
    }

    /// A stream, after the opening handshake.
    pub(crate) async fn stream(connection: &Arc<H2Client>, path: &str) -> Self {
        let uri = format!("http://localhost{path}");
        let opened = within("the response", connection.websocket(&uri)).await;
        let (response, stream) = opened.unwrap();
        assert!(response.status().is_success(), "{response:?}");
        Self::Stream {
            stream,
            _connection: Arc::clone(connection),
        }
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Stream { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Stream { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Stream { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Stream { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
