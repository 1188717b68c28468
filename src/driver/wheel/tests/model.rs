//! Compares random operations on the wheel with a simple model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// The deadline as a distance from now; negative means in the past.
    Insert(i128),
    Rearm(prop::sample::Index, i128),
    Remove(prop::sample::Index),
    /// The distance from now, negative means backwards, and the limit of visited entries.
    Advance(i128, usize),
    /// Advances to `next_expiration` with this limit.
    Follow(usize),
}

fn distance() -> impl Strategy<Value = i128> {
    // Every bit length is equally likely, so that each level and each edge between two is covered.
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

/// Mostly small limits, so that a call leaves entries to visit.
fn limit() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1..4usize, 1 => Just(usize::MAX)]
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => distance().prop_map(Op::Insert),
        3 => (index(), distance()).prop_map(|(i, d)| Op::Rearm(i, d)),
        2 => index().prop_map(Op::Remove),
        3 => (distance(), limit()).prop_map(|(d, l)| Op::Advance(d, l)),
        2 => limit().prop_map(Op::Follow),
    ]
}

/// The expected behaviour: per entry its deadline, `None` when parked, and its value.
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

    /// Advances both and compares what expired. Returns whether it is done.
    fn advance(&mut self, wheel: &mut Wheel<usize>, now: u64, limit: usize) -> bool {
        self.now = self.now.max(now);
        let (expired, done) = advance_once(wheel, now, limit);
        for key in expired {
            let when = self
                .entries
                .get_mut(&key.0)
                .and_then(|(when, _)| when.take());
            let when = when.expect("reported twice, or removed");
            assert!(when <= self.now, "early: {when} at {}", self.now);
        }
        let missed = self.earliest().filter(|&when| when <= self.now);
        assert!(!done || missed.is_none(), "{missed:?} at {}", self.now);
        done
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_wheel_behaves_like_the_model(
        start in prop_oneof![Just(0), any::<u64>(), 0..1u64 << 40],
        ops in prop::collection::vec(op(), 1..80),
        last_limit in limit(),
    ) {
        let mut wheel = Wheel::new(start);
        let mut model = Model { now: start, ..Model::default() };
        let mut done = true;
        for (serial, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert(distance) => {
                    let when = model.tick(distance);
                    let key = wheel.insert(when, serial);
                    let old = model.entries.insert(key.0, (Some(when), serial));
                    prop_assert!(old.is_none(), "the key is in use");
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
                Op::Advance(step, limit) => {
                    let now = model.tick(step);
                    done = model.advance(&mut wheel, now, limit);
                }
                Op::Follow(limit) => {
                    if let Some(at) = wheel.next_expiration() {
                        done = model.advance(&mut wheel, at, limit);
                    }
                }
            }
            check(&wheel);
            prop_assert_eq!(wheel.len(), model.entries.len());
            let values_agree = wheel.nodes.iter().all(|(key, node)| {
                let entry = model.entries.get(&(key as u32));
                entry.is_some_and(|entry| entry.1 == node.value)
            });
            prop_assert!(values_agree);
            prop_assert!(model.entries.iter().all(|(&k, e)| wheel.get(Key(k)) == Some(&e.1)));
            let (next, earliest) = (wheel.next_expiration(), model.earliest());
            // Rearm and remove may also have emptied the list that is being drained.
            let draining = !done && wheel.levels.iter().any(Level::is_draining);
            prop_assert!(draining || !wheel.levels.iter().any(Level::is_draining));
            prop_assert_eq!(next.is_some(), earliest.is_some());
            if let (Some(next), Some(earliest)) = (next, earliest) {
                prop_assert!(next <= earliest.max(model.now), "late: {next} > {earliest}");
                prop_assert_eq!(
                    next > model.now,
                    earliest > model.now && !draining,
                    "no progress, or a due entry is missed"
                );
            }
        }
        // Every entry within four ranges expires. Each costs at most one wake-up per level and turn
        // of the ring, and two if its slot was waiting to be drained.
        let horizon = model.now.saturating_add(4 * RANGE_TICKS);
        let bound = model.entries.len() * (LEVELS + 5 + 2) + 1;
        let mut wake_ups = 0;
        while let Some(at) = wheel.next_expiration().filter(|at| *at <= horizon) {
            model.advance(&mut wheel, at, last_limit);
            wake_ups += 1;
            prop_assert!(wake_ups <= bound, "{wake_ups} wake-ups");
        }
        prop_assert!(model.earliest().is_none_or(|when| when > horizon));
        for key in model.entries.keys() {
            wheel.remove(Key(*key));
        }
        prop_assert!(wheel.is_empty());
        check(&wheel);
    }
}
