//! One look at one connection.

use std::time::Duration;

use tokio::time::Instant;

use crate::connection::{Liveness, View};
use crate::eviction::ConnectionId;
use crate::monitor::{Health, Rtt, Stats};

/// What one live connection looked like, all at the same moment: an entry of
/// [`Registry::snapshot`](crate::Registry::snapshot).
///
/// It holds no connection, and no session. [`Registry::get`](crate::Registry::get) finds the
/// connection by its id, as long as it is live.
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

    /// Which connection it is.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Time since the upgrade.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.view.lifetime
    }

    /// Its state. Never [`Health::Ended`]; [`Health::Opening`] in the moment of the upgrade.
    #[must_use]
    pub fn health(&self) -> Health {
        self.view.health
    }

    /// Round-trip time by the layer's own pings. `None` before the first pong.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.view.rtt
    }

    /// Time since the last byte of a data message in the watched directions (see
    /// [`Traffic`](crate::Traffic)), or since the upgrade.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.view.idle_for
    }

    /// When the last byte from the peer was seen; the time of the upgrade if none was.
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
