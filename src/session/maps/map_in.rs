//! A session map that is a part of a shared value, such as a field of the application's state.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::eviction::ConnectionId;
use crate::session::{MapLocation, Seat, SessionMap};

/// Returns the session map that `project` finds in `owner`, for
/// [`Liveness::register`](crate::Liveness::register) and the other methods that take a map.
///
/// For maps that have no `Arc` of their own: a field of an `Arc<AppState>`, or an element of one. A
/// registration keeps `owner` alive, as it keeps an `Arc` of a map alive. Allocates a few bytes.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use tokio::io::duplex;
/// use tower_ws_liveness::{HeartbeatLayer, Seat, map_in};
///
/// #[derive(Default)]
/// struct AppState {
///     sessions: Mutex<HashMap<String, Seat<u32>>>,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let state = Arc::new(AppState::default());
/// let (_stream, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
/// live.register(&map_in(&state, |state| &state.sessions), "alice".to_owned(), 7)?;
/// assert_eq!(*state.sessions.lock().unwrap()["alice"], 7);
/// # Ok(())
/// # }
/// ```
///
/// `project` must always return the same map, and must not block. It is called at the registration
/// and at the end of the connection. If it panics, the map is taken to have panicked: see
/// [`SessionMap`].
pub fn map_in<S, M, F>(owner: &Arc<S>, project: F) -> Arc<MapIn<S, M, F>>
where
    S: ?Sized,
    M: ?Sized,
    F: Fn(&S) -> &M,
{
    Arc::new(MapIn {
        owner: Arc::clone(owner),
        project,
        map: PhantomData,
    })
}

/// A session map `M` that is a part of a shared `S`. Returned by [`map_in`].
///
/// With the default `F`, a function pointer, it can be written out. A closure that captures nothing
/// becomes one:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use tower_ws_liveness::{MapIn, Seat, map_in};
///
/// type Sessions = Mutex<HashMap<String, Seat<u32>>>;
///
/// struct AppState {
///     sessions: Sessions,
/// }
///
/// impl AppState {
///     /// For `live.register(&state.sessions(), user, value)`.
///     fn sessions(self: &Arc<Self>) -> Arc<MapIn<Self, Sessions>> {
///         map_in(self, |state| &state.sessions)
///     }
/// }
/// ```
pub struct MapIn<S: ?Sized, M: ?Sized, F = fn(&S) -> &M> {
    owner: Arc<S>,
    project: F,
    map: PhantomData<fn(&M)>,
}

impl<S, M, F> MapIn<S, M, F>
where
    S: ?Sized,
    M: ?Sized,
    F: Fn(&S) -> &M,
{
    fn map(&self) -> &M {
        (self.project)(&self.owner)
    }
}

#[diagnostic::do_not_recommend]
impl<K, V, S, M, F> SessionMap<K, V> for MapIn<S, M, F>
where
    S: Send + Sync + 'static + ?Sized,
    M: SessionMap<K, V> + ?Sized,
    F: Fn(&S) -> &M + Send + Sync + 'static,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        self.map().insert_if(key, seat, admit)
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        self.map().remove_if(key, id)
    }

    fn location(&self) -> MapLocation {
        self.map().location().inside(&self.owner)
    }
}

impl<S: ?Sized, M: ?Sized, F> fmt::Debug for MapIn<S, M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapIn").finish_non_exhaustive()
    }
}
