//! Opens WebSockets, over any of the protocols, and speaks frames on them.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::ext::Protocol as ConnectProtocol;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_EXTENSIONS, UPGRADE};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::site::Io;
use crate::support::h2_client::H2Client;
use crate::support::raw::RawClient;
use crate::support::within;
use crate::tls;

/// An open WebSocket.
pub(crate) struct Client {
    /// Before the connection that carries it: dropped first.
    pub(crate) frames: RawClient<Box<dyn Io>>,
    /// What the server answered the opening handshake with.
    pub(crate) head: HeaderMap,
    _http2: Option<H2Client>,
}

/// The server said no.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// With this status.
    With(StatusCode),
    /// Its HTTP/2 settings do not offer extended CONNECT (RFC 8441 section 3).
    NotOffered,
    /// It does not speak HTTP/2.
    NotSpoken,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a WebSocket at `path`, and offers `extensions`.
    pub(crate) async fn open(
        addr: SocketAddr,
        protocol: Protocol,
        path: &str,
        extensions: Option<&'static str>,
    ) -> Result<Self, Refused> {
        let opening = async {
            let io = connect(addr, protocol).await;
            match protocol.http {
                HttpVersion::One => open_http1(io, path, extensions).await,
                HttpVersion::Two => open_http2(io, protocol, path, extensions).await,
            }
        };
        within("the opening handshake", opening).await
    }
}

/// The transport for a protocol.
pub(crate) async fn connect(addr: SocketAddr, protocol: Protocol) -> Box<dyn Io> {
    let io = TcpStream::connect(addr).await.expect("a server listens");
    io.set_nodelay(true).expect("a TCP socket");
    if protocol.tls.is_none() {
        return Box::new(io);
    }
    let connector = tls::connector(protocol.http);
    let secured = connector.connect(tls::name(), io).await;
    Box::new(secured.expect("the certificate is known"))
}

/// RFC 6455 section 4.1.
async fn open_http1(
    io: Box<dyn Io>,
    path: &str,
    extensions: Option<&'static str>,
) -> Result<Client, Refused> {
    let (mut http, connection) = http1::handshake(TokioIo::new(io)).await.expect("HTTP/1.1");
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::get(path)
        .header(HOST, "localhost")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Empty::<Bytes>::new())
        .expect("a path");
    offer(request.headers_mut(), extensions);
    let response = http.send_request(request).await.expect("a response");
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refused::With(response.status()));
    }
    let head = response.headers().clone();
    // The answer to that key in RFC 6455 section 1.3.
    assert_eq!(head["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let upgraded = hyper::upgrade::on(response).await.expect("a 101");
    Ok(Client {
        frames: RawClient::over(Box::new(TokioIo::new(upgraded))),
        head,
        _http2: None,
    })
}

/// RFC 8441 section 4.
async fn open_http2(
    io: Box<dyn Io>,
    protocol: Protocol,
    path: &str,
    extensions: Option<&'static str>,
) -> Result<Client, Refused> {
    let connected = H2Client::handshake(io, &h2::client::Builder::new()).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(Refused::NotOffered),
        // Whoever does not know the preface (RFC 9113 section 3.4) hangs up.
        Err(error) if hung_up(error.kind()) => return Err(Refused::NotSpoken),
        Err(error) => panic!("HTTP/2: {error}"),
    };
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("{}://localhost{path}", protocol.scheme()))
        .extension(ConnectProtocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(())
        .expect("a path");
    offer(request.headers_mut(), extensions);
    let (response, stream) = connection.send(request).await.expect("a response");
    if response.status() != StatusCode::OK {
        return Err(Refused::With(response.status()));
    }
    Ok(Client {
        frames: RawClient::over(Box::new(stream)),
        head: response.into_parts().0.headers,
        _http2: Some(connection),
    })
}

fn hung_up(error: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error, BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn offer(headers: &mut HeaderMap, extensions: Option<&'static str>) {
    if let Some(extensions) = extensions {
        headers.insert(
            SEC_WEBSOCKET_EXTENSIONS,
            http::HeaderValue::from_static(extensions),
        );
    }
}
