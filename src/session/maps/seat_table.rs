//! Maps that work behind a lock: `HashMap`, `BTreeMap`, and maps of such maps.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash};
use std::mem;

use crate::eviction::ConnectionId;
use crate::session::Seat;

/// A map of seats that is a [`SessionMap`](crate::SessionMap) behind a supported lock.
///
/// Implemented for `HashMap<K, Seat<V>>` with any hasher, for `BTreeMap<K, Seat<V>>`, and for maps
/// of such maps, which are keyed by pairs: a `HashMap<Room, HashMap<User, Seat<V>>>` takes the keys
/// `(Room, User)`. An inner map is created by `Default` for its first seat, and removed with its
/// last one.
///
/// ```
/// use std::collections::{BTreeMap, HashMap};
/// use std::sync::{Arc, Mutex};
///
/// use tokio::io::duplex;
/// use tower_ws_liveness::{HeartbeatLayer, Seat};
///
/// type Room = HashMap<String, Seat<u32>>;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let rooms: Arc<Mutex<BTreeMap<&str, Room>>> = Arc::default();
/// let (stream, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
/// live.register(&rooms, ("lobby", "alice".to_owned()), 7)?;
/// assert_eq!(*rooms.lock().unwrap()["lobby"]["alice"], 7);
/// drop(stream);
/// assert!(rooms.lock().unwrap().is_empty());
/// # Ok(())
/// # }
/// ```
///
/// This trait cannot be implemented outside of this crate: implement
/// [`SessionMap`](crate::SessionMap) for a type of your own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither a `Seat` nor a map of seats",
    label = "not a map of seats",
    note = "the values of a session map are `tower_ws_liveness::Seat<V>`, where `V` is the type of \
            the value that is registered",
    note = "behind a lock, session maps are `HashMap<K, Seat<V>>`, `BTreeMap<K, Seat<V>>`, and maps \
            of these, such as `HashMap<Room, HashMap<User, Seat<V>>>` with the keys `(Room, User)`"
)]
pub trait SeatTable<K, V>: Sealed + 'static {
    #[doc(hidden)]
    fn insert_if(
        &mut self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>>;

    #[doc(hidden)]
    fn remove_if(&mut self, key: &K, id: ConnectionId) -> Option<Seat<V>>;

    #[doc(hidden)]
    fn has_no_entries(&self) -> bool;
}

/// Implemented only in this module.
pub trait Sealed {}

/// Implements [`SeatTable`] for a map type, with seats or with other tables as its values.
macro_rules! impl_seat_table {
    ($map:ident, [$($key:tt)+] $(, $hasher:ident)?) => {
        impl<K, T $(, $hasher)?> Sealed for $map<K, T $(, $hasher)?> {}

        // The error names the values that are not seats, and not this impl.
        #[diagnostic::do_not_recommend]
        impl<K, V $(, $hasher)?> SeatTable<K, V> for $map<K, Seat<V> $(, $hasher)?>
        where
            K: $($key)+ + 'static,
            V: 'static,
            $($hasher: BuildHasher + 'static,)?
        {
            fn insert_if(
                &mut self,
                key: K,
                seat: Seat<V>,
                admit: &mut dyn FnMut(&Seat<V>) -> bool,
            ) -> Result<Option<Seat<V>>, Seat<V>> {
                let outcome = match self.get_mut(&key) {
                    Some(occupant) if !admit(occupant) => Err(occupant.clone()),
                    Some(occupant) => Ok(Some(mem::replace(occupant, seat))),
                    None => return Ok(self.insert(key, seat)),
                };
                // Dropped explicitly: a key may panic when it is dropped, and a panic in a drop at
                // the end of a function leaks the return value (rust-lang/rust#47949), as in
                // `HashMap::insert`.
                drop(key);
                outcome
            }

            fn remove_if(&mut self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
                let holds_seat = self.get(key).is_some_and(|seat| seat.id() == id);
                holds_seat.then(|| self.remove(key)).flatten()
            }

            fn has_no_entries(&self) -> bool {
                self.is_empty()
            }
        }

        impl<K, L, V, T $(, $hasher)?> SeatTable<(K, L), V> for $map<K, T $(, $hasher)?>
        where
            K: $($key)+ + 'static,
            T: SeatTable<L, V> + Default,
            $($hasher: BuildHasher + 'static,)?
        {
            fn insert_if(
                &mut self,
                (outer, inner): (K, L),
                seat: Seat<V>,
                admit: &mut dyn FnMut(&Seat<V>) -> bool,
            ) -> Result<Option<Seat<V>>, Seat<V>> {
                if let Some(table) = self.get_mut(&outer) {
                    let outcome = table.insert_if(inner, seat, admit);
                    // Explicitly, as above.
                    drop(outer);
                    return outcome;
                }
                let mut table = T::default();
                let outcome = table.insert_if(inner, seat, admit);
                self.insert(outer, table);
                outcome
            }

            fn remove_if(&mut self, (outer, inner): &(K, L), id: ConnectionId) -> Option<Seat<V>> {
                let table = self.get_mut(outer)?;
                let seat = table.remove_if(inner, id)?;
                if table.has_no_entries() {
                    self.remove(outer);
                }
                Some(seat)
            }

            fn has_no_entries(&self) -> bool {
                self.is_empty()
            }
        }
    };
}

impl_seat_table!(HashMap, [Eq + Hash], S);
impl_seat_table!(BTreeMap, [Ord]);
