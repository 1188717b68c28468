//! The standard library's `HashMap` behind its locks.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::evict::ConnectionId;
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
    let stays = look(&mut map, |map| {
        map.get(&key).filter(|occupant| !admit(occupant)).cloned()
    });
    match stays {
        Ok(Some(occupant)) => Err(occupant),
        Ok(None) => Ok(map.insert(key, seat)),
        Err(panicked) => {
            drop(map);
            resume_unwind(panicked)
        }
    }
}

fn remove_if<K: Eq + Hash, V, S: BuildHasher>(
    mut map: impl DerefMut<Target = HashMap<K, Seat<V>, S>>,
    key: &K,
    id: ConnectionId,
) -> Option<Seat<V>> {
    let is_its = look(&mut map, |map| {
        map.get(key).is_some_and(|seat| seat.id() == id)
    });
    match is_its {
        Ok(true) => map.remove(key),
        Ok(false) => None,
        Err(panicked) => {
            drop(map);
            resume_unwind(panicked)
        }
    }
}

/// Looks into a locked map. A key whose `Hash` or `Eq` panics does so here, where nothing has been
/// changed yet: so the lock is given back first, and is not poisoned for everybody else.
fn look<T, R>(
    map: &mut impl DerefMut<Target = T>,
    look: impl FnOnce(&T) -> R,
) -> std::thread::Result<R> {
    catch_unwind(AssertUnwindSafe(|| look(map)))
}
