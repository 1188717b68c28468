//! A hierarchical timer wheel over `u64` ticks.
//!
//! Pure data: no clock, no task, no waker. The driver says what time it is ([`Wheel::advance`]) and asks when to come back
//! ([`Wheel::next_expiration`]). What a tick means is the caller's business.
//!
//! # Layout
//!
//! Five levels of 64 slots. A slot of level `L` spans `64^L` ticks, and each level is a ring that starts at the current time,
//! so level `L` holds the deadlines which lie less than 64 of its slots ahead. With ticks of a millisecond the levels reach
//! 64 ms, 4 s, 4.4 min, 4.7 h and 12.4 days. A deadline beyond that waits in the furthest slot of the top level and is
//! placed anew when time gets there.
//!
//! When time reaches a slot, its entries either have expired or move to a lower level (they *cascade*): at most four times
//! in all, plus once per 12 days for those beyond the range.
//!
//! A slot can hold any number of entries, and whoever advances time holds others up meanwhile. So time goes on at once, but
//! the slots that it has reached are drained piece by piece, with a limit of entries for each call. Between two pieces what
//! is left can be rearmed and removed like anything else. Such a slot may also take new entries in, which are then looked at
//! once more than needed.
//!
//! # Cost
//!
//! | operation | time | allocation |
//! |---|---|---|
//! | [`insert`](Wheel::insert) | O(1) | amortised growth of one `Vec` |
//! | [`rearm`](Wheel::rearm), [`remove`](Wheel::remove), [`get`](Wheel::get) | O(1) | none |
//! | [`next_expiration`](Wheel::next_expiration) | O(levels) | none |
//! | [`advance`](Wheel::advance), each call | O(levels + limit) | growth of the caller's `Vec` |
//! | all calls until it is done | O(levels + entries in the slots passed), however far time jumps | the same |
//!
//! An entry takes `size_of::<T>()` plus 16 bytes (deadline and two links), up to alignment. The wheel itself is some
//! 1.4 KB. Lists are threaded through the slab by index, so that an entry is cancelled where it stands and its place is the
//! next one to be handed out: churn needs no more memory than the largest number of entries alive at one time. When the last
//! entry goes, storage of more than [`RETAINED`] entries is given back. Until then a past peak stays allocated, because
//! keys are positions and entries cannot move.

use std::{fmt, mem};

use slab::Slab;

/// Levels of the hierarchy.
const LEVELS: usize = 5;

/// log2 of the slots per level; 64 slots make the occupancy map of a level one machine word.
const BITS: u32 = 6;

/// The furthest slot of a level, counted from the slot that holds the current time.
const FURTHEST: u64 = (1 << BITS) - 1;

/// Entries whose storage an empty wheel keeps, so that a lone connection that comes and goes does not allocate each time.
const RETAINED: usize = 256;

/// The end of a list. Never the position of an entry.
const NIL: u32 = u32::MAX;

/// The first number that, as a link, names a slot. No entry has so high a position.
const SLOTS: u32 = NIL - ((LEVELS as u32) << BITS);

/// Names an entry from [`Wheel::insert`] until [`Wheel::remove`].
///
/// Keys are reused after that: a key kept too long may name somebody else's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(u32);

/// Entries of type `T`, each with one deadline or parked after it.
pub(crate) struct Wheel<T> {
    now: u64,
    levels: [Level; LEVELS],
    nodes: Slab<Node<T>>,
}

struct Level {
    /// Bit `i` is set if and only if the list of slot `i` is not empty.
    occupied: u64,
    /// Which of them time has reached, and are to be drained.
    reached: u64,
    heads: [u32; 1 << BITS],
    /// What is left of the slot that is being drained. It is a list of its own, because entries may come back to that slot.
    rest: u32,
}

struct Node<T> {
    when: u64,
    prev: Link,
    /// The next one in the list of the slot; without meaning in a parked entry.
    next: u32,
    value: T,
}

/// What comes before an entry, in as many bytes as a position: every connection has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link(u32);

/// The same, to be matched. The slot is kept, not computed from the deadline: the answer would depend on when the entry
/// was linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Nothing: it has expired, and is in no list.
    Parked,
    /// Nothing: it is the first one in the list of that slot, or in the rest of it.
    Slot {
        level: usize,
        slot: usize,
    },
    Entry(u32),
}

#[cfg(all(test, target_pointer_width = "64"))]
const _: () = assert!(size_of::<Node<[usize; 2]>>() == 32);

