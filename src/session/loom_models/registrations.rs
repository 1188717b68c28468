//! Registrations without a grace period.

use std::sync::Arc;

use super::{KEY, ModelMap, connection, record_seats};
use crate::monitor::Health;
use crate::session::{RegisterError, ReplacePolicy};
use crate::sync::Mutex;
use crate::sync::modelled::{all_done, check, thread};

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
