//! Loom models of registrations that race with the end of a connection.
//!
//! In every order of events the map holds exactly the seats of open connections, and hooks get
//! exactly the seats that the end of their connection removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Empty;

use super::{Linger, RegisterError, ReplacePolicy, Seat, SessionMap};
use crate::connection::{Connection, ErasedConnection, Liveness, TransportTraits};
use crate::eviction::ConnectionId;
use crate::monitor::Health;
use crate::sync::Mutex;
use crate::sync::modelled::{all_done, check, thread};
use crate::wire::Role;

/// A map that loom can interleave with: each call is one step of the model.
#[derive(Default)]
struct ModelMap(Mutex<HashMap<u8, Seat<u8>>>);

impl SessionMap<u8, u8> for ModelMap {
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
        let holds_seat = map.get(key).is_some_and(|seat| seat.id() == id);
        holds_seat.then(|| map.remove(key)).flatten()
    }
}

impl ModelMap {
    fn holder(&self) -> Option<ConnectionId> {
        self.0.lock().unwrap().get(&KEY).map(Seat::id)
    }
}

const KEY: u8 = 7;

/// A connection that is not open yet, so that its end needs no driver.
fn connection() -> Liveness {
    Liveness::new(
        Connection::<Empty>::new(Role::Server, TransportTraits::FOREIGN)
            as Arc<dyn ErasedConnection>,
    )
}

/// Records the number of seats in each call of the connection's eviction hook.
fn record_seats(live: &Liveness) -> Arc<Mutex<Vec<usize>>> {
    let seat_counts = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&seat_counts);
    live.on_evict(move |ev| hook.lock().unwrap().push(ev.seats::<u8, u8>().count()));
    seat_counts
}

