//! A client that opens a WebSocket over any protocol and exchanges frames.

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
    /// Declared before `_http2`, so that it is dropped before the connection that carries it.
    pub(crate) frames: RawClient<Box<dyn Io>>,
    /// The headers of the response to the opening handshake.
    pub(crate) headers: HeaderMap,
    _http2: Option<H2Client>,
}

/// Why the opening handshake failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The response had this status.
    Status(StatusCode),
    /// The server's HTTP/2 settings do not enable extended CONNECT (RFC 8441 section 3).
    NoExtendedConnect,
    /// The server does not support HTTP/2.
    NoHttp2,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("head", &self.headers)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a WebSocket at `path` and offers `extensions`.
    pub(crate) async fn open(
        addr: SocketAddr,
        protocol: Protocol,
        path: &str,
        extensions: Option<&'static str>,
    ) -> Result<Self, Refusal> {
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

/// Connects the transport of a protocol: TCP, with TLS if the protocol has it.
pub(crate) async fn connect(addr: SocketAddr, protocol: Protocol) -> Box<dyn Io> {
    let io = TcpStream::connect(addr).await.expect("the server listens");
    io.set_nodelay(true).expect("a TCP socket");
    if protocol.tls.is_none() {
        return Box::new(io);
    }
    let connector = tls::connector(protocol.http);
    let tls_stream = connector.connect(tls::name(), io).await;
    Box::new(tls_stream.expect("the certificate is trusted"))
}

/// Opens a WebSocket over HTTP/1.1 (RFC 6455 section 4.1).
async fn open_http1(
    io: Box<dyn Io>,
    path: &str,
    extensions: Option<&'static str>,
) -> Result<Client, Refusal> {
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
    offer_extensions(request.headers_mut(), extensions);
    let response = http.send_request(request).await.expect("a response");
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::Status(response.status()));
    }
    let headers = response.headers().clone();
    // The accept value for this key in RFC 6455 section 1.3.
    assert_eq!(
        headers["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    let upgraded = hyper::upgrade::on(response).await.expect("a 101");
    Ok(Client {
        frames: RawClient::over(Box::new(TokioIo::new(upgraded))),
        headers,
        _http2: None,
    })
}

/// Opens a WebSocket over HTTP/2 (RFC 8441 section 4).
async fn open_http2(
    io: Box<dyn Io>,
    protocol: Protocol,
    path: &str,
    extensions: Option<&'static str>,
) -> Result<Client, Refusal> {
    let connected = H2Client::handshake(io, &h2::client::Builder::new()).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Err(Refusal::NoExtendedConnect);
        }
        // A server without HTTP/2 closes the connection on the preface (RFC 9113 section 3.4).
        Err(error) if is_closed(error.kind()) => return Err(Refusal::NoHttp2),
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
    offer_extensions(request.headers_mut(), extensions);
    let (response, stream) = connection.send(request).await.expect("a response");
    if response.status() != StatusCode::OK {
        return Err(Refusal::Status(response.status()));
    }
    Ok(Client {
        frames: RawClient::over(Box::new(stream)),
        headers: response.into_parts().0.headers,
        _http2: Some(connection),
    })
}

fn is_closed(error: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error, BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn offer_extensions(headers: &mut HeaderMap, extensions: Option<&'static str>) {
    if let Some(extensions) = extensions {
        headers.insert(
            SEC_WEBSOCKET_EXTENSIONS,
            http::HeaderValue::from_static(extensions),
        );
    }
}
