//! The set of live connections.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connection::{Liveness, Managed, Track};
use crate::evict::ConnectionId;

/// The live connections of one or more layers.
///
/// A connection is in it from the completed upgrade to its eviction, and leaves it before any hook
/// is called. Clones share the same set. A [`HeartbeatLayer`](crate::HeartbeatLayer) has one of its
/// own unless it is given another.
#[derive(Clone, Default)]
pub struct Registry {
    connections: Arc<Mutex<HashMap<ConnectionId, Liveness>>>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections are live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections().len()
    }

    /// Whether no connection is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections().is_empty()
    }

    /// The handle of a live connection; `None` if it has ended.
    #[must_use]
    pub fn get(&self, id: ConnectionId) -> Option<Liveness> {
        self.connections().get(&id).cloned()
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<ConnectionId, Liveness>> {
        // Nothing foreign runs under this lock, and a map is whole between two calls into it.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Track for Registry {
    fn opened(&self, connection: Arc<dyn Managed>) {
        let live = Liveness::new(connection);
        self.connections().insert(live.id(), live);
    }

    fn ended(&self, id: ConnectionId) {
        let removed = self.connections().remove(&id);
        // Dropped after the lock was given back: a session value may hang on it.
        drop(removed);
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("len", &self.len())
            .finish()
    }
}
