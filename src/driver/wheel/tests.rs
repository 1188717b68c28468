use std::collections::BTreeSet;

use super::*;

mod model;

/// The span of the top level.
const RANGE: u64 = 1 << (BITS * LEVELS as u32);

fn advance<T>(wheel: &mut Wheel<T>, now: u64) -> Vec<Key> {
    let mut expired = Vec::new();
    assert!(wheel.advance(now, usize::MAX, &mut expired));
    expired
}

/// One piece of at most `limit` entries, and whether it was the last.
fn piece<T>(wheel: &mut Wheel<T>, now: u64, limit: usize) -> (Vec<Key>, bool) {
    let mut expired = Vec::new();
    let done = wheel.advance(now, limit, &mut expired);
    check(wheel);
    assert!(expired.len() <= limit);
    assert!(done || wheel.next_expiration() == Some(wheel.now), "slept");
    (expired, done)
}

/// How many pieces it takes, and what expired in them.
fn pieces<T>(wheel: &mut Wheel<T>, now: u64, limit: usize) -> (usize, Vec<Key>) {
    let mut all = Vec::new();
    for count in 1.. {
        let (expired, done) = piece(wheel, now, limit);
        all.extend(expired);
        if done {
            return (count, all);
        }
        assert!(count <= 10_000, "no end at {now}");
    }
    unreachable!()
}

/// Follows `next_expiration` as the driver does, until something expires. Returns the time and the number of wake-ups.
fn follow<T>(wheel: &mut Wheel<T>) -> (u64, usize, Vec<Key>) {
    for steps in 1.. {
        let at = wheel.next_expiration().expect("something is linked");
        let expired = advance(wheel, at);
        if !expired.is_empty() {
            return (at, steps, expired);
        }
        assert!(steps < 1000, "no progress at {at}");
    }
    unreachable!()
}

/// Checks everything that links, bits and places have to agree on.
fn check<T>(wheel: &Wheel<T>) {
    let mut linked = 0;
    for (l, level) in wheel.levels.iter().enumerate() {
        let shift = BITS * l as u32;
        let current = wheel.now >> shift;
        linked += list(wheel, level.rest, |first, _| {
            // Of one slot of this level, whichever it was.
            assert!(matches!(first, Before::Slot { level, .. } if level == l));
        });
        for (s, &head) in level.heads.iter().enumerate() {
            let reached = level.reached >> s & 1 == 1;
            assert_eq!(level.occupied >> s & 1 == 1, head != NIL, "bit {l}/{s}");
            assert!(!reached || head != NIL, "nothing to reach: {l}/{s}");
            linked += list(wheel, head, |first, node| {
                assert_eq!(first, Before::Slot { level: l, slot: s });
                // What is to be drained may hold anything.
                if !reached {
                    let ahead = (s as u64).wrapping_sub(current) & FURTHEST;
                    let start = (current + ahead) << shift;
                    assert!(start <= node.when.max(wheel.now), "late: {l}/{s}");
                    assert!(l == 0 || ahead > 0, "not drained: {l}/{s}");
                }
            });
        }
    }
    let nodes = wheel.nodes.iter().map(|(_, node)| node.prev);
    assert_eq!(linked, nodes.filter(|&prev| prev != Link::PARKED).count());
}

/// Walks along a list, whose first entry says which one it is. Returns its length.
fn list<T>(wheel: &Wheel<T>, head: u32, look: impl Fn(Before, &Node<T>)) -> usize {
    let (mut index, mut before, mut length) = (head, None, 0);
    let first = wheel
        .nodes
        .get(head as usize)
        .map(|node| node.prev.before());
    while index != NIL {
        let node = &wheel.nodes[index as usize];
        assert_eq!(Some(node.prev.before()), before.or(first));
        look(first.expect("the first of them"), node);
        length += 1;
        (before, index) = (Some(Before::Entry(index)), node.next);
    }
    length
}

