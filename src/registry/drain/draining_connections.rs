//! The connections that drains have evicted and whose transport may still be open.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Liveness;
use crate::eviction::ConnectionId;

/// The connections that a drain has evicted and whose transport may still be open.
///
/// They are no longer in the set of open connections, but a deadline must find them, also that of
/// another drain.
#[derive(Default)]
pub(in crate::registry) struct DrainingConnections {
    connections: Mutex<HashMap<ConnectionId, Liveness>>,
}

impl DrainingConnections {
    pub(super) fn insert(&self, live: Liveness) {
        // A replaced handle is one of the same connection, so this does not drop its last handle
        // under the lock.
        let _replaced = self.lock().insert(live.id(), live);
    }

    /// The connections whose transport is still open.
    pub(super) fn open(&self) -> Vec<Liveness> {
        let mut handles: Vec<_> = self.lock().values().cloned().collect();
        handles.retain(|live| !live.is_transport_closed());
        handles
    }

    pub(super) fn remove_closed(&self) {
        let handles: Vec<_> = self.lock().values().cloned().collect();
        let closed = handles.iter().filter(|live| live.is_transport_closed());
        let mut removed = Vec::new();
        {
            let mut connections = self.lock();
            removed.extend(closed.filter_map(|live| connections.remove(&live.id())));
        }
        // Dropped with the lock released: a handle may be the last owner of a session value, whose
        // `Drop` is application code.
        drop(removed);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Liveness>> {
        // No application code runs under this lock, so a poisoned one still holds a consistent map.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DrainingConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainingConnections")
            .finish_non_exhaustive()
    }
}
