//! Keys, values, hooks and maps that panic or call back must not affect other connections.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;
use tower_ws_liveness::{
    ConnectionId, Eviction, Liveness, RegisterError, ReplacePolicy, Seat, SessionMap,
};

use super::panicking_keys::{Key, Map, Value, key, value, with_every_map};
use super::seeded::run_on_thread;
use crate::logs::Logs;
use crate::script::{self, heartbeat, wrap_with, wrapped};

with_every_map![
    a_key_that_panics_in_register,
    a_key_that_panics_when_the_map_drops_it,
    a_key_that_panics_at_the_end_of_the_connection,
    a_key_that_panics_in_unregister,
    a_value_that_panics_when_dropped,
    a_value_that_calls_back_when_dropped,
    a_hook_that_registers_another_connection_at_the_same_key,
    a_connection_releases_the_map_when_its_seat_is_replaced,
    everything_panics_at_once,
];

fn is_ended(live: &Liveness) -> bool {
    live.health().to_string() == "ended"
}

async fn a_key_that_panics_in_register<M: Map>() {
    let map = Arc::new(M::default());
    let (_other_stream, other, _) = wrapped();
    other.register(&map, key("alice"), value()).unwrap();
    // At the first hash or comparison, and at later ones.
    for calls in 0..4 {
        let (stream, live, _) = wrapped();
        let panicking = key("alice");
        panicking.panic_after(calls);
        let policy = ReplacePolicy::keep_both();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            live.register_with(&map, panicking.clone(), value(), &policy)
        }));
        panicking.panic_after(-1);
        if let Ok(registered) = outcome {
            assert!(calls > 0, "the key must panic at the first call");
            assert!(registered.is_ok());
            // Restores the state for the next calls.
            live.unregister(&map, &panicking).unwrap();
            other.register(&map, key("alice"), value()).unwrap();
        }
        // Nothing was registered, neither in the map nor in the connection, and no lock is
        // poisoned.
        assert_eq!(map.holder(&key("alice")), Some(other.id()), "{calls}");
        assert_eq!(map.len(), 1, "{calls}");
        assert!(!is_ended(&live) && !is_ended(&other));
        live.register(&map, key("bob"), value()).unwrap();
        assert_eq!(map.holder(&key("bob")), Some(live.id()));
        drop(stream);
        assert_eq!((map.len(), Arc::strong_count(&map)), (1, 2), "{calls}");
    }
}

/// A map may drop the given key after it has inserted the seat.
async fn a_key_that_panics_when_the_map_drops_it<M: Map>() {
    let map = Arc::new(M::default());
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = || {
        let dropped = Arc::clone(&dropped);
        Value::on_drop(move || {
            dropped.fetch_add(1, Ordering::SeqCst);
        })
    };
    let (old_stream, old, _) = wrapped();
    old.register(&map, key("alice"), counted()).unwrap();
    let (stream, live, _) = wrapped();
    for name in ["alice", "bob"] {
        let panicking = key(name);
        let policy = ReplacePolicy::keep_both();
        let given = panicking.clone();
        panicking.panic_when_dropped(true);
        let _either_way = catch_unwind(AssertUnwindSafe(|| {
            live.register_with(&map, given, counted(), &policy)
        }));
        panicking.panic_when_dropped(false);
    }
    // The map still works, also for other connections.
    let (_stream, next, _) = wrapped();
    next.register(&map, key("carol"), value()).unwrap();
    drop(stream);
    drop(old_stream);
    for name in ["alice", "bob"] {
        assert_eq!(map.holder(&key(name)), None, "{name}");
    }
    assert_eq!(map.holder(&key("carol")), Some(next.id()));
    assert_eq!(dropped.load(Ordering::SeqCst), 3, "a value is leaked");
}

/// The point at which a [`PanickingMap`] panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    BeforeInsertion,
    Admission,
    AfterInsertion,
    BeforeRemoval,
    AfterRemoval,
}

