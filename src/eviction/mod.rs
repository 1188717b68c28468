//! The end of a connection as the application sees it: [`Eviction`], [`Reason`], [`Evicted`].
//!
//! On every path, an upgraded connection ends once and for one [`Reason`]. A connection that the
//! peer closes with a complete closing handshake is "evicted" too: it is removed from the set of
//! open connections.

mod connection_id;
mod evicted;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::monitor::{PeerKernel, Rtt, Stats};
use crate::panic_guard::discard;

pub(crate) use crate::monitor::Reason;
pub use connection_id::{ConnectionId, ParseConnectionIdError};
pub use evicted::Evicted;

/// The seats that a connection held when it ended.
///
/// Each is a pair of key and seat, type-erased because only the application knows the types.
#[derive(Clone)]
pub(crate) struct Seats(Arc<RemovedSeats>);

struct RemovedSeats {
    connection: ConnectionId,
    seats: Vec<Box<dyn Any + Send + Sync>>,
}

impl Seats {
    pub(crate) fn new(connection: ConnectionId, seats: Vec<Box<dyn Any + Send + Sync>>) -> Self {
        Self(Arc::new(RemovedSeats { connection, seats }))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(dyn Any + Send + Sync)> {
        self.0.seats.iter().map(|seat| &**seat)
    }

    fn len(&self) -> usize {
        self.0.seats.len()
    }
}

impl Drop for RemovedSeats {
    fn drop(&mut self) {
        // One by one, because a second panic during the drop of the whole list would abort the
        // process.
        for seat in self.seats.drain(..) {
            discard(self.connection, seat);
        }
    }
}

/// The end of a connection: its reason, and the connection's state at that moment.
///
/// A snapshot: it can be cloned, sent to other tasks and kept, and does not keep the connection
/// open. It keeps the session value and the seats alive, if there are any.
///
/// ```
/// use std::time::Duration;
///
/// use tokio::{io::duplex, time::sleep};
/// use tower_ws_liveness::{HeartbeatLayer, Reason};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let (_io, live) = HeartbeatLayer::default().wrap_server(duplex(64).0);
/// live.set_session("alice".to_owned());
/// sleep(Duration::from_secs(5)).await;
/// live.evict(4000, "kicked");
///
/// let eviction = live.evicted().await;
/// assert_eq!(eviction.reason(), Reason::Kicked { code: 4000 });
/// assert_eq!(eviction.lifetime().as_secs(), 5);
/// let user = eviction.session::<String>().expect("the session's value");
/// assert_eq!(*user, "alice");
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Eviction {
    pub(crate) id: ConnectionId,
    pub(crate) reason: Reason,
    pub(crate) label: Option<&'static str>,
    pub(crate) lifetime: Duration,
    pub(crate) last_seen: Instant,
    pub(crate) idle_for: Duration,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
    pub(crate) peer_kernel: PeerKernel,
    pub(crate) session: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) seats: Option<Seats>,
}

impl Eviction {
    /// The id of the connection.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The reason of the end.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The cause of the end as the label of a metric: the label that was passed to
    /// [`Liveness::evict_as`](crate::Liveness::evict_as), else [`Reason::as_str`].
    ///
    /// ```
    /// use tokio::io::duplex;
    /// use tower_ws_liveness::{HeartbeatLayer, Reason};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let layer = HeartbeatLayer::default();
    /// let [slow, rude] = [(); 2].map(|()| layer.wrap_server(duplex(64).0));
    /// assert!(slow.1.evict_as("slow_consumer", 4000, "too slow"));
    /// assert!(rude.1.evict(4000, "by an administrator"));
    /// let (slow, rude) = (slow.1.evicted().await, rude.1.evicted().await);
    /// assert_eq!([slow.reason(), rude.reason()], [Reason::Kicked { code: 4000 }; 2]);
    /// assert_eq!([slow.label(), rude.label()], ["slow_consumer", "kicked"]);
    /// # }
    /// ```
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.label.unwrap_or(self.reason.as_str())
    }

    /// The time from the upgrade to the end.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The time at which the last byte of any kind from the peer was read; the time of the upgrade
    /// if there was none.
    #[must_use]
    pub fn last_seen(&self) -> Instant {
        self.last_seen
    }

    /// The time from the last byte of a data message in the watched directions to the end.
    ///
    /// Pings, pongs and Close frames do not count. See [`Traffic`](crate::Traffic) for the
    /// directions. If there was no such byte, the time from the upgrade to the end.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.idle_for
    }

    /// The round-trip times of the layer's own pings. `None` if there was no pong.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.rtt
    }

    /// Counters since the upgrade.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether the peer's kernel still acknowledged bytes when its program no longer answered.
    ///
    /// Asked at a [`Reason::HeartbeatTimeout`], and at a [`Reason::WriteStalled`] whose write was
    /// tried again, where the kernel can be asked: see [`Stats::unacknowledged_bytes`].
    /// [`PeerKernel::Unknown`] otherwise, and if what it shows may be either.
    #[must_use]
    pub fn peer_kernel(&self) -> PeerKernel {
        self.peer_kernel
    }

    /// The value in the connection's session slot.
    ///
    /// `None` if no value was set, if the value has another type, or if the slot had been emptied
    /// before this eviction was requested: see
    /// [`Liveness::set_session`](crate::Liveness::set_session).
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
            .field("label", &self.label())
            .field("lifetime", &self.lifetime)
            .field("last_seen", &self.last_seen)
            .field("idle_for", &self.idle_for)
            .field("rtt", &self.rtt)
            .field("stats", &self.stats)
            .field("peer_kernel", &self.peer_kernel)
            // The value's type is unknown here, so only its presence is shown.
            .field("has_session", &self.session.is_some())
            .field("seats", &self.seats.as_ref().map_or(0, Seats::len))
            .finish()
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Eviction {
    /// The eviction of a connection that has lasted a minute, and whose peer was seen just now.
    pub(crate) fn for_test(reason: Reason) -> Self {
        let lifetime = Duration::from_secs(60);
        Self {
            id: ConnectionId::next(),
            reason,
            label: None,
            lifetime,
            last_seen: Instant::now(),
            idle_for: lifetime,
            rtt: None,
            stats: Stats::default(),
            peer_kernel: PeerKernel::Unknown,
            session: None,
            seats: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessors_return_the_values_of_the_fields() {
        let eviction = Eviction::for_test(Reason::MaxLifetime);
        assert_eq!(eviction.id(), eviction.id);
        assert_eq!(eviction.reason(), Reason::MaxLifetime);
        assert_eq!(eviction.label(), "max_lifetime");
        assert_eq!(eviction.lifetime(), Duration::from_secs(60));
        assert_eq!(eviction.last_seen(), eviction.last_seen);
        assert_eq!(eviction.idle_for(), Duration::from_secs(60));
        assert_eq!(eviction.rtt(), None);
        assert_eq!(eviction.stats(), Stats::default());
    }

    #[test]
    fn session_returns_only_a_value_of_its_type() {
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
    fn eviction_is_send_and_sync() {
        fn assert_send_sync<T: Send + Sync + 'static>() {}
        assert_send_sync::<Eviction>();
    }
}
