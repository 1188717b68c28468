//! Groups: at most so many connections per key, and one event per first and last connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;
use tower_ws_liveness::{
    ConnectionId, GroupEvent, Groups, HeartbeatLayer, Liveness, Reason, RegisterError,
    ReplacePolicy, Seat, SessionMap,
};

use super::maps::{Census, Session};
use super::panicking_keys::{Key, key};
use super::seeded::{Seed, run_on_thread, until};
use crate::script::*;

type Events = Arc<Mutex<Vec<GroupEvent<&'static str>>>>;

const NEWEST: ReplacePolicy = ReplacePolicy::newest_wins();
const OLDEST: ReplacePolicy = ReplacePolicy::oldest_wins();
const KEEP: ReplacePolicy = ReplacePolicy::keep_both();

/// Groups whose events are recorded.
fn recorded() -> (Groups<&'static str, u32>, Events) {
    let events = Events::default();
    let hook = Arc::clone(&events);
    let groups = Groups::builder().on_event(move |event| hook.lock().unwrap().push(event));
    (groups.build(), events)
}

fn take(events: &Events) -> Vec<GroupEvent<&'static str>> {
    std::mem::take(&mut events.lock().unwrap())
}

fn values(groups: &Groups<&'static str, u32>) -> Vec<u32> {
    groups.get("alice").iter().map(|seat| **seat).collect()
}

fn has_ended(live: &Liveness) -> bool {
    live.health().to_string() == "ended"
}

const FIRST: GroupEvent<&str> = GroupEvent::FirstIn("alice");
const LAST: GroupEvent<&str> = GroupEvent::LastOut("alice");

