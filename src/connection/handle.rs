//! [`Liveness`]: the handle of one connection.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::layers::{Admission, AttachmentId, ErasedConnection, LayerConfig, Refused, View};
use super::metadata::Metadata;
use crate::config_error;
use crate::eviction::{ConnectionId, Evicted, Eviction};
use crate::monitor::{CloseFrame, Health, Overrides, Reason, Rtt, Stats};

/// Handle of one connection: its figures, its settings, its session, its end.
///
/// Handlers get it as an axum extractor; other code gets it from the request's extensions or from a
/// [`Registry`](crate::Registry). It is cheap to clone and may outlive the connection; it does not
/// keep the socket open.
///
/// The extractor is for axum 0.8. With axum 0.7 the layers work as well, and handlers take
/// `Extension<Liveness>`.
///
/// The handle exists as soon as the request has passed the first layer, before the upgrade is
/// complete, so a handler can use it before it responds.
///
/// # Panics
///
/// Methods that read or change the connection's state panic if the connection's own transport calls
/// them during a poll: see [`LivenessStream`](crate::LivenessStream).
///
/// # Examples
///
/// ```
/// use axum::extract::ws::WebSocketUpgrade;
/// use axum::response::Response;
/// use tower_ws_liveness::Liveness;
///
/// async fn handler(ws: WebSocketUpgrade, live: Liveness) -> Response {
///     live.set_session("alice".to_owned());
///     ws.on_upgrade(async move |mut socket| {
///         while let Some(Ok(_)) = socket.recv().await {}
///         println!("connection {} lasted {:?}", live.id(), live.evicted().await.lifetime());
///     })
/// }
/// ```
#[derive(Clone)]
pub struct Liveness {
    pub(super) connection: Arc<dyn ErasedConnection>,
}

impl Liveness {
    pub(crate) fn new(connection: Arc<dyn ErasedConnection>) -> Self {
        Self { connection }
    }

    /// Adds an inner layer, unless its registry refuses the handshake. Dropping the returned
    /// attachment removes the layer; [accepting](InnerLayerGuard::accept) it makes it stay.
    pub(crate) fn join(
        &self,
        layer: &Arc<LayerConfig>,
        within: Option<AttachmentId>,
        overrides: Option<&Overrides>,
    ) -> Result<InnerLayerGuard, Refused> {
        // The registry may have admitted the connection for another layer.
        let is_new = |registry: &_| !self.connection.is_in(registry);
        let admission = match layer.registry.as_ref().filter(|registry| is_new(registry)) {
            Some(_) => layer.admit()?,
            None => None,
        };
        let connection = Arc::clone(&self.connection);
        let id = connection.join(layer, within, admission, overrides);
        Ok(InnerLayerGuard {
            connection: Some(Arc::clone(&self.connection)),
            id,
        })
    }

    /// Adds the outermost layer.
    pub(crate) fn attach(&self, layer: &LayerConfig, admission: Option<Admission>) {
        self.connection.attach(layer, admission);
    }

    /// All figures at one moment, read under the connection's lock.
    pub(crate) fn view(&self) -> View {
        self.connection.view()
    }

    pub(crate) fn override_policy(&self, overrides: &Overrides) {
        Arc::clone(&self.connection).override_policy(overrides);
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        self.connection.metadata()
    }

    /// Whether the end is known; its hooks may still run.
    pub(crate) fn has_ended(&self) -> bool {
        self.metadata().has_ended()
    }

    /// Ends the connection for this reason. False if it has ended before.
    pub(crate) fn evict_for(&self, reason: Reason, frame: CloseFrame) -> bool {
        Arc::clone(&self.connection).evict(reason, frame)
    }

