//! The handle by which handlers, hooks and operators look at a connection and end it.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::config_error::{self, ConfigError};
use crate::connection::metadata::AttachmentId;
use crate::connection::metadata::LayerConfig;
use crate::connection::metadata::Metadata;
use crate::connection::metadata::{Admission, ErasedConnection, Refused, View};
use crate::eviction::{ConnectionId, Evicted, Eviction};
use crate::monitor::{CloseFrame, Health, Overrides, Reason, Rtt, Stats};

/// Handle of one connection.
///
/// Handlers get it as an axum extractor, and everybody else from the request's extensions or from a
/// [`Registry`](crate::Registry). It is cheap to clone and may outlive the connection; it does not
/// keep the socket open.
///
/// The handle exists from the moment the request passes the layers, before the upgrade is complete,
/// so a handler can use it before it answers.
///
/// # Panics
///
/// Methods that read or change the connection's state panic if the connection's own transport calls them
/// while it is polled: see [`LivenessStream`](crate::LivenessStream).
#[derive(Clone)]
pub struct Liveness {
    connection: Arc<dyn ErasedConnection>,
}

impl Liveness {
    pub(crate) fn new(connection: Arc<dyn ErasedConnection>) -> Self {
        Self { connection }
    }

    /// Adds an inner layer, unless its registry refuses the handshake. Dropping the returned attachment
    /// removes the layer; [accepting](Attachment::accept) it makes it stay.
    pub(crate) fn join(
        &self,
        layer: &Arc<LayerConfig>,
        within: Option<AttachmentId>,
        overrides: Option<&Overrides>,
    ) -> Result<Attachment, Refused> {
        // Another layer may have been let in by the same registry.
        let is_new = |tracker: &_| !self.connection.membership().is_in(tracker);
        let admission = match layer.tracker.as_ref().filter(|tracker| is_new(tracker)) {
            Some(_) => layer.admit()?,
            None => None,
        };
        let connection = Arc::clone(&self.connection);
        let id = connection.join(layer, within, admission, overrides);
        Ok(Attachment {
            connection: Some(Arc::clone(&self.connection)),
            id,
        })
    }

    pub(crate) fn attach(&self, layer: &LayerConfig, admission: Option<Admission>) {
        self.connection.attach(&layer.policy, &layer.listeners);
        let added = admission.map(|admission| self.connection.membership().add(admission));
        drop(added);
    }

    /// One look at the connection, under its own lock.
    pub(crate) fn view(&self) -> View {
        self.connection.view()
    }

    pub(crate) fn override_policy(&self, overrides: &Overrides) {
        Arc::clone(&self.connection).override_policy(overrides);
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        self.connection.metadata()
    }

    /// Whether the end was noticed, though its hooks may still be at it.
    pub(crate) fn has_ended(&self) -> bool {
        self.metadata().has_ended()
    }

    /// Ends the connection for a reason of the crate's own. False if it has ended before.
    pub(crate) fn evict_for(&self, reason: Reason, frame: CloseFrame) -> bool {
        Arc::clone(&self.connection).evict(reason, frame)
    }

