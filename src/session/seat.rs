//! The entry that a session map holds for a connection.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::linger::{SeatState, Session, WeakSession};
use super::replace_policy::{ReplaceAction, ReplacePolicy};
use crate::connection::{Liveness, RegistrationId};
use crate::eviction::ConnectionId;

/// An entry of a session map: the application's value and the connection that holds the seat.
///
/// Created by [`Liveness::register`]. It dereferences to the value. Cloning is cheap, and clones
/// share the value: to push to seats, clone them, release the map's lock, and then push. The layer
/// removes only the seat in the map; the application must remove the clones that it stores.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use tokio::{io::duplex, sync::mpsc};
/// use tower_ws_liveness::{HeartbeatLayer, Seat};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sessions: Arc<Mutex<HashMap<&str, Seat<mpsc::Sender<String>>>>> = Arc::default();
/// let (_io, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
/// let (tx, mut rx) = mpsc::channel(8);
/// live.register(&sessions, "alice", tx)?;
///
/// // Cloned, so that the lock is released before the send.
/// let seat = sessions.lock().unwrap()["alice"].clone();
/// seat.send("hello".to_owned()).await?; // a method of the value
/// assert_eq!(rx.recv().await.as_deref(), Some("hello"));
/// seat.live().evict(4000, "kicked");
/// assert!(sessions.lock().unwrap().is_empty());
/// # Ok(())
/// # }
/// ```
pub struct Seat<V> {
    live: Liveness,
    value: Arc<V>,
    registration: RegistrationId,
    /// `None` for a seat that leaves with its connection.
    session: Option<WeakSession>,
}

impl<V> Seat<V> {
    pub(super) fn new(
        live: Liveness,
        value: Arc<V>,
        registration: RegistrationId,
        session: Option<WeakSession>,
    ) -> Self {
        Self {
            live,
            value,
            registration,
            session,
        }
    }

    /// The id of the connection that holds the seat.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.live.id()
    }

    /// The handle of the connection that holds the seat.
    ///
    /// Do not [`evict`](Liveness::evict) it while you hold the map's lock: `evict` removes the seat
    /// from the map before it returns, and needs that lock. Clone the seats that must go, release
    /// the lock, and then evict them, or let a task do it.
    #[must_use]
    pub fn live(&self) -> &Liveness {
        &self.live
    }

    /// Whether the seat's client is connected, or the seat lingers without one: see
    /// [`Liveness::register_lingering`].
    ///
    /// A push to a lingering seat reaches no client unless the application keeps it for later. A seat
    /// without a grace period is connected until its connection ends.
    #[must_use]
    pub fn state(&self) -> SeatState {
        match &self.session {
            Some(session) => session
                .upgrade()
                .map_or(SeatState::Left, |session| session.stage().seat_state()),
            None if self.live.has_ended() => SeatState::Left,
            None => SeatState::Connected,
        }
    }

    /// The application's value, to share it beyond the seat.
    ///
    /// This method, like the others of a seat, hides one of the same name of `V`: call that as
    /// `(*seat).value()`.
    #[must_use]
    pub fn value(&self) -> &Arc<V> {
        &self.value
    }

    /// The application's value, without the handle of the connection.
    ///
    /// [`Arc::into_inner`] takes the value out of the last reference: the seat's clones, and an
    /// [`Eviction`](crate::Eviction) with the seat, have others.
    #[must_use]
    pub fn into_value(self) -> Arc<V> {
        self.value
    }

    pub(super) fn registration(&self) -> RegistrationId {
        self.registration
    }

    /// Whether the connection `newest` may take the seat.
    pub(super) fn yields_to(&self, newest: ConnectionId, policy: &ReplacePolicy) -> bool {
        policy.action != ReplaceAction::Refuse || self.id() == newest || self.live.has_ended()
    }

    pub(super) fn session(&self) -> Option<Arc<dyn Session>> {
        self.session.as_ref()?.upgrade()
    }

    /// Whether the seat has a session that another connection may resume.
    pub(super) fn is_resumable(&self) -> bool {
        self.session()
            .is_some_and(|session| session.stage().is_resumable())
    }
}

impl<V> Deref for Seat<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> Clone for Seat<V> {
    fn clone(&self) -> Self {
        Self {
            live: self.live.clone(),
            value: Arc::clone(&self.value),
            registration: self.registration,
            session: self.session.clone(),
        }
    }
}

impl<V: fmt::Debug> fmt::Debug for Seat<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("id", &self.id())
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}
