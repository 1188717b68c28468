//! [`Liveness`] as an axum extractor.

use std::convert::Infallible;
use std::fmt;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::header::UPGRADE;
use http::request::Parts;
use http::{Method, StatusCode};

use crate::connection::Liveness;

/// There is no [`Liveness`] for this request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LivenessRejection {
    /// The request opens a WebSocket, and no layer of this crate is on the route. A fault of the
    /// server: 500 Internal Server Error.
    MissingLayer,
    /// The request does not open a WebSocket: 426 Upgrade Required.
    NotWebSocket,
}

impl fmt::Display for LivenessRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingLayer => {
                "no `Liveness` in the request: neither `HeartbeatLayer` nor `IdleTimeoutLayer` is \
                 applied to this route"
            }
            Self::NotWebSocket => {
                "no `Liveness` in the request: it is not a WebSocket opening handshake"
            }
        })
    }
}

impl std::error::Error for LivenessRejection {}

impl IntoResponse for LivenessRejection {
    fn into_response(self) -> Response {
        let text = self.to_string();
        match self {
            Self::MissingLayer => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
            Self::NotWebSocket => {
                let headers = [(UPGRADE, "websocket")];
                (StatusCode::UPGRADE_REQUIRED, headers, text).into_response()
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Liveness {
    type Rejection = LivenessRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        match parts.extensions.get::<Self>() {
            Some(live) => Ok(live.clone()),
            None if parts.headers.contains_key(UPGRADE) || parts.method == Method::CONNECT => {
                Err(LivenessRejection::MissingLayer)
            }
            None => Err(LivenessRejection::NotWebSocket),
        }
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Liveness {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}
