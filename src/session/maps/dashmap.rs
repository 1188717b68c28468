//! `dashmap::DashMap`: one lock per shard.

use std::hash::{BuildHasher, Hash};

use dashmap::{DashMap, Entry};

use crate::eviction::ConnectionId;
use crate::session::{Seat, SessionMap};

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
                // By hand: what a function is about to return is leaked if a drop at its end panics
                // (rust-lang/rust#47949), and the key in here may.
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
