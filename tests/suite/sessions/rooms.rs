//! The recipes of `docs/session-map.md` for rooms: nested maps, and async locks.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokio::io::duplex;
use tokio::sync::{RwLock, mpsc};
use tower_ws_liveness::{
    ConnectionId, Evictions, Health, HeartbeatLayer, Liveness, Reason, RegisterError,
    ReplacePolicy, Seat, SessionMap,
};

use super::panicking_keys::{Key, Value, key, value};
use crate::script::wrapped;

type Room = HashMap<ConnectionId, mpsc::Sender<String>>;
type Rooms = Arc<RwLock<HashMap<String, Room>>>;

async fn join(live: &Liveness, rooms: &Rooms, name: String, member: mpsc::Sender<String>) {
    live.set_session(name.clone());
    let id = live.id();
    let mut all = rooms.write().await;
    all.entry(name.clone()).or_default().insert(id, member);
    drop(all);
    if live.health() == Health::Ended {
        leave(rooms, &name, id).await;
    }
}

async fn remove_evicted(mut evictions: Evictions, rooms: Rooms) {
    while let Some(eviction) = evictions.recv().await {
        let ev = eviction.expect("few evictions");
        if let Some(name) = ev.session::<String>() {
            leave(&rooms, &name, ev.id()).await;
        }
    }
}

