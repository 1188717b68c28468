//! Registers a connection in a session map, and unregisters it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::linger::SessionEndCause;
use super::registration::{Inserted, MapRegistration};
use super::replace_policy::{ReplaceAction, ReplacePolicy};
use super::seat::Seat;
use super::session_map::SessionMap;
use crate::connection::Liveness;
use crate::eviction::ConnectionId;
use crate::monitor::Reason;

impl Liveness {
    /// Inserts `value` into `map` at `key` as this connection's seat, and removes it when the
    /// connection ends, on every path. Returns the seat that was replaced.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Arc, Mutex, PoisonError};
    ///
    /// use tower_ws_liveness::{Liveness, Seat};
    /// # use tower_ws_liveness::RegisterError;
    ///
    /// type Sessions = Arc<Mutex<HashMap<String, Seat<tokio::sync::mpsc::Sender<String>>>>>;
    ///
    /// # type Error = RegisterError<tokio::sync::mpsc::Sender<String>>;
    /// fn join(live: &Liveness, sessions: &Sessions, user: String) -> Result<(), Error> {
    ///     let (tx, rx) = tokio::sync::mpsc::channel(64);
    ///     live.register(sessions, user, tx)?;
    ///     # drop(rx);
    ///     Ok(())
    /// }
    ///
    /// fn push(sessions: &Sessions, user: &str, text: &str) -> bool {
    ///     // Cloned, so that the lock is released before the push.
    ///     let seat = sessions
    ///         .lock()
    ///         .unwrap_or_else(PoisonError::into_inner)
    ///         .get(user)
    ///         .cloned();
    ///     seat.is_some_and(|seat| seat.try_send(text.to_owned()).is_ok())
    /// }
    /// ```
    ///
    /// These rules hold under any concurrency:
    ///
    /// - Either the connection ends first and nothing is inserted, or the seat is inserted and
    ///   removed when the connection ends. It is removed before any hook is called; hooks find it
    ///   in [`Eviction::seats`](crate::Eviction::seats). When [`evicted`](Self::evicted) returns,
    ///   all of this is complete.
    /// - At the end a seat is removed only if it still belongs to this connection. A seat that has
    ///   replaced it stays.
    /// - The connection that held the seat before is evicted with [`Reason::Replaced`] before this
    ///   returns: see [`ReplacePolicy`], and [`register_with`](Self::register_with) for other
    ///   policies. The newest connection is the one that registers last, not the one that connected
    ///   last.
    ///
    /// A connection may hold any number of seats, in one map and in several. If it registers at a
    /// key that it holds already, the new value replaces the old one, which is returned, and no
    /// connection is evicted. Any task may register while the connection is open.
    ///
    /// A handler may register before the upgrade is complete. If the upgrade fails, or the response
    /// is not an upgrade, the seat is removed, but an older connection that was evicted for it
    /// stays evicted. To evict the older connection only for one that is open, register in the task
    /// that gets the socket.
    ///
    /// This call takes the map's lock, and calls the hooks of a connection that is replaced: do not
    /// call it while you hold a lock that one of them takes.
    ///
    /// With [`register_lingering`](Self::register_lingering) the seat outlives the connection for a
    /// grace period, in which a newer connection resumes its session.
    ///
    /// `map` is an `Arc` of the map, or [`map_in`](crate::map_in) of an `Arc` that contains it, such
    /// as that of the application's state.
    ///
    /// A connection keeps alive the maps in which it is registered. If you remove a seat from the
    /// map yourself, the connection still keeps its registration; [`unregister`](Self::unregister)
    /// removes both.
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError::Ended`] with the value if the connection has ended.
    ///
    /// # Panics
    ///
    /// Panics if the map does, for example because the key's `Hash` panics. A seat that the map
    /// inserted before it panicked is removed when the connection ends, like any other. The maps of
    /// the standard library are not poisoned.
    pub fn register<K, V, M>(
        &self,
        map: &Arc<M>,
        key: K,
        value: V,
    ) -> Result<Option<Seat<V>>, RegisterError<V>>
    where
        K: Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        self.register_with(map, key, value, &ReplacePolicy::newest_wins())
    }

    /// As [`register`](Self::register), with a policy for a seat that another connection holds.
    ///
    /// # Errors
    ///
    /// As for [`register`](Self::register). With [`ReplacePolicy::oldest_wins`], also
    /// [`RegisterError::Occupied`] if another connection holds the seat.
    ///
    /// # Panics
    ///
    /// As for [`register`](Self::register).
    pub fn register_with<K, V, M>(
        &self,
        map: &Arc<M>,
        key: K,
        value: V,
        policy: &ReplacePolicy,
    ) -> Result<Option<Seat<V>>, RegisterError<V>>
    where
        K: Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        let value = Arc::new(value);
        let registration = MapRegistration::new(self, map, key, None);
        let insertion = match registration.begin(self) {
            Ok(insertion) => insertion,
            Err(reason) => return Err(RegisterError::Ended { reason, value }),
        };
        let id = self.id();
        match insertion.insert(&value, &mut |occupant| occupant.yields_to(id, policy)) {
            Inserted::Occupied(occupant) => Err(RegisterError::Occupied { occupant, value }),
            Inserted::Seated {
                previous, ended, ..
            } => {
                if let Some(previous) = &previous {
                    displace(previous, id, policy);
                }
                if ended {
                    let reason = self.metadata().reason();
                    let reason = reason.expect("the reason is set before seats are removed");
                    return Err(RegisterError::Ended { reason, value });
                }
                Ok(previous)
            }
        }
    }

    /// Removes this connection's seat at `key` before the connection ends, and returns it. Returns
    /// `None` if the connection does not have the seat, or no longer has it.
    ///
    /// Also removes a seat that lingers after the connection has ended, and ends its session.
    ///
    /// # Panics
    ///
    /// Panics if the map does.
    pub fn unregister<K, V, M>(&self, map: &Arc<M>, key: &K) -> Option<Seat<V>>
    where
        M: SessionMap<K, V> + ?Sized,
    {
        let seat = map.remove_if(key, self.id())?;
        let session = seat.session();
        self.metadata().forget_registration(seat.registration());
        if let Some(session) = session {
            session.end_session(SessionEndCause::Unregistered, self.metadata().reason());
        }
        Some(seat)
    }
}

/// Does with the connection of a replaced seat what the policy says, and ends its session. Its seat
/// has left the map, for one of the connection `newest`.
pub(super) fn displace<V>(previous: &Seat<V>, newest: ConnectionId, policy: &ReplacePolicy) {
    // First, so that the eviction does not end it for another cause.
    if let Some(session) = previous.session() {
        session.end_session(
            SessionEndCause::Replaced,
            previous.live().metadata().reason(),
        );
    }
    match &policy.action {
        ReplaceAction::Evict(frame) if previous.id() != newest => {
            previous.live().evict_for(Reason::Replaced, frame.clone());
        }
        // Its connection stays open, and must not accumulate registrations of lost seats.
        _ => previous
            .live()
            .metadata()
            .forget_registration(previous.registration()),
    }
}

/// The error of a registration that failed.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use tower_ws_liveness::{Liveness, RegisterError, ReplacePolicy, Seat};
///
/// type Sessions = Arc<Mutex<HashMap<String, Seat<u32>>>>;
///
/// /// Gives each user one connection. A second one is closed.
/// fn join(live: &Liveness, sessions: &Sessions, user: String) -> bool {
///     let policy = ReplacePolicy::oldest_wins();
///     match live.register_with(sessions, user, 0, &policy) {
///         Ok(_) => true,
///         Err(RegisterError::Occupied { occupant, .. }) => {
///             live.evict(4001, format!("connection {} is open", occupant.id()));
///             false
///         }
///         Err(_) => false, // the connection has ended
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// #     let layer = tower_ws_liveness::HeartbeatLayer::default();
/// #     let (sessions, user) = (Sessions::default(), || "alice".to_owned());
/// #     let (_first_io, first) = layer.wrap_server(tokio::io::duplex(64).0);
/// #     let (_second_io, second) = layer.wrap_server(tokio::io::duplex(64).0);
/// #     assert!(join(&first, &sessions, user()) && !join(&second, &sessions, user()));
/// #     assert!(!join(&second, &sessions, user()));
/// # }
/// ```
#[non_exhaustive]
pub enum RegisterError<V> {
    /// The connection has ended. The map does not hold the value.
    Ended {
        /// The reason of the connection's end.
        reason: Reason,
        /// The value that was passed to the registration.
        value: Arc<V>,
    },
    /// Another connection holds the seat, and keeps it by [`ReplacePolicy::oldest_wins`].
    Occupied {
        /// The seat of the other connection.
        occupant: Seat<V>,
        /// The value that was passed to the registration.
        value: Arc<V>,
    },
    /// The `max` of [`Liveness::register_in`] is 0, an error of the program.
    ZeroMax {
        /// The value that was passed to the registration.
        value: Arc<V>,
    },
}

// Not derived, so that the error is `Debug` even if the application's value is not.
impl<V> fmt::Debug for RegisterError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { reason, .. } => f
                .debug_struct("Ended")
                .field("reason", reason)
                .finish_non_exhaustive(),
            Self::Occupied { occupant, .. } => f
                .debug_struct("Occupied")
                .field("occupant", &occupant.id())
                .finish_non_exhaustive(),
            Self::ZeroMax { .. } => f.debug_struct("ZeroMax").finish_non_exhaustive(),
        }
    }
}

impl<V> fmt::Display for RegisterError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { reason, .. } => {
                write!(f, "not registered: the connection has ended ({reason})")
            }
            Self::Occupied { occupant, .. } => {
                let id = occupant.id();
                write!(f, "not registered: connection {id} holds the seat")
            }
            Self::ZeroMax { .. } => f.write_str("not registered: `max` is 0"),
        }
    }
}

impl<V> Error for RegisterError<V> {}
