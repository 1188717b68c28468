//! A map that ends a connection while it takes its seat in: on the very thread that registers it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tower_ws_liveness::{ConnectionId, Reason, RegisterError, Seat, SessionMap};

use super::seeded::comes_back;
use crate::script::wrapped;

/// A map that kicks whoever wants this value in, before or after.
struct Picky {
    seats: Mutex<BTreeMap<u32, Seat<u32>>>,
    kicks_before: u32,
    kicks_after: u32,
}

impl SessionMap<u32, u32> for Picky {
    fn insert_if(
        &self,
        key: u32,
        seat: Seat<u32>,
        admit: &mut dyn FnMut(&Seat<u32>) -> bool,
    ) -> Result<Option<Seat<u32>>, Seat<u32>> {
        let (newest, value) = (seat.live().clone(), *seat);
        if value == self.kicks_before {
            assert!(newest.evict(4001, "before"));
        }
        let mut seats = self.seats.lock().unwrap();
        let inserted = match seats.get(&key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            _ => Ok(seats.insert(key, seat)),
        };
        drop(seats);
        if value == self.kicks_after {
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
async fn a_map_ends_the_connection_that_it_takes_in() {
    let runtime = Handle::current();
    comes_back(move || {
        let _entered = runtime.enter();
        for (value, comes_first, key) in
            [(20, false, 2), (30, true, 2), (20, false, 1), (30, true, 1)]
        {
            let map = Arc::new(Picky {
                seats: Mutex::default(),
                kicks_before: 20,
                kicks_after: 30,
            });
            let (old_stream, old, _) = wrapped();
            old.register(&map, 1, 10).unwrap();
            let (_stream, live, _) = wrapped();
            let told = Arc::new(Mutex::new(Vec::new()));
            live.on_evict({
                let told = Arc::clone(&told);
                move |ev| told.lock().unwrap().push(ev.seats::<u32, u32>().count())
            });
            match live.register(&map, key, value) {
                Ok(before) => {
                    assert!(comes_first);
                    assert_eq!(before.is_some(), key == 1);
                }
                Err(RegisterError::Ended { reason, value }) => {
                    assert!(!comes_first);
                    assert_eq!((reason, *value), (Reason::Kicked { code: 4001 }, 20));
                }
                Err(error) => panic!("{error}"),
            }
            // Of a seat that came after the end nobody is told.
            assert_eq!(*told.lock().unwrap(), [usize::from(comes_first)]);
            // Whose seat was replaced was told so in any case.
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

    /// Does something once, when it is compared with another.
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

    /// Ends a connection as it is dropped.
    struct Kicks(Option<Liveness>);

    impl Drop for Kicks {
        fn drop(&mut self) {
            if let Some(live) = self.0.take() {
                live.evict(4002, "dropped");
            }
        }
    }

    /// Whoever leaves a papaya map last drops what others have taken out of it meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_value_of_another_ends_the_connection_that_registers() {
        let runtime = Handle::current();
        comes_back(move || {
            let _entered = runtime.enter();
            let map = Arc::new(::papaya::HashMap::<Key, Seat<Kicks>>::new());
            let (old_stream, old, _) = wrapped();
            let (_stream, live, _) = wrapped();
            // As many as there are readers, or they are kept for later.
            for number in 0..3 {
                let value = Kicks((number == 0).then(|| live.clone()));
                old.register(&map, key(number), value).unwrap();
            }
            let (_other_stream, other, _) = wrapped();
            other.register(&map, key(7), Kicks(None)).unwrap();
            let (reached, reaches) = mpsc::channel();
            let (go_on, goes_on) = mpsc::channel::<()>();
            let staged = key(7);
            *staged.1.lock().unwrap() = Some(Box::new(move || {
                reached.send(()).unwrap();
                goes_on.recv_timeout(PATIENCE).unwrap();
            }));
            let registering = thread::spawn({
                let (live, map) = (live.clone(), Arc::clone(&map));
                move || live.register(&map, staged, Kicks(None)).map(drop)
            });
            reaches.recv_timeout(PATIENCE).unwrap();
            drop(old_stream);
            assert_ne!(live.health().to_string(), "ended", "not dropped yet");
            go_on.send(()).unwrap();
            let registered = comes_back(move || registering.join().unwrap());
            // The seat was in when the end came.
            assert!(registered.is_ok(), "{registered:?}");
            let end = runtime.block_on(live.evicted()).reason();
            assert_eq!(end, Reason::Kicked { code: 4002 });
            assert_eq!(map.len(), 0);
            assert_eq!(Arc::strong_count(&map), 1);
        });
    }
}