async fn leave(rooms: &Rooms, name: &str, id: ConnectionId) {
    let mut rooms = rooms.write().await;
    if let Some(room) = rooms.get_mut(name) {
        room.remove(&id);
        if room.is_empty() {
            rooms.remove(name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_task_removes_the_members_of_rooms_behind_an_async_lock() {
    let layer = HeartbeatLayer::default();
    let rooms = Rooms::default();
    tokio::spawn(remove_evicted(layer.registry().evictions(), rooms.clone()));

    let (io, _silent_peer) = duplex(64);
    let (_stream, live) = layer.wrap_server(io);
    let (member, mut pushes) = mpsc::channel(1);
    join(&live, &rooms, "lobby".to_owned(), member).await;
    assert_eq!(rooms.read().await["lobby"].len(), 1);
    // The heartbeat evicts the peer, and the member's only sender is dropped with its entry.
    assert_eq!(pushes.recv().await, None);
    assert!(rooms.read().await.is_empty());

    // Its eviction was handled before this insertion.
    join(&live, &rooms, "lobby".to_owned(), mpsc::channel(1).0).await;
    assert!(rooms.read().await.is_empty());
}

/// Registers, replaces, refuses and removes members of rooms, through every kind of nested map.
fn use_rooms<M>(rooms: &Arc<M>, members: impl Fn(&M) -> Vec<(String, String, ConnectionId)>)
where
    M: SessionMap<(String, String), u32>,
{
    let at = |room: &str, user: &str| (room.to_owned(), user.to_owned());
    let holds = |room: &str, user: &str, live: &Liveness| {
        vec![(room.to_owned(), user.to_owned(), live.id())]
    };
    let (stream, alice, _) = wrapped();
    let (bob_stream, bob, _) = wrapped();
    alice.register(rooms, at("lobby", "alice"), 1).unwrap();
    alice.register(rooms, at("attic", "alice"), 2).unwrap();
    bob.register(rooms, at("attic", "bob"), 3).unwrap();
    assert_eq!(members(rooms).len(), 3);

    // The room goes with its last member, and not before.
    let seat = alice.unregister(rooms, &at("lobby", "alice")).unwrap();
    assert_eq!((seat.id(), *seat), (alice.id(), 1));
    assert!(alice.unregister(rooms, &at("lobby", "alice")).is_none());
    assert!(
        bob.unregister(rooms, &at("attic", "alice")).is_none(),
        "not its seat"
    );
    alice.on_evict(|ev| {
        let seats = ev.seats::<(String, String), u32>();
        let seats: Vec<_> = seats
            .map(|((room, user), seat)| (&**room, &**user, **seat))
            .collect();
        assert_eq!(seats, [("attic", "alice", 2)]);
    });
    drop(stream);
    assert_eq!(members(rooms), holds("attic", "bob", &bob));

    // A newer connection replaces one, or is refused, in its room.
    let (newest_stream, newest, _) = wrapped();
    let policy = ReplacePolicy::oldest_wins();
    let refused = newest.register_with(rooms, at("attic", "bob"), 4, &policy);
    assert!(matches!(refused, Err(RegisterError::Occupied { occupant, .. }) if *occupant == 3));
    let refused = newest
        .register_with(rooms, at("lobby", "bob"), 5, &policy)
        .unwrap();
    assert!(refused.is_none());
    let replaced = newest.register(rooms, at("attic", "bob"), 6).unwrap();
    assert_eq!(replaced.unwrap().id(), bob.id());
    drop(bob_stream);
    assert_eq!(members(rooms).len(), 2);
    drop(newest_stream);
    assert_eq!(members(rooms), []);
    assert_eq!(Arc::strong_count(rooms), 1);
}

#[tokio::test(start_paused = true)]
async fn nested_maps_take_pairs_as_keys_and_empty_rooms_go() {
    type Hashed = HashMap<String, HashMap<String, Seat<u32>>>;
    type Ordered = BTreeMap<String, BTreeMap<String, Seat<u32>>>;

    let rooms: Arc<Mutex<Hashed>> = Arc::default();
    use_rooms(&rooms, |rooms| {
        let rooms = rooms.lock().unwrap();
        let members = rooms.iter().flat_map(|(name, room)| {
            assert!(!room.is_empty(), "{name}");
            room.iter()
                .map(|(user, seat)| (name.clone(), user.clone(), seat.id()))
        });
        members.collect()
    });
    let rooms: Arc<std::sync::RwLock<Ordered>> = Arc::default();
    use_rooms(&rooms, |rooms| {
        let rooms = rooms.read().unwrap();
        let members = rooms.iter().flat_map(|(name, room)| {
            assert!(!room.is_empty(), "{name}");
            room.iter()
                .map(|(user, seat)| (name.clone(), user.clone(), seat.id()))
        });
        members.collect()
    });
}

#[tokio::test(start_paused = true)]
async fn maps_nest_to_any_depth() {
    type Room = BTreeMap<u8, Seat<()>>;
    let houses: Arc<Mutex<HashMap<&str, HashMap<u32, Room>>>> = Arc::default();
    let (stream, live, _) = wrapped();
    live.register(&houses, ("north", (7, 1)), ()).unwrap();
    live.register(&houses, ("north", (7, 2)), ()).unwrap();
    live.register(&houses, ("north", (8, 1)), ()).unwrap();
    live.unregister(&houses, &("north", (8, 1))).unwrap();
    let floors: Vec<u32> = houses.lock().unwrap()["north"].keys().copied().collect();
    assert_eq!(floors, [7]);
    live.on_evict(|ev| assert_eq!(ev.reason(), Reason::HandlerDropped));
    drop(stream);
    assert!(houses.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_panics_does_not_poison_the_rooms() {
    type Room = HashMap<u8, Seat<Value>>;
    let rooms: Arc<Mutex<HashMap<Key, Room>>> = Arc::default();
    let (stream, live, _) = wrapped();
    live.register(&rooms, (key("attic"), 1), value()).unwrap();
    let panicking = key("lobby");
    // In the hash of the look-up, and in that of the insertion.
    for calls in 0..2 {
        panicking.panic_after(calls);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            live.register(&rooms, (panicking.clone(), 1), value())
                .is_ok()
        }));
        panicking.panic_after(-1);
        assert!(outcome.is_err(), "{calls}");
        assert_eq!(rooms.lock().unwrap().len(), 1);
    }
    live.register(&rooms, (panicking.clone(), 1), value())
        .unwrap();
    // In the drop of the key of a refused seat, after the look-up.
    let (_other_stream, other, _) = wrapped();
    let policy = ReplacePolicy::oldest_wins();
    let refused = key("lobby");
    refused.panic_when_dropped(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        other
            .register_with(&rooms, (refused.clone(), 1), value(), &policy)
            .is_ok()
    }));
    assert!(outcome.is_err());
    assert_eq!(rooms.lock().unwrap()[&panicking][&1].id(), live.id());
    drop(stream);
    assert!(rooms.lock().unwrap().is_empty());
}
