//! Several connections per key: groups, such as the devices of each user.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};

use super::seat::Seat;
use crate::eviction::ConnectionId;
use crate::panic_guard;
use crate::sync::{Mutex, MutexGuard};

/// The connections of each key, a bounded number: the devices of each user, the players of each
/// match.
///
/// Connections enter with [`Liveness::register_in`](crate::Liveness::register_in), and leave when
/// they end. A group is created with its first connection and removed with its last one; a hook gets
/// both as [`GroupEvent`]s, for presence. Cheap to clone; clones are the same groups.
///
/// ```
/// use tokio::io::duplex;
/// use tower_ws_liveness::{GroupEvent, Groups, HeartbeatLayer, Reason, ReplacePolicy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let devices: Groups<String, &str> = Groups::builder()
///     .on_event(|event| match event {
///         GroupEvent::FirstIn(user) => println!("{user} is online"),
///         GroupEvent::LastOut(user) => println!("{user} is offline"),
///     })
///     .build();
/// let layer = HeartbeatLayer::default();
/// let (_phone_io, phone) = layer.wrap_server(duplex(64).0);
/// let (_tablet_io, tablet) = layer.wrap_server(duplex(64).0);
/// let (_laptop_io, laptop) = layer.wrap_server(duplex(64).0);
///
/// let policy = ReplacePolicy::newest_wins();
/// for (live, device) in [(&phone, "phone"), (&tablet, "tablet"), (&laptop, "laptop")] {
///     live.register_in(&devices, "alice".to_owned(), device, 2, &policy)?;
/// }
/// assert_eq!(phone.evicted().await.reason(), Reason::Replaced);
/// let present: Vec<&str> = devices.get("alice").iter().map(|seat| **seat).collect();
/// assert_eq!(present, ["tablet", "laptop"]);
/// # Ok(())
/// # }
/// ```
pub struct Groups<K, V>(Arc<Shared<K, V>>);

struct Shared<K, V> {
    table: Mutex<Table<K, V>>,
    is_same: Option<IsSame<V>>,
    on_event: Option<OnEvent<K>>,
}

type IsSame<V> = Box<dyn Fn(&V, &V) -> bool + Send + Sync>;
type OnEvent<K> = Box<dyn Fn(GroupEvent<K>) + Send + Sync>;

struct Table<K, V> {
    /// The seats of each key in the order of their registrations. Never empty.
    groups: HashMap<K, Vec<Seat<V>>>,
    /// The events that the hook has not got yet, in the order of the changes.
    events: VecDeque<GroupEvent<K>>,
    /// A thread calls the hook, and takes all events from the queue before it stops.
    is_delivering: bool,
}

/// A key of [`Groups`] has got its first connection, or has lost its last one.
///
/// An event is created together with the change of the groups, and the hook of
/// [`GroupsBuilder::on_event`] gets each one exactly once, in the order of the changes. So the
/// events of one key alternate, beginning with `FirstIn`. A connection that takes the place of
/// another one causes no event.
///
/// ```
/// use tower_ws_liveness::GroupEvent;
///
/// fn line(event: &GroupEvent<String>) -> String {
///     match event {
///         GroupEvent::FirstIn(user) => format!("first {user}"),
///         GroupEvent::LastOut(user) => format!("last {user}"),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent<K> {
    /// The key had no connection, and has one.
    FirstIn(K),
    /// The key has no connection any more.
    LastOut(K),
}

/// The outcome of an insertion.
pub(super) enum Inserted<V> {
    /// The seat is in the group. These seats are not, the first one being the first to go.
    Displaced(Vec<Seat<V>>),
    /// The group is unchanged, because of this seat.
    Refused(Seat<V>),
}

impl<K, V> Groups<K, V> {
    /// Groups without a hook.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A builder, for groups with a hook.
    pub fn builder() -> GroupsBuilder<K, V> {
        GroupsBuilder {
            is_same: None,
            on_event: None,
        }
    }

