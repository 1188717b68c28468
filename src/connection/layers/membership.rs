//! The registries that a connection is in, and what it counts for in them.

use std::mem;
use std::sync::{Arc, PoisonError};

use smallvec::SmallVec;

use super::contracts::{Admission, ErasedConnection, Tracker, Trackers};
use crate::eviction::ConnectionId;
use crate::monitor::Announced;
use crate::sync::{Mutex, MutexGuard};

/// The registries of a connection. It counts for the same in each, and once in each, however many
/// layers share one.
#[derive(Default)]
pub(crate) struct Membership(Mutex<Admissions>);

#[derive(Default)]
struct Admissions {
    trackers: Trackers,
    /// From `InProgress` on, the connection does not count against the limits.
    announced: Announced,
    /// No transport is left, and none will come. After this and `Announced::Done`, the connection
    /// is no longer present.
    transport_closed: bool,
}

impl Membership {
    pub(crate) fn is_in(&self, tracker: &Arc<dyn Tracker>) -> bool {
        self.lock().is_in(tracker)
    }

    /// Takes the parts of `admission` that the connection does not hold yet, and returns the rest.
    /// True if it is new in the registry. Drop the rest without a lock, since that may wake a task.
    pub(crate) fn add(&self, mut admission: Admission) -> (bool, Admission) {
        let mut admissions = self.lock();
        let is_new = !admissions.has_left() && !admissions.is_in(&admission.tracker);
        if is_new {
            admissions.trackers.push(Arc::clone(&admission.tracker));
            admission.permit = admissions.has_vacated();
            admission.presence = false;
        }
        (is_new, admission)
    }

    /// Leaves one registry, and returns the admission to it. Drop that without a lock, since it may
    /// wake a task.
    pub(crate) fn remove(&self, tracker: &Arc<dyn Tracker>, id: ConnectionId) -> Option<Admission> {
        let mut admissions = self.lock();
        let mut trackers = admissions.trackers.iter();
        let index = trackers.position(|known| Arc::ptr_eq(known, tracker))?;
        let tracker = admissions.trackers.remove(index);
        // After the end, the task that announces it removes the connection. Under the lock, since
        // the connection might enter again in between.
        if !admissions.has_vacated() {
            tracker.ended(id);
        }
        let (permit, presence) = (!admissions.has_vacated(), !admissions.has_left());
        Some(Admission::of(&tracker, permit, presence))
    }

    pub(crate) fn trackers(&self) -> Trackers {
        self.lock().trackers.clone()
    }

    /// Adds the connection to the sets of all registries, unless it has ended: a set never holds
    /// more than its registry has admitted.
    pub(crate) fn enter(&self, connection: &Arc<dyn ErasedConnection>) {
        let admissions = self.lock();
        if admissions.has_vacated() {
            return;
        }
        let trackers = admissions.trackers.clone();
        for tracker in &trackers {
            tracker.opened(Arc::clone(connection));
        }
        drop(admissions);
        for tracker in trackers {
            tracker.call_alarms();
        }
    }

    /// The connection has ended: removes it from all sets, and stops counting it against the
    /// limits. Returns the registries to pass the eviction to.
    pub(crate) fn end(&self, id: ConnectionId) -> Trackers {
        let (trackers, permits) = {
            let mut admissions = self.lock();
            let permits = admissions.advance(|all| all.announced.advance(Announced::InProgress));
            (admissions.trackers.clone(), permits)
        };
        for tracker in &trackers {
            tracker.ended(id);
        }
        drop(permits);
        trackers
    }

    /// All hooks have returned.
    pub(crate) fn announced(&self) {
        self.advance(|admissions| admissions.announced.advance(Announced::Done));
    }

    /// No transport is left, and none will come.
    pub(crate) fn transport_closed(&self) {
        self.advance(|admissions| admissions.transport_closed = true);
    }

    /// The response was no upgrade: for the registries there was no connection.
    pub(crate) fn dissolve(&self) {
        let left = Admissions {
            trackers: Trackers::new(),
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

impl Admissions {
    fn is_in(&self, tracker: &Arc<dyn Tracker>) -> bool {
        let mut trackers = self.trackers.iter();
        trackers.any(|known| Arc::ptr_eq(known, tracker))
    }

    fn has_vacated(&self) -> bool {
        self.announced > Announced::No
    }

    fn has_left(&self) -> bool {
        self.announced == Announced::Done && self.transport_closed
    }

    /// Takes a step towards the end, and returns the admissions that are over because of it.
    fn advance(&mut self, step: impl FnOnce(&mut Self)) -> SmallVec<[Admission; 1]> {
        let (had_vacated, had_left) = (self.has_vacated(), self.has_left());
        step(self);
        let permit = self.has_vacated() && !had_vacated;
        let presence = self.has_left() && !had_left;
        if !permit && !presence {
            return SmallVec::new();
        }
        let trackers = self.trackers.iter();
        trackers
            .map(|tracker| Admission::of(tracker, permit, presence))
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
