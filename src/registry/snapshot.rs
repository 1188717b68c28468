//! The state of one connection at one moment.

use std::time::Duration;

use tokio::time::Instant;

use crate::connection::{Liveness, View};
use crate::eviction::ConnectionId;
use crate::monitor::{Health, Rtt, Stats};

/// The state of one open connection at one moment: an entry of
/// [`Registry::snapshot`](crate::Registry::snapshot).
///
/// It keeps neither the connection nor its session value alive.
/// [`Registry::get`](crate::Registry::get) returns the handle of the connection by its id while it
/// is live.
///
/// ```
/// use std::time::Duration;
///
/// use tokio::{io::duplex, time::sleep};
/// use tower_ws_liveness::{HeartbeatLayer, Registry};
///
/// /// The lines of a status page, the oldest connection first.
/// fn status(registry: &Registry) -> Vec<String> {
///     let connections = registry.snapshot();
///     let lines = connections.iter().map(|connection| {
///         let age = connection.age().as_secs();
///         format!("{}: {}, {age} s", connection.id(), connection.health())
///     });
///     lines.collect()
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let (_io, live) = layer.wrap_server(duplex(64).0);
/// sleep(Duration::from_secs(5)).await;
/// assert_eq!(status(&layer.registry()), [format!("{}: live, 5 s", live.id())]);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionSnapshot {
    id: ConnectionId,
    view: View,
}

impl ConnectionSnapshot {
    pub(super) fn of(live: Liveness) -> Self {
        Self {
            id: live.id(),
            view: live.view(),
        }
    }

    /// The id of the connection.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Time since the upgrade.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.view.lifetime
    }

    /// The connection's health. Never [`Health::Ended`]; [`Health::Opening`] only while the upgrade
    /// completes.
    #[must_use]
    pub fn health(&self) -> Health {
        self.view.health
    }

    /// Round-trip time of the layer's own pings. `None` before the first pong.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.view.rtt
    }

    /// Time since the last byte of a data message in the watched directions (see
    /// [`Traffic`](crate::Traffic)), or since the upgrade if there was none.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.view.idle_for
    }

    /// The time at which the last byte from the peer was read; the time of the upgrade if there was
    /// none.
    #[must_use]
    pub fn last_seen(&self) -> Instant {
        self.view.last_seen
    }

    /// Counters since the upgrade.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.view.stats
    }
}
