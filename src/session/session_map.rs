//! The trait of a map of sessions.

use super::map_location::MapLocation;
use super::seat::Seat;
use crate::eviction::ConnectionId;

/// A map of sessions that holds the [`Seat`]s of connections: see
/// [`Liveness::register`](crate::Liveness::register).
///
/// Implemented for these maps, and for an `Arc` of any of them:
///
/// - `Mutex<T>` and `RwLock<T>` of std, and with the feature `parking_lot` those of that crate
///   (version 0.12), where `T` is a [`SeatTable`](crate::SeatTable): `HashMap<K, Seat<V>>` with any
///   hasher, `BTreeMap<K, Seat<V>>`, or a map of such maps, as for the users of rooms
/// - with the features of their names `dashmap::DashMap<K, Seat<V>>`, `papaya::HashMap<K, Seat<V>>`
///   and `scc::HashMap<K, Seat<V>>` (of dashmap 6, papaya 0.2 and scc 3), with any hasher
/// - a map that is a field of another value, such as the application's state: see
///   [`map_in`](crate::map_in)
///
/// The application reads such a map as usual.
///
/// `papaya` frees a removed value when no thread reads the map, which is usually immediately. If
/// other threads read it at that moment, the value may stay in memory until the same thread removes
/// more seats or the map is dropped; it is then freed by the last thread that stops reading the
/// map. Do not rely on the drop of a value there: use
/// [`Liveness::evicted`](crate::Liveness::evicted) or a hook to notice the end.
///
/// # Maps behind an async lock
///
/// The methods are synchronous and must not block: they are called while a connection ends, on every
/// path, also in a `Drop`, on a task that may be the driver of all connections. So a map behind a
/// lock of tokio cannot implement this trait. Its `blocking_write` panics in async code. Its
/// `try_write` fails while another task has the lock, and that task may be suspended on the very
/// thread that would have to wait. A removal that is left to a task comes after the first hook,
/// which would still find the seat. Use a lock of std or `parking_lot` if it is never kept across an
/// `.await`, which is so for most session maps. Otherwise let a task per connection remove the
/// entry, or [one task for all](crate::guide::session_map#async-locks):
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Arc;
///
/// use tokio::sync::{RwLock, mpsc};
/// use tower_ws_liveness::{ConnectionId, Liveness};
///
/// type Sender = mpsc::Sender<String>;
/// type Sessions = Arc<RwLock<HashMap<String, (ConnectionId, Sender)>>>;
///
/// async fn join(sessions: Sessions, user: String, live: Liveness, tx: Sender) {
///     // Inserts before it spawns: if the connection has ended, the task removes the entry.
///     sessions.write().await.insert(user.clone(), (live.id(), tx));
///     tokio::spawn(async move {
///         live.evicted().await;
///         let mut sessions = sessions.write().await;
///         // Only its own entry: the user may have reconnected.
///         if sessions.get(&user).is_some_and(|(id, _)| *id == live.id()) {
///             sessions.remove(&user);
///         }
///     });
/// }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// #     let (sessions, user) = (Sessions::default(), || "alice".to_owned());
/// #     let layer = tower_ws_liveness::HeartbeatLayer::default();
/// #     let (_io, live) = layer.wrap_server(tokio::io::duplex(64).0);
/// #     for ended in [false, true] {
/// #         join(sessions.clone(), user(), live.clone(), mpsc::channel(1).0).await;
/// #         assert_eq!(sessions.read().await.len(), 1);
/// #         assert_ne!(live.evict(4000, ""), ended);
/// #         tokio::time::sleep(std::time::Duration::from_millis(1)).await;
/// #         assert!(sessions.read().await.is_empty());
/// #     }
/// # }
/// ```
///
/// # A map of your own
///
/// It needs two methods. Each must be atomic: no other change of the same key may
/// happen between the check of the seat and the change.
///
/// ```
/// use std::sync::{Mutex, PoisonError};
///
/// use tower_ws_liveness::{ConnectionId, Seat, SessionMap};
///
/// /// The seats of numbered tables.
/// struct Tables<V>(Mutex<[Option<Seat<V>>; 8]>);
///
/// impl<V: Send + Sync + 'static> SessionMap<usize, V> for Tables<V> {
///     fn insert_if(
///         &self,
///         table: usize,
///         seat: Seat<V>,
///         admit: &mut dyn FnMut(&Seat<V>) -> bool,
///     ) -> Result<Option<Seat<V>>, Seat<V>> {
///         let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         match &tables[table] {
///             Some(occupant) if !admit(occupant) => Err(occupant.clone()),
///             _ => Ok(tables[table].replace(seat)),
///         }
///     }
///
///     fn remove_if(&self, table: &usize, id: ConnectionId) -> Option<Seat<V>> {
///         let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         tables[*table].take_if(|seat| seat.id() == id)
///     }
/// }
/// ```
///
/// Both methods are called from async code, on the task that notices the end of a connection, which
/// may be the driver of all connections. So neither may code block for long that holds a lock which
/// they take. The end of a connection waits until an `insert_if` of its seat has
/// returned. So do not end other connections in these methods, and do not drop values that do: if
/// two maps each insert a seat and end the connection that the other one is inserting, they wait
/// for each other forever. A map may end the connection whose seat it inserts.
///
/// If a method panics during a registration, the panic reaches the caller of `register`, and a seat
/// that was already inserted is removed when its connection ends. If a method panics at the end of
/// a connection, the panic is caught and logged, and the seat may stay in the map.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a session map",
    label = "not a session map",
    note = "session maps are: `std::sync::Mutex` and `std::sync::RwLock` around a \
            `HashMap<K, Seat<V>>` or a `BTreeMap<K, Seat<V>>`; with the feature `parking_lot` the \
            same around locks of that crate; with the features `dashmap`, `papaya` and `scc` the \
            maps of these crates, with values `Seat<V>`; and types that implement `SessionMap`",
    note = "if the map is a field of an `Arc<State>`, pass `&map_in(&state, |state| &state.map)`",
    note = "async locks such as `tokio::sync::RwLock` cannot be used: seats are removed \
            synchronously when the connection ends. Use a lock of std, or keep the map up to date \
            with a task that awaits `Liveness::evicted()`: see the documentation of `SessionMap`"
)]
pub trait SessionMap<K, V>: Send + Sync + 'static {
    /// Inserts `seat` at `key` if `key` has no seat, or if `admit` returns true for the seat that
    /// is there. Returns the seat that was replaced.
    ///
    /// `admit` only compares. A map that retries may call it again; the last result counts.
    ///
    /// # Errors
    ///
    /// Returns the present seat if `admit` returned false for it. The map is unchanged then.
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>>;

    /// Removes and returns the seat at `key` if it belongs to the connection `id`.
    ///
    /// Returns `None` if `key` has no seat or that of another connection, which is not an error:
    /// the user may have reconnected.
    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>>;

    /// The place of the map that contains the seats, for
    /// [`Eviction::seats_in`](crate::Eviction::seats_in).
    #[doc(hidden)]
    fn location(&self) -> MapLocation {
        MapLocation::of(self)
    }
}
