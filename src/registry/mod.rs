//! The registry: open connections, their limit, their evictions and the drain.
//!
//! - [`state`]: the state that all clones of a [`Registry`] share; implements
//!   [`ErasedRegistry`] for the layers
//! - [`shards`]: the set of open connections
//! - [`limit`]: admission of handshakes, readiness, the drain flag, waiting for idle
//! - [`counters`]: the number of open connections, with high-water and growth hooks
//! - [`growth`]: the detection of growth, without a clock
//! - [`snapshot`]: the state of one connection at one moment
//! - [`evictions`]: evictions as a stream
//! - [`drain`]: evicts all connections in batches
//! - [`shutdown`]: the whole shutdown in one call
//! - [`readiness`]: whether load balancers should send new connections
//! - [`shedding`]: evicts a fraction of the connections, spread over time

mod counters;
mod drain;
mod evictions;
mod growth;
mod limit;
mod readiness;
mod shards;
mod shedding;
mod shutdown;
mod snapshot;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config_error::{self, ConfigError};
use crate::connection::{ErasedRegistry, Liveness};
use crate::eviction::ConnectionId;
use crate::monitor::Health;

use counters::AlarmHook;
pub use counters::{Growth, HighWater};
use drain::DrainingConnections;
pub use drain::{Drain, DrainReport};
pub use evictions::{Evictions, Overrun};
pub use readiness::Readiness;
pub use shutdown::{ShutdownPlan, ShutdownReport};
pub use snapshot::ConnectionSnapshot;
use state::RegistryState;

/// Holds the open connections of one or more layers, and limits how many are admitted.
///
/// A connection is in the registry from the completed upgrade to its eviction, and is removed
/// before any hook is called. Clones share the same set. A
/// [`HeartbeatLayer`](crate::HeartbeatLayer) has a registry of its own unless it is given another.
/// A connection under several layers with the same registry is in it once; under layers with
/// different registries it is in each.
///
/// ```
/// use tower_ws_liveness::{ConfigError, Growth, HeartbeatLayer, Registry};
///
/// # fn main() -> Result<(), ConfigError> {
/// let registry = Registry::new();
/// registry.limit(10_000);
/// let minute = std::time::Duration::from_secs(60);
/// registry.on_growth(500, minute, |registry: &Registry, growth: &Growth| {
///     eprintln!("{} sessions, {} more within a minute", growth.live(), growth.grown_by());
///     // Admits no more connections for now.
///     registry.limit(growth.live());
/// })?;
/// let layer = HeartbeatLayer::builder().registry(registry.clone()).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    state: Arc<RegistryState>,
}

