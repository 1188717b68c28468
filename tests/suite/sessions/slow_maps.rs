//! Slow session maps: an eviction waits for a registration in progress, and a slow call is logged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tower_ws_liveness::{
    ConnectionId, Liveness, Reason, RegisterError, ReplacePolicy, Seat, SessionMap,
};

use super::seeded::{PATIENCE, run_on_thread, until};
use crate::logs::Logs;
use crate::script::wrapped;

type Act = Box<dyn FnMut(Moment) + Send>;

/// The point in a map operation at which the closure runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeInsert,
    AfterInsert,
    BeforeRemove,
    AfterRemove,
}

/// A map that runs a closure before and after each change, without holding its lock.
struct StagedMap {
    seats: Mutex<BTreeMap<&'static str, Seat<u32>>>,
    act: Mutex<Act>,
}

impl StagedMap {
    fn new(act: impl FnMut(Moment) + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            seats: Mutex::default(),
            act: Mutex::new(Box::new(act)),
        })
    }

    fn holder(&self, key: &str) -> Option<ConnectionId> {
        self.seats.lock().unwrap().get(key).map(Seat::id)
    }

    /// Does nothing while the closure is already running.
    fn stage(&self, moment: Moment) {
        if let Ok(mut act) = self.act.try_lock() {
            act(moment);
        }
    }
}

impl SessionMap<&'static str, u32> for StagedMap {
    fn insert_if(
        &self,
        key: &'static str,
        seat: Seat<u32>,
        admit: &mut dyn FnMut(&Seat<u32>) -> bool,
    ) -> Result<Option<Seat<u32>>, Seat<u32>> {
        self.stage(Moment::BeforeInsert);
        let mut seats = self.seats.lock().unwrap();
        let inserted = match seats.get(key) {
            Some(occupant) if !admit(occupant) => Err(occupant.clone()),
            _ => Ok(seats.insert(key, seat)),
        };
        drop(seats);
        self.stage(Moment::AfterInsert);
        inserted
    }

    fn remove_if(&self, key: &&'static str, id: ConnectionId) -> Option<Seat<u32>> {
        self.stage(Moment::BeforeRemove);
        let mut seats = self.seats.lock().unwrap();
        let is_its = seats.get(key).is_some_and(|seat| seat.id() == id);
        let removed = is_its.then(|| seats.remove(key)).flatten();
        drop(seats);
        self.stage(Moment::AfterRemove);
        removed
    }
}

/// Registers a hook that records the number of seats in the eviction.
fn seat_counts(live: &Liveness) -> Arc<Mutex<Vec<usize>>> {
    let seat_counts = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&seat_counts);
    live.on_evict(move |ev| {
        let seats = ev.seats::<&'static str, u32>();
        hook.lock().unwrap().push(seats.count());
    });
    seat_counts
}

#[tokio::test]
async fn an_eviction_waits_for_a_registration_in_progress() {
    for stops_at in [Moment::BeforeInsert, Moment::AfterInsert] {
        let (entered_tx, entered) = mpsc::channel();
        let (proceed_tx, proceed) = mpsc::channel::<()>();
        let map = StagedMap::new(move |moment| {
            if moment == stops_at {
                entered_tx.send(()).unwrap();
                proceed.recv_timeout(PATIENCE).unwrap();
            }
        });
        let (_stream, live, _) = wrapped();
        let seat_counts = seat_counts(&live);
        let registering = thread::spawn({
            let (live, map) = (live.clone(), Arc::clone(&map));
            move || live.register(&map, "alice", 1)
        });
        entered.recv_timeout(PATIENCE).unwrap();
        let returned = Arc::new(AtomicBool::new(false));
        let evicting = thread::spawn({
            let (live, map, returned) = (live.clone(), Arc::clone(&map), Arc::clone(&returned));
            move || {
                assert!(live.evict(4000, ""));
                assert_eq!(map.holder("alice"), None);
                returned.store(true, Ordering::SeqCst);
            }
        });
        until("the connection has ended", || {
            live.health().to_string() == "ended"
        });
        // `evict` must not return, however long the registration takes.
        thread::sleep(Duration::from_millis(100));
        assert!(!returned.load(Ordering::SeqCst), "{stops_at:?}");
        assert_eq!(*seat_counts.lock().unwrap(), [0_usize; 0], "{stops_at:?}");
        proceed_tx.send(()).unwrap();
        let registered = run_on_thread(move || registering.join().unwrap());
        assert!(registered.unwrap().is_none(), "no seat before");
        run_on_thread(move || evicting.join().unwrap());
        assert_eq!(map.holder("alice"), None, "{stops_at:?}");
        assert_eq!(*seat_counts.lock().unwrap(), [1], "{stops_at:?}");
        assert_eq!(Arc::strong_count(&map), 1);
    }
}

