//! Locks around a map of seats: those of std, and of `parking_lot`.

use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError, RwLock};

use super::seat_table::SeatTable;
use crate::eviction::ConnectionId;
use crate::session::{Seat, SessionMap};

impl<K, V, T> SessionMap<K, V> for Mutex<T>
where
    T: SeatTable<K, V> + Send,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        let table = self.lock().unwrap_or_else(PoisonError::into_inner);
        catch_while_locked(table, |table| table.insert_if(key, seat, admit))
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        let table = self.lock().unwrap_or_else(PoisonError::into_inner);
        catch_while_locked(table, |table| table.remove_if(key, id))
    }
}

impl<K, V, T> SessionMap<K, V> for RwLock<T>
where
    T: SeatTable<K, V> + Send + Sync,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        let table = self.write().unwrap_or_else(PoisonError::into_inner);
        catch_while_locked(table, |table| table.insert_if(key, seat, admit))
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        let table = self.write().unwrap_or_else(PoisonError::into_inner);
        catch_while_locked(table, |table| table.remove_if(key, id))
    }
}

#[cfg(feature = "parking_lot")]
impl<K, V, T> SessionMap<K, V> for parking_lot::Mutex<T>
where
    T: SeatTable<K, V> + Send,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        catch_while_locked(self.lock(), |table| table.insert_if(key, seat, admit))
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        catch_while_locked(self.lock(), |table| table.remove_if(key, id))
    }
}

#[cfg(feature = "parking_lot")]
impl<K, V, T> SessionMap<K, V> for parking_lot::RwLock<T>
where
    T: SeatTable<K, V> + Send + Sync,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        catch_while_locked(self.write(), |table| table.insert_if(key, seat, admit))
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        catch_while_locked(self.write(), |table| table.remove_if(key, id))
    }
}

/// Runs `act` on a locked map. If it panics, for example in the key's `Hash` or `Eq`, releases the
/// lock before it resumes the panic, so that a lock of std is not poisoned.
///
/// The standard library's maps are sound after such a panic. (A key that panics later, when a hash
/// map rehashes its entries, may cause the loss of others.)
fn catch_while_locked<T, R>(
    mut table: impl DerefMut<Target = T>,
    act: impl FnOnce(&mut T) -> R,
) -> R {
    let outcome = catch_unwind(AssertUnwindSafe(|| act(&mut table)));
    drop(table);
    outcome.unwrap_or_else(|panicked| resume_unwind(panicked))
}