#[test]
fn loom_register_races_with_evict() {
    check("register and evict", 3, || {
        let map = Arc::new(ModelMap::default());
        let live = connection();
        let seats = record_seats(&live);
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
        let (evicted, map_at_end) = (live.clone(), Arc::clone(&map));
        thread(move || {
            assert!(evicted.evict(4_000, ""));
            // When `evict` returns there is no seat, and none is inserted later.
            assert_eq!(map_at_end.holder(), None);
        });
        all_done();
        let registered = registered.lock().unwrap().unwrap();
        assert_eq!(map.holder(), None);
        // Either the seat was never inserted, or the hook got it.
        assert_eq!(*seats.lock().unwrap(), [usize::from(registered)]);
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_two_registrations_of_one_key_race_with_evict() {
    check("register one key twice, and evict", 3, || {
        let map = Arc::new(ModelMap::default());
        let live = connection();
        for value in [1, 2] {
            let (live, map) = (live.clone(), Arc::clone(&map));
            thread(move || {
                let registered = live.register(&map, KEY, value);
                if let Ok(Some(previous)) = &registered {
                    assert_eq!(previous.id(), live.id());
                }
            });
        }
        let (evicted, map_at_end) = (live.clone(), Arc::clone(&map));
        thread(move || {
            assert!(evicted.evict(4_000, ""));
            assert_eq!(map_at_end.holder(), None);
        });
        all_done();
        assert_eq!(map.holder(), None);
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_newest_wins_races_with_the_end_of_the_occupant() {
    check("newest wins, while the occupant ends", 3, || {
        let map = Arc::new(ModelMap::default());
        let (old, live) = (connection(), connection());
        let (old_seats, seats) = (record_seats(&old), record_seats(&live));
        old.register(&map, KEY, 1).unwrap();
        let (newest, into) = (live.clone(), Arc::clone(&map));
        thread(move || {
            let previous = newest.register(&into, KEY, 2).unwrap();
            assert_eq!(into.holder(), Some(newest.id()));
            // The occupant has ended when `register` returns, even if another thread evicted it and
            // still calls its hooks.
            if let Some(previous) = previous {
                assert_eq!(previous.live().health(), Health::Ended);
            }
        });
        let evicted = old.clone();
        thread(move || {
            evicted.evict(4_000, "");
        });
        all_done();
        assert_eq!(map.holder(), Some(live.id()));
        let old_seats = old_seats.lock().unwrap().clone();
        assert!(old_seats == [0] || old_seats == [1], "{old_seats:?}");
        assert!(seats.lock().unwrap().is_empty());
        // Ends it, so that this run leaves nothing behind for the next.
        assert!(live.evict(4_000, ""));
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

#[test]
fn loom_oldest_wins_races_with_the_end_of_the_occupant() {
    check("oldest wins, while the occupant ends", 3, || {
        let map = Arc::new(ModelMap::default());
        let (old, live) = (connection(), connection());
        old.register(&map, KEY, 1).unwrap();
        let (newest, into, old_handle) = (live.clone(), Arc::clone(&map), old.clone());
        let seated = Arc::new(Mutex::new(false));
        let result = Arc::clone(&seated);
        thread(move || {
            let policy = ReplacePolicy::oldest_wins();
            match newest.register_with(&into, KEY, 2, &policy) {
                Ok(None) => {}
                Ok(Some(old)) => assert_eq!(old.id(), old_handle.id()),
                Err(RegisterError::Occupied { occupant, .. }) => {
                    assert_eq!(occupant.id(), old_handle.id());
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
fn loom_unregister_races_with_evict() {
    check("unregister and evict", 3, || {
        let map = Arc::new(ModelMap::default());
        let live = connection();
        let seats = record_seats(&live);
        live.register(&map, KEY, 1).unwrap();
        let (unregistering, from) = (live.clone(), Arc::clone(&map));
        let unregistered = Arc::new(Mutex::new(false));
        let result = Arc::clone(&unregistered);
        thread(move || {
            *result.lock().unwrap() = unregistering.unregister(&from, &KEY).is_some();
        });
        let evicted = live.clone();
        thread(move || {
            evicted.evict(4_000, "");
        });
        all_done();
        let unregistered = *unregistered.lock().unwrap();
        assert_eq!(map.holder(), None);
        assert_eq!(*seats.lock().unwrap(), [usize::from(!unregistered)]);
        assert_eq!(Arc::strong_count(&map), 1);
    });
}

/// Counts the ends of sessions. These connections are not open yet, so no seat lingers.
fn linger() -> (Linger<u8, u8>, Arc<Mutex<Vec<u8>>>) {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&ended);
    let linger = Linger::builder(Duration::from_secs(1))
        .on_session_end(move |end| hook.lock().unwrap().push(**end.value()));
    (linger.build().unwrap(), ended)
}

#[test]
fn loom_a_session_is_resumed_or_ends_once() {
    check("resume, while the occupant ends", 3, || {
        let map = Arc::new(ModelMap::default());
        let (old, new) = (connection(), connection());
        let (linger, ended) = linger();
        drop(old.register_lingering(&map, KEY, 1, &linger).unwrap());
        let (resuming, into, its_linger) = (new.clone(), Arc::clone(&map), linger.clone());
        let resumed = Arc::new(Mutex::new(None));
        let result = Arc::clone(&resumed);
        thread(move || {
            let registered = resuming.register_lingering(&into, KEY, 2, &its_linger);
            let registered = registered.unwrap();
            let value = **registered.seat();
            *result.lock().unwrap() = Some((value, registered.resumed().is_some()));
        });
        thread(move || {
            old.evict(4_000, "");
        });
        all_done();
        assert_eq!(map.holder(), Some(new.id()));
        let (value, resumed) = resumed.lock().unwrap().unwrap();
        assert_eq!(value, if resumed { 1 } else { 2 });
        // A session that was not resumed has ended.
        assert_eq!(
            *ended.lock().unwrap(),
            if resumed { vec![] } else { vec![1] }
        );
        assert!(new.evict(4_000, ""));
        let all = if resumed { vec![1] } else { vec![1, 2] };
        assert_eq!(*ended.lock().unwrap(), all);
        assert_eq!(map.holder(), None);
    });
}

#[test]
fn loom_two_connections_resume_one_session() {
    check("resume twice", 2, || {
        let map = Arc::new(ModelMap::default());
        let (linger, ended) = linger();
        let old = connection();
        drop(old.register_lingering(&map, KEY, 1, &linger).unwrap());
        let newcomers = [connection(), connection()];
        for live in &newcomers {
            let (live, map, linger) = (live.clone(), Arc::clone(&map), linger.clone());
            thread(move || {
                match live.register_lingering(&map, KEY, 2, &linger) {
                    Ok(registered) => assert_eq!(**registered.seat(), 1),
                    // The other one has replaced it already.
                    Err(error) => assert!(matches!(error, RegisterError::Ended { .. })),
                }
            });
        }
        all_done();
        assert!(ended.lock().unwrap().is_empty());
        let holder = map.holder().unwrap();
        for live in newcomers.into_iter().chain([old]) {
            assert_eq!(live.evict(4_000, ""), live.id() == holder);
        }
        assert_eq!(*ended.lock().unwrap(), [1]);
        assert_eq!(map.holder(), None);
    });
}
