//! A hierarchical timer wheel over `u64` ticks.
//!
//! Pure data: no clock, no task, no waker. The driver passes the current time to [`Wheel::advance`]
//! and sleeps until [`Wheel::next_expiration`]. The caller defines the length of a tick.
//!
//! # Layout
//!
//! Five levels of 64 slots. A slot of level `L` spans `64^L` ticks, and each level is a ring that
//! starts at the current time, so level `L` holds the deadlines that are less than 64 of its slots
//! ahead. With ticks of a millisecond the levels span 64 ms, 4 s, 4.4 min, 4.7 h and 12.4 days. An
//! entry with a later deadline is kept in the furthest slot of the top level and placed again when
//! time reaches that slot.
//!
//! When time reaches a slot, its entries either have expired or move to a lower level (they
//! *cascade*): at most four times in all, plus once per 12 days for deadlines beyond the range.
//!
//! A slot can hold any number of entries, and the caller holds a lock while it advances the wheel.
//! So a call sets the time immediately, but drains the slots that time has reached only up to a
//! limit of entries; later calls continue. Between two calls the remaining entries can be rearmed
//! and removed like any others. New entries may be inserted into a slot that is being drained; they
//! are then visited once more than needed.
//!
//! # Cost
//!
//! | operation | time | allocation |
//! |---|---|---|
//! | [`insert`](Wheel::insert) | O(1) | amortised growth of one `Vec` |
//! | [`rearm`](Wheel::rearm), [`remove`](Wheel::remove), [`get`](Wheel::get) | O(1) | none |
//! | [`next_expiration`](Wheel::next_expiration) | O(levels) | none |
//! | [`advance`](Wheel::advance), each call | O(levels + limit) | growth of the caller's `Vec` |
//! | all calls until done | O(levels + entries in the slots passed), for any jump | the same |
//!
//! An entry takes `size_of::<T>()` plus 16 bytes (deadline and two links), up to alignment. The
//! wheel itself takes some 1.4 KB. Lists are linked through the slab by index, so an entry is
//! unlinked in place and its position is reused first: the memory grows only with the largest
//! number of simultaneous entries. When the last entry is removed, storage of more than
//! [`RETAINED_ENTRIES`] entries is freed. Until then the storage of a past peak stays allocated,
//! because keys are positions and entries cannot move.

use std::{fmt, mem};

use slab::Slab;

/// Levels of the hierarchy.
const LEVELS: usize = 5;

/// log2 of the slots per level. With 64 slots the occupancy map of a level is one `u64`.
const SLOT_BITS: u32 = 6;

/// The furthest slot of a level, counted from the slot that holds the current time.
const MAX_SLOT_DISTANCE: u64 = (1 << SLOT_BITS) - 1;

/// Entries whose storage an empty wheel keeps, so that single connections that open and end one
/// after another do not allocate each time.
const RETAINED_ENTRIES: usize = 256;

/// Full storage grows by an eighth. `Vec` would double it, and with each entry up to one more would
/// be allocated that is not used.
const GROWTH_DIVISOR: usize = 8;

/// The fewest entries by which storage grows.
const MIN_GROWTH_ENTRIES: usize = 16;

/// The end of a list. Never the position of an entry.
const NIL: u32 = u32::MAX;

/// [`Link`] values from here on denote slots; positions of entries are lower.
const FIRST_SLOT_LINK: u32 = NIL - ((LEVELS as u32) << SLOT_BITS);

/// Identifies an entry from [`Wheel::insert`] until [`Wheel::remove`].
///
/// Keys are reused: after the removal a key may identify an unrelated entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(u32);

/// Entries of type `T` that are either linked, with a deadline, or parked after it expired.
pub(crate) struct Wheel<T> {
    now: u64,
    levels: [Level; LEVELS],
    nodes: Slab<Node<T>>,
}

struct Level {
    /// Bit `i` is set if and only if the list of slot `i` is not empty.
    occupied: u64,
    /// The occupied slots that time has reached and that must be drained.
    reached: u64,
    heads: [u32; 1 << SLOT_BITS],
    /// The remaining entries of the slot that is being drained. They have a list of their own,
    /// because entries may be inserted into that slot again.
    draining: u32,
}

