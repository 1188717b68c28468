//! [`Liveness`] as an axum extractor.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::header::{ALLOW, CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{StatusCode, Version};

use super::detect::{NotHandshake, NotUpgradable, classify};
use crate::connection::Liveness;
use crate::panic_guard;

/// Rejection of the [`Liveness`] extractor: the request has no [`Liveness`].
///
/// The cause is the request, except for [`MissingLayer`](Self::MissingLayer). The status is that of
/// axum's `WebSocketUpgrade`, except that a request which does not request a WebSocket at all is
/// answered 426 instead of 400. Over HTTP/1.x a 426 carries `Upgrade: websocket` and
/// `Connection: upgrade` (RFC 9110 sections 15.5.22 and 7.8); over HTTP/2 these headers are
/// forbidden (RFC 9113 section 8.2.2). A 405 carries `Allow`.
///
/// ```
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::response::{IntoResponse, Response};
/// use tower_ws_liveness::{Liveness, LivenessRejection};
///
/// async fn handler(
///     live: Result<Liveness, LivenessRejection>,
///     ws: WebSocketUpgrade,
/// ) -> Response {
///     match live {
///         Ok(live) => ws.on_upgrade(move |_| async move { println!("{}", live.id()) }),
///         Err(rejection) => rejection.into_response(),
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/ws", axum::routing::any(handler));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LivenessRejection {
    /// The request opens a WebSocket, but the route has no layer of this crate. An error of the
    /// server: 500 Internal Server Error. Logged at ERROR once per process, with the path.
    ///
    /// The layer may have been added before the route: axum's `Router::layer` applies to the routes
    /// added before it.
    MissingLayer,
    /// `Upgrade` is missing, or `websocket` is not among its tokens: 426 Upgrade Required.
    NotWebSocket,
    /// Over HTTP/1.x only a `GET` opens a WebSocket (RFC 6455 section 4.1): 405 Method Not Allowed.
    MethodNotGet,
    /// Over HTTP/2 only a `CONNECT` opens a WebSocket (RFC 8441 section 5): 405 Method Not Allowed.
    MethodNotConnect,
    /// Over HTTP/2 the pseudo-header `:protocol` is missing or is not `websocket` (RFC 8441 section
    /// 5): 400 Bad Request.
    InvalidProtocol,
    /// No WebSocket can be opened over this version of HTTP: 1.0, 3, or 2 without the feature
    /// `http2`. 426 Upgrade Required.
    UnsupportedVersion(Version),
    /// The request is a handshake over this version of HTTP and passed a layer, but it cannot be
    /// upgraded because hyper's `OnUpgrade` is not among its extensions: 426 Upgrade Required.
    ///
    /// This happens in unit tests that call a `Router` with `oneshot`, without a server. With the
    /// feature `test-util` such a request can be upgraded: see the [guide](crate::guide::testing).
    /// Without it, a handler that takes `Option<Liveness>` gets `None`.
    NotUpgradable(Version),
}

impl LivenessRejection {
    /// Returns why the extensions contain no [`Liveness`].
    fn of(parts: &Parts) -> Self {
        let (version, headers, extensions) = (parts.version, &parts.headers, &parts.extensions);
        match classify(&parts.method, version, headers, extensions) {
            Ok(_) if extensions.get::<NotUpgradable>().is_some() => Self::NotUpgradable(version),
            Ok(_) => Self::MissingLayer,
            Err(NotHandshake::MethodNotGet) => Self::MethodNotGet,
            #[cfg(feature = "http2")]
            Err(NotHandshake::MethodNotConnect) => Self::MethodNotConnect,
            #[cfg(feature = "http2")]
            Err(NotHandshake::OtherProtocol) => Self::InvalidProtocol,
            Err(NotHandshake::NoUpgrade) => Self::NotWebSocket,
            Err(NotHandshake::Version) => Self::UnsupportedVersion(version),
        }
    }
}