#[tokio::test]
async fn a_registration_in_progress_blocks_nothing_else() {
    let (entered_tx, entered) = mpsc::channel();
    let (proceed_tx, proceed) = mpsc::channel::<()>();
    let map = StagedMap::new(move |moment| {
        if moment == Moment::BeforeInsert {
            entered_tx.send(()).unwrap();
            proceed.recv_timeout(PATIENCE).unwrap();
        }
    });
    let other_map = StagedMap::new(|_| {});
    let (_stream, live, _) = wrapped();
    let (_other_stream, other, _) = wrapped();
    other.register(&other_map, "bob", 2).unwrap();
    let registering = thread::spawn({
        let (live, map) = (live.clone(), Arc::clone(&map));
        move || live.register(&map, "alice", 1)
    });
    entered.recv_timeout(PATIENCE).unwrap();
    // The same connection in another map, another connection's end, and other calls on the handle.
    let meanwhile = live.clone();
    run_on_thread(move || {
        meanwhile.register(&other_map, "alice", 3).unwrap();
        assert!(meanwhile.unregister(&other_map, &"alice").is_some());
        assert_ne!(meanwhile.health().to_string(), "ended");
        meanwhile.set_session(4_u32);
        assert!(other.evict(4000, ""));
        assert_eq!(other_map.holder("bob"), None);
    });
    proceed_tx.send(()).unwrap();
    registering.join().unwrap().unwrap();
    assert_eq!(map.holder("alice"), Some(live.id()));
}

#[tokio::test]
async fn a_slow_map_is_logged_with_its_duration() {
    let logs = Logs::keep();
    let map = StagedMap::new(|moment| {
        if moment == Moment::BeforeRemove {
            thread::sleep(Duration::from_millis(150));
        }
    });
    let (stream, live, _) = wrapped();
    live.register(&map, "alice", 1).unwrap();
    let of_maps = || {
        let mut warnings = logs.warnings();
        warnings.retain(|line| line.contains("session map"));
        warnings
    };
    assert_eq!(of_maps(), [""; 0]);
    drop(stream);
    let warnings = of_maps();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let conn_id = format!("conn_id={}", live.id());
    for wanted in ["slow at", "session map", "handler_dropped", &conn_id] {
        assert!(warnings[0].contains(wanted), "{wanted}: {warnings:?}");
    }
    let (_, took) = warnings[0].split_once("took_ms=").unwrap();
    let took = took.split(' ').next().unwrap();
    assert!(took.parse::<u64>().unwrap() >= 150, "{warnings:?}");
}

#[tokio::test]
async fn an_ended_connection_whose_seat_is_not_removed_yet_can_be_replaced() {
    let new_live: Arc<Mutex<Option<Liveness>>> = Arc::default();
    let replaced = Arc::new(AtomicBool::new(false));
    let map_slot: Arc<Mutex<Option<Arc<StagedMap>>>> = Arc::default();
    let map = StagedMap::new({
        let (new_live, replaced, map) = (new_live.clone(), replaced.clone(), map_slot.clone());
        move |moment| {
            let new_live = new_live.lock().unwrap().clone();
            let (Moment::BeforeRemove, Some(new_live)) = (moment, new_live) else {
                return;
            };
            let map = map.lock().unwrap().clone().unwrap();
            let holder = map.holder("alice").unwrap();
            let policy = ReplacePolicy::oldest_wins();
            let before = new_live.register_with(&map, "alice", 2, &policy);
            let before = before.unwrap().unwrap();
            assert_eq!((before.id(), *before), (holder, 1));
            replaced.store(true, Ordering::SeqCst);
        }
    });
    *map_slot.lock().unwrap() = Some(Arc::clone(&map));
    let (_old_stream, old, _) = wrapped();
    let (_stream, live, _) = wrapped();
    old.register(&map, "alice", 1).unwrap();
    *new_live.lock().unwrap() = Some(live.clone());
    let seat_counts = seat_counts(&old);
    assert!(old.evict(4000, ""));
    assert!(replaced.load(Ordering::SeqCst));
    assert_eq!(map.holder("alice"), Some(live.id()));
    // The seat belongs to the new connection, so the old eviction has none.
    assert_eq!(*seat_counts.lock().unwrap(), [0]);
    map_slot.lock().unwrap().take();
}

#[tokio::test]
async fn a_registration_by_another_task_after_the_end_is_refused() {
    let map = StagedMap::new(|_| panic!("the map was called"));
    let (stream, live, _) = wrapped();
    drop(stream);
    let registering = tokio::spawn({
        let (live, map) = (live.clone(), Arc::clone(&map));
        async move { live.register(&map, "alice", 1) }
    });
    let refused = registering.await.unwrap().unwrap_err();
    let RegisterError::Ended { reason, value } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((reason, *value), (Reason::HandlerDropped, 1));
    assert_eq!(Arc::strong_count(&map), 1);
}
