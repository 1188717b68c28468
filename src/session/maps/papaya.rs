//! `papaya::HashMap`: lock-free.

use std::hash::{BuildHasher, Hash};

use papaya::{Compute, Guard, HashMap, Operation};

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
        let guard = self.guard();
        let outcome = self.compute(
            key,
            |occupant| match occupant {
                Some((_, occupant)) if !admit(occupant) => Operation::Abort(occupant.clone()),
                _ => Operation::Insert(seat.clone()),
            },
            &guard,
        );
        let replaced = match outcome {
            Compute::Inserted(..) | Compute::Removed(..) => None,
            Compute::Updated { old: (_, old), .. } => Some(old.clone()),
            Compute::Aborted(occupant) => return Err(occupant),
        };
        guard.flush();
        Ok(replaced)
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        let guard = self.guard();
        let removed = self.remove_if(key, |_, seat| seat.id() == id, &guard);
        let (_, seat) = removed.ok().flatten()?;
        let seat = seat.clone();
        // Without `flush` papaya frees removed entries only in batches. A handler may wait for the
        // end of a channel whose sender is in this seat, so it must be freed now. If other threads
        // are reading, that still waits until this thread has removed as many entries as there are
        // threads reading: a batch needs one entry for each.
        guard.flush();
        Some(seat)
    }
}
