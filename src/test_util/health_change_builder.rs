//! [`HealthChangeBuilder`]: changes of health to call hooks with.

use std::time::Duration;

use super::detached_handle::{detached, detached_with_id};
use crate::connection::{HealthChange, Liveness};
use crate::eviction::ConnectionId;
use crate::monitor::{Health, RttEstimate, Stats};

/// Returns a builder of a [`HealthChange`] from one state to another.
///
/// Unless it is set otherwise, the connection is [detached], there is no round trip,
/// and all counters are 0.
///
/// ```
/// use tower_ws_liveness::{Health, HealthChange, test_util};
///
/// /// The code under test: ends connections that read too slowly.
/// fn drop_slow(change: &HealthChange) {
///     if change.to() == Health::WriteStalled {
///         change.live().evict_as("slow_consumer", 4000, "too slow");
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let change = test_util::health_change(Health::Live, Health::WriteStalled).build();
/// drop_slow(&change);
/// assert_eq!(change.live().evicted().await.label(), "slow_consumer");
/// # }
/// ```
pub fn health_change(from: Health, to: Health) -> HealthChangeBuilder {
    HealthChangeBuilder {
        live: None,
        from,
        to,
        rtt: RttEstimate::default(),
        stats: Stats::default(),
    }
}

/// Builds a [`HealthChange`]. Made by [`health_change`].
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::test_util::{self, HealthChangeBuilder};
/// use tower_ws_liveness::{ConnectionId, Health};
///
/// let silent: HealthChangeBuilder =
///     test_util::health_change(Health::Live, Health::PeerSilent { missed: 0 });
/// let id = ConnectionId::from_u64(7).unwrap();
/// let change = silent.id(id).rtt(Duration::from_millis(80)).build();
/// assert_eq!(change.id(), id);
/// assert_eq!(change.rtt().unwrap().last().as_millis(), 80);
/// ```
#[derive(Debug)]
#[must_use]
pub struct HealthChangeBuilder {
    live: Option<Liveness>,
    from: Health,
    to: Health,
    rtt: RttEstimate,
    stats: Stats,
}

impl HealthChangeBuilder {
    /// Sets [`HealthChange::live`], and with it [`HealthChange::id`]. By default a detached handle.
    pub fn live(mut self, live: Liveness) -> Self {
        self.live = Some(live);
        self
    }

    /// Sets [`HealthChange::id`]: the handle is a detached one with this id.
    pub fn id(self, id: ConnectionId) -> Self {
        self.live(detached_with_id(id))
    }

    /// Adds a sample to [`HealthChange::rtt`]: the last one set is [`Rtt::last`](crate::Rtt::last). By
    /// default there is none. Whole microseconds, at most 71 minutes.
    pub fn rtt(mut self, sample: Duration) -> Self {
        self.rtt.sample(sample);
        self
    }

    /// Sets [`HealthChange::stats`]. By default all counters are 0.
    pub fn stats(mut self, stats: Stats) -> Self {
        self.stats = stats;
        self
    }

    /// Returns the change.
    #[must_use]
    pub fn build(self) -> HealthChange {
        HealthChange {
            live: self.live.unwrap_or_else(detached),
            from: self.from,
            to: self.to,
            rtt: self.rtt.get(),
            stats: self.stats,
        }
    }
}
