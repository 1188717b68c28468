//! The set of live connections, and who is let in.
//!
//! - [`state`]: what all clones of a [`Registry`] share, and what its layers tell it
//! - [`shards`]: the set itself
//! - [`limit`]: the limit, the drain, and what a shutdown waits for
//! - [`counters`]: how many are live, and who wants to hear of too many
//! - [`growth`]: whether sessions are piling up, without a clock
//! - [`snapshot`]: one look at everybody
//! - [`evictions`]: ends as a stream

mod counters;
mod drain;
mod evictions;
mod growth;
mod limit;
mod shards;
mod snapshot;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config_error::{self, ConfigError};
use crate::connection::{Liveness, Tracker};
use crate::eviction::ConnectionId;
use crate::monitor::Health;

pub use counters::{Growth, HighWater};
pub use drain::{Drain, DrainReport};
pub use evictions::{Evictions, Overrun};
pub use snapshot::ConnectionSnapshot;
use state::Shared;

/// The live connections of one or more layers, and the door for more.
///
/// A connection is in it from the completed upgrade to its eviction, and leaves it before any hook
/// is called. Clones share the same set. A [`HeartbeatLayer`](crate::HeartbeatLayer) has one of its
/// own unless it is given another. A connection under several layers with the same registry is in it
/// once; under layers with different registries it is in each.
///
/// ```
/// use tower_ws_liveness::{ConfigError, Growth, HeartbeatLayer, Registry};
///
/// # fn main() -> Result<(), ConfigError> {
/// let registry = Registry::new();
/// registry.limit(10_000);
/// let minute = std::time::Duration::from_secs(60);
/// registry.on_growth(500, minute, |registry: &Registry, growth: &Growth| {
///     eprintln!("{} sessions, {} more than lately", growth.live(), growth.grown_by());
///     // Nobody else for the time being.
///     registry.limit(growth.live());
/// })?;
/// let layer = HeartbeatLayer::builder().registry(registry.clone()).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    shared: Arc<Shared>,
}