#[test]
fn each_distance_expires_on_its_tick() {
    let edges = (0..LEVELS as u32 + 1).flat_map(|level| {
        let edge = 1u64 << (BITS * level);
        [edge - 1, edge, edge + 1, 63 * edge, 64 * edge - 1]
    });
    let distances: BTreeSet<u64> = edges.chain([3 * RANGE + 5, 1 << 40]).collect();
    for start in [0, 1, 63, 64, 4095, 4096, RANGE - 1, RANGE, 0x1234_5678_9abc] {
        for &distance in &distances {
            let when = start + distance;
            let mut wheel = Wheel::new(start);
            let key = wheel.insert(when, distance);
            check(&wheel);
            if distance > 0 {
                assert_eq!(advance(&mut wheel, when - 1), [], "{start} + {distance}");
                check(&wheel);
                assert_eq!(wheel.next_expiration(), Some(when));
            }
            assert_eq!(advance(&mut wheel, when), [key], "{start} + {distance}");
            assert_eq!(wheel.next_expiration(), None);
            assert_eq!(wheel.get(key), Some(&distance));
        }
    }
}

#[test]
fn wake_ups_are_few() {
    // (distance, wake-ups that suffice, for any start)
    let table = [
        (1, 1),
        (63, 1),
        (64, 2),
        (30_000, 3),
        (300_000, 4),
        (86_400_000, 5),
        (RANGE - 1, 6),
        (10 * RANGE, 16),
    ];
    for (distance, limit) in table {
        for start in (0..1_000_000).step_by(9_973) {
            let mut wheel = Wheel::new(start);
            let key = wheel.insert(start + distance, ());
            let (at, steps, expired) = follow(&mut wheel);
            assert_eq!((at, expired), (start + distance, vec![key]));
            assert!(steps <= limit, "{steps} wake-ups for {start} + {distance}");
        }
    }
}

#[test]
fn a_deadline_in_the_past_expires_with_the_next_advance() {
    for when in [0, 99, 100] {
        for now in [0, 100, 101, 163, 164, u64::MAX] {
            let mut wheel = Wheel::new(100);
            let key = wheel.insert(when, ());
            assert_eq!(wheel.next_expiration(), Some(100));
            assert_eq!(advance(&mut wheel, now), [key]);
            wheel.rearm(key, when);
            assert_eq!(advance(&mut wheel, now), [key]);
        }
    }
}

#[test]
fn time_does_not_run_backwards() {
    let mut wheel = Wheel::new(1000);
    let key = wheel.insert(1001, ());
    assert_eq!(advance(&mut wheel, 0), []);
    let expected = "Wheel { now: 1000, len: 1, next_expiration: Some(1001), .. }";
    assert_eq!(format!("{wheel:?}"), expected);
    assert_eq!(advance(&mut wheel, 1001), [key]);
}

#[test]
fn an_expired_entry_is_reported_once_and_can_come_back() {
    let mut wheel = Wheel::new(0);
    let key = wheel.insert(10, "a");
    assert_eq!(advance(&mut wheel, 50), [key]);
    assert_eq!(advance(&mut wheel, 5000), []);
    assert_eq!((wheel.len(), wheel.next_expiration()), (1, None));
    wheel.rearm(key, 5100);
    assert_eq!(advance(&mut wheel, 5099), []);
    assert_eq!(advance(&mut wheel, 5100), [key]);
    assert_eq!(wheel.remove(key), "a");
    assert!(wheel.is_empty());
    assert_eq!(wheel.get(key), None);
}

#[test]
fn rearm_moves_both_ways() {
    let mut wheel = Wheel::new(0);
    let (a, b) = (wheel.insert(30_000, 'a'), wheel.insert(30_000, 'b'));
    wheel.rearm(a, 5);
    assert_eq!(wheel.next_expiration(), Some(5));
    wheel.rearm(b, 60_000);
    assert_eq!(advance(&mut wheel, 30_000), [a]);
    wheel.rearm(a, 60_000);
    check(&wheel);
    let both: BTreeSet<u32> = advance(&mut wheel, 60_000).iter().map(|k| k.0).collect();
    assert_eq!(both, BTreeSet::from([a.0, b.0]));
}

