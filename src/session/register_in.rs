//! Registers a connection in a group, and unregisters it.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};

use super::groups::{Groups, Inserted};
use super::register::{RegisterError, displace};
use super::replace_policy::ReplacePolicy;
use super::seat::Seat;
use super::session_map::SessionMap;
use crate::connection::Liveness;
use crate::eviction::ConnectionId;
use crate::sync::Mutex;

impl Liveness {
    /// Inserts `value` into the group of `key` as this connection's seat, and removes it when the
    /// connection ends, on every path. Afterwards the group has at most `max` connections, if every
    /// call for `key` passes this `max` or a smaller one. Returns the seats that had to go.
    ///
    /// The rules of [`register`](Self::register) hold here too. If the group is full, `policy`
    /// decides: with [`newest_wins`](ReplacePolicy::newest_wins) the connections that registered
    /// first are evicted with [`Reason::Replaced`](crate::Reason::Replaced), as many as are too
    /// many; with [`keep_both`](ReplacePolicy::keep_both) they stay open without a seat; with
    /// [`oldest_wins`](ReplacePolicy::oldest_wins) this connection is refused. A connection that has
    /// ended does not count, even if its hooks have not been called yet. Which connections go is
    /// decided together with the insertion, so that of several that register at the same time none
    /// is evicted for another one that is older.
    ///
    /// A connection has one seat per group. If it registers again, its value is replaced and it
    /// becomes the newest; no other connection has to go for that. A connection of the
    /// [same member](crate::GroupsBuilder::same_member) is replaced first.
    ///
    /// The seats are among those of [`Eviction::seats`](crate::Eviction::seats).
    ///
    /// # Errors
    ///
    /// - [`RegisterError::Ended`] if the connection has ended.
    /// - [`RegisterError::Occupied`] with `oldest_wins` if the group is full, or has a connection of
    ///   the same member; with the seat that would have had to go first.
    /// - [`RegisterError::ZeroMax`] if `max` is 0.
    ///
    /// The group has no seat with the value then, and except for `Ended` nothing has changed: a
    /// connection that ends during the call may have replaced others.
    ///
    /// # Panics
    ///
    /// Panics if the key's `Hash`, `Eq` or `Clone` or the groups'
    /// [`same_member`](crate::GroupsBuilder::same_member) does. The groups stay usable.
    ///
    /// # Examples
    ///
    /// See [`Groups`].
    pub fn register_in<K, V>(
        &self,
        groups: &Groups<K, V>,
        key: K,
        value: V,
        max: usize,
        policy: &ReplacePolicy,
    ) -> Result<Vec<Seat<V>>, RegisterError<V>>
    where
        K: Clone + Eq + Hash + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let Some(max) = NonZeroUsize::new(max) else {
            let value = Arc::new(value);
            return Err(RegisterError::ZeroMax { value });
        };
        let place = Arc::new(Place {
            groups: groups.clone(),
            max,
            more_displaced: Mutex::new(Vec::new()),
        });
        let registered = self.register_with(&place, key, value, policy);
        let more = std::mem::take(
            &mut *place
                .more_displaced
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for seat in &more {
            displace(seat, self.id(), policy);
        }
        groups.deliver_events();
        Ok(registered?.into_iter().chain(more).collect())
    }

    /// Removes this connection's seat from the group of `key` before the connection ends, and
    /// returns it. Returns `None` if the connection has no seat in it.
    ///
    /// # Panics
    ///
    /// As for [`register_in`](Self::register_in).
    pub fn unregister_in<K, V>(&self, groups: &Groups<K, V>, key: &K) -> Option<Seat<V>>
    where
        K: Eq + Hash,
    {
        let seat = groups.remove(key, self.id())?;
        self.metadata().forget_registration(seat.registration());
        Some(seat)
    }
}

/// One registration in a group, as a map that has a seat for it.
struct Place<K, V> {
    groups: Groups<K, V>,
    max: NonZeroUsize,
    /// The displaced seats, without the one that `insert_if` returns.
    more_displaced: Mutex<Vec<Seat<V>>>,
}

impl<K, V> SessionMap<K, V> for Place<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn insert_if(
        &self,
        key: K,
        seat: Seat<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Result<Option<Seat<V>>, Seat<V>> {
        let mut displaced = match self.groups.insert(key, seat, self.max, admit) {
            Inserted::Displaced(displaced) => displaced.into_iter(),
            Inserted::Refused(occupant) => return Err(occupant),
        };
        let first = displaced.next();
        self.more_displaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(displaced);
        Ok(first)
    }

    fn remove_if(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        self.groups.remove(key, id)
    }
}
