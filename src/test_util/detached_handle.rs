//! Handles that no socket follows.

use crate::connection::Liveness;
use crate::eviction::ConnectionId;

/// Returns a handle that no socket follows: [`Liveness::is_detached`] is true.
///
/// For functions that take a [`Liveness`], and for handlers under `Router::oneshot`: among the
/// extensions of a request, it is what the extractor returns, with a layer on the route or without
/// one. A handler that also takes a `WebSocketUpgrade` needs an
/// [`opening_handshake`](super::opening_handshake()), whose connection a layer creates.
///
/// | | what a test can see |
/// |---|---|
/// | `set_session`, `register` and similar | as on a connection that is open, but no seat lingers |
/// | `evict` and its kin | ends it: seats leave their maps, its own hooks are called, `evicted` and `closed` return |
/// | `health`, `age`, `rtt`, `stats` | [`Health::Opening`](crate::Health::Opening) until then, zero, `None`, zeros |
/// | `ping`, deadlines | never: there is no peer, and no time passes for it |
/// | hooks and registries of layers | do not know it |
///
/// It ends only by an eviction, not when its last handle is dropped. Do not put it into a request
/// that is also an opening handshake: the layers would join it instead of creating a connection.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use axum::body::Body;
/// use axum::http::{Request, StatusCode};
/// use axum::{Extension, Router, routing::get};
/// use tower::ServiceExt;
/// use tower_ws_liveness::{Liveness, Seat, test_util};
///
/// type Users = Arc<Mutex<HashMap<String, Seat<()>>>>;
///
/// /// The code under test.
/// async fn join(Extension(users): Extension<Users>, live: Liveness) -> StatusCode {
///     match live.register(&users, "ann".to_owned(), ()) {
///         Ok(_) => StatusCode::OK,
///         Err(_) => StatusCode::CONFLICT,
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let users = Users::default();
/// let app = Router::new()
///     .route("/join", get(join))
///     .layer(Extension(Arc::clone(&users)));
///
/// let live = test_util::detached();
/// let request = Request::get("/join").extension(live.clone());
/// let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
/// assert_eq!(response.status(), StatusCode::OK);
/// assert!(users.lock().unwrap()["ann"].live().is_detached());
///
/// assert!(live.evict(4000, "kicked"));
/// assert!(users.lock().unwrap().is_empty());
/// # }
/// ```
#[must_use]
pub fn detached() -> Liveness {
    detached_with_id(ConnectionId::next())
}

/// Like [`detached`], with an id that the test chooses. Nothing checks that no other connection has
/// it.
#[must_use]
pub fn detached_with_id(id: ConnectionId) -> Liveness {
    Liveness::detached(id)
}
