use std::collections::BTreeSet;

use super::*;

mod model;

/// The span of the top level.
const RANGE_TICKS: u64 = 1 << (SLOT_BITS * LEVELS as u32);

fn advance<T>(wheel: &mut Wheel<T>, now: u64) -> Vec<Key> {
    let mut expired = Vec::new();
    assert!(wheel.advance(now, usize::MAX, &mut expired));
    expired
}

/// One call that visits at most `limit` entries: what expired, and whether the wheel is done.
fn advance_once<T>(wheel: &mut Wheel<T>, now: u64, limit: usize) -> (Vec<Key>, bool) {
    let mut expired = Vec::new();
    let done = wheel.advance(now, limit, &mut expired);
    check(wheel);
    assert!(expired.len() <= limit);
    let continues_now = wheel.next_expiration() == Some(wheel.now);
    assert!(done || continues_now, "unfinished, but not due at once");
    (expired, done)
}

/// Calls until the wheel is done: how many calls it takes, and what expired in them.
fn advance_until_done<T>(wheel: &mut Wheel<T>, now: u64, limit: usize) -> (usize, Vec<Key>) {
    let mut all = Vec::new();
    for count in 1.. {
        let (expired, done) = advance_once(wheel, now, limit);
        all.extend(expired);
        if done {
            return (count, all);
        }
        assert!(count <= 10_000, "not done at {now}");
    }
    unreachable!()
}

/// Wakes at each `next_expiration` as the driver does, until an entry expires. Returns the time,
/// the number of wake-ups, and the expired keys.
fn follow<T>(wheel: &mut Wheel<T>) -> (u64, usize, Vec<Key>) {
    for wake_ups in 1.. {
        let at = wheel.next_expiration().expect("an entry is linked");
        let expired = advance(wheel, at);
        if !expired.is_empty() {
            return (at, wake_ups, expired);
        }
        assert!(wake_ups < 1000, "no progress at {at}");
    }
    unreachable!()
}