#[test]
fn removal_from_head_middle_and_tail_of_a_slot() {
    for gone in 0..3 {
        let mut wheel = Wheel::new(0);
        let mut keys: Vec<Key> = (0..3).map(|i| wheel.insert(1000, i)).collect();
        assert_eq!(wheel.remove(keys.remove(gone)), gone);
        check(&wheel);
        let mut expired = advance(&mut wheel, 1000);
        expired.sort_by_key(|key| key.0);
        assert_eq!(expired, keys);
    }
}

#[test]
fn a_level_above_can_come_first() {
    let mut wheel = Wheel::new(0);
    let far = wheel.insert(64, ());
    advance(&mut wheel, 63);
    let near = wheel.insert(63 + 60, ());
    assert_eq!(wheel.next_expiration(), Some(64));
    assert_eq!(advance(&mut wheel, 64), [far]);
    assert_eq!(follow(&mut wheel).2, [near]);
}

#[test]
fn jumps_of_any_size() {
    for jump in [RANGE - 1, RANGE, 64 * RANGE, u64::MAX / 2, u64::MAX] {
        let mut wheel = Wheel::new(7);
        let near: Vec<Key> = (0..1000).map(|i| wheel.insert(8 + i * i * i, i)).collect();
        let last = wheel.insert(u64::MAX, 0);
        let mut expired = advance(&mut wheel, jump);
        check(&wheel);
        assert_eq!(expired.len(), if jump == u64::MAX { 1001 } else { 1000 });
        expired.retain(|&key| key != last);
        expired.sort_by_key(|key| key.0);
        assert_eq!(expired, near);
        if jump < u64::MAX {
            assert_eq!(advance(&mut wheel, u64::MAX - 1), []);
            assert_eq!(wheel.next_expiration(), Some(u64::MAX));
            assert_eq!(advance(&mut wheel, u64::MAX), [last]);
        }
        wheel.rearm(last, u64::MAX);
        assert_eq!(wheel.next_expiration(), Some(wheel.now));
        assert_eq!(advance(&mut wheel, u64::MAX), [last]);
    }
}

#[test]
fn no_call_looks_at_more_than_its_limit() {
    // All of a slot of level 2, in which nothing is due before its second tick.
    let start = 5 << (2 * BITS);
    for limit in [1, 7, 100, 999, 1000, 1001] {
        let mut wheel = Wheel::new(0);
        let keys: Vec<Key> = (0..1000).map(|i| wheel.insert(start + 1 + i, ())).collect();
        let (count, expired) = pieces(&mut wheel, start, limit);
        assert_eq!((count, expired.len()), (1000usize.div_ceil(limit), 0));
        let (count, mut expired) = pieces(&mut wheel, start + 1000, limit);
        assert_eq!(count, 1000usize.div_ceil(limit));
        expired.sort_by_key(|key| key.0);
        assert_eq!(expired, keys);
        assert_eq!(wheel.next_expiration(), None);
    }
}

#[test]
fn what_is_carried_over_can_be_moved_and_removed() {
    for done in 0..10 {
        for other in 0..10 {
            let mut wheel = Wheel::new(0);
            let keys: Vec<Key> = (0..10).map(|i| wheel.insert(10_000, i)).collect();
            let (mut expired, _) = piece(&mut wheel, 10_000, done);
            assert_eq!((expired.len(), wheel.len()), (done, 10));
            let (moved, removed) = (keys[other], keys[(other + 3) % 10]);
            assert_eq!(wheel.get(moved), Some(&other));
            wheel.rearm(moved, 20_000);
            check(&wheel);
            assert_eq!(wheel.remove(removed), (other + 3) % 10);
            check(&wheel);
            expired.extend(advance(&mut wheel, 10_000));
            // Once each, but for those that were taken away in time.
            expired.retain(|key| ![moved, removed].contains(key));
            expired.sort_by_key(|key| key.0);
            let others = keys.iter().filter(|key| ![moved, removed].contains(key));
            assert_eq!(expired, others.copied().collect::<Vec<_>>());
            let (at, _, last) = follow(&mut wheel);
            assert_eq!((at, last), (20_000, vec![moved]));
        }
    }
}