impl Registry {
    /// Creates an empty registry without a limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of open connections. Takes no lock.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.counters.live()
    }

    /// Whether no connection is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the handle of an open connection, or `None` if it has ended.
    #[must_use]
    pub fn get(&self, id: ConnectionId) -> Option<Liveness> {
        self.state.live.get(id)
    }

    /// Returns the handles of all open connections, in the order of their ids: oldest first.
    ///
    /// A connection that is open during the whole call is in the list once; one that opens or ends
    /// meanwhile may or may not be. The registry's locks are held only while the handles of one
    /// shard (1/32 of the connections) are copied. A handle that is kept keeps what the connection
    /// has in memory, but not its socket.
    ///
    /// ```
    /// use tokio::io::duplex;
    /// use tower_ws_liveness::HeartbeatLayer;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let layer = HeartbeatLayer::default();
    /// let (_io, live) = layer.wrap_server(duplex(64).0);
    /// live.set_session("alice".to_owned());
    /// for live in layer.registry().handles() {
    ///     println!("{}: {:?} for {:?}", live.id(), live.session::<String>(), live.age());
    /// }
    /// # assert_eq!(layer.registry().handles().len(), 1);
    /// # }
    /// ```
    #[must_use]
    pub fn handles(&self) -> Vec<Liveness> {
        let mut handles = self.state.live.handles(self.len());
        handles.sort_unstable_by_key(Liveness::id);
        handles
    }

    /// Evicts the connections for which `predicate` is true, with
    /// [`Reason::Kicked`](crate::Reason::Kicked) and a Close frame with `code` and `reason`. Returns
    /// how many.
    ///
    /// The predicate is called once for each connection that is open when this is called, oldest
    /// first, outside every lock: it may use the handle, the registry and the application's own
    /// locks. Each eviction follows the predicate immediately and is one by
    /// [`Liveness::evict`](crate::Liveness::evict): its rules hold for the frame and the hooks, which
    /// run inside this call. A connection that has ended by then is not counted. If the predicate
    /// panics, the panic passes to the caller, and the connections evicted so far stay evicted.
    ///
    /// ```
    /// use tokio::io::duplex;
    /// use tower_ws_liveness::HeartbeatLayer;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let layer = HeartbeatLayer::default();
    /// let [alice, bob] = ["alice", "bob"].map(|user| {
    ///     let (io, live) = layer.wrap_server(duplex(64).0);
    ///     live.set_session(user.to_owned());
    ///     (io, live)
    /// });
    /// let is_alice = |live: &tower_ws_liveness::Liveness| {
    ///     live.session::<String>().is_some_and(|user| *user == "alice")
    /// };
    /// assert_eq!(layer.registry().evict_where(is_alice, 4001, "logged out"), 1);
    /// assert!(alice.1.reason().is_some() && bob.1.reason().is_none());
    /// # }
    /// ```
    pub fn evict_where(
        &self,
        mut predicate: impl FnMut(&Liveness) -> bool,
        code: u16,
        reason: impl Into<String>,
    ) -> usize {
        let reason = reason.into();
        let mut evicted = 0;
        for live in self.handles() {
            // One that ended meanwhile is none of the open connections.
            let matches = !live.has_ended() && predicate(&live);
            if matches && live.evict(code, reason.as_str()) {
                evicted += 1;
            }
        }
        evicted
    }

    /// Returns the state of all open connections, in the order of their ids: oldest first.
    ///
    /// The values of one entry are consistent: they are read under the connection's own lock.
    /// Entries are read one after the other, so two entries are not from the same moment. A
    /// connection that is live during the whole call has exactly one entry, one that ended before
    /// has none, and one that opens or ends meanwhile may or may not have one. The registry's locks
    /// are held only while the handles of one shard (1/32 of the connections) are copied, so other
    /// tasks wait only briefly, whatever the number of connections.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ConnectionSnapshot> {
        let snapshots = self.handles().into_iter().map(ConnectionSnapshot::of);
        // Leaves out connections that ended after their handles were copied.
        snapshots
            .filter(|snapshot| snapshot.health() != Health::Ended)
            .collect()
    }

    /// Limits the number of connections to `max`. Default: `None`, no limit.
    ///
    /// The layer with this registry answers an opening handshake over the limit with 503 and
    /// `Retry-After` (RFC 9110 sections 15.6.4 and 10.2.3) before the handler runs, and logs it at
    /// DEBUG. Other requests pass. Live connections count, and so do handshakes in progress, so
    /// that concurrent handshakes cannot exceed the limit. A handshake stops counting when its
    /// response is not an upgrade, when the upgrade fails, or when the client disconnects before it
    /// is complete. A connection stops counting at its eviction, before hooks are called.
    ///
    /// With 0 every handshake is refused, for maintenance say. A limit below the present number
    /// evicts no connection: it is reached as connections end. Streams that are passed to
    /// [`wrap_server`](crate::HeartbeatLayer::wrap_server) and
    /// [`wrap_client`](crate::HeartbeatLayer::wrap_client), or to their variants for a handshake
    /// that has not begun, count but are never refused, so they may exceed the limit: the layer
    /// answers no handshake there.
    ///
    /// A connection under stacked layers with the same registry counts once. With different
    /// registries it counts in each, and each may refuse it.
    ///
    /// The response has an empty body, and [`UpgradeRefused`](crate::UpgradeRefused) in its
    /// extensions, by which a layer further out recognises it, to add headers or to answer with a
    /// body.
    pub fn limit(&self, max: impl Into<Option<usize>>) {
        self.state.admission.set_limit(max.into());
    }

    /// Sets the `Retry-After` time that refused clients are sent. Default: 10 s.
    ///
    /// It is sent in whole seconds, rounded up.
    pub fn retry_after(&self, delay: Duration) {
        self.state.admission.set_retry_after(delay);
    }

    /// Adds a random time of up to `spread` to each `Retry-After`, so that refused clients do not
    /// all come back at the same time. Default: zero, no spread.
    ///
    /// It is rounded up to whole seconds, of which each number up to it is equally likely.
    pub fn retry_after_jitter(&self, spread: Duration) {
        self.state.admission.set_retry_after_jitter(spread);
    }

    /// The highest number of connections that were ever open at the same time.
    #[must_use]
    pub fn high_water(&self) -> usize {
        self.state.counters.high_water()
    }

    /// The number of connections that have entered this registry so far, for a counter of a metric.
    /// One that was evicted before its upgrade completed is among them.
    #[must_use]
    pub fn opened_total(&self) -> u64 {
        self.state.counters.opened_total()
    }

    /// The number of opening handshakes that were refused so far, because of the
    /// [limit](Self::limit) or of a [drain](Self::begin_drain).
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.state.admission.refused_total()
    }

    /// Adds a hook that is called when the number of open connections rises above `mark`.
    ///
    /// It is called again only if the number has fallen to nine tenths of `mark` in between. If the
    /// number is above `mark` already, the hook is called when the next connection opens.
    ///
    /// The hook runs on the task that completes the upgrade, outside every lock. It must not block:
    /// a hook that takes 100 ms or longer is logged at WARN, with its duration. If it panics, the
    /// panic is caught and logged at WARN. The hook gets the registry as an argument: a hook that
    /// captured a clone would keep the registry alive forever.
    pub fn on_high_water(
        &self,
        mark: usize,
        hook: impl Fn(&Registry, &HighWater) + Send + Sync + 'static,
    ) {
        let hook = self.with_registry(hook);
        self.state.counters.on_high_water(mark, hook);
    }

    /// Adds a hook that is called when the number of open connections exceeds its minimum of the
    /// last `per` by more than `limit`.
    ///
    /// It is called at most once per `per`. No timer runs for it: the check is made when a
    /// connection opens. Time is divided into steps of a 16th of `per`, and the step in which the
    /// last `per` began counts as a whole, so the window is longer than `per` by up to a 16th.
    ///
    /// The hook runs on the task that completes the upgrade, outside every lock. It must not block:
    /// a hook that takes 100 ms or longer is logged at WARN, with its duration. If it panics, the
    /// panic is caught and logged at WARN. The hook gets the registry as an argument: a hook that
    /// captured a clone would keep the registry alive forever.
    ///
    /// # Errors
    ///
    /// Returns an error if `limit` is 0, or if `per` is zero, less than 1 ms, or more than 365
    /// days.
    pub fn on_growth(
        &self,
        limit: usize,
        per: Duration,
        hook: impl Fn(&Registry, &Growth) + Send + Sync + 'static,
    ) -> Result<(), ConfigError> {
        config_error::at_least_one("Registry::on_growth", limit)?;
        config_error::duration("Registry::on_growth", per)?;
        self.state
            .counters
            .on_growth(limit, per, self.with_registry(hook));
        Ok(())
    }

    /// Returns the evictions from now on as a stream, for tasks that consume them.
    ///
    /// The stream has the same evictions as hooks get, each once, including those of failed
    /// upgrades. At most 1024 are queued; see
    /// [`evictions_with_capacity`](Self::evictions_with_capacity).
    pub fn evictions(&self) -> Evictions {
        self.evictions_with_capacity(evictions::DEFAULT_CAPACITY)
    }

    /// As [`evictions`](Self::evictions), with at most `capacity` queued evictions; 0 counts as 1.
    ///
    /// Reporting an eviction never waits. If the queue is full, the eviction is dropped, and an
    /// [`Overrun`] in its place has the number of evictions that were dropped. Memory is allocated
    /// as it is needed.
    pub fn evictions_with_capacity(&self, capacity: usize) -> Evictions {
        Evictions::subscribe(&self.state.subscribers, capacity.max(1))
    }

    /// Refuses all upgrades from now on, as over the [limit](Self::limit), and completes
    /// [`draining`](Self::draining). Ends no connection.
    ///
    /// This cannot be undone. Further calls do nothing.
    ///
    /// A handshake that was admitted before and completes after this call, and a stream that is
    /// passed to [`wrap_server`](crate::HeartbeatLayer::wrap_server) or
    /// [`wrap_client`](crate::HeartbeatLayer::wrap_client) after it, opens and is ended immediately
    /// with [`Reason::Drained`](crate::Reason::Drained) and the Close frame of the drain
    /// or shutdown, by default with code 1001. So a caller that
    /// lists the open connections after this call misses none.
    ///
    /// All handlers that wait in `draining` are woken at the same time. If there are many, let each
    /// wait a random time before it sends its Close frame, or their clients all reconnect at the
    /// same time as well.
    pub fn begin_drain(&self) {
        self.state.admission.begin_drain();
    }

    /// Whether a drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.admission.is_draining()
    }

    /// Waits until a drain begins. Returns immediately if one has begun.
    ///
    /// Handlers can use [`Liveness::draining`], which needs no registry. Any number of tasks may
    /// wait.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn draining(&self) {
        self.state.admission.draining().await;
    }

    /// Waits until nothing remains of any connection. Returns immediately if nothing does.
    ///
    /// What remains: handshakes in progress, open connections, connections that have ended but
    /// whose transport is not closed (the closing handshake is in progress, the transport waits for
    /// the peer's end of stream, or the handler still holds it), and connections whose hooks have
    /// not all returned.
    ///
    /// New connections are still admitted; see [`begin_drain`](Self::begin_drain). Without it, a
    /// moment without any connection may pass between two of them unnoticed. An application that
    /// keeps its socket after the peer's end of stream delays this by at most `close_timeout`. Any
    /// number of tasks may wait.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn wait_idle(&self) {
        self.state.admission.wait_idle().await;
    }

    pub(crate) fn erased(&self) -> Arc<dyn ErasedRegistry> {
        Arc::clone(&self.state) as Arc<dyn ErasedRegistry>
    }

    /// Wraps a hook so that it gets the registry as an argument without keeping it alive.
    fn with_registry<T>(
        &self,
        hook: impl Fn(&Registry, &T) + Send + Sync + 'static,
    ) -> AlarmHook<T> {
        let state = Arc::downgrade(&self.state);
        Arc::new(move |alarm| {
            if let Some(state) = state.upgrade() {
                hook(&Registry { state }, alarm);
            }
        })
    }

    fn draining_connections(&self) -> &DrainingConnections {
        &self.state.draining
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Registry");
        debug.field("len", &self.len());
        self.state.admission.debug_fields(&mut debug);
        debug.finish()
    }
}
