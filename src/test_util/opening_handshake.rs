//! [`OpeningHandshake`]: upgrades a request that no server has read.

use http::header::{
    CONNECTION, Entry, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;

use super::client::Client;
use super::pair;
use super::server_stream::ServerStream;
use crate::upgrade::{Bridge, HandshakeKind, has_token, is_accepted};

/// Makes `request` an opening handshake over HTTP/1.1 that can be upgraded without a server.
///
/// For a `Router`, a layer or another service that is called directly, as with tower's `oneshot`.
/// To layers and handlers it is like a request on a connection of hyper: the layers create the
/// connection, `WebSocketUpgrade` and `Liveness` extract, and registries and hooks work. There is no
/// socket: `Liveness::peer_addr` is `None`, and axum's `ConnectInfo` extracts only if the test adds
/// it, or with axum's `MockConnectInfo`.
///
/// Adds the headers of RFC 6455 section 4.1 that the request does not have, and hyper's `OnUpgrade`
/// to its extensions. `Host` is that of the URI, or `localhost`. A `Connection` that does not name
/// the upgrade, such as `keep-alive`, is replaced. The request must be a `GET`. Pass the response to
/// [`connect`](OpeningHandshake::connect) to get the client.
///
/// Outside of a tokio runtime with time enabled the layers answer 500, as they do on a server.
///
/// ```
/// use std::time::Duration;
///
/// use axum::body::Body;
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::http::Request;
/// use axum::{Router, routing::any};
/// use tower::ServiceExt;
/// use tower_ws_liveness::{IdleTimeoutLayer, Liveness, Reason, test_util};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// /// The code under test.
/// async fn handler(ws: WebSocketUpgrade, live: Liveness) -> axum::response::Response {
///     live.set_session("ann".to_owned());
///     ws.on_upgrade(async |mut socket| while let Some(Ok(_)) = socket.recv().await {})
/// }
///
/// let (seen, mut evictions) = tokio::sync::mpsc::unbounded_channel();
/// let idle = IdleTimeoutLayer::builder()
///     .timeout(Duration::from_secs(60))
///     .on_evict(move |ev| drop(seen.send(ev.clone())))
///     .build()
///     .unwrap();
/// let app = Router::new().route("/ws", any(handler)).layer(idle);
///
/// let mut request = Request::get("/ws").body(Body::empty()).unwrap();
/// let handshake = test_util::opening_handshake(&mut request);
/// let response = app.oneshot(request).await.unwrap();
/// let _client = handshake.connect(&response);
///
/// let ev = evictions.recv().await.unwrap(); // after 60 s of paused time
/// assert_eq!(ev.reason(), Reason::IdleTimeout);
/// assert_eq!(*ev.session::<String>().unwrap(), "ann");
/// # }
/// ```
pub fn opening_handshake<B>(request: &mut Request<B>) -> OpeningHandshake {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (HOST, host(request.uri())),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        // The key of the example in RFC 6455 section 1.3.
        (
            SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        ),
    ];
    for (name, value) in headers {
        if let Entry::Vacant(missing) = request.headers_mut().entry(name) {
            missing.insert(value);
        }
    }
    if !has_token(request.headers(), &CONNECTION, b"upgrade") {
        let value = HeaderValue::from_static("upgrade");
        request.headers_mut().insert(CONNECTION, value);
    }
    let (bridge, on_upgrade) = Bridge::new().expect("hyper attaches an `OnUpgrade` to a `CONNECT`");
    request.extensions_mut().insert(on_upgrade);
    OpeningHandshake { bridge }
}

/// The value of `Host`: the URI's authority without user information (RFC 9110 section 7.2).
fn host(uri: &Uri) -> HeaderValue {
    let authority = uri.authority().map_or("localhost", |authority| {
        let authority = authority.as_str();
        authority.rsplit('@').next().unwrap_or(authority)
    });
    HeaderValue::from_str(authority).unwrap_or_else(|_| HeaderValue::from_static("localhost"))
}

/// A handshake whose request was passed to a service, before its client is connected. Made by
/// [`opening_handshake`].
///
/// Until [`connect`](Self::connect), no socket follows: the connection is
/// [`Opening`](crate::Health::Opening). Dropping this value instead disconnects the client before the
/// protocol switches: a connection whose handshake was accepted ends with
/// [`UpgradeFailed`](crate::Reason::UpgradeFailed), and axum calls `on_failed_upgrade`.
///
/// ```
/// use axum::body::Body;
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::http::{Request, StatusCode};
/// use axum::{Router, routing::any};
/// use tower::ServiceExt;
/// use tower_ws_liveness::{HeartbeatLayer, Reason, test_util};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let heartbeat = HeartbeatLayer::default();
/// let registry = heartbeat.registry();
/// let mut evictions = registry.evictions();
/// let handler = any(async |ws: WebSocketUpgrade| ws.on_upgrade(async |_| {}));
/// let app: Router = Router::new().route("/ws", handler).layer(heartbeat);
///
/// let mut request = Request::get("/ws").body(Body::empty()).unwrap();
/// let handshake = test_util::opening_handshake(&mut request);
/// let response = app.oneshot(request).await.unwrap();
/// assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
///
/// drop(handshake); // the client disconnects
/// let ev = evictions.recv().await.unwrap().unwrap();
/// assert_eq!(ev.reason(), Reason::UpgradeFailed);
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it disconnects the client"]
pub struct OpeningHandshake {
    bridge: Bridge<TokioIo<ServerStream>>,
}

impl OpeningHandshake {
    /// Switches protocols, as hyper does when it has written the response: the connection is open
    /// when this returns, and the handler's upgrade resolves.
    ///
    /// # Panics
    ///
    /// Panics if the response refuses the handshake: it is not a 101, or names another protocol.
    #[must_use = "dropping the client disconnects it"]
    #[track_caller]
    pub fn connect<B>(self, response: &Response<B>) -> Client {
        let status = response.status();
        assert!(
            is_accepted(HandshakeKind::Http1, response),
            "the opening handshake was answered {status}"
        );
        let (stream, client) = pair();
        self.bridge.complete(TokioIo::new(stream));
        client
    }
}
