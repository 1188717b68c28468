//! WebSocket over HTTP/2 (RFC 8441): a client connection, and its streams as an IO.
//!
//! ```ignore
//! let client = H2Client::connect(addr).await?;
//! let (response, stream) = client.websocket("http://localhost/ws").await?;
//! assert_eq!(response.status(), 200);
//! let mut ws = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
//! ```

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::ext::Protocol;
use h2::{Ping, Reason, RecvStream, SendStream, client};
use http::{Method, Request, Response, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A client's HTTP/2 connection, driven by its own task.
///
/// Dropping it closes the connection without GOAWAY, as a killed process does: every stream on it
/// ends with an error.
#[derive(Debug)]
pub(crate) struct H2Client {
    requests: client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl H2Client {
    /// Connects to `addr` in clear text, with prior knowledge.
    ///
    /// # Errors
    /// If the peer cannot be reached, does not speak HTTP/2, or does not offer extended `CONNECT`.
    pub(crate) async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect(addr).await?;
        io.set_nodelay(true)?;
        Self::handshake(io, &client::Builder::new()).await
    }

    /// Speaks HTTP/2 over `io`, with windows and frame sizes from `settings`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn handshake<T>(io: T, settings: &client::Builder) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, mut connection) = settings.handshake(io).await.map_err(into_io)?;
        // The server sends its SETTINGS first, so they have arrived when it answers a ping.
        let mut ping = connection
            .ping_pong()
            .expect("first use of the ping-pong handle");
        let connection = tokio::spawn(connection);
        let client = H2Client {
            requests,
            connection,
        };
        ping.ping(Ping::opaque()).await.map_err(into_io)?;
        if !client.requests.is_extended_connect_protocol_enabled() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the server does not offer extended CONNECT",
            ));
        }
        Ok(client)
    }

    /// Opens a WebSocket at `uri`, which must be absolute.
    ///
    /// The response's status says whether the server accepted. If it did, the stream carries
    /// frames; if not, the response body.
    ///
    /// # Errors
    /// If `uri` is malformed, or the stream or the connection failed before the response head.
    pub(crate) async fn websocket(&self, uri: &str) -> io::Result<(Response<()>, H2Stream)> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .version(Version::HTTP_2)
            .uri(uri)
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.send(request).await
    }

    /// Sends the head of a request and leaves the stream open in both directions.
    ///
    /// # Errors
    /// If the stream or the connection failed before the response head.
    pub(crate) async fn send(&self, request: Request<()>) -> io::Result<(Response<()>, H2Stream)> {
        let mut requests = self.requests.clone().ready().await.map_err(into_io)?;
        let (response, send) = requests.send_request(request, false).map_err(into_io)?;
        let (head, recv) = response.await.map_err(into_io)?.into_parts();
        let stream = H2Stream {
            send,
            recv,
            chunk: Bytes::new(),
            write_closed: false,
        };
        Ok((Response::from_parts(head, ()), stream))
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// One stream of an [`H2Client`] as a byte stream.
///
/// The peer's window opens when bytes are *read*, not when they arrive: a reader that stops makes
/// the peer stop. Shutting down sends END_STREAM, dropping sends RST_STREAM.
#[derive(Debug)]
pub(crate) struct H2Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Bytes received and not yet read.
    chunk: Bytes,
    write_closed: bool,
}

impl H2Stream {
    pub(crate) fn id(&self) -> u32 {
        self.recv.stream_id().as_u32()
    }

    /// Resets the stream: the peer gets an error in both directions. The connection stays open.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.write_closed = true;
        self.send.send_reset(reason);
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // A loop: DATA frames may be empty, and an empty read would mean the end.
        while this.chunk.is_empty() {
            this.chunk = match ready!(this.recv.poll_data(cx)) {
                Some(Ok(chunk)) => chunk,
                // RFC 9113 section 8.1: the response is complete, and the server does not want the
                // rest of the request.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                None => return Poll::Ready(Ok(())),
            };
        }
        let n = this.chunk.len().min(buf.remaining());
        buf.put_slice(&this.chunk[..n]);
        this.chunk.advance(n);
        // Fails only if the stream is closed, where no window is needed.
        let _ = this.recv.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(buf.len());
        // `poll_capacity` reports only changes, so capacity that was assigned before is checked
        // first.
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = this.send.capacity().min(buf.len());
        let data = Bytes::copy_from_slice(&buf[..n]);
        this.send.send_data(data, false).map_err(into_io)?;
        Poll::Ready(Ok(n))
    }

    /// Does nothing: the connection's task sends as fast as the socket accepts.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_closed {
            this.write_closed = true;
            this.send.send_data(Bytes::new(), true).map_err(into_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Keeps the kind of an IO error, and maps a stream reset to `ConnectionReset`.
fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().expect("checked to be an IO error");
    }
    let kind = if error.is_reset() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::Other
    };
    io::Error::new(kind, error)
}
