//! The connection's seats in the application's maps, which are removed at its end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::eviction::{ConnectionId, Eviction, Seats};
use crate::hooks;

/// One seat of a connection in one map; the types of map, key and value are erased.
pub(crate) trait Registration: Send + Sync {
    fn id(&self) -> RegistrationId;
    /// Removes the connection's seat from the map and returns it with its key, if it is still the
    /// connection's.
    fn vacate(&self, connection: ConnectionId) -> Option<Box<dyn Any + Send + Sync>>;
}

/// Identifies one registration, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegistrationId(u64);

impl RegistrationId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Removes all seats from their maps, and returns those that were still the connection's. The
/// caller holds no lock: the maps are the application's.
pub(crate) fn vacate(
    registrations: Vec<Arc<dyn Registration>>,
    eviction: &Eviction,
) -> Option<Seats> {
    let mut seats: Vec<Box<dyn Any + Send + Sync>> = Vec::new();
    for registration in registrations {
        hooks::guard_map(eviction, || {
            seats.extend(registration.vacate(eviction.id()));
            // Dropped in here, since a key of the application may panic when it is dropped.
            drop(registration);
        });
    }
    (!seats.is_empty()).then(|| Seats::new(eviction.id(), seats))
}
