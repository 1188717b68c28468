//! One registration of a connection at one key of one map.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::linger::{Claimant, LingeringSession, Session, SessionEndCause};
use super::removed_seats::RemovedSeat;
use super::seat::Seat;
use super::session_map::SessionMap;
use crate::connection::{Liveness, Registration, RegistrationId, Vacated};
use crate::driver::Driver;
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::Reason;
use crate::panic_guard;
use crate::sync::{AtomicBool, Mutex, MutexGuard, ThreadId, current_thread};

/// The registration of one connection at one key of one map.
pub(super) struct MapRegistration<K, V, M: ?Sized> {
    id: RegistrationId,
    pub(super) connection: ConnectionId,
    pub(super) map: Arc<M>,
    pub(super) key: K,
    /// Locked while the map inserts the seat. If the connection ends meanwhile, its end waits for
    /// this lock as it would for the map's own, so that it finds the seat in a lock-free map too.
    inserting: Mutex<()>,
    /// The thread that inserts the seat. It must not wait for itself: a map may evict a connection
    /// while it inserts, or drop an application value that does.
    inserting_thread: ThreadId,
    /// Set if `inserting_thread` ended the connection and the map had no seat to remove. If the map
    /// is still inserting, it will have one.
    ended_while_inserting: AtomicBool,
    /// The map has inserted the seat.
    seated: AtomicBool,
    /// The seat was refused or not inserted at all, so the end of the connection has nothing to
    /// remove. (It may remove registrations by then, and would remove another seat of the connection
    /// at the same key.)
    withdrawn: AtomicBool,
    /// `None` for a seat that leaves with its connection.
    pub(super) session: Option<LingeringSession<K, V>>,
}

impl<K, V, M> MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    /// A registration at `key` that is not made yet.
    pub(super) fn new(
        live: &Liveness,
        map: &Arc<M>,
        key: K,
        session: Option<LingeringSession<K, V>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: RegistrationId::next(),
            connection: live.id(),
            map: Arc::clone(map),
            key,
            inserting: Mutex::new(()),
            inserting_thread: current_thread().id(),
            ended_while_inserting: AtomicBool::new(false),
            seated: AtomicBool::new(false),
            withdrawn: AtomicBool::new(false),
            session,
        })
    }

    /// Adds the registration to the connection, whose end waits for the insertion from now on.
    /// Fails with the reason if the connection has ended.
    pub(super) fn begin<'a>(
        self: &'a Arc<Self>,
        live: &'a Liveness,
    ) -> Result<Insertion<'a, K, V, M>, Reason> {
        let inserting = self.lock();
        let registration = Arc::clone(self) as Arc<dyn Registration>;
        live.metadata().add_registration(registration)?;
        Ok(Insertion {
            registration: self,
            live,
            inserting,
        })
    }

    fn set_seated(&self) {
        self.seated.store(true, Ordering::Relaxed);
        if let Some(session) = &self.session {
            session.begin();
        }
    }

    pub(super) fn is_seated(&self) -> bool {
        self.seated.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.inserting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A registration whose seat is about to be inserted.
pub(super) struct Insertion<'a, K, V, M: ?Sized> {
    registration: &'a Arc<MapRegistration<K, V, M>>,
    live: &'a Liveness,
    inserting: MutexGuard<'a, ()>,
}

/// What became of an insertion.
pub(super) enum Inserted<V> {
    Seated {
        seat: Seat<V>,
        /// The seat that was replaced.
        previous: Option<Seat<V>>,
        /// The map ended the connection while it inserted, and the seat is removed again.
        ended: bool,
    },
    /// The seat that was not admitted to be replaced.
    Occupied(Seat<V>),
}

