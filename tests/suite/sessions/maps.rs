//! The session maps under test, and session values that count their drops.
#![allow(dead_code, unused_imports, unused_macros)] // Each test binary uses a different part.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use tower_ws_liveness::{ConnectionId, Seat, SessionMap};

/// A session value as an application defines it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) name: String,
    _token: Token,
}

#[derive(Debug)]
struct Token(Census);

/// Counts the sessions that were created, and those that were dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census(Arc<(AtomicUsize, AtomicUsize)>);

impl Census {
    pub(crate) fn session(&self, name: impl Into<String>) -> Session {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        Session {
            name: name.into(),
            _token: Token(self.clone()),
        }
    }

    pub(crate) fn created(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// A map under test, with the accessors of its users.
pub(crate) trait Map: SessionMap<String, Session> + Default {
    /// A removed seat is dropped immediately, not only after the last reader has left the map.
    const FREES_AT_ONCE: bool = true;

    /// The connection at each key.
    fn holders(&self) -> BTreeMap<String, ConnectionId>;
    /// The seat at a key.
    fn seat(&self, key: &str) -> Option<Seat<Session>>;
    /// Removes a seat without `Liveness::unregister`.
    fn remove_by_hand(&self, key: &str);
}

pub(crate) type MutexMap = Mutex<HashMap<String, Seat<Session>>>;

impl Map for MutexMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.lock().unwrap();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.lock().unwrap().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        let removed = self.lock().unwrap().remove(key);
        drop(removed);
    }
}

/// Differs from the default hasher of the maps: every hasher must work.
type OtherHasher = BuildHasherDefault<DefaultHasher>;

pub(crate) type RwLockMap = RwLock<HashMap<String, Seat<Session>, OtherHasher>>;

impl Map for RwLockMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.read().unwrap();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.read().unwrap().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        let removed = self.write().unwrap().remove(key);
        drop(removed);
    }
}

pub(crate) type BTreeMapMap = RwLock<BTreeMap<String, Seat<Session>>>;

impl Map for BTreeMapMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.read().unwrap();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.read().unwrap().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        let removed = self.write().unwrap().remove(key);
        drop(removed);
    }
}

#[cfg(feature = "parking_lot")]
pub(crate) type ParkingMutexMap = parking_lot::Mutex<BTreeMap<String, Seat<Session>>>;

#[cfg(feature = "parking_lot")]
impl Map for ParkingMutexMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.lock();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.lock().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        let removed = self.lock().remove(key);
        drop(removed);
    }
}

#[cfg(feature = "parking_lot")]
pub(crate) type ParkingRwLockMap = parking_lot::RwLock<HashMap<String, Seat<Session>, OtherHasher>>;

#[cfg(feature = "parking_lot")]
impl Map for ParkingRwLockMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.read();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.read().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        let removed = self.write().remove(key);
        drop(removed);
    }
}

/// A map that is a field of the application's state, with other fields before it.
#[derive(Debug, Default)]
pub(crate) struct State {
    _name: String,
    pub(crate) sessions: MutexMap,
    pub(crate) others: MutexMap,
}

/// A `SessionMap` of the application, as in the documentation.
#[derive(Default)]
pub(crate) struct OwnMap(Mutex<BTreeMap<String, Seat<Session>>>);

impl SessionMap<String, Session> for OwnMap {
    fn insert_if(
        &self,
        key: String,
        seat: Seat<Session>,
        admit: &mut dyn FnMut(&Seat<Session>) -> bool,
    ) -> Result<Option<Seat<Session>>, Seat<Session>> {
        let mut map = self.0.lock().unwrap();
        match map.get(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            _ => Ok(map.insert(key, seat)),
        }
    }

    fn remove_if(&self, key: &String, id: ConnectionId) -> Option<Seat<Session>> {
        let mut map = self.0.lock().unwrap();
        let is_its = map.get(key).is_some_and(|seat| seat.id() == id);
        is_its.then(|| map.remove(key)).flatten()
    }
}

impl Map for OwnMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.0.lock().unwrap();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        let removed = self.0.lock().unwrap().remove(key);
        drop(removed);
    }
}

// The maps of the re-exported crates are the ones that `SessionMap` is implemented for.
#[cfg(feature = "dashmap")]
pub(crate) type DashMap = tower_ws_liveness::dashmap::DashMap<String, Seat<Session>, OtherHasher>;

