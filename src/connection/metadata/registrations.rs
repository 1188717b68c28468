//! Where a connection has seats in the application's maps, so that it can leave them at its end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::eviction::{ConnectionId, Eviction, Seats};
use crate::hooks;

/// One seat of a connection in one map, for those who know neither.
pub(crate) trait Registration: Send + Sync {
    fn id(&self) -> RegistrationId;
    /// Takes the connection's seat out of the map, and returns it with its key, if it still is its.
    fn vacate(&self, connection: ConnectionId) -> Option<Box<dyn Any + Send + Sync>>;
}

/// Tells one registration from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegistrationId(u64);

impl RegistrationId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Leaves all places, and returns the seats that still were the connection's. The caller holds no
/// lock: the maps are the application's.
pub(crate) fn vacate(places: Vec<Arc<dyn Registration>>, eviction: &Eviction) -> Option<Seats> {
    let mut seats: Vec<Box<dyn Any + Send + Sync>> = Vec::new();
    for place in places {
        hooks::guard_map(eviction, || {
            seats.extend(place.vacate(eviction.id()));
            // In here, since a key of the application's may panic as it is dropped.
            drop(place);
        });
    }
    (!seats.is_empty()).then(|| Seats::new(eviction.id(), seats))
}