/// Checks that links, occupancy bits and slots are consistent.
fn check<T>(wheel: &Wheel<T>) {
    let mut linked = 0;
    for (l, level) in wheel.levels.iter().enumerate() {
        let shift = SLOT_BITS * l as u32;
        let current = wheel.now >> shift;
        linked += list(wheel, level.draining, |first, _| {
            // Any slot of this level.
            assert!(matches!(first, Before::Slot { level, .. } if level == l));
        });
        for (s, &head) in level.heads.iter().enumerate() {
            let reached = level.reached >> s & 1 == 1;
            assert_eq!(level.occupied >> s & 1 == 1, head != NIL, "bit {l}/{s}");
            assert!(!reached || head != NIL, "reached, but empty: {l}/{s}");
            linked += list(wheel, head, |first, node| {
                assert_eq!(first, Before::Slot { level: l, slot: s });
                // A slot that waits to be drained may hold any deadline.
                if !reached {
                    let ahead = (s as u64).wrapping_sub(current) & MAX_SLOT_DISTANCE;
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

/// Checks the links of a list, and calls `check_node` with the first entry's link and each node.
/// Returns the length.
fn list<T>(wheel: &Wheel<T>, head: u32, check_node: impl Fn(Before, &Node<T>)) -> usize {
    let (mut index, mut before, mut length) = (head, None, 0);
    let first = wheel
        .nodes
        .get(head as usize)
        .map(|node| node.prev.before());
    while index != NIL {
        let node = &wheel.nodes[index as usize];
        assert_eq!(Some(node.prev.before()), before.or(first));
        check_node(first.expect("the list has a first entry"), node);
        length += 1;
        (before, index) = (Some(Before::Entry(index)), node.next);
    }
    length
}

#[test]
fn an_entry_at_any_distance_expires_at_its_tick() {
    let edges = (0..LEVELS as u32 + 1).flat_map(|level| {
        let edge = 1u64 << (SLOT_BITS * level);
        [edge - 1, edge, edge + 1, 63 * edge, 64 * edge - 1]
    });
    let distances: BTreeSet<u64> = edges.chain([3 * RANGE_TICKS + 5, 1 << 40]).collect();
    for start in [
        0,
        1,
        63,
        64,
        4095,
        4096,
        RANGE_TICKS - 1,
        RANGE_TICKS,
        0x1234_5678_9abc,
    ] {
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
fn an_entry_takes_few_wake_ups_until_it_expires() {
    // (distance, most wake-ups from any start)
    let table = [
        (1, 1),
        (63, 1),
        (64, 2),
        (30_000, 3),
        (300_000, 4),
        (86_400_000, 5),
        (RANGE_TICKS - 1, 6),
        (10 * RANGE_TICKS, 16),
    ];
    for (distance, limit) in table {
        for start in (0..1_000_000).step_by(9_973) {
            let mut wheel = Wheel::new(start);
            let key = wheel.insert(start + distance, ());
            let (at, wake_ups, expired) = follow(&mut wheel);
            assert_eq!((at, expired), (start + distance, vec![key]));
            assert!(wake_ups <= limit, "{wake_ups} for {start} + {distance}");
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
fn an_expired_entry_is_reported_once_and_can_be_rearmed() {
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
fn rearm_moves_a_deadline_in_both_directions() {
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
fn an_entry_is_removed_from_the_head_middle_or_tail_of_a_slot() {
    for removed in 0..3 {
        let mut wheel = Wheel::new(0);
        let mut keys: Vec<Key> = (0..3).map(|i| wheel.insert(1000, i)).collect();
        assert_eq!(wheel.remove(keys.remove(removed)), removed);
        check(&wheel);
        let mut expired = advance(&mut wheel, 1000);
        expired.sort_by_key(|key| key.0);
        assert_eq!(expired, keys);
    }
}

#[test]
fn a_higher_level_can_have_the_next_expiration() {
    let mut wheel = Wheel::new(0);
    let far = wheel.insert(64, ());
    advance(&mut wheel, 63);
    let near = wheel.insert(63 + 60, ());
    assert_eq!(wheel.next_expiration(), Some(64));
    assert_eq!(advance(&mut wheel, 64), [far]);
    assert_eq!(follow(&mut wheel).2, [near]);
}

#[test]
fn time_can_jump_by_any_distance() {
    for jump in [
        RANGE_TICKS - 1,
        RANGE_TICKS,
        64 * RANGE_TICKS,
        u64::MAX / 2,
        u64::MAX,
    ] {
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
fn no_call_visits_more_entries_than_its_limit() {
    // All entries are in one slot of level 2, and none is due before the slot's second tick.
    let start = 5 << (2 * SLOT_BITS);
    for limit in [1, 7, 100, 999, 1000, 1001] {
        let mut wheel = Wheel::new(0);
        let keys: Vec<Key> = (0..1000).map(|i| wheel.insert(start + 1 + i, ())).collect();
        let (count, expired) = advance_until_done(&mut wheel, start, limit);
        assert_eq!((count, expired.len()), (1000usize.div_ceil(limit), 0));
        let (count, mut expired) = advance_until_done(&mut wheel, start + 1000, limit);
        assert_eq!(count, 1000usize.div_ceil(limit));
        expired.sort_by_key(|key| key.0);
        assert_eq!(expired, keys);
        assert_eq!(wheel.next_expiration(), None);
    }
}

#[test]
fn entries_of_a_partly_drained_slot_can_be_rearmed_and_removed() {
    for done in 0..10 {
        for other in 0..10 {
            let mut wheel = Wheel::new(0);
            let keys: Vec<Key> = (0..10).map(|i| wheel.insert(10_000, i)).collect();
            let (mut expired, _) = advance_once(&mut wheel, 10_000, done);
            assert_eq!((expired.len(), wheel.len()), (done, 10));
            let (moved, removed) = (keys[other], keys[(other + 3) % 10]);
            assert_eq!(wheel.get(moved), Some(&other));
            wheel.rearm(moved, 20_000);
            check(&wheel);
            assert_eq!(wheel.remove(removed), (other + 3) % 10);
            check(&wheel);
            expired.extend(advance(&mut wheel, 10_000));
            // Each of the other entries expires once.
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
fn an_entry_that_expires_does_not_wait_until_a_large_slot_is_drained() {
    let start = 1 << (2 * SLOT_BITS);
    let mut wheel = Wheel::new(0);
    for _ in 0..1000 {
        wheel.insert(start + 1000, ());
    }
    assert_eq!(advance_once(&mut wheel, start, 10), (vec![], false));
    let soon = wheel.insert(start + 1, ());
    assert_eq!(advance_once(&mut wheel, start + 1, 10), (vec![soon], false));
    let now = wheel.insert(start, ());
    assert_eq!(advance_once(&mut wheel, start + 1, 10), (vec![now], false));
}

#[test]
fn time_can_advance_over_a_partly_drained_slot() {
    for jump in [0, 1, 63, 64, 4096, RANGE_TICKS, u64::MAX / 2] {
        let mut wheel = Wheel::new(0);
        let due: Vec<Key> = (0..100).map(|i| wheel.insert(5000 - i, i)).collect();
        wheel.insert(u64::MAX, 0);
        let (mut expired, done) = advance_once(&mut wheel, 5000, 30);
        assert!(!done && expired.len() <= 30);
        // Inserted into the slots that wait to be drained.
        let late: Vec<Key> = (0..100).map(|i| wheel.insert(5000 + jump + i, i)).collect();
        expired.extend(advance_until_done(&mut wheel, 5000 + jump, 3).1);
        expired.sort_by_key(|key| key.0);
        let expected: Vec<Key> = due.into_iter().chain([late[0]]).collect();
        assert_eq!(expired, expected);
    }
}

#[test]
fn churn_reuses_memory_and_an_empty_wheel_frees_it() {
    let mut wheel = Wheel::new(0);
    let mut linked_keys = std::collections::VecDeque::new();
    for now in 0..100_000 {
        linked_keys.push_back(wheel.insert(now + 30_000, now));
        if linked_keys.len() > 1000 {
            let oldest = linked_keys.pop_front().unwrap();
            assert_eq!(wheel.remove(oldest), now - 1000);
        }
        assert_eq!(advance(&mut wheel, now), []);
    }
    assert!(wheel.nodes.capacity() <= 2048);
    for key in linked_keys.drain(..) {
        wheel.remove(key);
    }
    assert!(wheel.is_empty() && wheel.nodes.capacity() <= RETAINED_ENTRIES);
    let key = wheel.insert(100_100, 1);
    assert_eq!(advance(&mut wheel, 100_100), [key]);
    wheel.remove(key);
    assert!(
        wheel.nodes.capacity() > 0,
        "a single entry allocates each time"
    );
}

#[test]
fn storage_grows_by_an_eighth() {
    let mut wheel = Wheel::new(0);
    for count in 1..10_000 {
        wheel.insert(30_000, ());
        let unused = wheel.nodes.capacity() - count;
        assert!(unused <= count / 8 + 16, "{unused} beside {count}");
    }
}

#[test]
#[cfg(target_pointer_width = "64")]
fn an_entry_has_the_documented_size() {
    // A copy of slab's private `Entry`.
    #[expect(dead_code)]
    enum Entry<T> {
        Vacant(usize),
        Occupied(T),
    }
    assert_eq!(size_of::<Entry<Node<usize>>>(), size_of::<usize>() + 24);
    assert!(size_of::<Wheel<usize>>() <= 1450);
}

#[test]
fn a_removed_key_panics_with_the_cause() {
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