#[cfg(feature = "dashmap")]
impl Map for DashMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        self.iter()
            .map(|entry| (entry.key().clone(), entry.value().id()))
            .collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.get(key).map(|entry| entry.value().clone())
    }

    fn remove_by_hand(&self, key: &str) {
        self.remove(key);
    }
}

#[cfg(feature = "papaya")]
pub(crate) type PapayaMap = tower_ws_liveness::papaya::HashMap<String, Seat<Session>, OtherHasher>;

#[cfg(feature = "papaya")]
impl Map for PapayaMap {
    const FREES_AT_ONCE: bool = false;

    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let map = self.pin();
        map.iter().map(|(k, seat)| (k.clone(), seat.id())).collect()
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.pin().get(key).cloned()
    }

    fn remove_by_hand(&self, key: &str) {
        self.pin().remove(key);
    }
}

#[cfg(feature = "scc")]
pub(crate) type SccMap = tower_ws_liveness::scc::HashMap<String, Seat<Session>, OtherHasher>;

#[cfg(feature = "scc")]
impl Map for SccMap {
    fn holders(&self) -> BTreeMap<String, ConnectionId> {
        let mut holders = BTreeMap::new();
        self.iter_sync(|key, seat| holders.insert(key.clone(), seat.id()).is_none());
        holders
    }

    fn seat(&self, key: &str) -> Option<Seat<Session>> {
        self.read_sync(key, |_, seat| seat.clone())
    }

    fn remove_by_hand(&self, key: &str) {
        self.remove_sync(key);
    }
}

/// Runs each of these generic tests with every map.
macro_rules! with_every_map {
    ($($(#[$attribute:meta])* $test:ident),+ $(,)?) => {
        with_every_map!(@map mutex, MutexMap, [$($(#[$attribute])* $test),+]);
        with_every_map!(@map rw_lock, RwLockMap, [$($(#[$attribute])* $test),+]);
        with_every_map!(@map own_map, OwnMap, [$($(#[$attribute])* $test),+]);
        with_every_map!(@map b_tree_map, BTreeMapMap, [$($(#[$attribute])* $test),+]);
        #[cfg(feature = "parking_lot")]
        with_every_map!(@map parking_mutex, ParkingMutexMap, [$($(#[$attribute])* $test),+]);
        #[cfg(feature = "parking_lot")]
        with_every_map!(@map parking_rw_lock, ParkingRwLockMap, [$($(#[$attribute])* $test),+]);
        #[cfg(feature = "dashmap")]
        with_every_map!(@map dashmap, DashMap, [$($(#[$attribute])* $test),+]);
        #[cfg(feature = "papaya")]
        with_every_map!(@map papaya, PapayaMap, [$($(#[$attribute])* $test),+]);
        #[cfg(feature = "scc")]
        with_every_map!(@map scc, SccMap, [$($(#[$attribute])* $test),+]);
    };
    (@map $name:ident, $map:ident, [$($(#[$attribute:meta])* $test:ident),+]) => {
        mod $name {
            $(
                #[tokio::test(start_paused = true)]
                $(#[$attribute])*
                async fn $test() {
                    super::$test::<$crate::sessions::maps::$map>().await;
                }
            )+
        }
    };
}

pub(crate) use with_every_map;

/// The same for tests that start their own threads or runtime.
macro_rules! with_every_map_in_threads {
    ($($test:ident),+ $(,)?) => {
        with_every_map_in_threads!(@map mutex, MutexMap, [$($test),+]);
        with_every_map_in_threads!(@map rw_lock, RwLockMap, [$($test),+]);
        with_every_map_in_threads!(@map own_map, OwnMap, [$($test),+]);
        #[cfg(feature = "parking_lot")]
        with_every_map_in_threads!(@map parking_rw_lock, ParkingRwLockMap, [$($test),+]);
        #[cfg(feature = "dashmap")]
        with_every_map_in_threads!(@map dashmap, DashMap, [$($test),+]);
        #[cfg(feature = "papaya")]
        with_every_map_in_threads!(@map papaya, PapayaMap, [$($test),+]);
        #[cfg(feature = "scc")]
        with_every_map_in_threads!(@map scc, SccMap, [$($test),+]);
    };
    (@map $name:ident, $map:ident, [$($test:ident),+]) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::$test::<$crate::sessions::maps::$map>();
                }
            )+
        }
    };
}

pub(crate) use with_every_map_in_threads;
