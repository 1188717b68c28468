//! `dashmap::DashMap`: one lock per shard.

use std::hash::{BuildHasher, Hash};

use dashmap::{DashMap, Entry};

use crate::eviction::ConnectionId;
use crate::session::{Seat, SessionMap};

#[diagnostic::do_not_recommend]
impl<K, V, S> SessionMap<K, V> for DashMap<K, Seat<V>, S>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        match self.entry(key) {
            Entry::Occupied(mut entry) => {
                let outcome = match admit(entry.get()) {
                    true => Ok(Some(entry.insert(seat))),
                    false => Err(entry.get().clone()),
                };
                // Dropped explicitly: the key in the entry may panic when it is dropped, and a
                // panic in a drop at the end of a function leaks the return value
                // (rust-lang/rust#47949).
                drop(entry);
                outcome
            }
            Entry::Vacant(entry) => {
                entry.insert(seat);
                Ok(None)
            }
        }
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        let (_, seat) = self.remove_if(key, |_, seat| seat.id() == id)?;
        Some(seat)
    }
}
