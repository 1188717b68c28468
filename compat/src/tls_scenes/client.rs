//! A WebSocket client that observes TLS and TCP below it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::http_version::HttpVersion;
use crate::support::raw::{CLOSE, Frame, RawClient};
use crate::support::within;
use crate::tls;

/// A WebSocket client over TLS over a socket.
pub(super) type TlsClient = RawClient<TlsStream<Wire>>;

/// The socket below the client's TLS.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) socket: TcpStream,
    /// Maximum number of bytes per write, each of which is one TCP segment.
    max_segment: usize,
    /// Whether to corrupt the incoming bytes.
    pub(super) corrupts_incoming: bool,
}

/// How the server ended a connection: WebSocket, TLS, TCP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConnectionEnd {
    /// The received Close frame.
    pub(super) close: Option<Frame>,
    pub(super) tls: TlsEnd,
    pub(super) tcp: TcpEnd,
}

/// How the server ended TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsEnd {
    /// With a close_notify (RFC 8446 section 6.1).
    CloseNotify,
    /// Without a close_notify, so that data may be missing.
    Truncated,
}

/// How the server ended TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TcpEnd {
    Fin,
    Reset,
}

/// Opens a WebSocket.
pub(super) async fn open(addr: SocketAddr) -> TlsClient {
    open_in_segments(addr, usize::MAX).await
}

/// Opens a WebSocket, with at most `max_segment` bytes per TCP segment from the TLS handshake on.
pub(super) async fn open_in_segments(addr: SocketAddr, max_segment: usize) -> TlsClient {
    let socket = TcpStream::connect(addr).await.expect("the server listens");
    socket.set_nodelay(true).expect("a TCP socket");
    let wire = Wire {
        socket,
        max_segment,
        corrupts_incoming: false,
    };
    let handshake = tls::connector(HttpVersion::One).connect(tls::name(), wire);
    let tls_stream = within("the TLS handshake", handshake).await;
    RawClient::handshake(tls_stream.expect("the certificate is trusted"), "/ws").await
}

/// Answers pings as configured, and a Close frame, until the server ends the connection.
pub(super) async fn read_to_end(client: &mut TlsClient) -> ConnectionEnd {
    within("the end of the connection", observe_end(client)).await
}

async fn observe_end(client: &mut TlsClient) -> ConnectionEnd {
    let mut close = None;
    let tls = loop {
        match client.next().await {
            Ok(Some(frame)) if frame.opcode == CLOSE => {
                // Fails if the server has already closed the socket.
                let _ = client.send(&frame).await;
                close = Some(frame);
            }
            Ok(Some(_)) => {}
            Ok(None) => break TlsEnd::CloseNotify,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break TlsEnd::Truncated,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                let (tls, tcp) = (TlsEnd::Truncated, TcpEnd::Reset);
                return ConnectionEnd { close, tls, tcp };
            }
            Err(error) => panic!("unexpected error: {error}"),
        }
    };
    let tcp = match client.io().get_mut().0.socket.read(&mut [0; 64]).await {
        Ok(0) => TcpEnd::Fin,
        Ok(count) => panic!("{count} bytes after the end of TLS"),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => TcpEnd::Reset,
        Err(error) => panic!("{error}"),
    };
    ConnectionEnd { close, tls, tcp }
}

/// Ends the client's direction of TLS and leaves the socket open.
pub(super) async fn send_close_notify(client: &mut TlsClient) {
    client.io().get_mut().1.send_close_notify();
    client.io().flush().await.expect("a write of an alert");
}

impl ConnectionEnd {
    /// The end after an axum handler has dropped its socket.
    pub(super) const DROPPED: Self = Self {
        close: None,
        tls: TlsEnd::Truncated,
        tcp: TcpEnd::Fin,
    };

    /// A clean end of WebSocket, TLS and TCP, with this Close frame.
    pub(super) fn clean(close: Option<Frame>) -> Self {
        Self {
            close,
            tls: TlsEnd::CloseNotify,
            tcp: TcpEnd::Fin,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        if self.corrupts_incoming {
            // The last byte belongs to the authentication tag of a record.
            if let Some(last) = buf.filled_mut()[before..].last_mut() {
                *last ^= 1;
            }
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = buf.len().min(self.max_segment);
        Pin::new(&mut self.socket).poll_write(cx, &buf[..count])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