/// A map that panics once and ignores the poisoned lock.
#[derive(Default)]
struct PanickingMap {
    seats: Mutex<HashMap<&'static str, Seat<Value>>>,
    at: Mutex<Option<At>>,
    /// Evicts this connection before the insertion.
    evicts: Option<Liveness>,
}

impl PanickingMap {
    fn seats(&self) -> MutexGuard<'_, HashMap<&'static str, Seat<Value>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn panic_at(&self, at: At) {
        let mut next = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if next.take_if(|next| *next == at).is_some() {
            drop(next);
            panic!("a scripted panic of the map: {at:?}");
        }
    }
}

impl SessionMap<&'static str, Value> for PanickingMap {
    fn insert_if(
        &self,
        key: &'static str,
        seat: Seat<Value>,
        admit: &mut dyn FnMut(&Seat<Value>) -> bool,
    ) -> Result<Option<Seat<Value>>, Seat<Value>> {
        self.panic_at(At::BeforeInsertion);
        if let Some(live) = &self.evicts {
            live.evict(4000, "");
        }
        let mut seats = self.seats();
        let mut admits = |occupant: &Seat<Value>| {
            self.panic_at(At::Admission);
            admit(occupant)
        };
        let before = match seats.get(key) {
            Some(occupant) if !admits(occupant) => return Err(occupant.clone()),
            _ => seats.insert(key, seat),
        };
        self.panic_at(At::AfterInsertion);
        Ok(before)
    }

    fn remove_if(&self, key: &&'static str, id: ConnectionId) -> Option<Seat<Value>> {
        self.panic_at(At::BeforeRemoval);
        let mut seats = self.seats();
        let is_its = seats.get(key).is_some_and(|seat| seat.id() == id);
        let removed = is_its.then(|| seats.remove(key)).flatten();
        self.panic_at(At::AfterRemoval);
        removed
    }
}

/// At every panic point: the seat is removed at the end of its connection, its value is dropped,
/// and the connection releases the map.
#[tokio::test(start_paused = true)]
async fn a_map_that_panics_keeps_no_seat_of_a_connection_that_has_ended() {
    let counted = |dropped: &Arc<AtomicUsize>| {
        let dropped = Arc::clone(dropped);
        Value::on_drop(move || {
            dropped.fetch_add(1, Ordering::SeqCst);
        })
    };
    for at in [At::BeforeInsertion, At::Admission, At::AfterInsertion] {
        for (is_taken, is_own) in [(true, false), (true, true), (false, false)] {
            let map = Arc::new(PanickingMap::default());
            let dropped = Arc::new(AtomicUsize::new(0));
            let (other_stream, other, _) = wrapped();
            let (stream, live, _) = wrapped();
            if is_taken {
                let holder = if is_own { &live } else { &other };
                holder.register(&map, "alice", value()).unwrap();
            }
            *map.at.lock().unwrap() = Some(at);
            let policy = ReplacePolicy::keep_both();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                live.register_with(&map, "alice", counted(&dropped), &policy)
            }));
            let panics = is_taken || at != At::Admission;
            assert_eq!(outcome.is_err(), panics, "{at:?}, taken: {is_taken}");
            drop(outcome);
            // Before the end the map is unchanged, or contains the new seat.
            let holder = map.seats().get("alice").map(Seat::id);
            let is_in = !panics || at == At::AfterInsertion;
            let before = is_taken.then(|| if is_own { live.id() } else { other.id() });
            assert_eq!(holder, if is_in { Some(live.id()) } else { before });
            drop(stream);
            live.evicted().await;
            let holder = map.seats().get("alice").map(Seat::id);
            assert_ne!(holder, Some(live.id()), "{at:?}, taken: {is_taken}");
            assert_eq!(dropped.load(Ordering::SeqCst), 1, "{at:?}");
            drop(other_stream);
            other.evicted().await;
            assert!(map.seats().is_empty());
            assert_eq!(Arc::strong_count(&map), 1);
        }
    }
}