impl<T> Wheel<T> {
    /// An empty wheel whose time is `now`. Does not allocate.
    pub(crate) fn new(now: u64) -> Self {
        Self {
            now,
            levels: [const { Level::new() }; LEVELS],
            nodes: Slab::new(),
        }
    }

    /// Number of entries, parked ones included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no entries, not even parked ones.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds an entry that expires at tick `when`, or with the next [`advance`](Self::advance) if that is not in the future.
    ///
    /// # Panics
    ///
    /// At 2³² − 321 entries.
    pub(crate) fn insert(&mut self, when: u64, value: T) -> Key {
        let vacant = self.nodes.vacant_entry();
        let index = u32::try_from(vacant.key())
            .ok()
            .filter(|&index| index < SLOTS)
            .expect("a wheel holds fewer than 2^32 - 320 entries");
        vacant.insert(Node {
            when,
            prev: Link::PARKED,
            next: NIL,
            value,
        });
        self.link(index);
        Key(index)
    }

    /// Gives an entry, linked or parked, the new deadline `when`.
    ///
    /// # Panics
    ///
    /// If `key` names no entry.
    #[track_caller]
    pub(crate) fn rearm(&mut self, key: Key, when: u64) {
        self.unlink(key.0);
        self.node(key.0).when = when;
        self.link(key.0);
    }

    /// Takes an entry, linked or parked, out of the wheel.
    ///
    /// # Panics
    ///
    /// If `key` names no entry.
    #[track_caller]
    pub(crate) fn remove(&mut self, key: Key) -> T {
        self.unlink(key.0);
        let node = self.nodes.remove(key.0 as usize);
        // At most every RETAINED-th removal gets here, since the storage has to grow past that first.
        if self.nodes.is_empty() && self.nodes.capacity() > RETAINED {
            self.nodes = Slab::new();
        }
        node.value
    }

    /// Gives all entries up.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.nodes.into_iter().map(|(_, node)| node.value)
    }

    /// The value of an entry, linked or parked.
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.nodes.get(key.0 as usize).map(|node| &node.value)
    }

    /// The tick at which [`advance`](Self::advance) next has something to do, `None` if all entries are parked or gone.
    ///
    /// Never later than the earliest deadline. It may be earlier, when entries have to cascade first. It is in the future
    /// unless an entry is due already or the last call was not done, so whoever sleeps until this tick and then advances
    /// makes progress each time.
    pub(crate) fn next_expiration(&self) -> Option<u64> {
        if self.levels.iter().any(Level::is_draining) {
            return Some(self.now);
        }
        // A higher level can come first: its next slot may begin just ahead, while this level's ring reaches past that.
        (0..)
            .step_by(BITS as usize)
            .zip(&self.levels)
            .filter(|(_, level)| level.occupied != 0)
            .map(|(shift, level)| {
                let current = self.now >> shift;
                (current + level.first_from(current)) << shift
            })
            .min()
    }

    /// DeadlineMove time to `now`, and parks and reports the entries whose deadline that is or has passed, but looks at no more than
    /// `limit` entries. Returns whether it is done: if not, the next call goes on, whatever time it is then.
    ///
    /// Keys are appended to `expired` in no particular order. A parked entry stays in the wheel until it is rearmed or
    /// removed, and is not reported again before. Time never runs backwards: an earlier `now` counts as the present one.
    #[must_use = "there may be a rest"]
    pub(crate) fn advance(&mut self, now: u64, limit: usize, expired: &mut Vec<Key>) -> bool {
        let before = self.now;
        self.now = now.max(before);
        for (shift, level) in (0..).step_by(BITS as usize).zip(&mut self.levels) {
            let first = before >> shift;
            let passed = (self.now >> shift) - first;
            level.reached |= level.occupied & ring(first, passed);
        }
        let mut left = limit;
        // Upwards saves work: what cascades goes down, where the slots passed are drained already and none is met again.
        // And what comes up while a large slot cascades need not wait for all of that.
        for level in 0..LEVELS {
            while let Some(index) = self.levels[level].first_reached() {
                if left == 0 {
                    return false;
                }
                left -= 1;
                self.settle(index, expired);
            }
        }
        true
    }

    /// Takes an entry out of a slot that time has reached: parks it if it is due, and places it anew if not.
    fn settle(&mut self, index: u32, expired: &mut Vec<Key>) {
        self.unlink(index);
        if self.node(index).when <= self.now {
            expired.push(Key(index));
        } else {
            self.link(index);
        }
    }

    /// Puts an entry that is in no list into the slot for its deadline.
    fn link(&mut self, index: u32) {
        let (level, slot) = locate(self.now, self.node(index).when);
        let head = self.levels[level].push(slot, index);
        if head != NIL {
            self.node(head).prev = Link::entry(index);
        }
        let node = self.node(index);
        node.prev = Link::slot(level, slot);
        node.next = head;
    }

    /// Takes an entry out of its list, if it is in one.
    #[track_caller]
    fn unlink(&mut self, index: u32) {
        let node = self.node(index);
        let next = node.next;
        let prev = mem::replace(&mut node.prev, Link::PARKED);
        match prev.before() {
            Before::Parked => return,
            Before::Slot { level, slot } => self.levels[level].pop(slot, index, next),
            Before::Entry(before) => self.node(before).next = next,
        }
        if next != NIL {
            self.node(next).prev = prev;
        }
    }

    #[track_caller]
    fn node(&mut self, index: u32) -> &mut Node<T> {
        self.nodes
            .get_mut(index as usize)
            .expect("the key of an entry that was inserted and not removed since")
    }
}

