use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// The span of the top level.
const RANGE: u64 = 1 << (BITS * LEVELS as u32);

fn advance<T>(wheel: &mut Wheel<T>, now: u64) -> Vec<Key> {
    let mut expired = Vec::new();
    wheel.advance(now, &mut expired);
    expired
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
        for (s, &head) in level.heads.iter().enumerate() {
            assert_eq!(level.occupied >> s & 1 == 1, head != NIL, "bit {l}/{s}");
            let (mut index, mut prev) = (head, NIL);
            while index != NIL {
                let node = &wheel.nodes[index as usize];
                let place = Place::Slot {
                    level: l as u8,
                    slot: s as u8,
                };
                assert_eq!((node.place, node.prev), (place, prev));
                let ahead = (s as u64).wrapping_sub(wheel.now >> shift) & FURTHEST;
                let start = ((wheel.now >> shift) + ahead) << shift;
                assert!(start <= node.when.max(wheel.now), "late: {l}/{s}");
                assert!(l == 0 || ahead > 0, "not drained: {l}/{s}");
                linked += 1;
                (prev, index) = (index, node.next);
            }
        }
    }
    let nodes = wheel.nodes.iter().map(|(_, node)| node.place);
    assert_eq!(
        linked,
        nodes.filter(|&place| place != Place::Parked).count()
    );
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
    assert!(size_of::<Wheel<usize>>() <= 1440);
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

#[derive(Clone, Debug)]
enum Op {
    /// A deadline so far from now; negative is past.
    Insert(i128),
    Rearm(prop::sample::Index, i128),
    Remove(prop::sample::Index),
    /// A step from now; negative is backwards.
    Advance(i128),
    Follow,
}

fn distance() -> impl Strategy<Value = i128> {
    // Any bit length is as likely as any other, so that each level and each border between two is met.
    let scaled = (0..64u32, any::<u64>(), -1..=1i128).prop_map(|(bits, random, off)| {
        i128::from(1u64 << bits | random >> (63 - bits) >> 1) + off
    });
    prop_oneof![
        1 => -200..=0i128,
        3 => 0..200i128,
        6 => scaled.clone().prop_filter("in range", |d| *d < 1 << 38),
        1 => scaled,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => distance().prop_map(Op::Insert),
        3 => (index(), distance()).prop_map(|(i, d)| Op::Rearm(i, d)),
        2 => index().prop_map(Op::Remove),
        3 => distance().prop_map(Op::Advance),
        2 => Just(Op::Follow),
    ]
}

/// What the wheel must do, in the plainest form: deadline per entry, `None` when parked.
#[derive(Default)]
struct Model {
    now: u64,
    entries: BTreeMap<u32, (Option<u64>, usize)>,
}

impl Model {
    fn tick(&self, distance: i128) -> u64 {
        (i128::from(self.now) + distance).clamp(0, u64::MAX.into()) as u64
    }

    fn pick(&self, index: prop::sample::Index) -> Option<Key> {
        let keys: Vec<u32> = self.entries.keys().copied().collect();
        (!keys.is_empty()).then(|| Key(*index.get(&keys)))
    }

    fn earliest(&self) -> Option<u64> {
        self.entries.values().filter_map(|(when, _)| *when).min()
    }

    /// Advances both and compares what expired.
    fn advance(&mut self, wheel: &mut Wheel<usize>, now: u64) {
        self.now = self.now.max(now);
        let mut due = Vec::new();
        for (&key, (when, _)) in &mut self.entries {
            if when.is_some_and(|when| when <= self.now) {
                *when = None;
                due.push(key);
            }
        }
        let mut expired: Vec<u32> = advance(wheel, now).iter().map(|key| key.0).collect();
        expired.sort_unstable();
        assert_eq!(expired, due, "at {}", self.now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn behaves_like_the_model(start in prop_oneof![Just(0), any::<u64>(), 0..1u64 << 40], ops in prop::collection::vec(op(), 1..80)) {
        let mut wheel = Wheel::new(start);
        let mut model = Model { now: start, ..Model::default() };
        for (serial, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert(distance) => {
                    let when = model.tick(distance);
                    let key = wheel.insert(when, serial);
                    let old = model.entries.insert(key.0, (Some(when), serial));
                    prop_assert!(old.is_none(), "key in use handed out");
                }
                Op::Rearm(index, distance) => {
                    let when = model.tick(distance);
                    if let Some(key) = model.pick(index) {
                        wheel.rearm(key, when);
                        model.entries.get_mut(&key.0).unwrap().0 = Some(when);
                    }
                }
                Op::Remove(index) => {
                    if let Some(key) = model.pick(index) {
                        prop_assert_eq!(wheel.remove(key), model.entries.remove(&key.0).unwrap().1);
                    }
                }
                Op::Advance(step) => {
                    let now = model.tick(step);
                    model.advance(&mut wheel, now);
                }
                Op::Follow => {
                    if let Some(at) = wheel.next_expiration() {
                        model.advance(&mut wheel, at);
                    }
                }
            }
            check(&wheel);
            prop_assert_eq!(wheel.len(), model.entries.len());
            prop_assert!(wheel.nodes.iter().all(|(k, node)| model.entries.get(&(k as u32)).is_some_and(|e| e.1 == node.value)));
            prop_assert!(model.entries.iter().all(|(&k, e)| wheel.get(Key(k)) == Some(&e.1)));
            let (next, earliest) = (wheel.next_expiration(), model.earliest());
            prop_assert_eq!(next.is_some(), earliest.is_some());
            if let (Some(next), Some(earliest)) = (next, earliest) {
                prop_assert!(next <= earliest.max(model.now), "late: {next} > {earliest}");
                prop_assert_eq!(next > model.now, earliest > model.now, "no progress, or due and not said");
            }
        }
        // Whatever is left within a few ranges is reached step by step; each entry costs at most one step per level and turn.
        let horizon = model.now.saturating_add(4 * RANGE);
        let bound = model.entries.len() * (LEVELS + 5) + 1;
        let mut steps = 0;
        while let Some(at) = wheel.next_expiration().filter(|at| *at <= horizon) {
            model.advance(&mut wheel, at);
            steps += 1;
            prop_assert!(steps <= bound, "{steps} steps");
        }
        prop_assert!(model.earliest().is_none_or(|when| when > horizon));
        for key in model.entries.keys() {
            wheel.remove(Key(*key));
        }
        prop_assert!(wheel.is_empty());
        check(&wheel);
    }
}
