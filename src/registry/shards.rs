//! The set of live connections, in parts, so that nobody holds a lock for long.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Liveness;
use crate::eviction::ConnectionId;

const SHARDS: usize = 32;

type Shard = HashMap<ConnectionId, Liveness>;

#[derive(Default)]
pub(super) struct Shards([Mutex<Shard>; SHARDS]);

impl Shards {
    /// Enters a connection. `count` runs under the lock, so that the number agrees with the set.
    pub(super) fn insert(&self, live: Liveness, count: impl FnOnce()) {
        let id = live.id();
        let mut shard = self.shard(id);
        let before = shard.insert(id, live);
        debug_assert!(before.is_none(), "a connection is opened once");
        count();
    }

    /// Takes a connection out, if it is in. The handle is to be dropped without a lock: a session
    /// value may hang on it.
    pub(super) fn remove(&self, id: ConnectionId, count: impl FnOnce()) -> Option<Liveness> {
        let mut shard = self.shard(id);
        let live = shard.remove(&id)?;
        count();
        Some(live)
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<Liveness> {
        self.shard(id).get(&id).cloned()
    }

    /// All handles, shard by shard; `expected` is a guess of how many.
    pub(super) fn handles(&self, expected: usize) -> Vec<Liveness> {
        let mut handles = Vec::with_capacity(expected);
        for shard in &self.0 {
            handles.extend(lock(shard).values().cloned());
        }
        handles
    }

    fn shard(&self, id: ConnectionId) -> MutexGuard<'_, Shard> {
        // Ids are consecutive, so they spread evenly.
        let index = id.as_u64() % SHARDS as u64;
        lock(&self.0[index as usize])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Nothing foreign runs under this lock, and a map is whole between two calls into it.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
