//! What stands in a session map.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::connection::{Liveness, RegistrationId};
use crate::eviction::{ConnectionId, Eviction};

/// A session in a map: your value, and whose it is.
///
/// Made by [`Liveness::register`]; it dereferences to the value. Cloning it is cheap, and clones share
/// the value: clone the seats you want to push to, give the map's lock back, and push then. A clone
/// that you put somewhere yourself is yours to remove.
pub struct Seat<V> {
    live: Liveness,
    value: Arc<V>,
    place: RegistrationId,
}

impl<V> Seat<V> {
    pub(super) fn new(live: Liveness, value: Arc<V>, place: RegistrationId) -> Self {
        Self { live, value, place }
    }

    /// The connection that holds the seat.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.live.id()
    }

    /// The handle of the connection that holds the seat.
    ///
    /// Do not [`evict`](Liveness::evict) it while you hold the map's lock: before `evict` returns, the
    /// seat is taken out of the map, which needs that lock. Clone the seats that are to go, and evict
    /// them when the lock is free, or have a task do it.
    #[must_use]
    pub fn live(&self) -> &Liveness {
        &self.live
    }

    pub(super) fn place(&self) -> RegistrationId {
        self.place
    }
}

impl Eviction {
    /// The seats with these types of key and value that the connection held to its end, with their
    /// keys. They are out of their maps already.
    ///
    /// Hooks find them, and so does whoever is waiting in [`evicted`](Liveness::evicted). Whoever asks
    /// when the connection is wholly over finds none: they are let go of together with the value in the
    /// slot (see [`set_session`](Liveness::set_session)).
    ///
    /// A seat that a newer connection has taken over is not among them: the user is still there. So a
    /// hook can tell everybody who is gone, though a user may be back by the time that it is told; the
    /// map says whether.
    ///
    /// The connection itself lets the seats go when all hooks have returned and nobody awaits
    /// [`evicted`](Liveness::evicted) any more, and does not wait for its handler, so that one who waits
    /// for a channel whose sender is in the seat returns. Who awaits `evicted` only after that finds
    /// none. An eviction that you keep keeps them, and so does one that waits in a stream of
    /// [`evictions`](crate::Registry::evictions) until its consumer has taken and dropped it: a lagging
    /// consumer delays such handlers.
    ///
    /// ```
    /// use tower_ws_liveness::{Eviction, Seat};
    ///
    /// struct Member;
    ///
    /// fn gone(ev: &Eviction) {
    ///     for (user, _) in ev.seats::<String, Member>() {
    ///         println!("{user} is gone: {}", ev.reason());
    ///     }
    /// }
    /// ```
    pub fn seats<K, V>(&self) -> impl Iterator<Item = (&K, &Seat<V>)>
    where
        K: 'static,
        V: 'static,
    {
        let seats = self.seats.iter().flat_map(|seats| seats.iter());
        seats
            .filter_map(|seat| seat.downcast_ref::<(K, Seat<V>)>())
            .map(|(key, seat)| (key, seat))
    }
}

impl<V> Deref for Seat<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<V> Clone for Seat<V> {
    fn clone(&self) -> Self {
        Self {
            live: self.live.clone(),
            value: Arc::clone(&self.value),
            place: self.place,
        }
    }
}

impl<V: fmt::Debug> fmt::Debug for Seat<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("id", &self.id())
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}