impl<T> fmt::Debug for Wheel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wheel")
            .field("now", &self.now)
            .field("len", &self.len())
            .field("next_expiration", &self.next_expiration())
            .finish_non_exhaustive()
    }
}

impl Link {
    const PARKED: Self = Self(NIL);

    fn entry(index: u32) -> Self {
        Self(index)
    }

    fn slot(level: usize, slot: usize) -> Self {
        Self(SLOTS + ((level as u32) << BITS) + slot as u32)
    }

    fn before(self) -> Before {
        match self.0.checked_sub(SLOTS) {
            None => Before::Entry(self.0),
            Some(_) if self == Self::PARKED => Before::Parked,
            Some(slot) => Before::Slot {
                level: (slot >> BITS) as usize,
                slot: slot_of(u64::from(slot)),
            },
        }
    }
}

impl Level {
    const fn new() -> Self {
        Self {
            occupied: 0,
            reached: 0,
            heads: [NIL; 1 << BITS],
            rest: NIL,
        }
    }

    /// How many slots after `current` the first occupied one comes. There must be one.
    fn first_from(&self, current: u64) -> u64 {
        u64::from(
            self.occupied
                .rotate_right(slot_of(current) as u32)
                .trailing_zeros(),
        )
    }

    fn set_head(&mut self, slot: usize, head: u32) {
        self.heads[slot] = head;
        if head == NIL {
            self.occupied &= !(1 << slot);
            self.reached &= !(1 << slot);
        } else {
            self.occupied |= 1 << slot;
        }
    }

    /// Makes `index` the head of a list and returns the head it had.
    fn push(&mut self, slot: usize, index: u32) -> u32 {
        let head = self.heads[slot];
        self.set_head(slot, index);
        head
    }

    /// Makes `next` the head of a list in place of `index`: the list of `slot`, or the rest of what was there.
    fn pop(&mut self, slot: usize, index: u32, next: u32) {
        if self.rest == index {
            self.rest = next;
        } else {
            self.set_head(slot, next);
        }
    }

    /// Whether time has reached entries that were not looked at since.
    fn is_draining(&self) -> bool {
        self.rest != NIL || self.reached != 0
    }

    /// One of the entries that time has reached; the next slot is cut off when nothing is left of the last one.
    fn first_reached(&mut self) -> Option<u32> {
        if self.rest == NIL && self.reached != 0 {
            let slot = self.reached.trailing_zeros() as usize;
            self.rest = self.heads[slot];
            self.set_head(slot, NIL);
        }
        (self.rest != NIL).then_some(self.rest)
    }
}

/// The level and slot for the deadline `when` at time `now`.
///
/// That is the lowest level whose ring reaches as far. Above level 0 this is never the slot of the current time, which is
/// why a slot can be drained as soon as time enters it; at level 0 that slot is the one for what is due already.
fn locate(now: u64, when: u64) -> (usize, usize) {
    let when = when.max(now);
    for level in 0..LEVELS {
        let shift = BITS * level as u32;
        if (when >> shift) - (now >> shift) <= FURTHEST {
            return (level, slot_of(when >> shift));
        }
    }
    let top = LEVELS - 1;
    (top, slot_of((now >> (BITS * top as u32)) + FURTHEST))
}

/// The place in its ring of the slot that is the `count`-th since tick 0.
fn slot_of(count: u64) -> usize {
    (count & FURTHEST) as usize
}

/// The map of the slots from `first` to `passed` slots later, both included: all of them after a full turn.
fn ring(first: u64, passed: u64) -> u64 {
    (u64::MAX >> (FURTHEST - passed.min(FURTHEST))).rotate_left(slot_of(first) as u32)
}

#[cfg(test)]
mod tests;
