//! Maps that are a field of the application's state, and maps of equal types told apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex};

use tokio::task::yield_now;
use tower_ws_liveness::{
    Eviction, Liveness, MapIn, RegisterError, ReplacePolicy, Seat, SessionMap, map_in,
};

use super::maps::{Census, Map, MutexMap, Session, State};
use crate::script::{Stream, wrapped};

fn alice() -> String {
    "alice".to_owned()
}

/// Drops the stream, and returns the eviction with its seats.
async fn end(stream: Stream, live: &Liveness) -> Eviction {
    let evicted = tokio::spawn({
        let live = live.clone();
        async move { live.evicted().await }
    });
    yield_now().await;
    drop(stream);
    evicted.await.unwrap()
}

fn names<'a>(seats: impl Iterator<Item = (&'a String, &'a Seat<Session>)>) -> Vec<&'a str> {
    let mut names: Vec<&str> = seats.map(|(_, seat)| &*seat.name).collect();
    names.sort_unstable();
    names
}

#[tokio::test(start_paused = true)]
async fn a_field_of_a_shared_state_is_a_map() {
    let (state, census) = (Arc::new(State::default()), Census::default());
    let (old_stream, old, _) = wrapped();
    let (stream, live, _) = wrapped();
    let sessions = map_in(&state, |state| &state.sessions);
    old.register(&sessions, alice(), census.session("old"))
        .unwrap();
    assert_eq!(
        state.sessions.holders(),
        BTreeMap::from([(alice(), old.id())])
    );
    // Every method that takes a map takes it.
    let policy = ReplacePolicy::oldest_wins();
    let refused = live.register_with(&sessions, alice(), census.session("no"), &policy);
    assert!(matches!(refused, Err(RegisterError::Occupied { .. })));
    assert!(live.unregister(&sessions, &alice()).is_none());
    let replaced = live.register(&sessions, alice(), census.session("new"));
    assert_eq!(replaced.unwrap().unwrap().name, "old");
    drop((old_stream, sessions));
    // The registration keeps the state alive.
    assert_eq!(
        state.sessions.holders(),
        BTreeMap::from([(alice(), live.id())])
    );
    assert_eq!(Arc::strong_count(&state), 2);
    assert_eq!(state.others.holders(), BTreeMap::new());
    drop(stream);
    assert_eq!(state.sessions.holders(), BTreeMap::new());
    assert_eq!(Arc::strong_count(&state), 1);
    drop(refused);
    assert_eq!(census.dropped(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_last_registration_drops_the_state() {
    let (state, census) = (Arc::new(State::default()), Census::default());
    let alive = Arc::downgrade(&state);
    let (stream, live, _) = wrapped();
    let sessions = map_in(&state, |state| &state.sessions);
    live.register(&sessions, alice(), census.session("a"))
        .unwrap();
    drop((state, sessions));
    assert!(alive.upgrade().is_some());
    let eviction = end(stream, &live).await;
    assert!(alive.upgrade().is_none(), "kept by an eviction");
    drop(eviction);
    assert_eq!(census.dropped(), 1);
}

/// Compiles: types are inferred as for an `Arc` of the map.
#[tokio::test(start_paused = true)]
async fn types_are_inferred_through_a_projection() {
    type Room = HashMap<u8, Seat<u32>>;

    struct Tenants {
        by_number: Vec<Mutex<HashMap<u8, Seat<Option<u64>>>>>,
        shared: Arc<Mutex<HashMap<String, Room>>>,
    }

    static GUESTS: LazyLock<Mutex<BTreeMap<u8, Seat<u64>>>> = LazyLock::new(Mutex::default);

    fn by_name(state: &Arc<State>) -> Arc<MapIn<State, MutexMap>> {
        map_in(state, |state| &state.sessions)
    }

    fn hidden(state: &Arc<State>) -> Arc<dyn SessionMap<String, Session>> {
        map_in(state, |state| &state.sessions)
    }

    let tenants = Arc::new(Tenants {
        by_number: vec![Mutex::default(), Mutex::default()],
        shared: Arc::default(),
    });
    let (stream, live, _) = wrapped();
    let tenant = 1;
    live.register(
        &map_in(&tenants, move |all| &all.by_number[tenant]),
        7,
        None,
    )
    .unwrap();
    let shared = map_in(&tenants, |all| &all.shared);
    live.register(&shared, ("lobby".into(), 7), 1).unwrap();
    live.register(&map_in(&Arc::new(()), |()| &*GUESTS), 7, 1)
        .unwrap();
    assert_eq!(*GUESTS.lock().unwrap()[&7], 1);
    assert_eq!(*tenants.by_number[1].lock().unwrap()[&7], None);

    let (state, census) = (Arc::new(State::default()), Census::default());
    live.register(&by_name(&state), alice(), census.session("a"))
        .unwrap();
    live.register(&hidden(&state), alice(), census.session("b"))
        .unwrap();
    let eviction = end(stream, &live).await;
    assert_eq!(names(eviction.seats_in(&by_name(&state))), ["b"]);
    assert_eq!(names(eviction.seats_in(&hidden(&state))), ["b"]);
    assert_eq!(eviction.seats_in(&shared).count(), 1);
    // Inside the projection is an `Arc`: it is the same map.
    assert_eq!(eviction.seats_in(&tenants.shared).count(), 1);
    assert_eq!(
        eviction
            .seats_in(&map_in(&Arc::new(()), |()| &*GUESTS))
            .count(),
        1
    );
    let first = map_in(&tenants, |all| &all.by_number[0]);
    assert_eq!(eviction.seats_in(&first).count(), 0);
    assert!(GUESTS.lock().unwrap().is_empty());
    assert_eq!(eviction.seats::<u8, Option<u64>>().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_tells_maps_of_equal_types_apart() {
    let (state, census) = (Arc::new(State::default()), Census::default());
    let (own, other) = (Arc::new(MutexMap::default()), Arc::new(MutexMap::default()));
    let (stream, live, _) = wrapped();
    let sessions = map_in(&state, |state| &state.sessions);
    let others = map_in(&state, |state| &state.others);
    live.register(&sessions, alice(), census.session("sessions"))
        .unwrap();
    live.register(&others, alice(), census.session("others"))
        .unwrap();
    live.register(&own, alice(), census.session("own")).unwrap();
    let bob = "bob".to_owned();
    live.register(&own, bob, census.session("own, too"))
        .unwrap();
    let eviction = end(stream, &live).await;
    assert_eq!(eviction.seats::<String, Session>().count(), 4);
    assert_eq!(names(eviction.seats_in(&sessions)), ["sessions"]);
    assert_eq!(names(eviction.seats_in(&others)), ["others"]);
    // Another projection of the same map.
    let again = map_in(&state, |state: &State| &state.others);
    assert_eq!(names(eviction.clone().seats_in(&again)), ["others"]);
    assert_eq!(names(eviction.seats_in(&own)), ["own", "own, too"]);
    assert_eq!(
        names(eviction.seats_in(&Arc::new(Arc::clone(&own)))),
        ["own", "own, too"]
    );
    assert_eq!(names(eviction.seats_in(&other)), [""; 0]);
    // Only its types can be in the map.
    let numbers: Arc<Mutex<HashMap<u32, Seat<Session>>>> = Arc::default();
    assert_eq!(eviction.seats_in(&numbers).count(), 0);
}

/// A kept eviction reserves the memory of its maps, so that no later map is taken for one of them.
#[tokio::test(start_paused = true)]
async fn a_map_that_was_dropped_is_not_taken_for_a_later_one() {
    let census = Census::default();
    for round in 0..100 {
        let (stream, live, _) = wrapped();
        let own = Arc::new(MutexMap::default());
        let state = Arc::new(State::default());
        live.register(&own, alice(), census.session("own")).unwrap();
        let sessions = map_in(&state, |state| &state.sessions);
        live.register(&sessions, alice(), census.session("state"))
            .unwrap();
        drop((own, sessions, state));
        let eviction = end(stream, &live).await;
        // An allocator tends to return the memory that was freed last.
        let (own, state) = (Arc::new(MutexMap::default()), Arc::new(State::default()));
        assert_eq!(eviction.seats_in(&own).count(), 0, "round {round}");
        let sessions = map_in(&state, |state| &state.sessions);
        assert_eq!(eviction.seats_in(&sessions).count(), 0, "round {round}");
        assert_eq!(eviction.seats::<String, Session>().count(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_seat_gives_its_value_out() {
    let (map, census) = (Arc::new(MutexMap::default()), Census::default());
    let (stream, live, _) = wrapped();
    live.register(&map, alice(), census.session("a")).unwrap();
    let seat = map.seat("alice").unwrap();
    let value = Arc::clone(seat.value());
    assert_eq!(value.name, "a");
    assert!(Arc::ptr_eq(&value, &seat.into_value()));
    drop((stream, live));
    assert_eq!(map.holders(), BTreeMap::new());
    // The seats are gone, so this is the last reference.
    assert_eq!(Arc::into_inner(value).unwrap().name, "a");
    assert_eq!(census.dropped(), 1);
}