/// The map evicts the connection, then inserts the seat and panics.
#[tokio::test(start_paused = true)]
async fn a_map_that_evicts_the_connection_and_panics_keeps_no_seat() {
    for at in [At::BeforeInsertion, At::AfterInsertion] {
        let (_stream, live, _) = wrapped();
        let map = Arc::new(PanickingMap {
            evicts: Some(live.clone()),
            at: Mutex::new(Some(at)),
            ..PanickingMap::default()
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| live.register(&map, "alice", value())));
        assert!(outcome.is_err());
        live.evict(4000, "");
        assert!(map.seats().is_empty(), "{at:?}");
        assert_eq!(Arc::strong_count(&map), 1);
    }
}

/// `unregister` propagates the panic of the map. The end of the connection removes the seat again.
#[tokio::test(start_paused = true)]
async fn a_seat_whose_unregister_panics_is_removed_at_the_end() {
    for at in [At::BeforeRemoval, At::AfterRemoval] {
        let map = Arc::new(PanickingMap::default());
        let (stream, live, _) = wrapped();
        live.register(&map, "alice", value()).unwrap();
        *map.at.lock().unwrap() = Some(at);
        let outcome = catch_unwind(AssertUnwindSafe(|| live.unregister(&map, &"alice")));
        assert!(outcome.is_err());
        assert_eq!(map.seats().is_empty(), at == At::AfterRemoval);
        drop(stream);
        live.evicted().await;
        assert!(map.seats().is_empty());
        assert_eq!(Arc::strong_count(&map), 1);
    }
}

async fn a_key_that_panics_at_the_end_of_the_connection<M: Map>() {
    let logs = Logs::keep();
    let (map, another) = (Arc::new(M::default()), Arc::new(M::default()));
    let keys = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&keys);
    let (stream, live, _) = wrap_with(heartbeat().on_evict(move |ev: &Eviction| {
        let keys = ev.seats::<Key, Value>().map(|(key, _)| key.name);
        hook.lock().unwrap().extend(keys);
    }));
    let panicking = key("panics");
    live.register(&map, key("alice"), value()).unwrap();
    live.register(&map, panicking.clone(), value()).unwrap();
    live.register(&map, key("bob"), value()).unwrap();
    live.register(&another, key("alice"), value()).unwrap();
    panicking.panic_after(0);
    drop(stream);
    panicking.panic_after(-1);
    assert_eq!(live.evicted().await.reason().as_str(), "handler_dropped");
    let keys = keys.lock().unwrap().clone();
    assert_eq!(keys, ["alice", "bob", "alice"]);
    for gone in ["alice", "bob"] {
        assert_eq!(map.holder(&key(gone)), None);
        assert_eq!(another.holder(&key(gone)), None);
    }
    // As documented, the seat may remain in the map, and another connection may replace it.
    assert_eq!(map.len(), 1);
    let (_stream, next, _) = wrapped();
    let before = next.register(&map, panicking.clone(), value()).unwrap();
    assert_eq!(before.unwrap().id(), live.id());
    assert_eq!(map.holder(&panicking), Some(next.id()));

    let warnings = logs.panics();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let conn_id = format!("conn_id={}", live.id());
    for wanted in [
        "session map",
        "a scripted panic of a key",
        "handler_dropped",
        &conn_id,
    ] {
        assert!(warnings[0].contains(wanted), "{wanted}: {warnings:?}");
    }
}

async fn a_key_that_panics_in_unregister<M: Map>() {
    let map = Arc::new(M::default());
    let (stream, live, _) = wrapped();
    let panicking = key("panics");
    live.register(&map, panicking.clone(), value()).unwrap();
    panicking.panic_after(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| live.unregister(&map, &panicking)));
    panicking.panic_after(-1);
    assert!(outcome.is_err());
    assert_eq!(map.holder(&panicking), Some(live.id()));
    // The connection still holds the seat.
    drop(stream);
    assert_eq!(map.len(), 0);
}