    /// The connection's id, unique in this process.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.connection.metadata().id()
    }

    /// The connection's present state.
    #[must_use]
    pub fn health(&self) -> Health {
        self.connection.view().health
    }

    /// Time since the upgrade. Zero before it; after the end, the connection's
    /// [lifetime](Eviction::lifetime).
    #[must_use]
    pub fn age(&self) -> Duration {
        let lifetime = self.metadata().lifetime();
        lifetime.unwrap_or_else(|| self.connection.view().lifetime)
    }

    /// Why the connection has ended. `None` if it has not.
    ///
    /// Its hooks may still run: [`evicted`](Self::evicted) waits for them, and returns more.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.metadata().reason()
    }

    /// The address of the peer of the TCP connection: the client, or the proxy in front of it.
    ///
    /// Known while the connection is open and its transport is a tokio `TcpStream`, with the
    /// feature `tcp`: behind the layers on HTTP/1.1 without TLS, and on a `TcpStream` that is
    /// wrapped below HTTP. `None` before the upgrade, after the transport is released, if the peer
    /// has reset the connection, and for every other transport: hyper and TLS do not expose the
    /// socket below them. There axum's `ConnectInfo` has the address, and a handler may put it into
    /// [`set_session`](Self::set_session).
    ///
    /// One system call.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.connection.peer_addr()
    }

    /// Round-trip times of the layer's own pings. `None` before the first pong: a connection whose
    /// traffic suppresses the pings is not measured.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        self.connection.view().rtt
    }

    /// Sends a ping, waits for its pong and returns the round trip.
    ///
    /// The ping is sent as soon as the handler is between two messages and the transport accepts
    /// it. Between two fragments of a message it first waits for the heartbeat's `timeout`, or for
    /// 15 s without a heartbeat. The round trip starts when the transport has flushed the ping.
    ///
    /// This ping is sent in addition to the layer's own. The handler does not see its pong, and a
    /// peer that does not answer is treated as by [`HeartbeatLayer`](crate::HeartbeatLayer), if
    /// there is one. Calls that are made before a ping could be sent share one. A pong to a later
    /// ping answers too, since a peer may answer only the latest (RFC 6455 section 5.5.3).
    ///
    /// There is no time limit but that of the layers. This waits for the end of the connection if
    /// the peer never answers and is not evicted: without a heartbeat, after malformed input has
    /// lost the frame boundaries (no ping can be sent then), or if the peer sends other bytes and
    /// counts as alive by [`ProofOfLife::AnyBytes`](crate::ProofOfLife). Use
    /// [`tokio::time::timeout`] for a limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future affects no other call. The ping may still be sent.
    ///
    /// # Errors
    ///
    /// If the connection has ended, or ends before the pong. All hooks have returned then.
    pub async fn ping(&self) -> Result<Duration, Evicted> {
        match Arc::clone(&self.connection).ping().await {
            Ok(rtt) => Ok(rtt),
            Err(_) => Err(Evicted::new(self.evicted().await.reason())),
        }
    }

    /// When the last byte of the peer was read; the time of the upgrade before the first.
    ///
    /// While the handler does not read, the driver reads once per interval, so this may be that
    /// much behind.
    #[must_use]
    pub fn last_seen(&self) -> Instant {
        self.connection.view().last_seen
    }

    /// Time since the last byte of a *data* message in the watched directions (see
    /// [`Traffic`](crate::Traffic)), or since the upgrade. Control frames do not count. Inbound
    /// bytes count when they are read from the transport, which may be late while the handler does
    /// not read.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        self.connection.view().idle_for
    }

    /// Counters since the upgrade, and what our kernel knows of the connection now: this takes up
    /// to four system calls where the transport is a tokio `TcpStream` on Linux. After the
    /// transport is released the kernel is not asked.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.connection.stats()
    }

    /// Ends the connection with [`Reason::Kicked`], and sends the peer a Close frame with `code`
    /// and `reason` (RFC 6455 section 5.5.1).
    ///
    /// No Close frame is sent while the handler is in the middle of a frame. If the upgrade is not
    /// complete, the handler's side of it fails, and the Close frame is sent once the transport
    /// exists. All hooks are called immediately in that case too, whatever the response will be.
    ///
    /// Returns without waiting for the network. When it returns true, the connection's seats have
    /// left their maps, all hooks have returned, and the handler's pending reads and writes fail;
    /// the closing handshake continues for at most `close_timeout`. So do not call it while you
    /// hold a lock that a hook or a session map takes. Returns false and does nothing if the
    /// connection has ended before. While the [`OnOpen`](crate::OnOpen) hooks of the
    /// connection are being called, its eviction hooks wait for them, and may be called after this
    /// has returned.
    ///
    /// A reason of more than 123 bytes is cut at the last character that fits. A code that must not
    /// be sent (RFC 6455 section 7.4: below 1000, 1004 to 1006, 1015 to 2999, above 4999) is
    /// replaced by 1011 on the wire; [`Reason::Kicked`] keeps the code as given.
    pub fn evict(&self, code: u16, reason: impl Into<String>) -> bool {
        self.evict_for(Reason::Kicked { code }, kick_frame(code, reason.into()))
    }

    /// Like [`evict`](Self::evict), with a label for the cause: [`Eviction::label`] returns it, so
    /// that metrics can tell one cause of a kick from another.
    ///
    /// The label is a word of the application, such as `"slow_consumer"`. It is not sent to the
    /// peer, and [`Reason`] does not have it.
    pub fn evict_as(&self, label: &'static str, code: u16, reason: impl Into<String>) -> bool {
        let frame = kick_frame(code, reason.into());
        Arc::clone(&self.connection).evict_as(label, Reason::Kicked { code }, frame)
    }

    /// Like [`evict_for`](Self::evict_for), but after the frame that the handler is in the middle
    /// of. False if the connection has ended, or an eviction is deferred already.
    pub(crate) fn evict_at_boundary(&self, reason: Reason, frame: CloseFrame) -> bool {
        Arc::clone(&self.connection).evict_at_boundary(reason, frame)
    }

    /// Drops the transport of a connection that has ended or whose eviction is deferred.
    pub(crate) fn cut(&self) {
        Arc::clone(&self.connection).cut();
    }

    /// Whether the transport is gone.
    pub(crate) fn is_transport_closed(&self) -> bool {
        self.connection
            .metadata()
            .transport_closed_cleanly()
            .is_some()
    }

    /// Waits until the transport is gone. Returns whether the closing handshake of an eviction was
    /// completed.
    pub(crate) async fn until_transport_closed(&self) -> bool {
        self.connection.metadata().until_transport_closed().await
    }

    /// Waits until the connection has ended and all hooks have returned. Returns immediately if
    /// they have.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing, and any number of tasks may wait.
    pub async fn evicted(&self) -> Eviction {
        self.connection.metadata().until_announced().await
    }

    /// Waits until the transport is released: the socket is closed, or the upgrade has failed.
    /// Returns immediately if it is.
    ///
    /// That is the latest moment of a connection. After an eviction the closing handshake takes up
    /// to `close_timeout` before; after an end by the peer, the handler may still use the transport
    /// for as long. Hooks may still run: [`evicted`](Self::evicted) waits for them.
    ///
    /// ```
    /// use tokio::io::{AsyncReadExt, duplex};
    /// use tower_ws_liveness::HeartbeatLayer;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let (io, mut peer) = duplex(64);
    /// let (_io, live) = HeartbeatLayer::default().wrap_server(io);
    /// assert!(live.evict(4000, "bye"));
    /// // The peer does not answer the Close frame, so this takes `close_timeout`.
    /// live.closed().await;
    /// let mut received = Vec::new();
    /// peer.read_to_end(&mut received).await.expect("the end of the stream");
    /// assert_eq!(received, [0x88, 5, 0x0f, 0xa0, b'b', b'y', b'e']);
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing, and any number of tasks may wait.
    pub async fn closed(&self) {
        self.until_transport_closed().await;
    }

    /// Waits until a registry of the connection's layers begins to be drained (see
    /// [`Registry::begin_drain`](crate::Registry::begin_drain)). Returns immediately if one is
    /// being drained.
    ///
    /// For handlers that close their connection themselves, in their `select!`. In a loop, pin one
    /// future before it instead of making one per message: each allocates, and waits in a list that
    /// all connections share. Without a registry, or if the response is not an upgrade, this never
    /// returns. It returns no information about the connection, which may have ended before. The
    /// registries are those of the layers that the request has passed when this is called: in a
    /// handler, all.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing, and any number of tasks may wait.
    pub async fn draining(&self) {
        let registries = self.connection.registries().into_iter();
        let mut drains: Vec<_> = registries.map(|registry| registry.draining()).collect();
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
    /// the connection has ended, `hook` is called before this returns.
    ///
    /// The rules for hooks are those of [`OnEvict`](crate::OnEvict). Unlike a layer's hooks, this
    /// one is also called, with [`Reason::UpgradeFailed`], if the response is not an upgrade:
    /// whatever the handler prepared for the connection can be undone there.
    pub fn on_evict(&self, hook: impl FnOnce(&Eviction) + Send + 'static) {
        self.connection.metadata().add_local_hook(Box::new(hook));
    }

    /// Puts a value into the connection's own slot, and returns the previous one if it has the same
    /// type. Hooks find it with [`Eviction::session`].
    ///
    /// The slot is independent of the extensions of the HTTP request, which are dropped with the
    /// request.
    ///
    /// The slot is emptied when the connection has ended, all hooks have returned, the handler has
    /// dropped its socket, and no task awaits [`evicted`](Self::evicted); a value that is set after
    /// that is dropped immediately. An [`Eviction`] that is kept, or waits in a stream of
    /// [`evictions`](crate::Registry::evictions), keeps its value. So the value may hold this
    /// handle without keeping both alive forever. Do not put the only sender of a channel there if
    /// the handler waits for the end of that channel: it would wait forever.
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

    /// The value in the connection's slot. `None` if the slot is empty, holds another type, or was
    /// emptied after the end (see [`set_session`](Self::set_session)).
    #[must_use]
    pub fn session<T>(&self) -> Option<Arc<T>>
    where
        T: Any + Send + Sync,
    {
        self.connection.metadata().session()?.downcast().ok()
    }

    /// Waits for a value of this type in the connection's slot, and returns it. Values of another
    /// type are ignored.
    ///
    /// For tasks that find the connection, in a [`Registry`](crate::Registry) for example, before
    /// its handler has set the session.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing, and any number of tasks may wait.
    ///
    /// # Errors
    ///
    /// If the connection has ended, or ends, without such a value. All hooks have returned then.
    pub async fn wait_for_session<T>(&self) -> Result<Arc<T>, Evicted>
    where
        T: Any + Send + Sync,
    {
        self.metadata()
            .until_session_set()
            .await
            .map_err(Evicted::new)
    }
}

/// The Close frame of an eviction by the application. The code may be one that must not be sent.
fn kick_frame(code: u16, reason: String) -> CloseFrame {
    CloseFrame {
        code: config_error::on_wire(code),
        reason: reason.into(),
    }
}

/// An inner layer of a connection, until the layer's service responds to the handshake.
///
/// Dropping it detaches the layer.
pub(crate) struct InnerLayerGuard {
    connection: Option<Arc<dyn ErasedConnection>>,
    id: AttachmentId,
}

impl InnerLayerGuard {
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

impl Drop for InnerLayerGuard {
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
        // During a poll of the transport the state is locked.
        if !self.connection.is_polled() {
            let view = self.connection.view();
            debug.field("health", &view.health).field("rtt", &view.rtt);
        }
        debug.finish_non_exhaustive()
    }
}
