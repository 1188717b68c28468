//! What a session map has to be able to do.

use super::seat::Seat;
use crate::eviction::ConnectionId;

/// A map of sessions in which connections take their [`Seat`]s: see
/// [`Liveness::register`](crate::Liveness::register).
///
/// Implemented for maps as they are, with any hasher: `Mutex<HashMap<K, Seat<V>>>`,
/// `RwLock<HashMap<K, Seat<V>>>`, with the features of their names `dashmap::DashMap<K, Seat<V>>`,
/// `papaya::HashMap<K, Seat<V>>` and `scc::HashMap<K, Seat<V>>` (of dashmap 6, papaya 0.2 and scc 3),
/// and an `Arc` of any of them. You read such a map as you always do.
///
/// `papaya` frees what was taken out when nobody reads any more, and as a rule that is at once. If
/// others were reading just then, the value may stay in memory until the same thread takes out more
/// seats, or the map is dropped, and is then dropped by whoever leaves the map last. Do not count on
/// the drop of a value there: have [`Liveness::evicted`](crate::Liveness::evicted) or a hook tell you
/// of the end.
///
/// For a map of your own, two methods are enough. Each has to be one step as far as others can see
/// who change the same key: between the look at the seat and the change nobody else comes in.
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
///         let is_its = tables.get(key).is_some_and(|seat| seat.id() == id);
///         is_its.then(|| tables.remove(key)).flatten()
///     }
/// }
/// ```
///
/// Both are called from async code, on whatever task notices the end of a connection, the driver of
/// all connections included: they must not block for long, and nor must whoever holds a lock that
/// they take. The end of a connection waits for its registration to come back from the map. So do not
/// end other connections in there, nor drop values that do so: two maps that are taking in a
/// connection each, and end that of the other, wait for each other for ever. That the map ends the
/// very connection that it is taking in is provided for.
///
/// If a method panics during a registration, the panic reaches the caller of `register`, and a seat that
/// was already inserted is removed at the end of its connection. If it panics at the end of a connection,
/// the panic is caught and logged, and the seat may stay in the map.
pub trait SessionMap<K, V>: Send + Sync + 'static {
    /// Puts `seat` at `key`, if there is none, or if `admit` says so of the one that is there.
    ///
    /// Returns the seat that was replaced, or, as the error, the one that stays.
    ///
    /// `admit` only compares; it may be called again if the map has to try again, and then the last
    /// answer counts.
    ///
    /// # Errors
    ///
    /// The seat that was not admitted to be replaced. Nothing has changed then.
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>>;

    /// Takes out the seat at `key`, if it is that of the connection `id`, and returns it.
    ///
    /// The seat of another connection, or none, is no error: the user has come back, say.
    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>>;
}
