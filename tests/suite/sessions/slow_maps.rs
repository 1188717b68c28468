//! Maps of the application's own that take their time, and what others do meanwhile: an end waits
//! for a registration that is under way, and a slow map is found in the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tower_ws_liveness::{
    ConnectionId, Liveness, Reason, RegisterError, ReplacePolicy, Seat, SessionMap,
};

use super::seeded::{PATIENCE, comes_back, until};
use crate::logs::Logs;
use crate::script::wrapped;

type Act = Box<dyn FnMut(Moment) + Send>;

/// Where in a map something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeInsert,
    AfterInsert,
    BeforeRemove,
    AfterRemove,
}

/// A map that does something before and after each change, with no lock held.
struct Staged {
    seats: Mutex<BTreeMap<&'static str, Seat<u32>>>,
    act: Mutex<Act>,
}

impl Staged {
    fn new(act: impl FnMut(Moment) + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            seats: Mutex::default(),
            act: Mutex::new(Box::new(act)),
        })
    }

    fn holder(&self, key: &str) -> Option<ConnectionId> {
        self.seats.lock().unwrap().get(key).map(Seat::id)
    }

    /// Nothing is done while something is being done already.
    fn stage(&self, moment: Moment) {
        if let Ok(mut act) = self.act.try_lock() {
            act(moment);
        }
    }
}

impl SessionMap<&'static str, u32> for Staged {
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

/// How many seats the hooks of a connection are told of.
fn told(live: &Liveness) -> Arc<Mutex<Vec<usize>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    live.on_evict(move |ev| {
        let seats = ev.seats::<&'static str, u32>();
        hook.lock().unwrap().push(seats.count());
    });
    told
}

#[tokio::test]
async fn an_end_waits_for_the_registration_that_is_under_way() {
    for stops_at in [Moment::BeforeInsert, Moment::AfterInsert] {
        let (reached, reaches) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        let map = Staged::new(move |moment| {
            if moment == stops_at {
                reached.send(()).unwrap();
                goes_on.recv_timeout(PATIENCE).unwrap();
            }
        });
        let (_stream, live, _) = wrapped();
        let told = told(&live);
        let registering = thread::spawn({
            let (live, map) = (live.clone(), Arc::clone(&map));
            move || live.register(&map, "alice", 1)
        });
        reaches.recv_timeout(PATIENCE).unwrap();
        let returned = Arc::new(AtomicBool::new(false));
        let evicting = thread::spawn({
            let (live, map, returned) = (live.clone(), Arc::clone(&map), Arc::clone(&returned));
            move || {
                assert!(live.evict(4000, ""));
                assert_eq!(map.holder("alice"), None);
                returned.store(true, Ordering::SeqCst);
            }
        });
        until("the end is noticed", || {
            live.health().to_string() == "ended"
        });
        // It has all the time it could want, and does not return.
        thread::sleep(Duration::from_millis(100));
        assert!(!returned.load(Ordering::SeqCst), "{stops_at:?}");
        assert_eq!(*told.lock().unwrap(), [0_usize; 0], "{stops_at:?}");
        go_on.send(()).unwrap();
        let registered = comes_back(move || registering.join().unwrap());
        assert!(registered.unwrap().is_none(), "it came first");
        comes_back(move || evicting.join().unwrap());
        assert_eq!(map.holder("alice"), None, "{stops_at:?}");
        assert_eq!(*told.lock().unwrap(), [1], "{stops_at:?}");
        assert_eq!(Arc::strong_count(&map), 1);
    }
}

#[tokio::test]
async fn others_need_not_wait_for_it() {
    let (reached, reaches) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let map = Staged::new(move |moment| {
        if moment == Moment::BeforeInsert {
            reached.send(()).unwrap();
            goes_on.recv_timeout(PATIENCE).unwrap();
        }
    });
    let other_map = Staged::new(|_| {});
    let (_stream, live, _) = wrapped();
    let (_other_stream, other, _) = wrapped();
    other.register(&other_map, "bob", 2).unwrap();
    let registering = thread::spawn({
        let (live, map) = (live.clone(), Arc::clone(&map));
        move || live.register(&map, "alice", 1)
    });
    reaches.recv_timeout(PATIENCE).unwrap();
    // The same connection elsewhere, another connection's end, and all that handles can do.
    let meanwhile = live.clone();
    comes_back(move || {
        meanwhile.register(&other_map, "alice", 3).unwrap();
        assert!(meanwhile.unregister(&other_map, &"alice").is_some());
        assert_ne!(meanwhile.health().to_string(), "ended");
        meanwhile.set_session(4_u32);
        assert!(other.evict(4000, ""));
        assert_eq!(other_map.holder("bob"), None);
    });
    go_on.send(()).unwrap();
    registering.join().unwrap().unwrap();
    assert_eq!(map.holder("alice"), Some(live.id()));
}

#[tokio::test]
async fn a_slow_map_is_logged_with_its_duration() {
    let logs = Logs::keep();
    let map = Staged::new(|moment| {
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
async fn who_has_ended_is_no_obstacle_though_its_seat_is_not_out_yet() {
    let newcomer: Arc<Mutex<Option<Liveness>>> = Arc::default();
    let taken = Arc::new(AtomicBool::new(false));
    let itself: Arc<Mutex<Option<Arc<Staged>>>> = Arc::default();
    let map = Staged::new({
        let (newcomer, taken, map) = (newcomer.clone(), taken.clone(), itself.clone());
        move |moment| {
            let newcomer = newcomer.lock().unwrap().clone();
            let (Moment::BeforeRemove, Some(newcomer)) = (moment, newcomer) else {
                return;
            };
            let map = map.lock().unwrap().clone().unwrap();
            let holder = map.holder("alice").unwrap();
            let policy = ReplacePolicy::oldest_wins();
            let before = newcomer.register_with(&map, "alice", 2, &policy);
            let before = before.unwrap().unwrap();
            assert_eq!((before.id(), *before), (holder, 1));
            taken.store(true, Ordering::SeqCst);
        }
    });
    *itself.lock().unwrap() = Some(Arc::clone(&map));
    let (_old_stream, old, _) = wrapped();
    let (_stream, live, _) = wrapped();
    old.register(&map, "alice", 1).unwrap();
    *newcomer.lock().unwrap() = Some(live.clone());
    let told = told(&old);
    assert!(old.evict(4000, ""));
    assert!(taken.load(Ordering::SeqCst));
    assert_eq!(map.holder("alice"), Some(live.id()));
    // The user is there: nothing of it was the old connection's any more.
    assert_eq!(*told.lock().unwrap(), [0]);
    itself.lock().unwrap().take();
}

#[tokio::test]
async fn another_task_registers_after_the_end() {
    let map = Staged::new(|_| panic!("the map was asked"));
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