impl fmt::Display for LivenessRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no `Liveness` in the request: ")?;
        match self {
            Self::MissingLayer => f.write_str(
                "neither `HeartbeatLayer` nor `IdleTimeoutLayer` is applied to this route; add \
                 the layer after the route: axum's `Router::layer` applies to the routes added \
                 before it",
            ),
            Self::NotWebSocket => f.write_str("it is not a WebSocket opening handshake"),
            Self::MethodNotGet => f.write_str("its method is not `GET`"),
            Self::MethodNotConnect => f.write_str("its method is not `CONNECT`"),
            Self::InvalidProtocol => f.write_str("its `:protocol` is not `websocket`"),
            Self::UnsupportedVersion(version) => {
                write!(f, "WebSockets are not available over {version:?}")
            }
            Self::NotUpgradable(_) => {
                f.write_str("hyper's `OnUpgrade` was not among its extensions")
            }
        }
    }
}

impl std::error::Error for LivenessRejection {}

impl IntoResponse for LivenessRejection {
    fn into_response(self) -> Response {
        let text = self.to_string();
        let allow = |method| [(ALLOW, HeaderValue::from_static(method))];
        match self {
            Self::MissingLayer => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
            Self::InvalidProtocol => (StatusCode::BAD_REQUEST, text).into_response(),
            Self::MethodNotGet => {
                (StatusCode::METHOD_NOT_ALLOWED, allow("GET"), text).into_response()
            }
            Self::MethodNotConnect => {
                (StatusCode::METHOD_NOT_ALLOWED, allow("CONNECT"), text).into_response()
            }
            Self::UnsupportedVersion(version) | Self::NotUpgradable(version)
                if version >= Version::HTTP_2 =>
            {
                (StatusCode::UPGRADE_REQUIRED, text).into_response()
            }
            Self::NotWebSocket | Self::UnsupportedVersion(_) | Self::NotUpgradable(_) => {
                let headers = [(UPGRADE, "websocket"), (CONNECTION, "upgrade")];
                (StatusCode::UPGRADE_REQUIRED, headers, text).into_response()
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Liveness {
    type Rejection = LivenessRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        if let Some(live) = parts.extensions.get::<Self>() {
            return Ok(live.clone());
        }
        let rejection = LivenessRejection::of(parts);
        if rejection == LivenessRejection::MissingLayer {
            log_missing_layer(parts.uri.path());
        }
        Err(rejection)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Liveness {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// Logs the mistake once per process, since every handshake on such a route meets it.
fn log_missing_layer(path: &str) {
    static LOGGED: AtomicBool = AtomicBool::new(false);

    if !LOGGED.swap(true, Ordering::Relaxed) {
        let rejection = LivenessRejection::MissingLayer;
        panic_guard::log(|| tracing::error!(path, "{rejection}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Logs;
    use http::Request;

    /// The only test of this binary in which a layer is missing, since a process logs it once.
    #[tokio::test]
    async fn a_missing_layer_is_logged_once_with_the_path() {
        let logs = Logs::keep();
        for path in ["/first", "/second"] {
            let handshake = Request::get(path).header(UPGRADE, "websocket").body(());
            let (mut parts, ()) = handshake.unwrap().into_parts();
            // An optional handle that is missing is no mistake.
            let optional = <Liveness as OptionalFromRequestParts<()>>::from_request_parts;
            assert!(optional(&mut parts, &()).await.unwrap().is_none());
            let required = <Liveness as FromRequestParts<()>>::from_request_parts;
            let rejection = required(&mut parts, &()).await.unwrap_err();
            assert_eq!(rejection, LivenessRejection::MissingLayer);
        }
        let errors = logs.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        for wanted in ["add the layer after the route", "path=\"/first\""] {
            assert!(
                errors[0].contains(wanted),
                "{wanted:?} is not in {errors:?}"
            );
        }
    }
}
