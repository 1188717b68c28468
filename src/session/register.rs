//! Taking a seat, and giving it back.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::replace_policy::{Kind, ReplacePolicy};
use super::seat::Seat;
use super::session_map::SessionMap;
use crate::connection::{Liveness, Registration, RegistrationId};
use crate::eviction::ConnectionId;
use crate::monitor::Reason;
use crate::sync::{AtomicBool, Mutex, ThreadId, current_thread};

impl Liveness {
    /// Takes a seat for this connection: puts `value` into `map` at `key`, and takes it out again when
    /// the connection ends, on whatever path. Returns the seat that was replaced.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Arc, Mutex, PoisonError};
    ///
    /// use tower_ws_liveness::{Liveness, Seat};
    /// # use tower_ws_liveness::RegisterError;
    ///
    /// type Sessions = Arc<Mutex<HashMap<String, Seat<tokio::sync::mpsc::Sender<String>>>>>;
    ///
    /// # type Error = RegisterError<tokio::sync::mpsc::Sender<String>>;
    /// fn join(live: &Liveness, sessions: &Sessions, user: String) -> Result<(), Error> {
    ///     let (tx, rx) = tokio::sync::mpsc::channel(64);
    ///     live.register(sessions, user, tx)?;
    ///     # drop(rx);
    ///     Ok(())
    /// }
    ///
    /// fn push(sessions: &Sessions, user: &str, text: &str) -> bool {
    ///     // Cloned, so that the lock is free again while we push.
    ///     let seat = sessions
    ///         .lock()
    ///         .unwrap_or_else(PoisonError::into_inner)
    ///         .get(user)
    ///         .cloned();
    ///     seat.is_some_and(|seat| seat.try_send(text.to_owned()).is_ok())
    /// }
    /// ```
    ///
    /// What holds, whatever happens at once elsewhere:
    ///
    /// - Either the connection ends first, and nothing is put into the map, or the seat is there and
    ///   will be taken out at the end. It is out before any hook is called; hooks find it in
    ///   [`Eviction::seats`](crate::Eviction::seats), and when [`evicted`](Self::evicted) returns all of
    ///   it is done.
    /// - At the end a seat is only taken out if it still is this connection's. Whoever has replaced it
    ///   keeps it.
    /// - The connection that had the seat before is evicted with
    ///   [`Reason::Replaced`], before this returns: see [`ReplacePolicy`] for that, and
    ///   [`register_with`](Self::register_with) for other rules. The newest is who registers last, not
    ///   who connected last.
    ///
    /// A connection may hold any number of seats, in one map and in several. If it registers at a key
    /// that it holds already, its new value replaces the old one, which is returned, and nobody is
    /// evicted. A handler may register before the upgrade is complete; if it fails, or if the response
    /// turns out to be none, the seat goes. An older connection that was evicted for it does not come
    /// back: to replace it only by one that is open, register in the task that gets the socket. Any
    /// task may register, as long as the connection lives.
    ///
    /// The map takes its lock in here, and the hooks of whoever is replaced are called: do not call this
    /// while you hold a lock that one of them takes.
    ///
    /// The map is kept alive by the connections that are registered in it. A seat that you take out
    /// of the map yourself is gone; use [`unregister`](Self::unregister) to have the connection forget
    /// it as well.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Ended`] if the connection has ended. The value is given back.
    ///
    /// # Panics
    ///
    /// If the map panics, for example because the key's `Hash` does. A seat that the map inserted before it
    /// panicked is removed at the end of the connection, like any other. The maps of the standard library
    /// are not poisoned.
    pub fn register<K, V, M>(
        &self,
        map: &Arc<M>,
        key: K,
        value: V,
    ) -> Result<Option<Seat<V>>, RegisterError<V>>
    where
        K: Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        self.register_with(map, key, value, &ReplacePolicy::newest_wins())
    }

    /// As [`register`](Self::register), with a rule for a seat that another connection holds.
    ///
    /// # Errors
    ///
    /// As for [`register`](Self::register), and [`RegisterError::Occupied`] with
    /// [`ReplacePolicy::oldest_wins`].
    ///
    /// # Panics
    ///
    /// As for [`register`](Self::register).
    pub fn register_with<K, V, M>(
        &self,
        map: &Arc<M>,
        key: K,
        value: V,
        policy: &ReplacePolicy,
    ) -> Result<Option<Seat<V>>, RegisterError<V>>
    where
        K: Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        let value = Arc::new(value);
        let chair = Arc::new(MapRegistration {
            id: RegistrationId::next(),
            map: Arc::clone(map),
            key: key.clone(),
            taking: Mutex::new(()),
            taker: current_thread().id(),
            missed: AtomicBool::new(false),
            value: PhantomData,
        });
        let place = chair.id;
        let taking = chair.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(reason) = self
            .metadata()
            .add_registration(Arc::clone(&chair) as Arc<dyn Registration>)
        {
            return Err(RegisterError::Ended { reason, value });
        }
        let (id, refuses) = (self.id(), policy.kind == Kind::Refuse);
        let seat = Seat::new(self.clone(), Arc::clone(&value), place);
        let inserted = catch_unwind(AssertUnwindSafe(|| {
            map.insert_if(key, seat, &mut |occupant| {
                !refuses || occupant.id() == id || occupant.live().has_ended()
            })
        }));
        drop(taking);
        // Here and not later: what is done below may end the connection as well.
        let missed = chair.missed.load(Ordering::Relaxed);
        let before = match inserted {
            Ok(Ok(before)) => before,
            Ok(Err(occupant)) => {
                self.metadata().forget_registration(place);
                return Err(RegisterError::Occupied { occupant, value });
            }
            Err(panicked) => {
                // Only the map knows whether it has inserted the seat, so the place is kept: the seat is
                // removed at the end, or here if the connection has ended meanwhile.
                if missed {
                    let remove = AssertUnwindSafe(|| map.remove_if(&chair.key, id));
                    let _removed = catch_unwind(remove);
                }
                resume_unwind(panicked)
            }
        };
        if missed {
            map.remove_if(&chair.key, id);
        }
        if let Some(before) = &before {
            match &policy.kind {
                Kind::Evict(frame) if before.id() != id => {
                    before.live().evict_for(Reason::Replaced, frame.clone());
                }
                // Its connection lives on. It is not to remember every seat that it once had.
                _ => before.live().metadata().forget_registration(before.place()),
            }
        }
        if missed {
            let reason = self
                .metadata()
                .reason()
                .expect("a place is left at the end");
            return Err(RegisterError::Ended { reason, value });
        }
        Ok(before)
    }

    /// Gives this connection's seat at `key` back before the connection ends, and returns it. `None` if
    /// the seat is not, or no longer, this connection's.
    ///
    /// # Panics
    ///
    /// If the map does.
    pub fn unregister<K, V, M>(&self, map: &Arc<M>, key: &K) -> Option<Seat<V>>
    where
        M: SessionMap<K, V> + ?Sized,
    {
        let seat = map.remove_if(key, self.id())?;
        self.metadata().forget_registration(seat.place());
        Some(seat)
    }
}