struct Node<T> {
    when: u64,
    prev: Link,
    /// The next entry in the list; meaningless in a parked entry.
    next: u32,
    value: T,
}

/// A [`Before`] in four bytes, since every connection has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link(u32);

/// What precedes an entry. The slot is stored: it cannot be computed from the deadline alone, since
/// it depends on the time at which the entry was linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Nothing: the entry has expired and is in no list.
    Parked,
    /// The head of a list: that of this slot, or that of its entries which are being drained.
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

    /// Adds an entry that expires at tick `when`, or with the next [`advance`](Self::advance) if
    /// that is not in the future.
    ///
    /// # Panics
    ///
    /// At 2³² − 321 entries.
    pub(crate) fn insert(&mut self, when: u64, value: T) -> Key {
        if self.nodes.len() == self.nodes.capacity() {
            let more = (self.nodes.len() / GROWTH_DIVISOR).max(MIN_GROWTH_ENTRIES);
            self.nodes.reserve_exact(more);
        }
        let vacant = self.nodes.vacant_entry();
        let index = u32::try_from(vacant.key())
            .ok()
            .filter(|&index| index < FIRST_SLOT_LINK)
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

    /// Sets the deadline of an entry, linked or parked, to tick `when`.
    ///
    /// # Panics
    ///
    /// If there is no entry with this key.
    #[track_caller]
    pub(crate) fn rearm(&mut self, key: Key, when: u64) {
        self.unlink(key.0);
        self.node(key.0).when = when;
        self.link(key.0);
    }

    /// Removes an entry, linked or parked.
    ///
    /// # Panics
    ///
    /// If there is no entry with this key.
    #[track_caller]
    pub(crate) fn remove(&mut self, key: Key) -> T {
        self.unlink(key.0);
        let node = self.nodes.remove(key.0 as usize);
        // At most one in RETAINED_ENTRIES removals frees, since the storage must first grow past
        // that.
        if self.nodes.is_empty() && self.nodes.capacity() > RETAINED_ENTRIES {
            self.nodes = Slab::new();
        }
        node.value
    }

    /// Consumes the wheel and returns the values of all entries.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.nodes.into_iter().map(|(_, node)| node.value)
    }

    /// The value of an entry, linked or parked.
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.nodes.get(key.0 as usize).map(|node| &node.value)
    }

    /// The tick at which [`advance`](Self::advance) next has work to do; `None` if no entry is
    /// linked.
    ///
    /// Never later than the earliest deadline. It is earlier if entries must cascade first. It is
    /// in the future unless an entry is due already or the last call was not done, so a caller that
    /// sleeps until this tick and then advances makes progress each time.
    pub(crate) fn next_expiration(&self) -> Option<u64> {
        if self.levels.iter().any(Level::is_draining) {
            return Some(self.now);
        }
        // A higher level can be first: its next slot may begin before the deadlines of a lower
        // level.
        (0..)
            .step_by(SLOT_BITS as usize)
            .zip(&self.levels)
            .filter(|(_, level)| level.occupied != 0)
            .map(|(shift, level)| {
                let current = self.now >> shift;
                (current + level.first_from(current)) << shift
            })
            .min()
    }

    /// Sets the time to `now`, and parks the entries whose deadline is `now` or earlier, visiting
    /// at most `limit` entries. Returns whether it is done; if not, the next call continues, with
    /// any `now`.
    ///
    /// Keys of parked entries are appended to `expired` in no particular order. A parked entry
    /// stays in the wheel, unreported, until it is rearmed or removed. Time never runs backwards:
    /// with an earlier `now` the time does not change.
    #[must_use = "entries may remain to be visited"]
    pub(crate) fn advance(&mut self, now: u64, limit: usize, expired: &mut Vec<Key>) -> bool {
        let before = self.now;
        self.now = now.max(before);
        for (shift, level) in (0..).step_by(SLOT_BITS as usize).zip(&mut self.levels) {
            let first = before >> shift;
            let passed = (self.now >> shift) - first;
            level.reached |= level.occupied & ring(first, passed);
        }
        let mut left = limit;
        // From the lowest level up: entries cascade downwards, to levels whose passed slots are
        // drained already, so none is visited twice. And entries that expire while a large slot
        // cascades need not wait for all of it.
        for level in 0..LEVELS {
            while let Some(index) = self.levels[level].first_reached() {
                if left == 0 {
                    return false;
                }
                left -= 1;
                self.expire_or_cascade(index, expired);
            }
        }
        true
    }

    /// Takes an entry out of a slot that time has reached: parks it if it is due, else cascades it.
    fn expire_or_cascade(&mut self, index: u32, expired: &mut Vec<Key>) {
        self.unlink(index);
        if self.node(index).when <= self.now {
            expired.push(Key(index));
        } else {
            self.link(index);
        }
    }

    /// Inserts an entry that is in no list into the slot for its deadline.
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

    /// Removes an entry from its list, if it is in one.
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
            .expect("the key must be of an entry that was inserted and not removed since")
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
        Self(FIRST_SLOT_LINK + ((level as u32) << SLOT_BITS) + slot as u32)
    }

    fn before(self) -> Before {
        match self.0.checked_sub(FIRST_SLOT_LINK) {
            None => Before::Entry(self.0),
            Some(_) if self == Self::PARKED => Before::Parked,
            Some(slot) => Before::Slot {
                level: (slot >> SLOT_BITS) as usize,
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
            heads: [NIL; 1 << SLOT_BITS],
            draining: NIL,
        }
    }

    /// The distance in slots from `current` to the first occupied slot. There must be one.
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

    /// Makes `index` the head of the list of `slot` and returns the previous head.
    fn push(&mut self, slot: usize, index: u32) -> u32 {
        let head = self.heads[slot];
        self.set_head(slot, index);
        head
    }

    /// Removes the head `index` of the list of `slot`, or of its entries that are being drained.
    fn pop(&mut self, slot: usize, index: u32, next: u32) {
        if self.draining == index {
            self.draining = next;
        } else {
            self.set_head(slot, next);
        }
    }

    /// Whether time has reached entries that were not visited since.
    fn is_draining(&self) -> bool {
        self.draining != NIL || self.reached != 0
    }

    /// One of the entries that time has reached. Starts to drain the next slot when the last one is
    /// empty.
    fn first_reached(&mut self) -> Option<u32> {
        if self.draining == NIL && self.reached != 0 {
            let slot = self.reached.trailing_zeros() as usize;
            self.draining = self.heads[slot];
            self.set_head(slot, NIL);
        }
        (self.draining != NIL).then_some(self.draining)
    }
}