async fn a_value_that_panics_when_dropped<M: Map>() {
    let logs = Logs::keep();
    let map = Arc::new(M::default());
    let seat_count = Arc::new(AtomicUsize::new(0));
    let hook = Arc::clone(&seat_count);
    let (stream, live, peer) = wrap_with(heartbeat().on_evict(move |ev: &Eviction| {
        hook.fetch_add(ev.seats::<Key, Value>().count(), Ordering::SeqCst);
    }));
    let dropped = Arc::new(AtomicUsize::new(0));
    // Several: a second panic during the unwinding of the first would abort the process.
    for name in ["alice", "bob", "carol"] {
        let dropped = Arc::clone(&dropped);
        let panics = Value::on_drop(move || {
            dropped.fetch_add(1, Ordering::SeqCst);
            panic!("a scripted panic of a value");
        });
        live.register(&map, key(name), panics).unwrap();
    }
    drop(stream);
    assert_eq!(seat_count.load(Ordering::SeqCst), 3);
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
    assert_eq!(live.evicted().await.reason().as_str(), "handler_dropped");
    assert!(peer.is_dropped());
    assert_eq!((map.len(), Arc::strong_count(&map)), (0, 1));
    let warnings = logs.panics();
    assert!(!warnings.is_empty());
    for warning in warnings {
        assert!(warning.contains("while it was dropped"), "{warning}");
    }
}

async fn a_value_that_calls_back_when_dropped<M: Map>() {
    let runtime = tokio::runtime::Handle::current();
    run_on_thread(move || {
        let _entered = runtime.enter();
        let map = Arc::new(M::default());
        let (stream, live, _) = wrapped();
        let (_other_stream, other, _) = wrapped();
        let (_third_stream, third, _) = wrapped();
        other.register(&map, key("bob"), value()).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let calling = || {
            let (map, calls) = (Arc::clone(&map), Arc::clone(&calls));
            let (live, other, third) = (live.clone(), other.clone(), third.clone());
            Value::on_drop(move || {
                assert_eq!(map.holder(&key("alice")), None);
                assert!(!live.evict(4000, ""), "it has ended");
                let late = live.register(&map, key("alice"), value());
                assert!(matches!(late, Err(RegisterError::Ended { .. })));
                other.evict(4000, "");
                assert_eq!(map.holder(&key("bob")), None);
                third.register(&map, key("carol"), value()).unwrap();
                calls.fetch_add(1, Ordering::SeqCst);
            })
        };
        live.register(&map, key("alice"), calling()).unwrap();
        live.register(&map, key("dave"), calling()).unwrap();
        drop(stream);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        assert!(is_ended(&other));
        assert_eq!(map.holder(&key("carol")), Some(third.id()));

        // When the value is replaced, and when it is refused.
        let (_stream, live, _) = wrapped();
        let (_other_stream, other, _) = wrapped();
        let calls = Arc::new(AtomicUsize::new(0));
        let calling = |target: &Liveness| {
            let (map, calls, target) = (Arc::clone(&map), Arc::clone(&calls), target.clone());
            Value::on_drop(move || {
                assert!(target.evict(4000, ""));
                assert!(map.holder(&key("alice")).is_some());
                calls.fetch_add(1, Ordering::SeqCst);
            })
        };
        live.register(&map, key("alice"), calling(&third)).unwrap();
        let policy = ReplacePolicy::oldest_wins();
        let refused = other.register_with(&map, key("alice"), calling(&other), &policy);
        drop(refused);
        assert!(is_ended(&other));
        let before = live.register(&map, key("alice"), value());
        drop(before);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        assert!(is_ended(&third));
        assert_eq!(map.holder(&key("alice")), Some(live.id()));
    });
}