#[tokio::test(start_paused = true)]
async fn the_oldest_connections_go_if_there_are_too_many() {
    let (groups, events) = recorded();
    let connections: Vec<_> = (0..5).map(|_| wrapped()).collect();
    let register = |number: usize, max: usize, policy: &ReplacePolicy| {
        let live = &connections[number].1;
        let gone = live.register_in(&groups, "alice", number as u32, max, policy);
        gone.map(|gone| gone.iter().map(|seat| **seat).collect::<Vec<_>>())
    };
    for number in 0..3 {
        assert!(register(number, 3, &NEWEST).unwrap().is_empty());
    }
    assert_eq!(take(&events), [FIRST]);
    assert_eq!(values(&groups), [0, 1, 2]);
    // The group is full.
    let refused = register(3, 3, &OLDEST);
    let Err(RegisterError::Occupied { occupant, value }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((occupant.id(), *value), (connections[0].1.id(), 3));
    assert_eq!(register(3, 3, &NEWEST).unwrap(), [0]);
    assert_eq!(values(&groups), [1, 2, 3]);
    let (_, oldest, peer) = &connections[0];
    assert_eq!(oldest.evicted().await.reason(), Reason::Replaced);
    sleep(ms(1)).await;
    let close = peer.frames().pop().unwrap();
    assert_eq!(close.payload[..2], 4000_u16.to_be_bytes());
    // A smaller bound evicts several.
    assert_eq!(register(4, 1, &NEWEST).unwrap(), [1, 2, 3]);
    for (_, live, _) in &connections[1..4] {
        assert_eq!(live.evicted().await.reason(), Reason::Replaced);
    }
    assert_eq!(values(&groups), [4]);
    assert!(!has_ended(&connections[4].1));
    assert_eq!(take(&events), []);
    drop(connections);
    assert_eq!(take(&events), [LAST]);
    assert!(groups.is_empty());
}

#[tokio::test(start_paused = true)]
async fn keep_both_takes_the_seat_and_evicts_no_connection() {
    let (groups, events) = recorded();
    let connections: Vec<_> = (0..4).map(|_| wrapped()).collect();
    for (number, (_, live, _)) in connections.iter().enumerate() {
        live.register_in(&groups, "alice", number as u32, 2, &KEEP)
            .unwrap();
        assert!(!has_ended(live));
    }
    let gone = connections[0]
        .1
        .register_in(&groups, "alice", 4, 1, &KEEP)
        .unwrap();
    assert_eq!(gone.iter().map(|seat| **seat).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(values(&groups), [4]);
    drop(connections);
    assert_eq!(take(&events), [FIRST, LAST]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_registers_again_replaces_its_value_only() {
    let (groups, events) = recorded();
    let (_first_stream, first, _) = wrapped();
    let (stream, live, _) = wrapped();
    first.register_in(&groups, "alice", 1, 2, &NEWEST).unwrap();
    live.register_in(&groups, "alice", 2, 2, &NEWEST).unwrap();
    for policy in [NEWEST, OLDEST, KEEP] {
        for max in [1, 2] {
            let gone = first
                .register_in(&groups, "alice", 1, max, &policy)
                .unwrap();
            assert_eq!(gone.iter().map(Seat::id).collect::<Vec<_>>(), [first.id()]);
        }
    }
    assert_eq!(values(&groups), [2, 1]);
    assert!(!has_ended(&first) && !has_ended(&live));
    // It has become the newest.
    let (_third_stream, third, _) = wrapped();
    third.register_in(&groups, "alice", 3, 2, &NEWEST).unwrap();
    assert!(has_ended(&live) && !has_ended(&first));
    drop(stream);
    assert_eq!(values(&groups), [1, 3]);
    // Unregistered before the end.
    assert!(live.unregister_in(&groups, &"alice").is_none());
    assert_eq!(*first.unregister_in(&groups, &"alice").unwrap(), 1);
    assert_eq!(take(&events), [FIRST]);
    assert_eq!(
        third.unregister_in(&groups, &"alice").unwrap().id(),
        third.id()
    );
    assert_eq!(take(&events), [LAST]);
    assert!(third.unregister_in(&groups, &"bob").is_none());
    assert!(!has_ended(&third));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_inserted_for_a_bound_of_zero_or_after_the_end() {
    let (groups, events) = recorded();
    let (stream, live, _) = wrapped();
    let error = live
        .register_in(&groups, "alice", 7, 0, &NEWEST)
        .unwrap_err();
    assert!(matches!(error, RegisterError::ZeroMax { .. }), "{error:?}");
    assert!(error.to_string().contains("`max` is 0"), "{error}");
    assert_eq!(*error.into_value(), 7);
    assert!(!has_ended(&live));
    drop(stream);
    let error = live
        .register_in(&groups, "alice", 8, usize::MAX, &NEWEST)
        .unwrap_err();
    assert!(matches!(error, RegisterError::Ended { .. }), "{error:?}");
    assert_eq!(*error.into_value(), 8);
    assert!(groups.is_empty());
    assert_eq!(take(&events), []);
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_the_same_member_is_replaced_first() {
    let groups = Groups::<&str, (&str, u32)>::builder()
        .same_member(|one, other| one.0 == other.0)
        .build();
    let connections: Vec<_> = (0..4).map(|_| wrapped()).collect();
    let register = |number: usize, member, policy: &ReplacePolicy| {
        let value = (member, number as u32);
        connections[number]
            .1
            .register_in(&groups, "alice", value, 2, policy)
    };
    register(0, "phone", &NEWEST).unwrap();
    register(1, "tablet", &NEWEST).unwrap();
    // Although the phone is older.
    let gone = register(2, "tablet", &NEWEST).unwrap();
    assert_eq!(gone.iter().map(|seat| seat.1).collect::<Vec<_>>(), [1]);
    assert_eq!(connections[1].1.evicted().await.reason(), Reason::Replaced);
    let refused = register(3, "phone", &OLDEST);
    assert!(
        matches!(&refused, Err(RegisterError::Occupied { occupant, .. }) if occupant.1 == 0),
        "{refused:?}"
    );
    let members: Vec<u32> = groups.get("alice").iter().map(|seat| seat.1).collect();
    assert_eq!(members, [0, 2]);
    // Also if the group is not full.
    let _ = connections[2].1.unregister_in(&groups, &"alice");
    let gone = register(3, "phone", &NEWEST).unwrap();
    assert_eq!(gone.len(), 1);
    assert!(has_ended(&connections[0].1));
}

/// A map that has no seats, and calls this when one must be removed.
struct OnRemoval(Box<dyn Fn() + Send + Sync>);

impl SessionMap<(), ()> for OnRemoval {
    fn insert_if(
        &self,
        (): (),
        _: Seat<()>,
        _: &mut dyn FnMut(&Seat<()>) -> bool,
    ) -> Result<Option<Seat<()>>, Seat<()>> {
        Ok(None)
    }

    fn remove_if(&self, (): &(), _: ConnectionId) -> Option<Seat<()>> {
        (self.0)();
        None
    }
}

/// A connection that has ended does not count, and its seat goes before an older live one.
#[tokio::test(start_paused = true)]
async fn an_ended_connection_makes_room() {
    let (groups, events) = recorded();
    for policy in [NEWEST, OLDEST] {
        let (_oldest_stream, oldest, _) = wrapped();
        let (stream, ending, _) = wrapped();
        let (_stream, newest, _) = wrapped();
        oldest.register_in(&groups, "alice", 1, 2, &NEWEST).unwrap();
        // Its seats leave in the order of registration: this runs between its end and its leaving.
        let gone = Arc::new(Mutex::new(Vec::new()));
        let first = OnRemoval({
            let (groups, newest, gone) = (groups.clone(), newest.clone(), Arc::clone(&gone));
            Box::new(move || {
                let seats = newest.register_in(&groups, "alice", 3, 2, &policy).unwrap();
                gone.lock().unwrap().extend(seats.iter().map(|seat| **seat));
            })
        });
        ending.register(&Arc::new(first), (), ()).unwrap();
        ending.register_in(&groups, "alice", 2, 2, &NEWEST).unwrap();
        drop(stream);
        assert_eq!(*gone.lock().unwrap(), [2]);
        assert_eq!(values(&groups), [1, 3]);
        assert!(!has_ended(&oldest));
    }
    assert_eq!(take(&events), [FIRST, LAST, FIRST, LAST]);
}

#[tokio::test(start_paused = true)]
async fn the_last_event_comes_before_the_eviction_hooks_with_the_seat() {
    let (groups, events) = recorded();
    let (stream, live, _) = wrapped();
    live.register_in(&groups, "alice", 1, 1, &NEWEST).unwrap();
    live.on_evict({
        let (groups, events) = (groups.clone(), Arc::clone(&events));
        move |ev| {
            assert_eq!(*events.lock().unwrap(), [FIRST, LAST]);
            assert!(groups.is_empty());
            let seats = ev.seats::<&str, u32>();
            assert_eq!(
                seats.map(|(key, seat)| (*key, **seat)).collect::<Vec<_>>(),
                [("alice", 1)]
            );
            events.lock().unwrap().clear();
        }
    });
    drop(stream);
    assert_eq!(take(&events), []);
    assert!(has_ended(&live));
}

#[tokio::test(start_paused = true)]
async fn the_hook_may_change_the_groups_and_may_panic() {
    let runtime = tokio::runtime::Handle::current();
    run_on_thread(move || {
        let _entered = runtime.enter();
        let (stream, live, _) = wrapped();
        let (_other_stream, other, _) = wrapped();
        let events = Events::default();
        let registering = live.clone();
        let groups: Arc<Mutex<Option<Groups<&str, u32>>>> = Arc::default();
        let events_during_call = Arc::new(AtomicUsize::new(0));
        let hook = {
            let (groups, events, other) = (Arc::clone(&groups), Arc::clone(&events), other.clone());
            let events_during_call = Arc::clone(&events_during_call);
            move |event: GroupEvent<&'static str>| {
                let groups = groups.lock().unwrap().clone().unwrap();
                events.lock().unwrap().push(event.clone());
                match event {
                    GroupEvent::FirstIn("alice") => {
                        other.register_in(&groups, "bob", 2, 1, &NEWEST).unwrap();
                        other.unregister_in(&groups, &"bob").unwrap();
                        let events = events.lock().unwrap().len();
                        events_during_call.store(events, Ordering::SeqCst);
                        panic!("a scripted panic of a hook");
                    }
                    GroupEvent::LastOut("bob") => {
                        live.evict(4000, "");
                    }
                    _ => {}
                }
            }
        };
        let built = Groups::builder().on_event(hook).build();
        *groups.lock().unwrap() = Some(built.clone());
        registering
            .register_in(&built, "alice", 1, 2, &NEWEST)
            .unwrap();
        // Those that a call of the hook causes come after it, although it panicked.
        let bob = [GroupEvent::FirstIn("bob"), GroupEvent::LastOut("bob")];
        assert_eq!(take(&events), [&[FIRST], &bob[..], &[LAST]].concat());
        assert_eq!(events_during_call.load(Ordering::SeqCst), 1);
        assert!(built.is_empty() && has_ended(&registering) && !has_ended(&other));
        drop(stream);
        groups.lock().unwrap().take();
    });
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_leaves_the_groups_usable() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&events);
    let groups = Groups::<Key, u32>::builder()
        .on_event(move |event| {
            hook.lock().unwrap().push(match event {
                GroupEvent::FirstIn(key) => (true, key.name),
                GroupEvent::LastOut(key) => (false, key.name),
            });
        })
        .build();
    let (stream, live, _) = wrapped();
    live.register_in(&groups, key("alice"), 1, 1, &NEWEST)
        .unwrap();
    for calls in 0..3 {
        let panicking = key("panics");
        panicking.panic_after(calls);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            live.register_in(&groups, panicking.clone(), 1, 1, &NEWEST)
                .is_ok()
        }));
        panicking.panic_after(-1);
        // In the hash of the look-up, and in that of the insertion.
        assert_eq!(outcome.is_err(), calls < 2, "{calls}");
    }
    let names = std::mem::take(&mut *events.lock().unwrap());
    assert_eq!(names, [(true, "alice"), (true, "panics")]);
    drop(stream);
    assert!(groups.is_empty());
    let names = std::mem::take(&mut *events.lock().unwrap());
    assert_eq!(names, [(false, "alice"), (false, "panics")]);
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

fn open(layer: &HeartbeatLayer) -> (Stream, Liveness) {
    layer.wrap_server(script().0)
}

/// Devices of one user connect at the same time while the group is full. Built from `get` and
/// `evict`, this evicts a newcomer now and then.
#[test]
fn no_newcomer_is_evicted_for_an_older_connection() {
    const ROUNDS: usize = 2_000;
    const MAX: usize = 3;

    let runtime = runtime();
    let _entered = runtime.enter();
    let layer = HeartbeatLayer::default();
    let census = Census::default();
    let groups = Groups::<u32, Session>::new();
    let start = Barrier::new(MAX + 1);
    let displaced = AtomicUsize::new(0);
    let mut wrong_rounds = 0;
    let newcomers = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..MAX {
            scope.spawn(|| {
                let _entered = runtime.enter();
                for _ in 0..ROUNDS {
                    let connection = open(&layer);
                    start.wait();
                    let value = census.session("newcomer");
                    let registered = connection.1.register_in(&groups, 7, value, MAX, &NEWEST);
                    displaced.fetch_add(registered.unwrap().len(), Ordering::SeqCst);
                    newcomers.lock().unwrap().push(connection);
                    start.wait();
                    start.wait();
                }
            });
        }
        let mut present: Vec<(Stream, Liveness)> = Vec::new();
        for round in 0..ROUNDS {
            start.wait();
            // Now and then an old connection ends by itself meanwhile.
            if round % 3 == 0 {
                present.pop();
            }
            start.wait();
            let come = std::mem::take(&mut *newcomers.lock().unwrap());
            let seated: Vec<ConnectionId> = groups.get(&7).iter().map(Seat::id).collect();
            let is_right = come
                .iter()
                .all(|(_, live)| !has_ended(live) && seated.contains(&live.id()))
                && present.iter().all(|(_, live)| has_ended(live))
                && seated.len() == MAX;
            // Asserted after the rounds, since the other threads wait for this one.
            wrong_rounds += usize::from(!is_right);
            present = come;
            start.wait();
        }
    });
    assert_eq!(wrong_rounds, 0);
    assert!(displaced.into_inner() > ROUNDS);
    assert!(groups.is_empty());
    until("all values are dropped", || {
        census.dropped() == census.created()
    });
}

