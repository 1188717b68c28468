//! The registries that a connection is in, and what it counts for in them.

use std::sync::{Arc, PoisonError};
use std::{mem, slice};

use smallvec::{SmallVec, smallvec};

use super::contracts::{Admission, ErasedConnection, ErasedRegistry, Registries};
use crate::eviction::ConnectionId;
use crate::monitor::Announced;
use crate::sync::{Mutex, MutexGuard};

/// The registries of a connection. It counts for the same in each, and once in each, however many
/// layers share one.
#[derive(Default)]
pub(crate) struct Membership(Mutex<Admissions>);

#[derive(Default)]
struct Admissions {
    registries: Joined,
    /// From `InProgress` on, the connection does not count against the limits.
    announced: Announced,
    /// The transport is closed, or the upgrade failed. After this and `Announced::Done`, the
    /// connection is no longer present.
    transport_closed: bool,
}

/// The registries of a connection, in the size of one: few connections are in several.
enum Joined {
    One(Arc<dyn ErasedRegistry>),
    /// None, or several.
    Others(Option<Box<Registries>>),
}

impl Membership {
    pub(crate) fn is_in(&self, registry: &Arc<dyn ErasedRegistry>) -> bool {
        self.lock().is_in(registry)
    }

    /// Takes the parts of `admission` that the connection does not hold yet, and returns the rest.
    /// True if it is new in the registry. Drop the rest without a lock, since that may wake a task.
    pub(crate) fn add(&self, mut admission: Admission) -> (bool, Admission) {
        let mut admissions = self.lock();
        let is_new = !admissions.has_released_presence() && !admissions.is_in(&admission.registry);
        if is_new {
            admissions.registries.push(Arc::clone(&admission.registry));
            admission.permit = admissions.has_released_permit();
            admission.presence = false;
        }
        (is_new, admission)
    }

    /// Leaves one registry, and returns the admission to it. Drop that without a lock, since it may
    /// wake a task.
    pub(crate) fn remove(
        &self,
        registry: &Arc<dyn ErasedRegistry>,
        id: ConnectionId,
    ) -> Option<Admission> {
        let mut admissions = self.lock();
        let mut registries = admissions.registries.iter();
        let index = registries.position(|known| Arc::ptr_eq(known, registry))?;
        let registry = admissions.registries.remove(index)?;
        // After the end, the task that announces it removes the connection. Under the lock, since
        // the connection might enter again in between.
        if !admissions.has_released_permit() {
            registry.ended(id);
        }
        let (permit, presence) = (
            !admissions.has_released_permit(),
            !admissions.has_released_presence(),
        );
        Some(Admission::of(&registry, permit, presence))
    }

    pub(crate) fn registries(&self) -> Registries {
        self.lock().registries.to_vec()
    }

    /// Adds the connection to the sets of all registries, unless it has ended: a set never holds
    /// more than its registry has admitted.
    pub(crate) fn enter(&self, connection: &Arc<dyn ErasedConnection>) {
        let admissions = self.lock();
        if admissions.has_released_permit() {
            return;
        }
        let registries = admissions.registries.to_vec();
        for registry in &registries {
            registry.opened(Arc::clone(connection));
        }
        drop(admissions);
        for registry in registries {
            registry.call_alarms();
        }
    }

    /// The connection has ended: removes it from all sets, and stops counting it against the
    /// limits. Returns the registries to pass the eviction to.
    pub(crate) fn end(&self, id: ConnectionId) -> Registries {
        let (registries, permits) = {
            let mut admissions = self.lock();
            let permits = admissions.advance(|all| all.announced.advance(Announced::InProgress));
            (admissions.registries.to_vec(), permits)
        };
        for registry in &registries {
            registry.ended(id);
        }
        drop(permits);
        registries
    }

    /// All hooks have returned.
    pub(crate) fn mark_announced(&self) {
        self.advance(|admissions| admissions.announced.advance(Announced::Done));
    }

    /// The transport is closed, or the upgrade failed.
    pub(crate) fn transport_closed(&self) {
        self.advance(|admissions| admissions.transport_closed = true);
    }

    /// The response is not an upgrade: for the registries there was no connection.
    pub(crate) fn dissolve(&self) {
        let left = Admissions {
            registries: Joined::default(),
            announced: Announced::Done,
            transport_closed: true,
        };
        let admissions = mem::replace(&mut *self.lock(), left);
        drop(admissions);
    }

    fn advance(&self, step: impl FnOnce(&mut Admissions)) {
        let over = self.lock().advance(step);
        // Dropped without the lock.
        drop(over);
    }

    fn lock(&self) -> MutexGuard<'_, Admissions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Joined {
    fn iter(&self) -> slice::Iter<'_, Arc<dyn ErasedRegistry>> {
        match self {
            Self::One(registry) => slice::from_ref(registry).iter(),
            Self::Others(Some(registries)) => registries.iter(),
            Self::Others(None) => [].iter(),
        }
    }

    fn to_vec(&self) -> Registries {
        self.iter().cloned().collect()
    }

    fn push(&mut self, registry: Arc<dyn ErasedRegistry>) {
        *self = match mem::take(self) {
            Self::Others(None) => Self::One(registry),
            Self::One(first) => Self::Others(Some(Box::new(smallvec![first, registry]))),
            Self::Others(Some(mut registries)) => {
                registries.push(registry);
                Self::Others(Some(registries))
            }
        };
    }

    /// Removes the registry at this position, if there is one.
    fn remove(&mut self, index: usize) -> Option<Arc<dyn ErasedRegistry>> {
        match self {
            Self::Others(Some(registries)) => Some(registries.remove(index)),
            Self::One(_) | Self::Others(None) => match mem::take(self) {
                Self::One(registry) => Some(registry),
                Self::Others(_) => None,
            },
        }
    }
}

impl Default for Joined {
    fn default() -> Self {
        Self::Others(None)
    }
}

impl Admissions {
    fn is_in(&self, registry: &Arc<dyn ErasedRegistry>) -> bool {
        let mut registries = self.registries.iter();
        registries.any(|known| Arc::ptr_eq(known, registry))
    }

    fn has_released_permit(&self) -> bool {
        self.announced > Announced::No
    }

    fn has_released_presence(&self) -> bool {
        self.announced == Announced::Done && self.transport_closed
    }

    /// Takes a step towards the end, and returns the admissions that are over because of it.
    fn advance(&mut self, step: impl FnOnce(&mut Self)) -> SmallVec<[Admission; 1]> {
        let (had_released_permit, had_released_presence) =
            (self.has_released_permit(), self.has_released_presence());
        step(self);
        let permit = self.has_released_permit() && !had_released_permit;
        let presence = self.has_released_presence() && !had_released_presence;
        if !permit && !presence {
            return SmallVec::new();
        }
        let registries = self.registries.iter();
        registries
            .map(|registry| Admission::of(registry, permit, presence))
            .collect()
    }
}

impl Drop for Admissions {
    /// For a connection that is dropped without an end.
    fn drop(&mut self) {
        drop(self.advance(|all| {
            all.announced.advance(Announced::Done);
            all.transport_closed = true;
        }));
    }
}
