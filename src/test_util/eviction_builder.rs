//! [`EvictionBuilder`]: evictions to call hooks with.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::detached_handle::detached_with_id;
use crate::connection::Liveness;
use crate::eviction::{ConnectionId, Eviction, Seats};
use crate::monitor::{PeerKernel, Reason, RttEstimate, Stats};
use crate::session::{RemovedSeat, SessionMap};

/// Returns a builder of the [`Eviction`] of a connection that ended for `reason`.
///
/// Unless it is set otherwise, the connection has a new id and lasted 60 s without any traffic: the
/// peer was last seen when it opened, there is no round trip, all counters are 0, and there are no
/// seats and no session.
///
/// ```
/// use tower_ws_liveness::{Eviction, Reason, test_util};
///
/// /// The code under test.
/// fn offline_message(ev: &Eviction) -> Option<String> {
///     let (user, _) = ev.seats::<String, u32>().next()?;
///     matches!(ev.reason(), Reason::HeartbeatTimeout { .. }).then(|| format!("{user} is lost"))
/// }
///
/// let lost = test_util::eviction(Reason::HeartbeatTimeout { missed: 1 }).seat("ann".to_owned(), 7_u32);
/// assert_eq!(offline_message(&lost.build()).as_deref(), Some("ann is lost"));
///
/// let left = test_util::eviction(Reason::PeerClosed { code: Some(1000) }).seat("ann".to_owned(), 7_u32);
/// assert_eq!(offline_message(&left.build()), None);
/// ```
pub fn eviction(reason: Reason) -> EvictionBuilder {
    EvictionBuilder {
        eviction: Eviction::for_test(reason),
        last_seen: None,
        idle_for: None,
        rtt: RttEstimate::default(),
        seats: Vec::new(),
    }
}

/// Builds an [`Eviction`]. Made by [`eviction`].
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::test_util::{self, EvictionBuilder};
/// use tower_ws_liveness::{PeerKernel, Reason};
///
/// /// A client that was stopped after an hour.
/// fn stopped_client() -> EvictionBuilder {
///     test_util::eviction(Reason::HeartbeatTimeout { missed: 2 })
///         .lifetime(Duration::from_secs(3600))
///         .peer_kernel(PeerKernel::Acknowledges)
///         .rtt(Duration::from_millis(80))
///         .stats(test_util::stats().pings_sent(120).pongs_received(118).build())
/// }
///
/// let ev = stopped_client().build();
/// assert_eq!(ev.lifetime().as_secs(), 3600);
/// assert_eq!(ev.stats().pongs_received(), 118);
/// ```
#[must_use]
pub struct EvictionBuilder {
    eviction: Eviction,
    last_seen: Option<Instant>,
    idle_for: Option<Duration>,
    rtt: RttEstimate,
    /// Made at the end, since a seat has the handle of the connection, whose id may still be set.
    seats: Vec<MakeSeat>,
}

/// Makes a seat of the connection with this handle.
type MakeSeat = Box<dyn FnOnce(&Liveness) -> Box<dyn Any + Send + Sync> + Send + Sync>;

impl EvictionBuilder {
    /// Sets [`Eviction::id`], which is also that of the seats. By default an id that no connection
    /// has.
    pub fn id(mut self, id: ConnectionId) -> Self {
        self.eviction.id = id;
        self
    }

    /// Sets [`Eviction::label`], as [`Liveness::evict_as`] does. By default [`Reason::as_str`].
    pub fn label(mut self, label: &'static str) -> Self {
        self.eviction.label = Some(label);
        self
    }

    /// Sets [`Eviction::lifetime`], the age of the connection. The default is 60 s.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.eviction.lifetime = lifetime;
        self
    }

    /// Sets [`Eviction::last_seen`]. By default the [lifetime](Self::lifetime) before
    /// [`build`](Self::build): when the connection opened.
    pub fn last_seen(mut self, last_seen: Instant) -> Self {
        self.last_seen = Some(last_seen);
        self
    }

    /// Sets [`Eviction::idle_for`]. The default is the [lifetime](Self::lifetime).
    pub fn idle_for(mut self, idle_for: Duration) -> Self {
        self.idle_for = Some(idle_for);
        self
    }

    /// Adds a sample to [`Eviction::rtt`]: the last one set is [`Rtt::last`](crate::Rtt::last). By
    /// default there is none. Whole microseconds, at most 71 minutes.
    pub fn rtt(mut self, sample: Duration) -> Self {
        self.rtt.sample(sample);
        self
    }

    /// Sets [`Eviction::stats`]. By default all counters are 0.
    pub fn stats(mut self, stats: Stats) -> Self {
        self.eviction.stats = stats;
        self
    }

    /// Sets [`Eviction::peer_kernel`]. The default is [`PeerKernel::Unknown`].
    pub fn peer_kernel(mut self, peer_kernel: PeerKernel) -> Self {
        self.eviction.peer_kernel = peer_kernel;
        self
    }

    /// Sets [`Eviction::session`], as [`Liveness::set_session`] does. By default there is none.
    pub fn session<T>(mut self, session: T) -> Self
    where
        T: Any + Send + Sync,
    {
        self.eviction.session = Some(Arc::new(session));
        self
    }

    /// Adds a seat to [`Eviction::seats`], in no map. Its handle is [detached](super::detached).
    pub fn seat<K, V>(mut self, key: K, value: V) -> Self
    where
        K: Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        self.seats
            .push(Box::new(|live| RemovedSeat::without_map(live, key, value)));
        self
    }

    /// Like [`seat`](Self::seat), for [`Eviction::seats_in`] this map. The map itself is not used:
    /// a connection's seats have left their maps when hooks are called.
    pub fn seat_in<K, V, M>(mut self, map: &Arc<M>, key: K, value: V) -> Self
    where
        K: Send + Sync + 'static,
        V: Send + Sync + 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        let map = Arc::clone(map);
        self.seats.push(Box::new(move |live| {
            RemovedSeat::of_map(live, key, value, &map)
        }));
        self
    }

    /// Returns the eviction.
    #[must_use]
    pub fn build(self) -> Eviction {
        let mut eviction = self.eviction;
        eviction.idle_for = self.idle_for.unwrap_or(eviction.lifetime);
        eviction.last_seen = self.last_seen.unwrap_or_else(|| {
            let now = Instant::now();
            // On some platforms no `Instant` is before the boot.
            now.checked_sub(eviction.lifetime).unwrap_or(now)
        });
        eviction.rtt = self.rtt.get();
        if !self.seats.is_empty() {
            let live = detached_with_id(eviction.id);
            let seats = self.seats.into_iter().map(|make| make(&live)).collect();
            eviction.seats = Some(Seats::new(eviction.id, seats));
        }
        eviction
    }
}

impl fmt::Debug for EvictionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvictionBuilder")
            .field("eviction", &self.eviction)
            .field("last_seen", &self.last_seen)
            .field("idle_for", &self.idle_for)
            .field("rtt", &self.rtt.get())
            .field("seats", &self.seats.len())
            .finish()
    }
}
