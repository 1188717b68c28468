//! Tells session maps of equal types apart.

use std::fmt;
use std::sync::Arc;

/// The place of a session map in memory.
///
/// While this exists, no other map can take the place, even if the map is dropped.
pub struct MapLocation {
    address: usize,
    /// A `Weak` of the value that contains the map: keeps the memory allocated, not the value.
    reserved: Option<Box<dyn Send + Sync>>,
}

impl MapLocation {
    pub(super) fn of<M: ?Sized>(map: &M) -> Self {
        Self {
            address: std::ptr::from_ref(map).cast::<()>().addr(),
            reserved: None,
        }
    }

    /// The same place, which is inside of `owner`. The innermost `Arc` around a map counts.
    pub(super) fn inside<S>(mut self, owner: &Arc<S>) -> Self
    where
        S: Send + Sync + 'static + ?Sized,
    {
        self.reserved
            .get_or_insert_with(|| Box::new(Arc::downgrade(owner)));
        self
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl fmt::Debug for MapLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapLocation").finish_non_exhaustive()
    }
}
