//! Seats in every supported map: registered, replaced, refused, unregistered, removed at the end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::time::sleep;
use tower_ws_liveness::{
    Eviction, Liveness, Reason, RegisterError, ReplacePolicy, Seat, SessionMap,
};

use super::maps::{self, Census, Map, Session, with_every_map};
use crate::script::*;

with_every_map![
    the_seat_is_removed_when_the_connection_ends,
    hooks_find_the_map_without_the_seat_and_the_seat_in_the_eviction,
    nothing_is_inserted_after_the_end,
    newest_wins,
    the_end_of_a_replaced_connection_leaves_the_newer_seat,
    oldest_wins,
    keep_both,
    the_same_key_twice,
    unregister_before_the_end,
    many_seats,
    every_inserted_value_is_dropped,
];

fn alice() -> String {
    "alice".to_owned()
}

/// The ids in the order of the keys.
fn seated<M: Map>(map: &M) -> Vec<(String, u64)> {
    let holders = map.holders().into_iter();
    holders.map(|(key, id)| (key, id.as_u64())).collect()
}

fn holds(live: &Liveness) -> Vec<(String, u64)> {
    vec![(alice(), live.id().as_u64())]
}

async fn the_seat_is_removed_when_the_connection_ends<M: Map>() {
    type End = fn(Stream, &Liveness, &Peer) -> Option<Stream>;
    let ends: [(&str, End); 6] = [
        ("handler dropped", |_, _, _| None),
        ("evicted", |stream, live, _| {
            assert!(live.evict(1000, "bye"));
            Some(stream)
        }),
        ("end of file", |stream, _, peer| {
            peer.end(Ok(()));
            Some(stream)
        }),
        ("reset", |stream, _, peer| {
            peer.end(Err(std::io::ErrorKind::ConnectionReset));
            Some(stream)
        }),
        ("peer's Close", |stream, _, peer| {
            peer.send(&frame(0x88, Some([1, 2, 3, 4]), &1000_u16.to_be_bytes()));
            Some(stream)
        }),
        ("dead", |stream, _, _| Some(stream)),
    ];
    for (name, end) in ends {
        let (map, census) = (Arc::new(M::default()), Census::default());
        let (stream, live, peer) = wrapped();
        let before = live.register(&map, alice(), census.session(name)).unwrap();
        assert!(before.is_none(), "{name}");
        assert_eq!(seated(&*map), holds(&live), "{name}");
        let seat = map.seat("alice").unwrap();
        assert_eq!((seat.name.as_str(), seat.id()), (name, live.id()));
        assert_eq!(seat.live().id(), live.id());
        drop(seat);

        let evicted = tokio::spawn({
            let live = live.clone();
            async move { live.evicted().await }
        });
        tokio::task::yield_now().await;
        let stream = end(stream, &live, &peer);
        let eviction = evicted.await.unwrap();
        assert_eq!(seated(&*map), [], "{name}");
        assert_eq!(eviction.seats::<String, Session>().count(), 1, "{name}");
        // Nothing keeps the map or the value.
        drop((stream, eviction));
        assert_eq!(Arc::strong_count(&map), 1, "{name}");
        assert_eq!(census.dropped(), 1, "{name}");
    }
}

async fn hooks_find_the_map_without_the_seat_and_the_seat_in_the_eviction<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let calls = Arc::new(Mutex::new(Vec::new()));
    let hook = |whose: &'static str| {
        let (map, calls) = (Arc::clone(&map), Arc::clone(&calls));
        move |ev: &Eviction| {
            assert_eq!(seated(&*map), [], "{whose}");
            let seats = ev.seats::<String, Session>();
            let seats = seats.map(|(key, seat)| (key.clone(), seat.name.clone(), seat.id()));
            calls
                .lock()
                .unwrap()
                .push((whose, seats.collect::<Vec<_>>()));
            // Seats are found by the types of their key and value.
            assert_eq!(ev.seats::<&str, Session>().count(), 0);
            assert_eq!(ev.seats::<String, u32>().count(), 0);
        }
    };
    let (stream, live, _peer) = wrap_with(heartbeat().on_evict(hook("layer")));
    live.on_evict(hook("local"));
    live.register(&map, alice(), census.session("a")).unwrap();
    drop(stream);
    live.on_evict(hook("late"));
    let seats = vec![(alice(), "a".to_owned(), live.id())];
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    // A hook that is added after the handler and all hooks have finished finds no seat.
    assert_eq!(
        calls,
        [("local", seats.clone()), ("layer", seats), ("late", vec![])]
    );
}

