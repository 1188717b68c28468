//! Maps of keys that panic, and of values that do something as they are dropped.
#![allow(dead_code)] // every test binary uses its own part of this

use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tower_ws_liveness::{ConnectionId, Seat, SessionMap};

/// A map under test, by the keys and values of these tests.
pub(crate) trait Map: SessionMap<Key, Value> + Default {
    /// Who has the seat at a key that does not panic.
    fn holder(&self, key: &Key) -> Option<ConnectionId>;
    fn len(&self) -> usize;
}

pub(crate) type MutexMap = Mutex<HashMap<Key, Seat<Value>>>;
pub(crate) type RwLockMap = RwLock<HashMap<Key, Seat<Value>>>;

// As users do it, who expect nobody to panic in there.
impl Map for MutexMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.lock().unwrap().get(key).map(Seat::id)
    }

    fn len(&self) -> usize {
        self.lock().unwrap().len()
    }
}

impl Map for RwLockMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.read().unwrap().get(key).map(Seat::id)
    }

    fn len(&self) -> usize {
        self.read().unwrap().len()
    }
}

/// A map of the application's own, which forgives a panic.
#[derive(Default)]
pub(crate) struct OwnMap(Mutex<BTreeMap<Key, Seat<Value>>>);

impl SessionMap<Key, Value> for OwnMap {
    fn insert_if(
        &self,
        key: Key,
        seat: Seat<Value>,
        admit: &mut dyn FnMut(&Seat<Value>) -> bool,
    ) -> Result<Option<Seat<Value>>, Seat<Value>> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match map.get_mut(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            Some(occupant) => Ok(Some(std::mem::replace(occupant, seat))),
            None => return Ok(map.insert(key, seat)),
        };
        // Or the outcome would be leaked if the key panics.
        drop(key);
        outcome
    }

    fn remove_if(&self, key: &Key, id: ConnectionId) -> Option<Seat<Value>> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_its = map.get(key).is_some_and(|seat| seat.id() == id);
        is_its.then(|| map.remove(key)).flatten()
    }
}

impl Map for OwnMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(key).map(Seat::id)
    }

    fn len(&self) -> usize {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.len()
    }
}

#[cfg(feature = "dashmap")]
pub(crate) type DashMap = dashmap::DashMap<Key, Seat<Value>>;

#[cfg(feature = "dashmap")]
impl Map for DashMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.get(key).map(|entry| entry.value().id())
    }

    fn len(&self) -> usize {
        self.len()
    }
}

#[cfg(feature = "papaya")]
pub(crate) type PapayaMap = papaya::HashMap<Key, Seat<Value>>;

#[cfg(feature = "papaya")]
impl Map for PapayaMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.pin().get(key).map(Seat::id)
    }

    fn len(&self) -> usize {
        self.pin().len()
    }
}

#[cfg(feature = "scc")]
pub(crate) type SccMap = scc::HashMap<Key, Seat<Value>>;

#[cfg(feature = "scc")]
impl Map for SccMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.read_sync(key, |_, seat| seat.id())
    }

    fn len(&self) -> usize {
        self.len()
    }
}

macro_rules! with_every_odd_map {
    ($($test:ident),+ $(,)?) => {
        with_every_odd_map!(@map mutex, MutexMap, [$($test),+]);
        with_every_odd_map!(@map rw_lock, RwLockMap, [$($test),+]);
        with_every_odd_map!(@map own_map, OwnMap, [$($test),+]);
        #[cfg(feature = "dashmap")]
        with_every_odd_map!(@map dashmap, DashMap, [$($test),+]);
        #[cfg(feature = "papaya")]
        with_every_odd_map!(@map papaya, PapayaMap, [$($test),+]);
        #[cfg(feature = "scc")]
        with_every_odd_map!(@map scc, SccMap, [$($test),+]);
    };
    (@map $name:ident, $map:ident, [$($test:ident),+]) => {
        mod $name {
            $(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test::<$crate::sessions::odd::$map>().await;
                }
            )+
        }
    };
}

pub(crate) use with_every_odd_map;

// The keys and the values.

/// A key that panics when the fuse has burnt down: after so many hashes or comparisons. It does not
/// burn while it is below zero. If that is asked for, it also panics when one of its clones is dropped.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    fuse: Arc<AtomicI32>,
    panics_when_dropped: Arc<AtomicBool>,
}

pub(crate) fn key(name: &'static str) -> Key {
    Key {
        name,
        fuse: Arc::new(AtomicI32::new(-1)),
        panics_when_dropped: Arc::default(),
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let panics = self.panics_when_dropped.swap(false, Ordering::SeqCst);
        assert!(!panics, "this key panics, as the test wants");
    }
}

impl Key {
    pub(crate) fn light(&self, length: i32) {
        self.fuse.store(length, Ordering::SeqCst);
    }

    /// Has the first clone that is dropped panic.
    pub(crate) fn panic_when_dropped(&self, panics: bool) {
        self.panics_when_dropped.store(panics, Ordering::SeqCst);
    }

    fn burn(&self) {
        let before = self.fuse.load(Ordering::SeqCst);
        if before >= 0 {
            self.fuse.store((before - 1).max(0), Ordering::SeqCst);
            assert!(before > 0, "this key panics, as the test wants");
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.burn();
        self.name.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let is_same = self.name == other.name;
        // A map compares two others if a few bits of their hashes happen to agree. They are not at fault.
        if is_same {
            self.burn();
            other.burn();
        }
        is_same
    }
}

impl Eq for Key {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Order {
        self.burn();
        other.burn();
        self.name.cmp(other.name)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

/// A value that does this as it is dropped.
pub(crate) struct Value(Option<Box<dyn FnOnce() + Send + Sync>>);

pub(crate) fn value() -> Value {
    Value(None)
}

impl Value {
    pub(crate) fn doing(act: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(act)))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}
