//! What an application does with the error of a registration: takes its value back, or responds.

use std::sync::Arc;

#[cfg(feature = "axum")]
use http::StatusCode;

use super::register::RegisterError;

impl<V> RegisterError<V> {
    /// The value that was passed to the registration.
    ///
    /// [`Arc::into_inner`] takes it out: no map and no seat has it any more. A `papaya` map may
    /// drop its reference later, if other threads read it during the registration.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Arc, Mutex};
    ///
    /// use tokio::io::duplex;
    /// use tower_ws_liveness::{HeartbeatLayer, Seat};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let sessions: Arc<Mutex<HashMap<&str, Seat<String>>>> = Arc::default();
    /// let (_stream, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
    /// live.evict(4000, "kicked");
    /// let error = live.register(&sessions, "alice", "value".to_owned()).unwrap_err();
    /// assert_eq!(Arc::into_inner(error.into_value()).as_deref(), Some("value"));
    /// # }
    /// ```
    #[must_use]
    pub fn into_value(self) -> Arc<V> {
        match self {
            Self::Ended { value, .. } | Self::Occupied { value, .. } | Self::ZeroMax { value } => {
                value
            }
        }
    }
}

/// Responds 409 Conflict, so that a handler that returns a `Result` can use `?`.
///
/// [`ZeroMax`](RegisterError::ZeroMax) is 500 Internal Server Error. The body says whether the
/// connection has ended or another one has the seat. It does not contain ids. If the handler has
/// registered other seats, the connection removes them.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use axum::extract::{Path, State, ws::WebSocketUpgrade};
/// use axum::response::Response;
/// use tower_ws_liveness::{Liveness, RegisterError, ReplacePolicy, Seat};
///
/// type Sessions = Arc<Mutex<HashMap<String, Seat<()>>>>;
///
/// async fn handler(
///     ws: WebSocketUpgrade,
///     live: Liveness,
///     Path(user): Path<String>,
///     State(sessions): State<Sessions>,
/// ) -> Result<Response, RegisterError<()>> {
///     live.register_with(&sessions, user, (), &ReplacePolicy::oldest_wins())?;
///     Ok(ws.on_upgrade(async |_| {}))
/// }
/// # let _: axum::Router<Sessions> = axum::Router::new().route("/ws/{user}", axum::routing::any(handler));
/// ```
#[cfg(feature = "axum")]
impl<V> axum_core::response::IntoResponse for RegisterError<V> {
    fn into_response(self) -> axum_core::response::Response {
        let (status, text) = match self {
            Self::Ended { .. } => (StatusCode::CONFLICT, "the connection has ended"),
            Self::Occupied { .. } => (StatusCode::CONFLICT, "another connection has the seat"),
            Self::ZeroMax { .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server permits no connection",
            ),
        };
        (status, text).into_response()
    }
}