async fn nothing_is_inserted_after_the_end<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let (stream, live, _peer) = wrapped();
    // In a hook, on the thread that ended the connection, and later on another thread.
    live.on_evict({
        let (live, map, census) = (live.clone(), Arc::clone(&map), census.clone());
        move |_| {
            let refused = live.register(&map, alice(), census.session("in a hook"));
            assert!(matches!(
                refused,
                Err(RegisterError::Ended {
                    reason: Reason::HandlerDropped,
                    ..
                })
            ));
        }
    });
    drop(stream);
    let late = std::thread::spawn({
        let (live, map, census) = (live.clone(), Arc::clone(&map), census.clone());
        move || live.register(&map, alice(), census.session("late"))
    });
    let error = late.join().unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "not registered: the connection has ended (dropped by the handler without a Close)"
    );
    let RegisterError::Ended { value, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(Arc::into_inner(value).unwrap().name, "late");
    assert_eq!(seated(&*map), []);
    assert_eq!((census.created(), census.dropped()), (2, 2));
    assert_eq!(Arc::strong_count(&map), 1);
}

async fn newest_wins<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let (_old_stream, old, old_peer) = wrapped();
    let (_stream, live, _peer) = wrapped();
    old.register(&map, alice(), census.session("old")).unwrap();
    old.on_evict({
        let (map, live) = (Arc::clone(&map), live.clone());
        move |ev| {
            assert_eq!(ev.reason(), Reason::Replaced);
            // The seat already belongs to the newer connection.
            assert_eq!(ev.seats::<String, Session>().count(), 0);
            assert_eq!(seated(&*map), holds(&live));
        }
    });
    let before = live.register(&map, alice(), census.session("new")).unwrap();
    let before = before.unwrap();
    assert_eq!((before.name.as_str(), before.id()), ("old", old.id()));
    // Its hooks were called before `register` returned.
    assert_eq!(old.health().to_string(), "ended");
    assert_eq!(old.evicted().await.reason(), Reason::Replaced);
    assert_eq!(seated(&*map), holds(&live));
    sleep(ms(1)).await;
    let close = old_peer.frames().pop().unwrap();
    assert_eq!(close.opcode(), 8);
    assert_eq!(close.payload[..2], 4000_u16.to_be_bytes());
    assert_eq!(close.payload[2..], *b"replaced by a newer connection");

    // With another close code.
    let policy = ReplacePolicy::newest_wins_with(4409, "elsewhere").unwrap();
    let (_stream, newest, _) = wrapped();
    let register = |live: &Liveness| {
        let session = census.session("newest");
        live.register_with(&map, alice(), session, &policy).unwrap()
    };
    assert_eq!(register(&newest).unwrap().id(), live.id());
    sleep(ms(1)).await;
    let close = _peer.frames().pop().unwrap();
    assert_eq!(close.payload[..2], 4409_u16.to_be_bytes());
    assert_eq!(close.payload[2..], *b"elsewhere");

    // The newest connection is the last to register, even if it connected first.
    let (_first_stream, first, _) = wrapped();
    let (_second_stream, second, _) = wrapped();
    register(&second);
    register(&first);
    assert_eq!(seated(&*map), holds(&first));
    assert_eq!(second.evicted().await.reason(), Reason::Replaced);
}

async fn the_end_of_a_replaced_connection_leaves_the_newer_seat<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    for policy in [ReplacePolicy::newest_wins(), ReplacePolicy::keep_both()] {
        let (old_stream, old, _) = wrapped();
        let (stream, live, _) = wrapped();
        old.register(&map, alice(), census.session("old")).unwrap();
        live.register_with(&map, alice(), census.session("new"), &policy)
            .unwrap();
        old.on_evict(|ev| assert_eq!(ev.seats::<String, Session>().count(), 0));
        drop(old_stream);
        sleep(ms(50)).await;
        assert_eq!(old.health().to_string(), "ended");
        assert_eq!(seated(&*map), holds(&live));
        drop(stream);
        assert_eq!(seated(&*map), []);
    }
}

