//! The seats that a connection had at its end, as hooks find them.

#[cfg(feature = "test-util")]
use std::any::Any;
use std::sync::Arc;

use super::map_location::MapLocation;
use super::seat::Seat;
use super::session_map::SessionMap;
#[cfg(feature = "test-util")]
use crate::connection::{Liveness, RegistrationId};
use crate::eviction::Eviction;

impl Eviction {
    /// Iterates over the seats with key type `K` and value type `V` that the connection held when
    /// it ended, with their keys. They have been removed from their maps already.
    ///
    /// A seat that a newer connection has taken over is not among them, because the user is still
    /// connected, and neither is a seat that [lingers](crate::Liveness::register_lingering). So a hook
    /// can announce which users have left. A user may have reconnected by the time the hook runs;
    /// the map has a seat for that user then.
    ///
    /// Hooks find the seats, and so do tasks that wait in [`evicted`](crate::Liveness::evicted) when the
    /// connection ends. The connection itself drops the seats when all hooks have returned and no
    /// task waits in `evicted`; if `evicted` is called after that, the eviction has no seats.
    /// Unlike the [session value](crate::Liveness::set_session), the seats are not kept for the handler,
    /// so a handler that waits for the end of a channel whose sender is in its seat returns. An
    /// eviction that you keep keeps its seats, and so does one that is queued in a stream of
    /// [`evictions`](crate::Registry::evictions) until its consumer has taken and dropped it: a
    /// lagging consumer delays such handlers.
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
        self.removed_seats()
            .map(|removed| (&removed.key, &removed.seat))
    }

    /// Iterates over the [`seats`](Self::seats) that were in `map`, with their keys.
    ///
    /// For several maps with the same types of keys and values. A map is compared by its place in
    /// memory: an `Arc` of it, a clone of that `Arc`, and a [`map_in`](crate::map_in) that finds it
    /// are the same map.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Arc, Mutex};
    ///
    /// use tower_ws_liveness::{Eviction, Seat, map_in};
    ///
    /// type Users = Mutex<HashMap<String, Seat<()>>>;
    ///
    /// struct AppState {
    ///     players: Users,
    ///     spectators: Users,
    /// }
    ///
    /// fn gone(ev: &Eviction, state: &Arc<AppState>) {
    ///     for (user, _) in ev.seats_in(&map_in(state, |state| &state.players)) {
    ///         println!("{user} no longer plays: {}", ev.reason());
    ///     }
    /// }
    /// ```
    pub fn seats_in<'a, K, V, M>(
        &'a self,
        map: &Arc<M>,
    ) -> impl Iterator<Item = (&'a K, &'a Seat<V>)> + use<'a, K, V, M>
    where
        K: 'static,
        V: 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        let location = SessionMap::<K, V>::location(&**map);
        self.removed_seats()
            .filter(move |removed: &&RemovedSeat<K, V>| removed.map.is_same(&location))
            .map(|removed| (&removed.key, &removed.seat))
    }

    fn removed_seats<K, V>(&self) -> impl Iterator<Item = &RemovedSeat<K, V>>
    where
        K: 'static,
        V: 'static,
    {
        let seats = self.seats.iter().flat_map(|seats| seats.iter());
        seats.filter_map(|seat| seat.downcast_ref())
    }
}

/// A seat that the end of its connection has removed from its map.
pub(crate) struct RemovedSeat<K, V> {
    pub(super) key: K,
    pub(super) seat: Seat<V>,
    pub(super) map: MapLocation,
}

#[cfg(feature = "test-util")]
impl<K, V> RemovedSeat<K, V>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// A seat that was in no map. Its type is erased as in an eviction.
    pub(crate) fn without_map(live: &Liveness, key: K, value: V) -> Box<dyn Any + Send + Sync> {
        let nothing = Arc::new(());
        Self::erased(
            live,
            key,
            value,
            MapLocation::of(&*nothing).inside(&nothing),
        )
    }

    /// A seat that was in `map`.
    pub(crate) fn of_map<M>(
        live: &Liveness,
        key: K,
        value: V,
        map: &Arc<M>,
    ) -> Box<dyn Any + Send + Sync>
    where
        M: SessionMap<K, V> + ?Sized,
    {
        Self::erased(live, key, value, SessionMap::<K, V>::location(map))
    }

    fn erased(live: &Liveness, key: K, value: V, map: MapLocation) -> Box<dyn Any + Send + Sync> {
        let registration = RegistrationId::next();
        let seat = Seat::new(live.clone(), Arc::new(value), registration, None);
        Box::new(Self { key, seat, map })
    }
}
