//! `scc::HashMap`: one lock per bucket.

use std::hash::{BuildHasher, Hash};

use scc::HashMap;
use scc::hash_map::Entry;

use crate::eviction::ConnectionId;
use crate::session::{Seat, SessionMap};

#[diagnostic::do_not_recommend]
impl<K, V, S> SessionMap<K, V> for HashMap<K, Seat<V>, S>
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
        // `entry_sync` drops the key of an occupied entry while it holds the bucket's lock, and
        // never releases the lock if that drop panics. So it is called only if the key seems
        // vacant; another thread may still occupy it in between.
        if let Some(mut entry) = self.get_sync(&key) {
            let outcome = match admit(entry.get()) {
                true => Ok(Some(entry.insert(seat))),
                false => Err(entry.get().clone()),
            };
            drop(entry);
            drop(key);
            return outcome;
        }
        match self.entry_sync(key) {
            Entry::Occupied(entry) if !admit(entry.get()) => Err(entry.get().clone()),
            Entry::Occupied(mut entry) => Ok(Some(entry.insert(seat))),
            Entry::Vacant(entry) => {
                entry.insert_entry(seat);
                Ok(None)
            }
        }
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        let (_, seat) = self.remove_if_sync(key, |seat| seat.id() == id)?;
        Some(seat)
    }
}