/// Threads register, unregister and end connections at a few keys. The events of each key alternate,
/// and end with the state of the groups.
#[test]
fn events_alternate_in_a_storm() {
    const THREADS: u64 = 4;
    const STEPS: usize = 3_000;
    const KEYS: u32 = 3;

    let seed = Seed::new();
    let runtime = runtime();
    let layer = HeartbeatLayer::default();
    let events = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&events);
    let (callers, most_callers) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let most = Arc::clone(&most_callers);
    let groups = Groups::<u32, ()>::builder()
        .on_event(move |event| {
            most.fetch_max(callers.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            hook.lock().unwrap().push(event);
            callers.fetch_sub(1, Ordering::SeqCst);
        })
        .build();
    let mut left = Vec::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (mut rng, groups, layer) = (seed.rng(thread, 0), groups.clone(), &layer);
                let runtime = &runtime;
                scope.spawn(move || {
                    let _entered = runtime.enter();
                    let mut mine = Vec::new();
                    for _ in 0..STEPS {
                        if mine.len() < 2 {
                            mine.push(open(layer));
                        }
                        let at = rng.usize(..mine.len());
                        let (key, max) = (rng.u32(..KEYS), rng.usize(1..3));
                        match rng.u8(..6) {
                            0 => drop(mine.swap_remove(at)),
                            1 => {
                                mine[at].1.evict(4000, "");
                                mine.swap_remove(at);
                            }
                            2 => drop(mine[at].1.unregister_in(&groups, &key)),
                            choice => {
                                let policy =
                                    [NEWEST, OLDEST, KEEP][usize::from(choice) - 3].clone();
                                // Refused, or another thread has ended the connection.
                                let _ = mine[at].1.register_in(&groups, key, (), max, &policy);
                            }
                        }
                    }
                    mine
                })
            })
            .collect();
        for thread in threads {
            left.extend(thread.join().unwrap());
        }
    });
    let verify = |at_least: usize| {
        let events = events.lock().unwrap();
        for key in 0..KEYS {
            let (first, last) = (GroupEvent::FirstIn(key), GroupEvent::LastOut(key));
            let of_key = events
                .iter()
                .filter(|event| [&first, &last].contains(event));
            let of_key: Vec<_> = of_key.collect();
            let expected = [&first, &last].into_iter().cycle().take(of_key.len());
            assert!(of_key.iter().copied().eq(expected), "{of_key:?}");
            assert_eq!(of_key.last() == Some(&&first), !groups.get(&key).is_empty());
            assert!(of_key.len() >= at_least, "{}", of_key.len());
        }
    };
    verify(100);
    drop(left);
    assert!(groups.is_empty());
    verify(100);
    assert_eq!(most_callers.load(Ordering::SeqCst), 1);
}