impl<K, V, M> Insertion<'_, K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    /// Has the map insert a seat with `value`, in place of a seat that `admit` accepts. Resumes a
    /// panic of the map.
    pub(super) fn insert(
        self,
        value: &Arc<V>,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Inserted<V> {
        let Self {
            registration,
            live,
            inserting,
        } = self;
        let session = registration.session.is_some().then(|| {
            let session = Arc::clone(registration) as Arc<dyn Session>;
            Arc::downgrade(&session)
        });
        let seat = Seat::new(live.clone(), Arc::clone(value), registration.id, session);
        let (map, key, id) = (&registration.map, &registration.key, live.id());
        let inserted = catch_unwind(AssertUnwindSafe(|| {
            map.insert_if(key.clone(), seat.clone(), admit)
        }));
        match &inserted {
            Ok(Ok(_)) => registration.set_seated(),
            Ok(Err(_)) => registration.withdrawn.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        drop(inserting);
        // Read before the code below, which may end the connection as well.
        let ended = registration.ended_while_inserting.load(Ordering::Relaxed);
        let previous = match inserted {
            Ok(Ok(previous)) => previous,
            Ok(Err(occupant)) => {
                live.metadata().forget_registration(registration.id);
                return Inserted::Occupied(occupant);
            }
            Err(panicked) => {
                // Only the map knows whether it has inserted the seat, so the registration is kept:
                // the seat is removed at the end, or here if the connection has ended meanwhile.
                if ended {
                    panic_guard::catch(|| drop(map.remove_if(key, id)));
                }
                resume_unwind(panicked)
            }
        };
        if ended {
            map.remove_if(key, id);
        }
        Inserted::Seated {
            seat,
            previous,
            ended,
        }
    }

    /// Removes the registration again.
    pub(super) fn cancel(self) {
        self.registration.withdrawn.store(true, Ordering::Relaxed);
        drop(self.inserting);
        let metadata = self.live.metadata();
        metadata.forget_registration(self.registration.id);
    }
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

    fn vacate(self: Arc<Self>, end: &Eviction, driver: Option<&Arc<Driver>>) -> Vacated {
        let is_inserting_thread = current_thread().id() == self.inserting_thread;
        if !is_inserting_thread {
            drop(self.lock());
        }
        if self.withdrawn.load(Ordering::Relaxed) {
            return Vacated::default();
        }
        if let Some(driver) = driver {
            if let Some(lingering) = self.linger(end, driver) {
                return lingering;
            }
        }
        let seat = self.map.remove_if(&self.key, self.connection);
        let was_seated = seat
            .as_ref()
            .is_some_and(|seat| seat.registration() == self.id);
        if !was_seated {
            self.ended_while_inserting
                .store(is_inserting_thread, Ordering::Relaxed);
        }
        let mut afterwards = self.end_with_connection(end.reason(), was_seated);
        let Some(seat) = seat else {
            return Vacated {
                seat: None,
                afterwards,
            };
        };
        if self.session.is_some() && was_seated && afterwards.is_none() {
            // Another connection is resuming the session, and the user is still connected.
            return Vacated::default();
        }
        if let Some(session) = seat.session().filter(|_| !was_seated) {
            // That of a newer registration of the connection at the same key: without its seat it
            // cannot linger.
            let reason = end.reason();
            let end_other =
                move || session.end_session(SessionEndCause::ConnectionEnded, Some(reason));
            afterwards = afterwards.or(Some(Box::new(end_other)));
        }
        let removed = || {
            let key = self.key.clone();
            let map = SessionMap::<K, V>::location(&self.map);
            Box::new(RemovedSeat { key, seat, map }) as Box<dyn Any + Send + Sync>
        };
        let seat = match afterwards {
            // A key that panics must not take the hooks of the session with it.
            Some(_) => panic_guard::catch(removed),
            None => Some(removed()),
        };
        Vacated { seat, afterwards }
    }
}

impl<K, V, M> Claimant for MapRegistration<K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    fn is_current_thread(&self) -> bool {
        current_thread().id() == self.inserting_thread
    }

    fn wait_until_inserted(&self) {
        drop(self.lock());
    }
}
