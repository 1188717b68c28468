//! The connection's seats in the application's maps, which are removed at its end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::driver::Driver;
use crate::eviction::{Eviction, Seats};
use crate::hooks;

/// One seat of a connection in one map; the types of map, key and value are erased.
pub(crate) trait Registration: Send + Sync {
    fn id(&self) -> RegistrationId;
    /// Removes the seat from the map, if it is still the connection's, or lets it linger there.
    /// `driver` is that of the connection; `None` if it was never open.
    fn vacate(self: Arc<Self>, end: &Eviction, driver: Option<&Arc<Driver>>) -> Vacated;
}

/// What the end of a connection made of one of its registrations.
#[derive(Default)]
pub(crate) struct Vacated {
    /// The seat that was removed, with its key.
    pub(crate) seat: Option<Box<dyn Any + Send + Sync>>,
    pub(crate) afterwards: Option<SessionHooks>,
}

/// Calls the hooks of a session that ended with its connection, after those of the connection.
pub(crate) type SessionHooks = Box<dyn FnOnce() + Send>;

/// Identifies one registration, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegistrationId(u64);

impl RegistrationId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Removes the seats from their maps, or lets them linger. Returns the seats that were removed, and
/// what must be called after the hooks. The caller holds no lock: the maps are the application's.
pub(crate) fn vacate(
    registrations: Vec<Arc<dyn Registration>>,
    eviction: &Eviction,
    driver: Option<&Arc<Driver>>,
) -> (Option<Seats>, Vec<SessionHooks>) {
    let mut seats: Vec<Box<dyn Any + Send + Sync>> = Vec::new();
    let mut afterwards = Vec::new();
    for registration in registrations {
        // The registration is dropped in the call, since a key of the application may panic when it
        // is dropped.
        hooks::guard_map(eviction, || {
            let vacated = registration.vacate(eviction, driver);
            seats.extend(vacated.seat);
            afterwards.extend(vacated.afterwards);
        });
    }
    let seats = (!seats.is_empty()).then(|| Seats::new(eviction.id(), seats));
    (seats, afterwards)
}
