//! Seats against ends: whatever comes first, the map holds exactly the seats of live connections,
//! and hooks are told of exactly those that were taken out.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::Empty;

use super::{RegisterError, ReplacePolicy, Seat, SessionMap};
use crate::connection::{Connection, ErasedConnection, Liveness, TransportTraits};
use crate::eviction::ConnectionId;
use crate::monitor::Health;
use crate::sync::Mutex;
use crate::sync::modelled::{all_done, check, thread};
use crate::wire::Role;

/// A map whose every look and change is a step of its own in the model.
#[derive(Default)]
struct Steps(Mutex<HashMap<u8, Seat<u8>>>);

impl SessionMap<u8, u8> for Steps {
    fn insert_if(
        &self,
        key: u8,
        seat: Seat<u8>,
        admit: &mut dyn FnMut(&Seat<u8>) -> bool,
    ) -> Result<Option<Seat<u8>>, Seat<u8>> {
        let mut map = self.0.lock().unwrap();
        match map.get(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            _ => Ok(map.insert(key, seat)),
        }
    }

    fn remove_if(&self, key: &u8, id: ConnectionId) -> Option<Seat<u8>> {
        let mut map = self.0.lock().unwrap();
        let is_its = map.get(key).is_some_and(|seat| seat.id() == id);
        is_its.then(|| map.remove(key)).flatten()
    }
}

impl Steps {
    fn holder(&self) -> Option<ConnectionId> {
        self.0.lock().unwrap().get(&KEY).map(Seat::id)
    }
}

const KEY: u8 = 7;

/// A connection whose end needs no driver: it is not open yet.
fn connection() -> Liveness {
    Liveness::new(
        Connection::<Empty>::new(Role::Server, TransportTraits::FOREIGN)
            as Arc<dyn ErasedConnection>,
    )
}

/// How many seats the hooks of a connection were told of, per call.
fn told(live: &Liveness) -> Arc<Mutex<Vec<usize>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    live.on_evict(move |ev| hook.lock().unwrap().push(ev.seats::<u8, u8>().count()));
    told
}

#[test]
fn loom_register_against_evict() {
    check("register and evict", 3, || {
        let map = Arc::new(Steps::default());
        let live = connection();
        let told = told(&live);
        let (registering, into) = (live.clone(), Arc::clone(&map));
        let registered = Arc::new(Mutex::new(None));
        let result = Arc::clone(&registered);
        thread(move || {
            let registered = registering.register(&into, KEY, 1);
            assert!(
                matches!(registered, Ok(None) | Err(RegisterError::Ended { .. })),
                "{registered:?}"
            );
            *result.lock().unwrap() = Some(registered.is_ok());
        });
        let (kicked, seen) = (live.clone(), Arc::clone(&map));
        thread(move || {
            assert!(kicked.evict(4_000, ""));
            // When `evict` returns there is no seat, and there will be none.
            assert_eq!(seen.holder(), None);
        });
        all_done();
        let registered = registered.lock().unwrap().unwrap();
        assert_eq!(map.holder(), None);
        // The seat was either never there, or the hooks saw it go.
        assert_eq!(*told.lock().unwrap(), [usize::from(registered)]);
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_two_registrations_and_an_end() {
    check("the same key twice, and evict", 3, || {
        let map = Arc::new(Steps::default());
        let live = connection();
        for value in [1, 2] {
            let (live, map) = (live.clone(), Arc::clone(&map));
            thread(move || {
                let registered = live.register(&map, KEY, value);
                if let Ok(Some(before)) = &registered {
                    assert_eq!(before.id(), live.id());
                }
            });
        }
        let (kicked, seen) = (live.clone(), Arc::clone(&map));
        thread(move || {
            assert!(kicked.evict(4_000, ""));
            assert_eq!(seen.holder(), None);
        });
        all_done();
        assert_eq!(map.holder(), None);
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_a_newcomer_against_the_end_of_the_old() {
    check("newest wins, while the old one ends", 3, || {
        let map = Arc::new(Steps::default());
        let (old, live) = (connection(), connection());
        let (old_told, told) = (told(&old), told(&live));
        old.register(&map, KEY, 1).unwrap();
        let (newcomer, into) = (live.clone(), Arc::clone(&map));
        thread(move || {
            let before = newcomer.register(&into, KEY, 2).unwrap();
            assert_eq!(into.holder(), Some(newcomer.id()));
            // Whoever had it is told before `register` returns, or is being told by somebody else.
            if let Some(before) = before {
                assert_eq!(before.live().health(), Health::Ended);
            }
        });
        let kicked = old.clone();
        thread(move || {
            kicked.evict(4_000, "");
        });
        all_done();
        assert_eq!(map.holder(), Some(live.id()));
        let old_told = old_told.lock().unwrap().clone();
        assert!(old_told == [0] || old_told == [1], "{old_told:?}");
        assert!(told.lock().unwrap().is_empty());
        // For the models that follow there is nothing left.
        assert!(live.evict(4_000, ""));
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_oldest_wins_against_the_end_of_the_old() {
    check("oldest wins, while the old one ends", 3, || {
        let map = Arc::new(Steps::default());
        let (old, live) = (connection(), connection());
        old.register(&map, KEY, 1).unwrap();
        let (newcomer, into, before) = (live.clone(), Arc::clone(&map), old.clone());
        let seated = Arc::new(Mutex::new(false));
        let result = Arc::clone(&seated);
        thread(move || {
            let policy = ReplacePolicy::oldest_wins();
            match newcomer.register_with(&into, KEY, 2, &policy) {
                Ok(None) => {}
                Ok(Some(old)) => assert_eq!(old.id(), before.id()),
                Err(RegisterError::Occupied { occupant, .. }) => {
                    assert_eq!(occupant.id(), before.id());
                    return;
                }
                Err(error) => panic!("{error}"),
            }
            *result.lock().unwrap() = true;
        });
        thread(move || {
            old.evict(4_000, "");
        });
        all_done();
        let seated = *seated.lock().unwrap();
        assert_eq!(map.holder(), seated.then(|| live.id()));
        live.evict(4_000, "");
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_giving_back_against_the_end() {
    check("unregister and evict", 3, || {
        let map = Arc::new(Steps::default());
        let live = connection();
        let told = told(&live);
        live.register(&map, KEY, 1).unwrap();
        let (giving, from) = (live.clone(), Arc::clone(&map));
        let given = Arc::new(Mutex::new(false));
        let result = Arc::clone(&given);
        thread(move || {
            *result.lock().unwrap() = giving.unregister(&from, &KEY).is_some();
        });
        let kicked = live.clone();
        thread(move || {
            kicked.evict(4_000, "");
        });
        all_done();
        let given = *given.lock().unwrap();
        assert_eq!(map.holder(), None);
        assert_eq!(*told.lock().unwrap(), [usize::from(!given)]);
        assert_eq!(Arc::strong_count(&map), 1);
    });
}