async fn oldest_wins<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let policy = ReplacePolicy::oldest_wins();
    let (old_stream, old, _old_peer) = wrapped();
    let (new_stream, live, _peer) = wrapped();
    let register = |live: &Liveness, name: &str| {
        live.register_with(&map, alice(), census.session(name), &policy)
    };
    assert!(register(&old, "old").unwrap().is_none());
    let error = register(&live, "new").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("not registered: connection {} holds the seat", old.id())
    );
    let RegisterError::Occupied { occupant, value } = error else {
        panic!("{error:?}")
    };
    assert_eq!((occupant.id(), occupant.name.as_str()), (old.id(), "old"));
    assert_eq!(Arc::into_inner(value).unwrap().name, "new");
    drop(occupant);
    assert_ne!(
        live.health().to_string(),
        "ended",
        "a refused seat must not end the connection"
    );
    assert_eq!(seated(&*map), holds(&old));
    // A connection may replace its own seat.
    assert_eq!(register(&old, "again").unwrap().unwrap().name, "old");
    // The end of the refused connection does not affect the occupant.
    drop(new_stream);
    assert_eq!(live.evicted().await.seats::<String, Session>().count(), 0);
    assert_eq!(seated(&*map), holds(&old));
    // After the occupant's end the seat is free.
    let (_stream, next, _) = wrapped();
    drop(old_stream);
    assert!(register(&next, "next").unwrap().is_none());
    assert_eq!(seated(&*map), holds(&next));
}

async fn keep_both<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let (_old_stream, old, _) = wrapped();
    let (_stream, live, _) = wrapped();
    old.register(&map, alice(), census.session("old")).unwrap();
    let before = live
        .register_with(
            &map,
            alice(),
            census.session("new"),
            &ReplacePolicy::keep_both(),
        )
        .unwrap();
    assert_eq!(before.unwrap().id(), old.id());
    assert_ne!(old.health().to_string(), "ended");
    assert_eq!(seated(&*map), holds(&live));

    // With the device in the key, both have a seat.
    let devices = Arc::new(Mutex::new(HashMap::<(String, u32), Seat<Session>>::new()));
    for (device, live) in [(1, &old), (2, &live)] {
        let session = census.session(format!("device {device}"));
        live.register(&devices, (alice(), device), session).unwrap();
    }
    assert_eq!(devices.lock().unwrap().len(), 2);
}

async fn the_same_key_twice<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let (stream, live, _) = wrapped();
    live.register(&map, alice(), census.session("0")).unwrap();
    for round in 1..100 {
        let session = census.session(round.to_string());
        let before = live.register(&map, alice(), session).unwrap().unwrap();
        assert_eq!(before.name, (round - 1).to_string());
        assert_eq!(before.id(), live.id());
        drop(before);
        assert_eq!(census.dropped(), round);
    }
    assert_ne!(live.health().to_string(), "ended", "evicted by itself");
    // The connection holds the map once, not once for each registration.
    assert_eq!(Arc::strong_count(&map), 2);
    drop(stream);
    assert_eq!(seated(&*map), []);
    assert_eq!(census.dropped(), 100);
}

async fn unregister_before_the_end<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    let (stream, live, _) = wrapped();
    let (_other_stream, other, _) = wrapped();
    assert!(live.unregister(&map, &alice()).is_none(), "no seat yet");
    for round in 0..100 {
        live.register(&map, alice(), census.session("a")).unwrap();
        assert!(other.unregister(&map, &alice()).is_none(), "not its seat");
        let seat = live.unregister(&map, &alice()).unwrap();
        assert_eq!((seat.id(), seat.name.as_str()), (live.id(), "a"));
        drop(seat);
        assert_eq!(seated(&*map), [], "round {round}");
        assert_eq!(Arc::strong_count(&map), 1, "round {round}");
    }
    // The application removes the seat itself. The connection does not notice, and at its end
    // leaves the seat of another connection in place.
    live.register(&map, alice(), census.session("a")).unwrap();
    map.remove_by_hand("alice");
    other.register(&map, alice(), census.session("b")).unwrap();
    drop(stream);
    assert_eq!(live.evicted().await.seats::<String, Session>().count(), 0);
    assert_eq!(seated(&*map), holds(&other));
}