    /// The connection's id, never used again in this process.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.connection.metadata().id()
    }

    /// The connection's state at this moment.
    #[must_use]
    pub fn health(&self) -> Health {
        self.connection.view().health
    }

    /// Round-trip time by the layer's own pings. `None` before the first pong: a connection whose
    /// traffic suppresses the pings is not measured.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.connection.view().rtt
    }

    /// Sends a ping as soon as the handler is between two messages and the transport accepts it, and waits
    /// for its pong. Between two fragments of a message the ping is sent only after it has waited for the
    /// heartbeat's `timeout`, or for 15 s without a heartbeat. Returns the round trip, counted from the moment
    /// at which the ping was handed to the transport.
    ///
    /// The ping is one of the layer's own, besides those that are due anyway: the handler does not
    /// see its pong, and a peer that does not answer it is treated as by
    /// [`HeartbeatLayer`](crate::HeartbeatLayer), if there is one. Calls that are made before a ping
    /// could be sent share one. A pong to a later ping will do, since a peer may answer only the
    /// latest (RFC 6455 section 5.5.3).
    ///
    /// There is no time limit but that of the layers: where nobody evicts the peer (no heartbeat,
    /// frame boundaries were lost in malformed input so that nobody can be pinged, or a peer that
    /// sends other bytes and no pongs is alive by [`ProofOfLife::AnyBytes`](crate::ProofOfLife)),
    /// this waits for the end of the connection. Use [`tokio::time::timeout`] for a limit of your
    /// own.
    ///
    /// Cancel safe: dropping the future changes nothing for anybody else. The ping may be sent
    /// nevertheless.
    ///
    /// # Errors
    ///
    /// If the connection has ended, or ends before the pong has come. All hooks have then been health_events.
    pub async fn ping(&self) -> Result<Duration, Evicted> {
        match Arc::clone(&self.connection).ping().await {
            Ok(rtt) => Ok(rtt),
            Err(_) => Err(Evicted::new(self.evicted().await.reason())),
        }
    }

    /// When the last byte from the peer was seen; the time of the upgrade if none was.
    ///
    /// While the handler does not read, the driver looks at the transport once an interval, so this
    /// may then be behind by as much.
    #[must_use]
    pub fn last_seen(&self) -> Instant {
        self.connection.view().last_seen
    }

    /// Time since the last byte of a *data* message in the watched directions (see
    /// [`Traffic`](crate::Traffic)), or since the upgrade. ControlFrame frames do not count. ReadHalf bytes count
    /// when they are read from the transport, which may be late while the handler does not read.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.connection.view().idle_for
    }

    /// Counters since the upgrade.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.connection.view().stats
    }

    /// Changes the interval of this connection's pings, whichever the layer's is: the silence after
    /// which a ping is sent. It counts at once: if the peer has been silent for longer already, it
    /// is pinged now.
    ///
    /// For one request's connection from its beginning on, see
    /// [`PolicyOverride`](crate::PolicyOverride). After the end this does nothing.
    ///
    /// # Errors
    ///
    /// Zero, less than 1 ms, more than 365 days; or no [`HeartbeatLayer`](crate::HeartbeatLayer)
    /// looks after this connection (in a middleware: none further out). Nothing is changed then.
    pub fn set_interval(&self, interval: Duration) -> Result<(), ConfigError> {
        let overrides = Overrides {
            interval: Some(interval),
            ..Overrides::default()
        };
        self.set("Liveness::set_interval", interval, &overrides)
    }

    /// Changes the timeout of this connection's pings, whichever the layer's is. It counts at once,
    /// also for a ping that is out: if that has been unanswered for longer already, it is missed now.
    ///
    /// # Errors
    ///
    /// As for [`set_interval`](Self::set_interval).
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), ConfigError> {
        let overrides = Overrides {
            timeout: Some(timeout),
            ..Overrides::default()
        };
        self.set("Liveness::set_timeout", timeout, &overrides)
    }

    /// Changes the idle timeout of this connection, whichever the layer's is. It counts at once,
    /// from the last byte of data on.
    ///
    /// # Errors
    ///
    /// As for [`set_interval`](Self::set_interval), with
    /// [`IdleTimeoutLayer`](crate::IdleTimeoutLayer) for the layer.
    pub fn set_idle_timeout(&self, idle_timeout: Duration) -> Result<(), ConfigError> {
        let overrides = Overrides {
            idle_timeout: Some(idle_timeout),
            ..Overrides::default()
        };
        self.set("Liveness::set_idle_timeout", idle_timeout, &overrides)
    }

    fn set(
        &self,
        setter: &'static str,
        value: Duration,
        overrides: &Overrides,
    ) -> Result<(), ConfigError> {
        config_error::duration(setter, value)?;
        if Arc::clone(&self.connection).change_policy(overrides) {
            Ok(())
        } else {
            Err(config_error::missing_layer(setter, value))
        }
    }

    /// Ends the connection with [`Reason::Kicked`], and tells the peer `code` and `reason` in a
    /// Close frame (RFC 6455 section 5.5.1), unless the handler is in the middle of a frame. If the
    /// upgrade is not complete yet, it fails for the handler, and the peer gets the Close frame as soon as
    /// its side of the upgrade is complete; all hooks are called at once, whatever the response will be.
    ///
    /// Returns without waiting for the network. When it returns true, the connection's seats are out of
    /// their maps, all hooks have been called, and the handler's pending reads and writes fail; the
    /// closing handshake goes on for at most `close_timeout`. So it must not be called while a lock is
    /// held that a hook or a session map takes. Returns false, and does nothing, if the connection has ended
    /// before.
    ///
    /// A reason of more than 123 bytes is cut at the last character that fits. A code that must not
    /// be sent (RFC 6455 section 7.4: below 1000, 1004 to 1006, 1015 to 2999, above 4999) is
    /// replaced by 1011 on the wire; [`Reason::Kicked`] keeps the code as given.
    pub fn evict(&self, code: u16, reason: impl Into<String>) -> bool {
        let frame = CloseFrame {
            code: config_error::on_wire(code),
            reason: reason.into().into(),
        };
        self.evict_for(Reason::Kicked { code }, frame)
    }

    /// Ends the connection after the frame that the handler is in the middle of, if it is. False if
    /// it has ended before, or is to end this way already.
    pub(crate) fn part(&self, reason: Reason, frame: CloseFrame) -> bool {
        Arc::clone(&self.connection).part(reason, frame)
    }

    /// Cuts the transport of a connection that has ended, or is to end.
    pub(crate) fn cut(&self) {
        Arc::clone(&self.connection).cut();
    }

    /// Whether the transport is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.metadata().departure().is_some()
    }

    /// Waits until the transport is gone. True if the closing handshake of the connection's eviction
    /// was completed.
    pub(crate) async fn closed(&self) -> bool {
        self.connection.metadata().departed().await
    }

    /// Waits for the end of the connection, until all hooks have been told of it. Returns at once
    /// if it has ended.
    ///
    /// Cancel safe: dropping the future loses nothing, and any number of tasks may wait.
    pub async fn evicted(&self) -> Eviction {
        self.connection.metadata().reported().await
    }

    /// Waits until a registry of the connection's layers begins to be drained (see
    /// [`Registry::begin_drain`](crate::Registry::begin_drain)). Returns at once if one has begun to
    /// be. Without a registry, and if the response was no upgrade, this waits for ever.
    ///
    /// For handlers that want to say goodbye by themselves, in their `select!`. Where that is in a loop,
    /// pin one future before it, rather than make one for each message: each allocates, and waits in a
    /// list that all connections share. It says nothing about the connection, which may have ended
    /// before. The registries are those of the layers that the
    /// request has passed when this is called: in a handler, all.
    ///
    /// Cancel safe: dropping the future loses nothing, and any number of tasks may wait.
    pub async fn draining(&self) {
        let trackers = self.connection.membership().trackers().into_iter();
        let mut drains: Vec<_> = trackers.map(|tracker| tracker.draining()).collect();
        poll_fn(|cx| {
            let mut drains = drains.iter_mut();
            if drains.any(|drain| drain.as_mut().poll(cx).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Calls `hook` at the end of this connection, exactly once, before the hooks of the layers. If
    /// it has ended already, `hook` is called before this returns.
    ///
    /// For what [`OnEvict`](crate::OnEvict) says of hooks see there. Other than a layer's hooks it
    /// is also called, with [`Reason::UpgradeFailed`], if the response turns out not to be an
    /// upgrade at all: what a handler prepared for a connection is then to be undone.
    pub fn on_evict(&self, hook: impl FnOnce(&Eviction) + Send + 'static) {
        self.connection.metadata().add_local(Box::new(hook));
    }

    /// Puts a value into the connection's own slot, and returns the one that was there if it is of
    /// the same type. Hooks find it with [`Eviction::session`].
    ///
    /// The slot is the WebSocket's: what middlewares put into the extensions of the HTTP request is
    /// neither seen nor changed by it, and is gone with the request.
    ///
    /// The slot is emptied when the connection has ended, all hooks have returned, the handler has
    /// dropped its socket, and nobody awaits [`evicted`](Self::evicted) any more; after that a value
    /// is dropped at once. An [`Eviction`] that is kept, or waits in a stream of
    /// [`evictions`](crate::Registry::evictions), keeps its value. So the value may hold this handle
    /// without keeping both alive for ever. It must not be all that the handler waits for, as the only
    /// sender of its channel would be.
    pub fn set_session<T>(&self, session: T) -> Option<Arc<T>>
    where
        T: Any + Send + Sync,
    {
        self.connection
            .metadata()
            .set_session(Arc::new(session))?
            .downcast()
            .ok()
    }

    /// The value in the connection's slot; `None` if there is none, if it is of another type, or if
    /// the slot was emptied after the end (see [`set_session`](Self::set_session)).
    #[must_use]
    pub fn session<T>(&self) -> Option<Arc<T>>
    where
        T: Any + Send + Sync,
    {
        self.connection.metadata().session()?.downcast().ok()
    }

    /// Waits until there is a value of this type in the connection's slot, and returns it: for whoever
    /// finds the connection, in a [`Registry`](crate::Registry) say, before its handler has put the
    /// session there.
    ///
    /// Values of another type are waited out. Cancel safe, and any number of tasks may wait.
    ///
    /// # Errors
    ///
    /// If the connection has ended, or ends, without such a value. All hooks have then been health_events.
    pub async fn wait_for_session<T>(&self) -> Result<Arc<T>, Evicted>
    where
        T: Any + Send + Sync,
    {
        self.metadata().session_set().await.map_err(Evicted::new)
    }
}

/// An inner layer of a connection, until the layer's service answers the handshake.
///
/// Dropping it detaches the layer.
pub(crate) struct Attachment {
    connection: Option<Arc<dyn ErasedConnection>>,
    id: AttachmentId,
}

impl Attachment {
    pub(crate) fn id(&self) -> AttachmentId {
        self.id
    }

    /// The response is an upgrade: the layer stays.
    pub(crate) fn accept(mut self) {
        if let Some(connection) = self.connection.take() {
            connection.accept(self.id);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.leave(self.id);
        }
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Liveness");
        debug.field("id", &self.id());
        // A transport that logs its polls may show its handle.
        if !self.connection.is_polled() {
            let view = self.connection.view();
            debug.field("health", &view.health).field("rtt", &view.rtt);
        }
        debug.finish_non_exhaustive()
    }
}