    /// The number of keys that have a connection.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table().groups.len()
    }

    /// Whether no key has a connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table().groups.is_empty()
    }

    fn table(&self) -> MutexGuard<'_, Table<K, V>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the hook for all queued events, unless a thread is doing so, which then takes these
    /// too. The caller holds no lock.
    pub(super) fn deliver_events(&self) {
        let Some(on_event) = &self.0.on_event else {
            return;
        };
        let mut table = self.table();
        if table.is_delivering {
            return;
        }
        table.is_delivering = true;
        while let Some(event) = table.events.pop_front() {
            drop(table);
            let slow = |took_ms| tracing::warn!(took_ms, "a hook of groups was slow");
            let panicked = |panic: &str| tracing::warn!(panic, "a hook of groups panicked");
            panic_guard::call_timed(|| on_event(event), slow, panicked);
            table = self.table();
        }
        table.is_delivering = false;
    }
}

impl<K: Eq + Hash, V> Groups<K, V> {
    /// The seats of `key`, in the order of their registrations; empty if there are none.
    ///
    /// A connection that has just ended may still be among them.
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> Vec<Seat<V>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.table().groups.get(key).cloned().unwrap_or_default()
    }

    /// All keys with their seats at one moment, in no order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(K, Vec<Seat<V>>)>
    where
        K: Clone,
    {
        let table = self.table();
        let groups = table.groups.iter();
        groups
            .map(|(key, group)| (key.clone(), group.clone()))
            .collect()
    }

    /// Inserts `seat` as the newest of its group. Displaces, in this order, the connection's own
    /// seat, those of the same member, and as many as are too many: of ended connections first,
    /// then the oldest ones. Changes nothing if `admit` returns false for one of the latter two.
    pub(super) fn insert(
        &self,
        key: K,
        seat: Seat<V>,
        max: NonZeroUsize,
        admit: &mut dyn FnMut(&Seat<V>) -> bool,
    ) -> Inserted<V>
    where
        K: Clone,
    {
        let mut table = self.table();
        let Some(group) = table.groups.get_mut(&key) else {
            // Cloned before the insertion, and queued after it: both may panic.
            let event = self.0.on_event.is_some().then(|| key.clone());
            table.groups.insert(key, vec![seat]);
            table.events.extend(event.map(GroupEvent::FirstIn));
            return Inserted::Displaced(Vec::new());
        };
        let is_same = |other: &Seat<V>| match &self.0.is_same {
            Some(is_same) => is_same(other, &seat),
            None => false,
        };
        let rank = |other: &Seat<V>| match other {
            own if own.id() == seat.id() => Rank::Own,
            same if is_same(same) => Rank::SameMember,
            ended if ended.live().has_ended() => Rank::Ended,
            _ => Rank::Other,
        };
        // Each is ranked once, since a connection may end meanwhile.
        let ranks: Vec<Rank> = group.iter().map(rank).collect();
        let mut leaving: Vec<usize> = (0..group.len()).collect();
        leaving.sort_by_key(|&index| ranks[index]);
        let must_leave = ranks.iter().filter(|rank| **rank <= Rank::SameMember);
        // The number of connections does not grow if one of them is the connection's own.
        let grows = !ranks.contains(&Rank::Own);
        let too_many = if grows {
            (group.len() + 1).saturating_sub(max.get())
        } else {
            0
        };
        leaving.truncate(too_many.max(must_leave.count()));
        let refusing = leaving.iter().map(|&index| &group[index]);
        if let Some(occupant) = refusing.into_iter().find(|occupant| !admit(occupant)) {
            return Inserted::Refused(occupant.clone());
        }
        let mut remaining: Vec<Option<Seat<V>>> = group.drain(..).map(Some).collect();
        let leaving = leaving
            .into_iter()
            .flat_map(|index| remaining[index].take());
        let displaced = leaving.collect();
        group.extend(remaining.into_iter().flatten());
        group.push(seat);
        drop(table);
        // Dropped explicitly: a key may panic when it is dropped, and a panic in a drop at the end of
        // a function leaks the return value (rust-lang/rust#47949).
        panic_guard::catch(|| drop(key));
        Inserted::Displaced(displaced)
    }

    /// Removes the seat of a connection, and calls the hook if it was the last one of its group.
    pub(super) fn remove(&self, key: &K, id: ConnectionId) -> Option<Seat<V>> {
        let mut table = self.table();
        let group = table.groups.get_mut(key)?;
        let index = group.iter().position(|seat| seat.id() == id)?;
        // The last seat goes with its group: the second lookup may panic, and must not leave an
        // empty one.
        let (seat, mut emptied) = if group.len() == 1 {
            let (key, mut group) = table.groups.remove_entry(key)?;
            (group.remove(index), Some(key))
        } else {
            (group.remove(index), None)
        };
        if self.0.on_event.is_some() {
            let event = emptied.take().map(GroupEvent::LastOut);
            table.events.extend(event);
        }
        // Before the key is dropped, which is the application's.
        drop(table);
        self.deliver_events();
        Some(seat)
    }
}

