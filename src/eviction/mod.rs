//! The end of a connection as the application sees it: [`Eviction`], its reason, the handler's error.
//!
//! Each upgraded connection ends once, for one [`Reason`], on whatever path. A connection that the peer closed in good order is
//! "evicted" too: it leaves the set of live connections.

mod connection_id;
mod evicted;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::monitor::{Rtt, Stats};
use crate::panic_guard::discard;

pub(crate) use crate::monitor::Reason;
pub use connection_id::ConnectionId;
pub use evicted::Evicted;

/// The seats that a connection held to its end, with their keys: each a pair of types that only the
/// application knows.
#[derive(Clone)]
pub(crate) struct Seats(Arc<Taken>);

struct Taken {
    from: ConnectionId,
    seats: Vec<Box<dyn Any + Send + Sync>>,
}

impl Seats {
    pub(crate) fn new(from: ConnectionId, seats: Vec<Box<dyn Any + Send + Sync>>) -> Self {
        Self(Arc::new(Taken { from, seats }))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(dyn Any + Send + Sync)> {
        self.0.seats.iter().map(|seat| &**seat)
    }

    fn len(&self) -> usize {
        self.0.seats.len()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // One by one: if two of them panicked in one go, the process would be aborted.
        for seat in self.seats.drain(..) {
            discard(self.from, seat);
        }
    }
}

/// A connection's end: its reason, and what the connection looked like in that moment.
///
/// A snapshot: it can be cloned, sent elsewhere and kept, and does not keep the connection open. It
/// does keep the session value and the seats alive, if there are any.
#[derive(Clone)]
#[non_exhaustive]
pub struct Eviction {
    pub(crate) id: ConnectionId,
    pub(crate) reason: Reason,
    pub(crate) lifetime: Duration,
    pub(crate) last_seen: Instant,
    pub(crate) idle_for: Duration,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
    pub(crate) session: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) seats: Option<Seats>,
}

impl Eviction {
    /// Which connection ended.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Why it ended.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How long it lasted: from the upgrade to the end.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// When the last byte came from the peer, whatever it belonged to. The time of the upgrade if
    /// none ever came.
    #[must_use]
    pub fn last_seen(&self) -> Instant {
        self.last_seen
    }

    /// How long, at the end, no byte of a data message had passed in the watched direction.
    ///
    /// Pings, pongs and Close frames do not count. See [`Traffic`](crate::Traffic) for the
    /// directions. If there never was such a byte, this is counted from the upgrade.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.idle_for
    }

    /// The round-trip times measured by pings. `None` if no ping was ever answered.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.rtt
    }

    /// What passed through the connection.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The value in the connection's session slot.
    ///
    /// `None` if the slot was never filled, or with a value of another type, or if it had been emptied
    /// when this eviction was asked for: see [`Liveness::set_session`](crate::Liveness::set_session).
    #[must_use]
    pub fn session<T>(&self) -> Option<Arc<T>>
    where
        T: Any + Send + Sync,
    {
        self.session.clone()?.downcast().ok()
    }
}

impl fmt::Debug for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eviction")
            .field("id", &self.id)
            .field("reason", &self.reason)
            .field("lifetime", &self.lifetime)
            .field("last_seen", &self.last_seen)
            .field("idle_for", &self.idle_for)
            .field("rtt", &self.rtt)
            .field("stats", &self.stats)
            // The value's type is unknown here; that there is one is worth showing.
            .field("has_session", &self.session.is_some())
            .field("seats", &self.seats.as_ref().map_or(0, Seats::len))
            .finish()
    }
}

#[cfg(test)]
impl Eviction {
    /// The end of a connection that did nothing, for the tests of this room.
    pub(crate) fn for_test(reason: Reason) -> Self {
        Self {
            id: ConnectionId::next(),
            reason,
            lifetime: Duration::from_secs(60),
            last_seen: Instant::now(),
            idle_for: Duration::from_secs(20),
            rtt: None,
            stats: Stats::default(),
            session: None,
            seats: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_it_was_built_from() {
        let eviction = Eviction::for_test(Reason::MaxLifetime);
        assert_eq!(eviction.id(), eviction.id);
        assert_eq!(eviction.reason(), Reason::MaxLifetime);
        assert_eq!(eviction.lifetime(), Duration::from_secs(60));
        assert_eq!(eviction.last_seen(), eviction.last_seen);
        assert_eq!(eviction.idle_for(), Duration::from_secs(20));
        assert_eq!(eviction.rtt(), None);
        assert_eq!(eviction.stats(), Stats::default());
    }

    #[test]
    fn session_is_found_by_its_type_only() {
        let mut eviction = Eviction::for_test(Reason::Drained);
        assert!(eviction.session::<String>().is_none());
        assert!(format!("{eviction:?}").contains("has_session: false"));

        let session = Arc::new("alice".to_owned());
        eviction.session = Some(session.clone());
        let found = eviction.session::<String>().unwrap();
        assert!(Arc::ptr_eq(&found, &session));
        assert!(eviction.session::<u32>().is_none());
        assert!(format!("{eviction:?}").contains("has_session: true"));

        // The clone shares the session instead of copying it.
        let found = eviction.clone().session::<String>().unwrap();
        assert!(Arc::ptr_eq(&found, &session));
    }

    #[test]
    fn is_sent_between_tasks() {
        fn assert_send_sync<T: Send + Sync + 'static>() {}
        assert_send_sync::<Eviction>();
    }
}