/// The level and slot for the deadline `when` at time `now`.
///
/// This is the lowest level whose ring spans the deadline. Above level 0 it is never the slot of
/// the current time, so a slot can be drained as soon as time enters it; at level 0 the slot of the
/// current time holds the entries that are due already.
fn locate(now: u64, when: u64) -> (usize, usize) {
    let when = when.max(now);
    for level in 0..LEVELS {
        let shift = SLOT_BITS * level as u32;
        if (when >> shift) - (now >> shift) <= MAX_SLOT_DISTANCE {
            return (level, slot_of(when >> shift));
        }
    }
    let top = LEVELS - 1;
    (
        top,
        slot_of((now >> (SLOT_BITS * top as u32)) + MAX_SLOT_DISTANCE),
    )
}

/// The index in its ring of the slot that is the `count`-th since tick 0.
fn slot_of(count: u64) -> usize {
    (count & MAX_SLOT_DISTANCE) as usize
}

/// The bit map of the slots from `first` to `passed` slots later, both included: all of them after
/// a full turn of the ring.
fn ring(first: u64, passed: u64) -> u64 {
    (u64::MAX >> (MAX_SLOT_DISTANCE - passed.min(MAX_SLOT_DISTANCE)))
        .rotate_left(slot_of(first) as u32)
}

#[cfg(test)]
mod tests;
