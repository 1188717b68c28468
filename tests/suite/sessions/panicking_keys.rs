//! Session maps with keys that panic and values that run a closure when they are dropped.

use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tower_ws_liveness::{ConnectionId, Seat, SessionMap};

/// A map under test, with the keys and values of these tests.
pub(crate) trait Map: SessionMap<Key, Value> + Default {
    /// The connection at a key that does not panic.
    fn holder(&self, key: &Key) -> Option<ConnectionId>;
    fn len(&self) -> usize;
}

pub(crate) type MutexMap = Mutex<HashMap<Key, Seat<Value>>>;
pub(crate) type RwLockMap = RwLock<HashMap<Key, Seat<Value>>>;

// Like an application that does not expect a poisoned lock.
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

pub(crate) type BTreeMapMap = Mutex<BTreeMap<Key, Seat<Value>>>;

impl Map for BTreeMapMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.lock().unwrap().get(key).map(Seat::id)
    }

    fn len(&self) -> usize {
        self.lock().unwrap().len()
    }
}

#[cfg(feature = "parking_lot")]
pub(crate) type ParkingMutexMap = parking_lot::Mutex<HashMap<Key, Seat<Value>>>;

#[cfg(feature = "parking_lot")]
impl Map for ParkingMutexMap {
    fn holder(&self, key: &Key) -> Option<ConnectionId> {
        self.lock().get(key).map(Seat::id)
    }

    fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A `SessionMap` of the application that ignores a poisoned lock.
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
        // Otherwise the outcome leaks if the key panics when it is dropped.
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

macro_rules! with_every_map {
    ($($test:ident),+ $(,)?) => {
        with_every_map!(@map mutex, MutexMap, [$($test),+]);
        with_every_map!(@map rw_lock, RwLockMap, [$($test),+]);
        with_every_map!(@map own_map, OwnMap, [$($test),+]);
        with_every_map!(@map b_tree_map, BTreeMapMap, [$($test),+]);
        #[cfg(feature = "parking_lot")]
        with_every_map!(@map parking_mutex, ParkingMutexMap, [$($test),+]);
        #[cfg(feature = "dashmap")]
        with_every_map!(@map dashmap, DashMap, [$($test),+]);
        #[cfg(feature = "papaya")]
        with_every_map!(@map papaya, PapayaMap, [$($test),+]);
        #[cfg(feature = "scc")]
        with_every_map!(@map scc, SccMap, [$($test),+]);
    };
    (@map $name:ident, $map:ident, [$($test:ident),+]) => {
        mod $name {
            $(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test::<$crate::sessions::panicking_keys::$map>().await;
                }
            )+
        }
    };
}

pub(crate) use with_every_map;

// Keys and values.

/// A key that can panic after a number of hashes and comparisons, or when a clone of it is dropped.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// Hashes and comparisons until the panic. Negative: never.
    calls_left: Arc<AtomicI32>,
    panics_when_dropped: Arc<AtomicBool>,
}

pub(crate) fn key(name: &'static str) -> Key {
    Key {
        name,
        calls_left: Arc::new(AtomicI32::new(-1)),
        panics_when_dropped: Arc::default(),
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let panics = self.panics_when_dropped.swap(false, Ordering::SeqCst);
        assert!(!panics, "a scripted panic of a key");
    }
}

impl Key {
    /// Panics after this many more hashes and comparisons. A negative number turns this off.
    pub(crate) fn panic_after(&self, calls: i32) {
        self.calls_left.store(calls, Ordering::SeqCst);
    }

    /// Makes the first clone that is dropped panic.
    pub(crate) fn panic_when_dropped(&self, panics: bool) {
        self.panics_when_dropped.store(panics, Ordering::SeqCst);
    }

    fn count_call(&self) {
        let before = self.calls_left.load(Ordering::SeqCst);
        if before >= 0 {
            self.calls_left.store((before - 1).max(0), Ordering::SeqCst);
            assert!(before > 0, "a scripted panic of a key");
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.count_call();
        self.name.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let is_same = self.name == other.name;
        // A map also compares different keys if a few bits of their hashes agree. Those must not
        // panic.
        if is_same {
            self.count_call();
            other.count_call();
        }
        is_same
    }
}

impl Eq for Key {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Order {
        self.count_call();
        other.count_call();
        self.name.cmp(other.name)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

/// A value that runs this closure when it is dropped.
pub(crate) struct Value(Option<Box<dyn FnOnce() + Send + Sync>>);

pub(crate) fn value() -> Value {
    Value(None)
}

impl Value {
    pub(crate) fn on_drop(act: impl FnOnce() + Send + Sync + 'static) -> Self {
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
