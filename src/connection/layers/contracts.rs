//! What connections, layers and registries ask of each other.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::connection::metadata::{LayerHooks, Metadata};
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::{CloseFrame, Health, Overrides, Policy, Reason, Rtt, Stats};

/// A connection of any transport, as handles, layers and registries see it.
pub(crate) trait ErasedConnection: Send + Sync {
    fn metadata(&self) -> &Metadata;
    fn view(&self) -> View;
    /// The statistics of [`view`](Self::view), with what our kernel knows now.
    fn stats(&self) -> Stats;
    /// The address of the peer, while there is a transport that has one.
    fn peer_addr(&self) -> Option<SocketAddr>;
    /// Whether this is called during a poll of the connection's own transport, or by a waker that
    /// is cloned there. [`view`](Self::view) and most methods below then panic.
    fn is_polled(&self) -> bool;
    /// Ends the connection with this Close frame. False if it has ended before.
    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// Like [`evict`](Self::evict), with a label for the eviction.
    fn evict_as(self: Arc<Self>, label: &'static str, reason: Reason, frame: CloseFrame) -> bool;
    /// Like [`evict`](Self::evict), but after the frame that the handler is in the middle of, so
    /// that no message is torn. False if the connection has ended, or an eviction is deferred
    /// already.
    fn evict_at_boundary(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// Drops the transport of a connection that has ended or whose eviction is deferred. Sends what
    /// the transport accepts immediately, and waits for nothing. Does nothing to other connections.
    fn cut(self: Arc<Self>);
    /// Replaces values of the layers' settings, also of layers that are added later.
    fn override_policy(self: Arc<Self>, overrides: &Overrides);
    /// Like [`override_policy`](Self::override_policy), unless a value is for a layer that the
    /// connection does not have: then this does nothing and returns false.
    fn change_policy(self: Arc<Self>, overrides: &Overrides) -> bool;
    /// Has the driver call `hook` this long before the connection's credentials expire. Replaces an
    /// earlier hook.
    fn warn_before_expiry(self: Arc<Self>, before: Duration, hook: ExpiryHook);
    /// Requests a ping. The receiver gets the round trip of its pong.
    fn ping(self: Arc<Self>) -> oneshot::Receiver<Duration>;
    /// Adds the outermost layer.
    fn attach(&self, layer: &LayerConfig, admission: Option<Admission>);
    /// Adds an inner layer that may [leave](Self::leave) until its response is
    /// [accepted](Self::accept). `within` is the next inner layer further out, if there is one;
    /// `overrides` came with its request.
    fn join(
        self: Arc<Self>,
        layer: &Arc<LayerConfig>,
        within: Option<AttachmentId>,
        admission: Option<Admission>,
        overrides: Option<&Overrides>,
    ) -> AttachmentId;
    /// Removes an inner layer and all layers within it, with the hooks and the places in registries
    /// that no other layer shares.
    fn leave(self: Arc<Self>, id: AttachmentId);
    /// Records that the response of an inner layer is an upgrade, so the layer stays.
    fn accept(&self, id: AttachmentId);
    /// Whether a layer of the connection has this registry.
    fn is_in(&self, registry: &Arc<dyn ErasedRegistry>) -> bool;
    /// The registries of the connection's layers.
    fn registries(&self) -> Registries;
    /// Whether the connection was made without a transport, for a test.
    #[cfg(feature = "test-util")]
    fn is_detached(&self) -> bool;
}

/// A hook that is called before the credentials of a connection expire, with that connection.
pub(crate) type ExpiryHook = Arc<dyn Fn(Arc<dyn ErasedConnection>) + Send + Sync>;

/// The registries of a connection. Nearly always one, which then needs no allocation.
pub(crate) type Registries = SmallVec<[Arc<dyn ErasedRegistry>; 1]>;

/// The figures of a connection at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) health: Health,
    pub(crate) lifetime: Duration,
    pub(crate) last_seen: Instant,
    pub(crate) idle_for: Duration,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

/// A registry, as the connections of its layers see it.
pub(crate) trait ErasedRegistry: Send + Sync {
    /// Admits one more handshake. It counts against the limit until
    /// [`release_permit`](Self::release_permit), and as present until
    /// [`release_presence`](Self::release_presence).
    fn admit(&self) -> Result<(), Refused>;
    /// Like [`admit`](Self::admit), for a stream that cannot be refused: no handshake is answered.
    fn admit_always(&self);
    /// An admitted connection no longer counts against the limit.
    fn release_permit(&self);
    /// An admitted connection is no longer present.
    fn release_presence(&self);

    /// Adds an open connection to the set. Called under a lock of the connection, so no hook may be
    /// called.
    fn opened(&self, connection: Arc<dyn ErasedConnection>);
    /// Calls the hooks that the last [`opened`](Self::opened) triggered.
    fn call_alarms(&self);
    /// How a connection must be evicted that opens while the registry is being drained. `None` if
    /// it is not.
    fn drain_order(&self) -> Option<DrainOrder>;
    /// Removes a connection from the set. Also called for a connection that was never opened, and,
    /// under a lock of the connection, for one that continues without the layer.
    fn ended(&self, id: ConnectionId);
    /// Passes the end to the eviction streams. Called once, after [`ended`](Self::ended).
    fn evicted(&self, eviction: &Eviction);

    /// Completes when a drain has begun.
    fn draining(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Reason and Close frame of an eviction by a drain.
pub(crate) type DrainOrder = (Reason, CloseFrame);

/// A handshake was refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) cause: &'static str,
    /// When to try again, in seconds.
    pub(crate) retry_after: u64,
}

/// What a connection counts for in one registry. Dropping it gives that back, which may wake a
/// task: drop it without a lock.
pub(crate) struct Admission {
    pub(super) registry: Arc<dyn ErasedRegistry>,
    /// Counts against the limit: from the handshake to the eviction.
    pub(super) permit: bool,
    /// Counts as present, which a shutdown waits for: from the handshake to the end of the
    /// transport.
    pub(super) presence: bool,
}

impl Admission {
    fn admit(registry: &Arc<dyn ErasedRegistry>) -> Result<Self, Refused> {
        registry.admit()?;
        Ok(Self::of(registry, true, true))
    }

    fn admit_always(registry: &Arc<dyn ErasedRegistry>) -> Self {
        registry.admit_always();
        Self::of(registry, true, true)
    }

    pub(super) fn of(registry: &Arc<dyn ErasedRegistry>, permit: bool, presence: bool) -> Self {
        Self {
            registry: Arc::clone(registry),
            permit,
            presence,
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.permit {
            self.registry.release_permit();
        }
        if self.presence {
            self.registry.release_presence();
        }
    }
}

/// Identifies an inner layer of a connection, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachmentId(u64);

impl AttachmentId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a layer gives to each of its connections: settings, registry, hooks.
///
/// Shared by the layer and all its services, which axum clones several times per request.
pub(crate) struct LayerConfig {
    pub(crate) policy: Policy,
    pub(crate) registry: Option<Arc<dyn ErasedRegistry>>,
    pub(crate) hooks: Arc<LayerHooks>,
}

impl LayerConfig {
    pub(crate) fn new(
        policy: Policy,
        registry: Option<Arc<dyn ErasedRegistry>>,
        hooks: LayerHooks,
    ) -> Self {
        Self {
            policy,
            registry,
            hooks: Arc::new(hooks),
        }
    }

    /// Asks the layer's registry, if it has one, to admit one more handshake.
    pub(crate) fn admit(&self) -> Result<Option<Admission>, Refused> {
        self.registry.as_ref().map(Admission::admit).transpose()
    }

    /// Has the layer's registry admit a stream that cannot be refused.
    pub(crate) fn admit_always(&self) -> Option<Admission> {
        self.registry.as_ref().map(Admission::admit_always)
    }
}

impl fmt::Debug for LayerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerConfig")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