/// A seat could not be taken.
#[non_exhaustive]
pub enum RegisterError<V> {
    /// The connection has ended, and this is why. Nothing was put into the map.
    Ended {
        /// Why the connection ended.
        reason: Reason,
        /// What was to be registered.
        value: Arc<V>,
    },
    /// Another connection holds the seat, and keeps it by [`ReplacePolicy::oldest_wins`].
    Occupied {
        /// Who holds it.
        occupant: Seat<V>,
        /// What was to be registered.
        value: Arc<V>,
    },
}

// Not derived: the application's value need not be `Debug` for its error to be one.
impl<V> fmt::Debug for RegisterError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { reason, .. } => f
                .debug_struct("Ended")
                .field("reason", reason)
                .finish_non_exhaustive(),
            Self::Occupied { occupant, .. } => f
                .debug_struct("Occupied")
                .field("occupant", &occupant.id())
                .finish_non_exhaustive(),
        }
    }
}

impl<V> fmt::Display for RegisterError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { reason, .. } => {
                write!(f, "not registered: the connection has ended ({reason})")
            }
            Self::Occupied { occupant, .. } => {
                let id = occupant.id();
                write!(f, "not registered: connection {id} holds the seat")
            }
        }
    }
}

impl<V> Error for RegisterError<V> {}

/// A connection's place at a key of a map.
struct MapRegistration<K, V, M: ?Sized> {
    id: RegistrationId,
    map: Arc<M>,
    key: K,
    /// Held while the seat is being put into the map. An end that comes meanwhile waits for it, as it
    /// would for a lock of the map's own: so what it looks for is there, in a map without locks too.
    taking: Mutex<()>,
    /// Who puts it there, and may be the one who ends the connection: a map may evict somebody while
    /// it is at it, or drop a value of the application's that does. It cannot wait for itself.
    taker: ThreadId,
    /// The taker came by, and there was no seat. If it is at it still, there will be one.
    missed: AtomicBool,
    value: PhantomData<fn() -> V>,
}

impl<K, V, M> Registration for MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    fn id(&self) -> RegistrationId {
        self.id
    }

    fn vacate(&self, connection: ConnectionId) -> Option<Box<dyn Any + Send + Sync>> {
        let is_taker = current_thread().id() == self.taker;
        if !is_taker {
            drop(self.taking.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let Some(seat) = self.map.remove_if(&self.key, connection) else {
            self.missed.store(is_taker, Ordering::Relaxed);
            return None;
        };
        Some(Box::new((self.key.clone(), seat)))
    }
}
