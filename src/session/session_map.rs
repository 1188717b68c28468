//! The trait of a map of sessions.

use super::seat::Seat;
use crate::eviction::ConnectionId;

/// A map of sessions that holds the [`Seat`]s of connections: see
/// [`Liveness::register`](crate::Liveness::register).
///
/// Implemented for these maps, with any hasher: `Mutex<HashMap<K, Seat<V>>>`, `RwLock<HashMap<K,
/// Seat<V>>>`, with the features of their names `dashmap::DashMap<K, Seat<V>>`, `papaya::HashMap<K,
/// Seat<V>>` and `scc::HashMap<K, Seat<V>>` (of dashmap 6, papaya 0.2 and scc 3), and an `Arc` of
/// any of them. The application reads such a map as usual.
///
/// `papaya` frees a removed value when no thread reads the map, which is usually immediately. If
/// other threads read it at that moment, the value may stay in memory until the same thread removes
/// more seats or the map is dropped; it is then freed by the last thread that stops reading the
/// map. Do not rely on the drop of a value there: use
/// [`Liveness::evicted`](crate::Liveness::evicted) or a hook to notice the end.
///
/// The methods are synchronous and must not block: they are called while a connection ends, on every
/// path, also in a `Drop`. So a map behind a tokio lock cannot implement this trait. Keep such a map
/// up to date from [`Registry::evictions`](crate::Registry::evictions), or with a task per
/// connection:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Arc;
///
/// use tokio::sync::{RwLock, mpsc};
/// use tower_ws_liveness::{ConnectionId, Liveness};
///
/// type Sender = mpsc::Sender<String>;
/// type Rooms = Arc<RwLock<HashMap<String, HashMap<ConnectionId, Sender>>>>;
///
/// async fn join(rooms: Rooms, room: String, live: Liveness, tx: Sender) {
///     // Inserts before it spawns: if the connection has ended, the task removes the entry.
///     rooms.write().await.entry(room.clone()).or_default().insert(live.id(), tx);
///     tokio::spawn(async move {
///         live.evicted().await;
///         if let Some(members) = rooms.write().await.get_mut(&room) {
///             members.remove(&live.id());
///         }
///     });
/// }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// #     let (rooms, room) = (Rooms::default(), || "lobby".to_owned());
/// #     let layer = tower_ws_liveness::HeartbeatLayer::default();
/// #     let (_io, live) = layer.wrap_server(tokio::io::duplex(64).0);
/// #     for ended in [false, true] {
/// #         join(rooms.clone(), room(), live.clone(), mpsc::channel(1).0).await;
/// #         assert_eq!(rooms.read().await["lobby"].len(), 1);
/// #         assert_ne!(live.evict(4000, ""), ended);
/// #         tokio::time::sleep(std::time::Duration::from_millis(1)).await;
/// #         assert!(rooms.read().await["lobby"].is_empty());
/// #     }
/// # }
/// ```
///
/// A map of your own needs two methods. Each must be atomic: no other change of the same key may
/// happen between the check of the seat and the change.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::{Mutex, PoisonError};
///
/// use tower_ws_liveness::{ConnectionId, Seat, SessionMap};
///
/// /// Seats in the order of their tables.
/// #[derive(Default)]
/// struct Tables<V>(Mutex<BTreeMap<u32, Seat<V>>>);
///
/// impl<V: Send + Sync + 'static> SessionMap<u32, V> for Tables<V> {
///     fn insert_if(
///         &self,
///         key: u32,
///         seat: Seat<V>,
///         admit: &mut dyn FnMut(&Seat<V>) -> bool,
///     ) -> Result<Option<Seat<V>>, Seat<V>> {
///         let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         match tables.get(&key) {
///             Some(occupant) if !admit(occupant) => Err(occupant.clone()),
///             _ => Ok(tables.insert(key, seat)),
///         }
///     }
///
///     fn remove_if(&self, key: &u32, id: ConnectionId) -> Option<Seat<V>> {
///         let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
///         let holds_seat = tables.get(key).is_some_and(|seat| seat.id() == id);
///         holds_seat.then(|| tables.remove(key)).flatten()
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
    note = "session maps are `std::sync::Mutex<HashMap<K, Seat<V>>>` and \
            `std::sync::RwLock<HashMap<K, Seat<V>>>`; with the features `dashmap`, `papaya` and `scc` \
            the maps of these crates, with values `Seat<V>`; and types that implement `SessionMap`",
    note = "async locks such as tokio's cannot be used: seats are removed synchronously when the \
            connection ends. Keep a map behind one up to date from `Registry::evictions()`, or \
            with a task that awaits `Liveness::evicted()`"
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
}
