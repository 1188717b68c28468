//! A client that looks below the WebSocket: at TLS, and at TCP below that.

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

/// Frames over TLS over a socket.
pub(super) type Client = RawClient<TlsStream<Wire>>;

/// The socket below a client's TLS.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) socket: TcpStream,
    /// At most so many bytes in each segment.
    segment: usize,
    /// What comes in is spoilt on its way.
    pub(super) spoils: bool,
}

/// How the server ended a connection, from the inside out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The Close frame.
    pub(super) close: Option<Frame>,
    pub(super) tls: TlsEnd,
    pub(super) tcp: TcpEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsEnd {
    /// RFC 8446 section 6.1: the server has sent all that it wanted to.
    CloseNotify,
    /// Nobody knows whether there should have been more.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TcpEnd {
    Fin,
    Reset,
}

/// Opens a WebSocket.
pub(super) async fn open(addr: SocketAddr) -> Client {
    open_in_segments(addr, usize::MAX).await
}

/// Opens a WebSocket, and writes at most `segment` bytes in each TCP segment, from the first byte
/// of TLS on.
pub(super) async fn open_in_segments(addr: SocketAddr, segment: usize) -> Client {
    let socket = TcpStream::connect(addr).await.expect("a server listens");
    socket.set_nodelay(true).expect("a TCP socket");
    let wire = Wire {
        socket,
        segment,
        spoils: false,
    };
    let handshake = tls::connector(HttpVersion::One).connect(tls::name(), wire);
    let secured = within("the TLS handshake", handshake).await;
    RawClient::handshake(secured.expect("the certificate is known"), "/ws").await
}

/// Lives on, answers pings as agreed and a Close frame, until the server has ended the connection.
pub(super) async fn end(client: &mut Client) -> End {
    within("the end of the connection", read_end(client)).await
}

async fn read_end(client: &mut Client) -> End {
    let mut close = None;
    let tls = loop {
        match client.next().await {
            Ok(Some(frame)) if frame.opcode == CLOSE => {
                // The server need not listen any more.
                let _ = client.send(&frame).await;
                close = Some(frame);
            }
            Ok(Some(_)) => {}
            Ok(None) => break TlsEnd::CloseNotify,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break TlsEnd::Truncated,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                let (tls, tcp) = (TlsEnd::Truncated, TcpEnd::Reset);
                return End { close, tls, tcp };
            }
            Err(error) => panic!("neither side has done anything wrong: {error}"),
        }
    };
    let tcp = match client.io().get_mut().0.socket.read(&mut [0; 64]).await {
        Ok(0) => TcpEnd::Fin,
        Ok(count) => panic!("{count} bytes after the end of TLS"),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => TcpEnd::Reset,
        Err(error) => panic!("{error}"),
    };
    End { close, tls, tcp }
}

/// Ends this direction of TLS, and leaves the socket as it is.
pub(super) async fn send_close_notify(client: &mut Client) {
    client.io().get_mut().1.send_close_notify();
    client.io().flush().await.expect("room for an alert");
}

impl End {
    /// A handler of axum's has let go of its socket.
    pub(super) const LET_GO: Self = Self {
        close: None,
        tls: TlsEnd::Truncated,
        tcp: TcpEnd::Fin,
    };

    /// With this Close frame, and then clean on every floor.
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
        if self.spoils {
            // The last byte belongs to what proves that a record is whole.
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
        let count = buf.len().min(self.segment);
        Pin::new(&mut self.socket).poll_write(cx, &buf[..count])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