impl Registry {
    /// An empty registry without a limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections are live. Takes no lock.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.tally.live()
    }

    /// Whether no connection is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The handle of a live connection; `None` if it has ended.
    #[must_use]
    pub fn get(&self, id: ConnectionId) -> Option<Liveness> {
        self.shared.set.get(id)
    }

    /// Looks at all live connections, one after the other, and returns what it saw in the order of
    /// their ids: the oldest first.
    ///
    /// Each entry is one look at one connection, under its own lock, so that its figures belong
    /// together; those of two entries are not from the same moment. A connection that is live during
    /// the whole call is in it exactly once, one that has ended before is not, and one that comes or
    /// ends meanwhile may or may not be. Locks of the registry are held only while the handles of
    /// one of its shards (a 32nd of the connections) are copied, so nobody waits for long, whatever
    /// the number.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ConnectionSnapshot> {
        let mut handles = self.handles();
        handles.sort_unstable_by_key(Liveness::id);
        let looks = handles.into_iter().map(ConnectionSnapshot::of);
        // What ended after it was copied is not shown as live.
        looks
            .filter(|look| look.health() != Health::Ended)
            .collect()
    }

    /// Lets at most `max` connections in. Default: no limit, which is `None`.
    ///
    /// An opening handshake over the limit is answered with 503 and `Retry-After` (RFC 9110 sections
    /// 15.6.4 and 10.2.3) by the layer whose registry this is, before the handler runs; a line at
    /// DEBUG tells of it. Other requests pass. The number that counts is that of the live connections
    /// and of the handshakes under way, so it cannot be exceeded by any number of clients that come
    /// at once. A place is free again when the response turns out to be no upgrade, when the upgrade
    /// fails or the client goes away before it is complete, and at the eviction, before hooks are
    /// called.
    ///
    /// With 0 nobody is let in, for maintenance say. A limit below the present number ends nobody:
    /// it is reached as connections go. Streams that are given to
    /// [`wrap_server`](crate::HeartbeatLayer::wrap_server) and
    /// [`wrap_client`](crate::HeartbeatLayer::wrap_client), or to their variants for a handshake that
    /// is still to come, count, and are never refused, so they may exceed the limit: the layer
    /// answers no handshake there.
    ///
    /// Stacked layers with the same registry take one place. With different registries each takes
    /// one of its own, and each may refuse.
    pub fn limit(&self, max: impl Into<Option<usize>>) {
        self.shared.gate.limit(max.into());
    }

    /// After which time a client that was refused is to try again. Default: 10 s.
    ///
    /// Sent in whole seconds, rounded up.
    pub fn retry_after(&self, delay: Duration) {
        self.shared.gate.retry_after(delay);
    }

    /// The most connections that were live at once, ever.
    #[must_use]
    pub fn high_water(&self) -> usize {
        self.shared.tally.high_water()
    }

    /// Adds a hook that is told when the number of live connections rises over `mark`, and again
    /// only when it has fallen to nine tenths of it in between. If it is over the mark already, the
    /// hook is told when the next connection comes.
    ///
    /// The hook runs on the task that completes the upgrade, outside every lock. It must not block:
    /// one that takes 100 ms or longer is logged at WARN, with its duration. If it panics, the panic
    /// is caught and logged at WARN. It is given the registry, to act on it: a hook that held one
    /// itself would keep it alive for ever.
    pub fn on_high_water(
        &self,
        mark: usize,
        hook: impl Fn(&Registry, &HighWater) + Send + Sync + 'static,
    ) {
        let hook = self.alarm(hook);
        self.shared.tally.on_high_water(mark, hook);
    }

    /// Adds a hook that is told when sessions are piling up: when there are more than `limit` live
    /// connections more than the fewest within the last `per`. It is told at most once per `per`.
    ///
    /// No timer runs for it: it is looked at when a connection comes. The time is divided into steps
    /// of a 16th of `per`, and the whole step in which the last `per` began is looked back on, so
    /// what counts as "the last `per`" is longer by up to a 16th.
    ///
    /// The hook runs on the task that completes the upgrade, outside every lock. It must not block:
    /// one that takes 100 ms or longer is logged at WARN, with its duration. If it panics, the panic
    /// is caught and logged at WARN. It is given the registry, to act on it: a hook that held one
    /// itself would keep it alive for ever.
    ///
    /// # Errors
    ///
    /// A limit of 0; a `per` of zero, less than 1 ms, or more than 365 days.
    pub fn on_growth(
        &self,
        limit: usize,
        per: Duration,
        hook: impl Fn(&Registry, &Growth) + Send + Sync + 'static,
    ) -> Result<(), ConfigError> {
        config_error::growth("Registry::on_growth", limit)?;
        config_error::duration("Registry::on_growth", per)?;
        self.shared.tally.on_growth(limit, per, self.alarm(hook));
        Ok(())
    }

    /// The ends of connections from now on, as a stream, for consumers that are tasks.
    ///
    /// It gets what hooks get, of the same connections, once each, upgrades that failed among them.
    /// At most 1024 evictions wait in it; see
    /// [`evictions_with_capacity`](Self::evictions_with_capacity).
    pub fn evictions(&self) -> Evictions {
        self.evictions_with_capacity(evictions::CAPACITY)
    }

    /// [`evictions`](Self::evictions) of which at most `capacity` wait for the consumer; 0 is taken
    /// as 1.
    ///
    /// Whoever reports an end never waits. What finds no room is dropped, and how much that was stands
    /// in the stream at its place, as an [`Overrun`]. Memory is taken as it is needed.
    pub fn evictions_with_capacity(&self, capacity: usize) -> Evictions {
        Evictions::subscribe(&self.shared.subscribers, capacity.max(1))
    }

    /// Refuses all upgrades from now on, as over the [limit](Self::limit), and has
    /// [`draining`](Self::draining) return. Ends no connection, and cannot be taken back. To call it
    /// again does nothing.
    ///
    /// A handshake that was let in before and completes after it, and a stream that is given to
    /// [`wrap_server`](crate::HeartbeatLayer::wrap_server) or
    /// [`wrap_client`](crate::HeartbeatLayer::wrap_client) after it, opens, and is ended at once with
    /// [`Reason::Drained`](crate::Reason::Drained) and the Close code 1001. So whoever calls this and
    /// then looks at who is live misses nobody.
    ///
    /// Handlers that wait are all woken at once: where there are many, have each wait a random time
    /// before it says goodbye, or their clients all come back at once as well.
    pub fn begin_drain(&self) {
        self.shared.gate.begin_drain();
    }

    /// Whether a drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.gate.is_draining()
    }

    /// Waits until a drain begins; returns at once if one has begun. For handlers there is
    /// [`Liveness::draining`], which needs no registry.
    ///
    /// Cancel safe: dropping the future loses nothing, and any number of tasks may wait.
    pub async fn draining(&self) {
        self.shared.gate.draining().await;
    }

    /// Waits until nothing is left of any connection: no handshake under way, no live connection,
    /// none that has ended but whose transport is not closed yet (its closing handshake is under way, it
    /// lingers until the peer's end, or the handler still holds it) or whose hooks have not all returned.
    /// Returns at once if there is nothing.
    ///
    /// New connections are not kept away; for that see [`begin_drain`](Self::begin_drain). Without
    /// it, a moment without any connection may pass between two of them unnoticed. An application
    /// that keeps its socket after the peer's end keeps it for `close_timeout` at most.
    ///
    /// Cancel safe: dropping the future loses nothing, and any number of tasks may wait.
    pub async fn wait_idle(&self) {
        self.shared.gate.wait_idle().await;
    }

    pub(crate) fn tracker(&self) -> Arc<dyn Tracker> {
        Arc::clone(&self.shared) as Arc<dyn Tracker>
    }

    /// A hook that is given the registry, and does not keep it.
    fn alarm<T>(
        &self,
        hook: impl Fn(&Registry, &T) + Send + Sync + 'static,
    ) -> Arc<dyn Fn(&T) + Send + Sync> {
        let shared = Arc::downgrade(&self.shared);
        Arc::new(move |alarm| {
            if let Some(shared) = shared.upgrade() {
                hook(&Registry { shared }, alarm);
            }
        })
    }

    /// Whom a drain has come to.
    fn leaving(&self) -> &drain::Leaving {
        &self.shared.leaving
    }

    /// All live connections, each as its shard has it when it is copied.
    fn handles(&self) -> Vec<Liveness> {
        self.shared.set.handles(self.len())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Registry");
        debug.field("len", &self.len());
        self.shared.gate.describe(&mut debug);
        debug.finish()
    }
}