async fn many_seats<M: Map>() {
    let census = Census::default();
    let maps: Vec<Arc<M>> = (0..3).map(|_| Arc::default()).collect();
    let numbers = Arc::new(Mutex::new(HashMap::<u32, Seat<&'static str>>::new()));
    let (stream, live, _) = wrapped();
    for map in &maps {
        for key in ["a", "b", "c"] {
            let session = census.session(key);
            live.register(map, key.to_owned(), session).unwrap();
        }
    }
    live.register(&numbers, 7, "seven").unwrap();
    let eviction = {
        let evicted = tokio::spawn({
            let live = live.clone();
            async move { live.evicted().await }
        });
        tokio::task::yield_now().await;
        drop(stream);
        evicted.await.unwrap()
    };
    for map in &maps {
        assert_eq!(seated(&**map), []);
    }
    assert!(numbers.lock().unwrap().is_empty());
    let mut keys: Vec<&str> = eviction
        .seats::<String, Session>()
        .map(|(key, _)| key.as_str())
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, ["a", "a", "a", "b", "b", "b", "c", "c", "c"]);
    let number = eviction.seats::<u32, &'static str>().next().unwrap();
    assert_eq!((*number.0, **number.1), (7, "seven"));
    assert!(format!("{eviction:?}").contains("seats: 10"));
}

async fn every_inserted_value_is_dropped<M: Map>() {
    let (map, census) = (Arc::new(M::default()), Census::default());
    for round in 0..50 {
        let (stream, live, _) = wrapped();
        live.set_session(live.clone());
        let name = format!("user {}", round % 7);
        live.register(&map, name.clone(), census.session("a"))
            .unwrap();
        if round % 3 == 0 {
            live.register(&map, name, census.session("b")).unwrap();
        }
        if round % 2 == 0 {
            drop(stream);
        } else {
            assert!(live.evict(1000, ""));
        }
    }
    sleep(ms(20_000)).await;
    assert_eq!(seated(&*map), []);
    assert_eq!(census.dropped(), census.created());
    assert_eq!(Arc::strong_count(&map), 1);
}

/// An application can hide the type of its map.
#[tokio::test(start_paused = true)]
async fn a_map_may_be_a_trait_object() {
    let (map, census) = (Arc::new(maps::MutexMap::default()), Census::default());
    let object: Arc<dyn SessionMap<String, Session>> = Arc::<maps::MutexMap>::clone(&map);
    let (stream, live, _) = wrapped();
    live.register(&object, alice(), census.session("a"))
        .unwrap();
    assert_eq!(seated(&*map), holds(&live));
    // A nested `Arc` is also a map.
    let twice = Arc::new(Arc::clone(&map));
    assert!(live.unregister(&twice, &alice()).is_some());
    live.register(&twice, alice(), census.session("b")).unwrap();
    drop(stream);
    assert_eq!(seated(&*map), []);
}

#[test]
fn codes_that_may_not_be_sent_are_refused() {
    let refused = ReplacePolicy::newest_wins_with(1006, "").unwrap_err();
    assert_eq!(refused.setter(), "ReplacePolicy::newest_wins_with");
    assert!(refused.to_string().contains("1006"), "{refused}");
    let refused = ReplacePolicy::newest_wins_with(4000, "x".repeat(124)).unwrap_err();
    assert!(refused.to_string().contains("123"), "{refused}");
    let default = ReplacePolicy::default();
    assert_eq!(default, ReplacePolicy::newest_wins());
    let same = ReplacePolicy::newest_wins_with(4000, "replaced by a newer connection");
    assert_eq!(same.unwrap(), default);
}
