//! The wheel against the plainest thing that does the same, piece by piece.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// A deadline so far from now; negative is past.
    Insert(i128),
    Rearm(prop::sample::Index, i128),
    Remove(prop::sample::Index),
    /// A step from now; negative is backwards. At most so many entries are looked at.
    Advance(i128, usize),
    Follow(usize),
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

/// Small ones, so that something is left.
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

    /// Advances both and compares what expired. Returns whether it is done.
    fn advance(&mut self, wheel: &mut Wheel<usize>, now: u64, limit: usize) -> bool {
        self.now = self.now.max(now);
        let (expired, done) = piece(wheel, now, limit);
        for key in expired {
            let when = self
                .entries
                .get_mut(&key.0)
                .and_then(|(when, _)| when.take());
            let when = when.expect("reported twice, or not there");
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
    fn behaves_like_the_model(start in prop_oneof![Just(0), any::<u64>(), 0..1u64 << 40], ops in prop::collection::vec(op(), 1..80), last_limit in limit()) {
        let mut wheel = Wheel::new(start);
        let mut model = Model { now: start, ..Model::default() };
        let mut done = true;
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
            prop_assert!(wheel.nodes.iter().all(|(k, node)| model.entries.get(&(k as u32)).is_some_and(|e| e.1 == node.value)));
            prop_assert!(model.entries.iter().all(|(&k, e)| wheel.get(Key(k)) == Some(&e.1)));
            let (next, earliest) = (wheel.next_expiration(), model.earliest());
            // A rest may also be moved away by others.
            let rest = !done && wheel.levels.iter().any(Level::is_draining);
            prop_assert!(rest || !wheel.levels.iter().any(Level::is_draining));
            prop_assert_eq!(next.is_some(), earliest.is_some());
            if let (Some(next), Some(earliest)) = (next, earliest) {
                prop_assert!(next <= earliest.max(model.now), "late: {next} > {earliest}");
                prop_assert_eq!(next > model.now, earliest > model.now && !rest, "no progress, or due and not said");
            }
        }
        // Whatever is left within a few ranges is reached step by step; each entry costs at most one step per level and turn,
        // and two where its slot was waiting to be drained.
        let horizon = model.now.saturating_add(4 * RANGE);
        let bound = model.entries.len() * (LEVELS + 5 + 2) + 1;
        let mut steps = 0;
        while let Some(at) = wheel.next_expiration().filter(|at| *at <= horizon) {
            model.advance(&mut wheel, at, last_limit);
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