/// The order in which seats leave a group for a newer one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Own,
    SameMember,
    Ended,
    Other,
}

/// Builds [`Groups`]. Created by [`Groups::builder`].
///
/// ```
/// use tower_ws_liveness::{GroupEvent, Groups};
///
/// struct Device {
///     name: String,
/// }
///
/// let (events, _receiver) = std::sync::mpsc::channel();
/// let users = Groups::<String, Device>::builder()
///     .same_member(|one, other| one.name == other.name)
///     .on_event(move |event: GroupEvent<String>| {
///         let _ = events.send(event); // in order
///     })
///     .build();
/// # assert!(users.is_empty());
/// ```
#[must_use = "call `build`"]
pub struct GroupsBuilder<K, V> {
    is_same: Option<IsSame<V>>,
    on_event: Option<OnEvent<K>>,
}

impl<K, V> GroupsBuilder<K, V> {
    /// Decides whether two values are of one member of a group, such as one device that has
    /// reconnected. The older one then goes first, even if the group is not full. Default: each
    /// connection is a member of its own.
    ///
    /// Called under the lock of the groups: it must only compare.
    pub fn same_member<F>(mut self, is_same: F) -> Self
    where
        F: Fn(&V, &V) -> bool + Send + Sync + 'static,
    {
        self.is_same = Some(Box::new(is_same));
        self
    }

    /// Sets the hook that gets the [`GroupEvent`]s. Default: none.
    ///
    /// It is called outside of every lock of this crate, by one thread at a time: the one that
    /// changed the groups, or another one that is calling the hook at that moment and calls it for
    /// the next event afterwards. So when `register_in` or `evicted` returns, the event has been
    /// delivered, unless another thread is calling the hook for an earlier one.
    ///
    /// A `LastOut` comes before the eviction hooks of the connection, unless another thread is
    /// calling the hook at that moment. The hook may look at the
    /// groups, which may have changed since the event, register and evict connections; events that
    /// this causes come after it has returned. It must not block, since the events of all keys wait
    /// for it, and not rely on the context of a runtime. A call of 100 ms or longer and a panic are
    /// logged at WARN; the next event is delivered all the same.
    pub fn on_event<F>(mut self, hook: F) -> Self
    where
        F: Fn(GroupEvent<K>) + Send + Sync + 'static,
    {
        self.on_event = Some(Box::new(hook));
        self
    }

    /// Creates the groups.
    #[must_use]
    pub fn build(self) -> Groups<K, V> {
        Groups(Arc::new(Shared {
            table: Mutex::new(Table {
                groups: HashMap::new(),
                events: VecDeque::new(),
                is_delivering: false,
            }),
            is_same: self.is_same,
            on_event: self.on_event,
        }))
    }
}

impl<K, V> Clone for Groups<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Groups<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for Groups<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").finish_non_exhaustive()
    }
}

impl<K, V> fmt::Debug for GroupsBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupsBuilder").finish_non_exhaustive()
    }
}