#[test]
fn what_comes_up_does_not_wait_for_a_large_slot() {
    let start = 1 << (2 * BITS);
    let mut wheel = Wheel::new(0);
    for _ in 0..1000 {
        wheel.insert(start + 1000, ());
    }
    assert_eq!(piece(&mut wheel, start, 10), (vec![], false));
    let soon = wheel.insert(start + 1, ());
    assert_eq!(piece(&mut wheel, start + 1, 10), (vec![soon], false));
    let now = wheel.insert(start, ());
    assert_eq!(piece(&mut wheel, start + 1, 10), (vec![now], false));
}

#[test]
fn time_goes_on_over_a_rest() {
    for jump in [0, 1, 63, 64, 4096, RANGE, u64::MAX / 2] {
        let mut wheel = Wheel::new(0);
        let due: Vec<Key> = (0..100).map(|i| wheel.insert(5000 - i, i)).collect();
        wheel.insert(u64::MAX, 0);
        let (mut expired, done) = piece(&mut wheel, 5000, 30);
        assert!(!done && expired.len() <= 30);
        // Into the very slots that wait to be drained.
        let late: Vec<Key> = (0..100).map(|i| wheel.insert(5000 + jump + i, i)).collect();
        expired.extend(pieces(&mut wheel, 5000 + jump, 3).1);
        expired.sort_by_key(|key| key.0);
        let expected: Vec<Key> = due.into_iter().chain([late[0]]).collect();
        assert_eq!(expired, expected);
    }
}

#[test]
fn churn_reuses_memory_and_an_empty_wheel_gives_it_back() {
    let mut wheel = Wheel::new(0);
    let mut live = std::collections::VecDeque::new();
    for now in 0..100_000 {
        live.push_back(wheel.insert(now + 30_000, now));
        if live.len() > 1000 {
            let oldest = live.pop_front().unwrap();
            assert_eq!(wheel.remove(oldest), now - 1000);
        }
        assert_eq!(advance(&mut wheel, now), []);
    }
    assert!(wheel.nodes.capacity() <= 2048);
    for key in live.drain(..) {
        wheel.remove(key);
    }
    assert!(wheel.is_empty() && wheel.nodes.capacity() <= RETAINED);
    let key = wheel.insert(100_100, 1);
    assert_eq!(advance(&mut wheel, 100_100), [key]);
    wheel.remove(key);
    assert!(
        wheel.nodes.capacity() > 0,
        "a lone entry allocates each time"
    );
}

#[test]
#[cfg(target_pointer_width = "64")]
fn an_entry_takes_what_the_docs_say() {
    // The shape of an entry in `slab`, which keeps it private.
    #[expect(dead_code)]
    enum Entry<T> {
        Vacant(usize),
        Occupied(T),
    }
    assert_eq!(size_of::<Entry<Node<usize>>>(), size_of::<usize>() + 24);
    assert!(size_of::<Wheel<usize>>() <= 1450);
}

#[test]
fn a_removed_key_panics_with_the_reason() {
    let misuses: [fn(&mut Wheel<()>, Key); 2] = [|w, k| w.remove(k), |w, k| w.rearm(k, 2)];
    for misuse in misuses {
        let panic = std::panic::catch_unwind(move || {
            let mut wheel = Wheel::new(0);
            let key = wheel.insert(1, ());
            wheel.remove(key);
            misuse(&mut wheel, key);
        });
        let message = *panic.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("inserted and not removed"), "{message}");
    }
}