async fn a_hook_that_registers_another_connection_at_the_same_key<M: Map>() {
    let map = Arc::new(M::default());
    let (_old_stream, old, _) = wrapped();
    let (_next_stream, next, _) = wrapped();
    let (_last_stream, last, _) = wrapped();
    for (before, after) in [(&old, &next), (&next, &last)] {
        let (map, after) = (Arc::clone(&map), after.clone());
        before.on_evict(move |_| {
            after.register(&map, key("alice"), value()).unwrap();
        });
    }
    old.register(&map, key("alice"), value()).unwrap();
    // The seat is free, and `next` registers at it.
    assert!(old.evict(4000, ""));
    assert_eq!(map.holder(&key("alice")), Some(next.id()));
    // `live` replaces `next`, whose hook registers `last`. `last` is now the newest, so `live` is
    // replaced in turn.
    let (_stream, live, _) = wrapped();
    let before = live.register(&map, key("alice"), value()).unwrap();
    assert_eq!(before.unwrap().id(), next.id());
    assert_eq!(map.holder(&key("alice")), Some(last.id()));
    assert!(is_ended(&live), "not replaced");
    assert!(!is_ended(&last));
    assert_eq!((map.len(), Arc::strong_count(&map)), (1, 2));
}

async fn a_connection_releases_the_map_when_its_seat_is_replaced<M: Map>() {
    let map = Arc::new(M::default());
    let (stream, live, _) = wrapped();
    let (other_stream, other, _) = wrapped();
    let policy = ReplacePolicy::keep_both();
    for _ in 0..100 {
        for live in [&live, &other] {
            live.register_with(&map, key("alice"), value(), &policy)
                .unwrap();
        }
    }
    // Each connection holds the map only for its present seat.
    assert_eq!(Arc::strong_count(&map), 2);
    drop(stream);
    assert_eq!(map.holder(&key("alice")), Some(other.id()));
    drop(other_stream);
    assert_eq!((map.len(), Arc::strong_count(&map)), (0, 1));
}

async fn everything_panics_at_once<M: Map>() {
    let map = Arc::new(M::default());
    let (stream, live, peer) = wrapped();
    let panics = || Value::on_drop(|| panic!("a scripted panic of a value"));
    let panicking = key("panics");
    for key in [key("alice"), panicking.clone(), key("bob")] {
        live.register(&map, key, panics()).unwrap();
    }
    live.set_session(panics());
    live.on_evict(|_| panic!("a scripted panic of a hook"));
    panicking.panic_after(0);
    // A panic in a destructor during unwinding would abort the process.
    let handler = catch_unwind(AssertUnwindSafe(|| {
        let _stream = stream;
        panic!("a scripted panic of the handler");
    }));
    panicking.panic_after(-1);
    assert!(handler.is_err());
    assert_eq!(live.evicted().await.reason().as_str(), "handler_dropped");
    assert!(peer.is_dropped());
    assert_eq!(map.holder(&key("alice")), None);
    assert_eq!(map.holder(&key("bob")), None);
    // The map still contains the seat that could not be removed. Forgetting its value keeps the
    // drop of the map from panicking.
    let (_stream, last, _) = wrapped();
    let left = last.register(&map, panicking, value()).unwrap().unwrap();
    std::mem::forget(left);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_panics_when_dropped_does_not_block_evicted() {
    let logs = Logs::keep();
    let (stream, live, peer) = wrapped();
    live.set_session(Value::on_drop(|| panic!("a scripted panic of a value")));
    live.on_evict({
        let live = live.clone();
        move |ev| {
            // Now the eviction holds the last reference to the session.
            drop(live.set_session(()));
            assert!(ev.session::<Value>().is_some());
        }
    });
    drop(stream);
    let ended = tokio::time::timeout(script::ms(1_000), live.evicted()).await;
    assert_eq!(ended.unwrap().reason().as_str(), "handler_dropped");
    sleep(script::ms(1_000)).await;
    assert!(peer.is_dropped());
    assert_eq!(logs.panics().len(), 1, "{:?}", logs.panics());
}
