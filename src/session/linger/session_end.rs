//! The end of a session: what its hooks are given.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::eviction::ConnectionId;
use crate::monitor::Reason;

/// The end of a session: its seat has left the map, and no connection resumes it.
///
/// Given to the hooks of [`LingerBuilder::on_session_end`](super::LingerBuilder::on_session_end),
/// and returned by [`Linger::hand_over`](super::Linger::hand_over).
///
/// ```
/// use tower_ws_liveness::SessionEnd;
///
/// fn log(end: &SessionEnd<String, u32>) {
///     println!("{} has left with {} points: {}", end.key(), end.value(), end.cause());
/// }
/// ```
pub struct SessionEnd<K, V> {
    pub(super) key: K,
    pub(super) value: Arc<V>,
    pub(super) connection: ConnectionId,
    pub(super) reason: Option<Reason>,
    pub(super) away: Duration,
    pub(super) cause: SessionEndCause,
}

impl<K, V> SessionEnd<K, V> {
    /// The key of the seat.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The value of the seat.
    #[must_use]
    pub fn value(&self) -> &Arc<V> {
        &self.value
    }

    /// The last connection of the session.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// Why the last connection ended; `None` if it is still open.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// How long the session had no connection.
    #[must_use]
    pub fn away(&self) -> Duration {
        self.away
    }

    /// Why the session has ended.
    #[must_use]
    pub fn cause(&self) -> SessionEndCause {
        self.cause
    }
}

// Not derived, so that the value need not be `Clone`.
impl<K: Clone, V> Clone for SessionEnd<K, V> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            value: Arc::clone(&self.value),
            connection: self.connection,
            reason: self.reason,
            away: self.away,
            cause: self.cause,
        }
    }
}

impl<K: fmt::Debug, V> fmt::Debug for SessionEnd<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionEnd")
            .field("key", &self.key)
            .field("connection", &self.connection)
            .field("reason", &self.reason)
            .field("away", &self.away)
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

/// Why a session has ended.
///
/// ```
/// use tower_ws_liveness::SessionEndCause;
///
/// assert_eq!(SessionEndCause::Expired.as_str(), "expired"); // the label of a metric
/// assert_eq!(SessionEndCause::Expired.to_string(), "grace period over");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionEndCause {
    /// The grace period is over, and no connection has resumed the session.
    Expired,
    /// Its connection ended for a reason after which the seat does not linger.
    ConnectionEnded,
    /// Another connection took the seat without resuming the session: by
    /// [`register`](crate::Liveness::register), for example.
    Replaced,
    /// The application called [`unregister`](crate::Liveness::unregister).
    Unregistered,
    /// More seats lingered than [`LingerBuilder::capacity`](super::LingerBuilder::capacity) permits,
    /// and this one had lingered longest.
    OverCapacity,
    /// The application called [`Linger::close`](super::Linger::close) or
    /// [`Linger::hand_over`](super::Linger::hand_over).
    Closed,
    /// The runtime of the connection was shut down.
    RuntimeShutDown,
}

impl SessionEndCause {
    /// The cause as a stable word, suitable as the label of a metric.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::ConnectionEnded => "connection_ended",
            Self::Replaced => "replaced",
            Self::Unregistered => "unregistered",
            Self::OverCapacity => "over_capacity",
            Self::Closed => "closed",
            Self::RuntimeShutDown => "runtime_shut_down",
        }
    }
}

impl fmt::Display for SessionEndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Expired => "grace period over",
            Self::ConnectionEnded => "connection ended",
            Self::Replaced => "seat taken by another connection",
            Self::Unregistered => "unregistered",
            Self::OverCapacity => "too many lingering seats",
            Self::Closed => "closed",
            Self::RuntimeShutDown => "runtime shut down",
        })
    }
}
