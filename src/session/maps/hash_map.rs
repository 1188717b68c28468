//! `std`'s `HashMap` in a `Mutex` or an `RwLock`.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::mem;
use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::eviction::ConnectionId;
use crate::session::{Seat, SessionMap};

impl<K, V, S> SessionMap<K, V> for Mutex<HashMap<K, Seat<V>, S>>
where
    K: Eq + Hash + Send + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher + Send + 'static,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        let map = self.lock().unwrap_or_else(PoisonError::into_inner);
        insert_if(map, key, seat, admit)
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        remove_if(self.lock().unwrap_or_else(PoisonError::into_inner), key, id)
    }
}

impl<K, V, S> SessionMap<K, V> for RwLock<HashMap<K, Seat<V>, S>>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        let map = self.write().unwrap_or_else(PoisonError::into_inner);
        insert_if(map, key, seat, admit)
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        remove_if(
            self.write().unwrap_or_else(PoisonError::into_inner),
            key,
            id,
        )
    }
}

fn insert_if<K: Eq + Hash, V, S: BuildHasher>(
    mut map: impl DerefMut<Target = HashMap<K, Seat<V>, S>>,
    key: K,
    seat: Seat<V>,
    admit: &mut dyn FnMut(&Seat<V>) -> bool,
) -> Result<Option<Seat<V>>, Seat<V>> {
    let outcome = catch_while_locked(&mut map, |map| {
        let outcome = match map.get_mut(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            Some(occupant) => Ok(Some(mem::replace(occupant, seat))),
            None => return Ok(map.insert(key, seat)),
        };
        // Dropped explicitly: a key may panic when it is dropped, and a panic in a drop at the end
        // of a function leaks the return value (rust-lang/rust#47949), as in `HashMap::insert`.
        drop(key);
        outcome
    });
    drop(map);
    outcome.unwrap_or_else(|panicked| resume_unwind(panicked))
}

fn remove_if<K: Eq + Hash, V, S: BuildHasher>(
    mut map: impl DerefMut<Target = HashMap<K, Seat<V>, S>>,
    key: &K,
    id: ConnectionId,
) -> Option<Seat<V>> {
    let outcome = catch_while_locked(&mut map, |map| {
        let holds_seat = map.get(key).is_some_and(|seat| seat.id() == id);
        holds_seat.then(|| map.remove(key)).flatten()
    });
    drop(map);
    outcome.unwrap_or_else(|panicked| resume_unwind(panicked))
}

/// Runs `act` on a locked map and catches its panic, for example from the key's `Hash` or `Eq`.
///
/// The caller releases the lock before it resumes the panic, so that the lock is not poisoned: the
/// standard library's map is sound after such a panic. (A key that panics later, when the map
/// rehashes its entries, may cause the loss of others.)
fn catch_while_locked<T, R>(
    map: &mut impl DerefMut<Target = T>,
    act: impl FnOnce(&mut T) -> R,
) -> std::thread::Result<R> {
    catch_unwind(AssertUnwindSafe(|| act(map)))
}
