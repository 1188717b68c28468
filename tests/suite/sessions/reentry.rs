//! Maps that evict a connection while it registers, on the thread that registers it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tower_ws_liveness::{ConnectionId, Reason, RegisterError, Seat, SessionMap};

use super::seeded::run_on_thread;
use crate::script::wrapped;

/// A map that evicts a connection before or after the insertion of a certain value.
struct EvictingMap {
    seats: Mutex<BTreeMap<u32, Seat<u32>>>,
    evicts_before: u32,
    evicts_after: u32,
}

impl SessionMap<u32, u32> for EvictingMap {
    fn insert_if(
        &self,
        key: u32,
        seat: Seat<u32>,
        admit: &mut dyn FnMut(&Seat<u32>) -> bool,
    ) -> Result<Option<Seat<u32>>, Seat<u32>> {
        let (newest, value) = (seat.live().clone(), *seat);
        if value == self.evicts_before {
            assert!(newest.evict(4001, "before"));
        }
        let mut seats = self.seats.lock().unwrap();
        let inserted = match seats.get(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            _ => Ok(seats.insert(key, seat)),
        };
        drop(seats);
        if value == self.evicts_after {
            assert!(newest.evict(4001, "after"));
        }
        inserted
    }

    fn remove_if(&self, key: &u32, id: ConnectionId) -> Option<Seat<u32>> {
        let mut seats = self.seats.lock().unwrap();
        let is_its = seats.get(key).is_some_and(|seat| seat.id() == id);
        is_its.then(|| seats.remove(key)).flatten()
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_may_evict_the_connection_that_it_inserts() {
    let runtime = Handle::current();
    run_on_thread(move || {
        let _entered = runtime.enter();
        for (value, is_registered, key) in
            [(20, false, 2), (30, true, 2), (20, false, 1), (30, true, 1)]
        {
            let map = Arc::new(EvictingMap {
                seats: Mutex::default(),
                evicts_before: 20,
                evicts_after: 30,
            });
            let (old_stream, old, _) = wrapped();
            old.register(&map, 1, 10).unwrap();
            let (_stream, live, _) = wrapped();
            let seat_counts = Arc::new(Mutex::new(Vec::new()));
            live.on_evict({
                let seat_counts = Arc::clone(&seat_counts);
                move |ev| {
                    let seats = ev.seats::<u32, u32>();
                    seat_counts.lock().unwrap().push(seats.count());
                }
            });
            match live.register(&map, key, value) {
                Ok(before) => {
                    assert!(is_registered);
                    assert_eq!(before.is_some(), key == 1);
                }
                Err(RegisterError::Ended { reason, value }) => {
                    assert!(!is_registered);
                    assert_eq!((reason, *value), (Reason::Kicked { code: 4001 }, 20));
                }
                Err(error) => panic!("{error}"),
            }
            // The eviction does not contain a seat that was inserted after the end.
            assert_eq!(*seat_counts.lock().unwrap(), [usize::from(is_registered)]);
            // A connection whose seat is replaced is evicted in either case.
            assert_eq!(old.health().to_string() == "ended", key == 1);
            let left: Vec<u32> = map.seats.lock().unwrap().keys().copied().collect();
            assert_eq!(left, if key == 1 { vec![] } else { vec![1] });
            drop(old_stream);
            assert_eq!(Arc::strong_count(&map), 1);
        }
    });
}

#[cfg(feature = "papaya")]
mod papaya {
    use std::hash::{Hash, Hasher};
    use std::sync::mpsc;
    use std::thread;

    use tower_ws_liveness::Liveness;

    use super::*;
    use crate::sessions::seeded::PATIENCE;

    /// A key that runs a closure once, when it is compared with another.
    #[derive(Clone)]
    struct Key(u32, Arc<Mutex<Option<Act>>>);

    type Act = Box<dyn FnOnce() + Send>;

    fn key(number: u32) -> Key {
        Key(number, Arc::default())
    }

    impl Hash for Key {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            for key in [self, other] {
                let act = key.1.lock().unwrap().take();
                if let Some(act) = act {
                    act();
                }
            }
            self.0 == other.0
        }
    }

    impl Eq for Key {}

    /// Evicts a connection when it is dropped.
    struct EvictsOnDrop(Option<Liveness>);

    impl Drop for EvictsOnDrop {
        fn drop(&mut self) {
            if let Some(live) = self.0.take() {
                live.evict(4002, "dropped");
            }
        }
    }

    /// The last reader that leaves a papaya map drops what others have removed from it meanwhile.
    #[tokio::test(start_paused = true)]
    async fn dropping_the_value_of_another_connection_may_evict_the_registering_one() {
        let runtime = Handle::current();
        run_on_thread(move || {
            let _entered = runtime.enter();
            let map = Arc::new(::papaya::HashMap::<Key, Seat<EvictsOnDrop>>::new());
            let (old_stream, old, _) = wrapped();
            let (_stream, live, _) = wrapped();
            // papaya defers the drops until as many entries are removed as there are readers.
            for number in 0..3 {
                let value = EvictsOnDrop((number == 0).then(|| live.clone()));
                old.register(&map, key(number), value).unwrap();
            }
            let (_other_stream, other, _) = wrapped();
            other.register(&map, key(7), EvictsOnDrop(None)).unwrap();
            let (entered_tx, entered) = mpsc::channel();
            let (proceed_tx, proceed) = mpsc::channel::<()>();
            let staged = key(7);
            *staged.1.lock().unwrap() = Some(Box::new(move || {
                entered_tx.send(()).unwrap();
                proceed.recv_timeout(PATIENCE).unwrap();
            }));
            let registering = thread::spawn({
                let (live, map) = (live.clone(), Arc::clone(&map));
                move || live.register(&map, staged, EvictsOnDrop(None)).map(drop)
            });
            entered.recv_timeout(PATIENCE).unwrap();
            drop(old_stream);
            assert_ne!(live.health().to_string(), "ended", "not dropped yet");
            proceed_tx.send(()).unwrap();
            let registered = run_on_thread(move || registering.join().unwrap());
            // The seat was inserted before the eviction.
            assert!(registered.is_ok(), "{registered:?}");
            let end = runtime.block_on(live.evicted()).reason();
            assert_eq!(end, Reason::Kicked { code: 4002 });
            assert_eq!(map.len(), 0);
            assert_eq!(Arc::strong_count(&map), 1);
        });
    }
}
