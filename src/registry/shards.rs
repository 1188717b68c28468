//! The set of open connections, sharded so that each lock is held only briefly.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Liveness;
use crate::eviction::ConnectionId;

const SHARD_COUNT: usize = 32;

type Shard = HashSet<Member>;

/// A connection, found by its id. A map from the id would store a second copy of it.
struct Member(Liveness);

impl Borrow<ConnectionId> for Member {
    fn borrow(&self) -> &ConnectionId {
        &self.0.metadata().id
    }
}

impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<ConnectionId>::borrow(self).hash(state);
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

impl Eq for Member {}

#[derive(Default)]
pub(super) struct Shards([Mutex<Shard>; SHARD_COUNT]);

impl Shards {
    /// Inserts a connection. Calls `count` under the lock, so that the counters agree with the set.
    pub(super) fn insert(&self, live: Liveness, count: impl FnOnce()) {
        let id = live.id();
        let mut shard = self.shard(id);
        let is_new = shard.insert(Member(live));
        debug_assert!(is_new, "a connection opens once");
        count();
    }

    /// Removes a connection if it is in the set. The caller must drop the handle without holding a
    /// lock: it may be the last owner of a session value, whose `Drop` is application code.
    pub(super) fn remove(&self, id: ConnectionId, count: impl FnOnce()) -> Option<Liveness> {
        let mut shard = self.shard(id);
        let member = shard.take(&id)?;
        count();
        Some(member.0)
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<Liveness> {
        let shard = self.shard(id);
        shard.get(&id).map(|member| member.0.clone())
    }

    /// Returns all handles, shard by shard. `expected` is the initial capacity of the result.
    pub(super) fn handles(&self, expected: usize) -> Vec<Liveness> {
        let mut handles = Vec::with_capacity(expected);
        for shard in &self.0 {
            handles.extend(lock(shard).iter().map(|member| member.0.clone()));
        }
        handles
    }

    fn shard(&self, id: ConnectionId) -> MutexGuard<'_, Shard> {
        // Ids are consecutive, so they spread evenly.
        let index = id.as_u64() % SHARD_COUNT as u64;
        lock(&self.0[index as usize])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // No application code runs under this lock, so a poisoned one still holds a consistent set.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
