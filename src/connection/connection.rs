//! [`Connection`]: the lock that the handler's stream, the driver and the handles share.

#[cfg(feature = "test-util")]
use std::any::TypeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

#[cfg(feature = "test-util")]
use super::io::NoTransport;
use super::io::{Report, TransportTraits};
use super::layers::{
    Admission, AttachmentId, ErasedConnection, ErasedRegistry, ExpiryHook, InnerLayer, LayerConfig,
    Membership, Registries, View,
};
use super::metadata::{HealthEvents, LayerHooks, Metadata};
use super::settings;
use super::state::State;
use crate::driver::{Drive, Driver};
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::{CloseFrame, Moment, Overrides, Reason, Stats};
use crate::panic_guard;
use crate::sync::{Lock, Locked};
use crate::wire::Role;

/// One connection, from the request that opens it to the release of its transport.
///
/// Lock order: `state`, then at most one of: the record of `metadata`, the lock of `membership`,
/// the driver's queue. Application code (hooks, wakers, tracing subscribers, drops of transports)
/// runs after all are released, with three exceptions. A transport is *polled*, and may clone a
/// waker, under `state`; locking `state` from there panics. The driver's task is woken under
/// `state`. The application's map is called under the lock of one registration (see
/// [`register`](crate::Liveness::register)), inside which the record may be locked, so no other
/// lock is acquired under the record.
pub(crate) struct Connection<T: 'static> {
    pub(super) metadata: Metadata,
    pub(super) membership: Membership,
    state: Lock<State<T>>,
}

// Without a transport, and with a socket. Checked in our own tests only: on other platforms std's
// locks may be larger.
#[cfg(all(
    test,
    not(liveness_loom),
    target_os = "linux",
    target_pointer_width = "64"
))]
const _: () = {
    assert!(size_of::<Connection<()>>() <= 504);
    #[cfg(feature = "tcp")]
    assert!(size_of::<Connection<tokio::net::TcpStream>>() <= 536);
};

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Creates a connection before its upgrade. `transport` describes its transport.
    pub(crate) fn new(role: Role, transport: &'static TransportTraits<T>) -> Arc<Self> {
        Self::with_id(ConnectionId::next(), role, transport)
    }

    /// Like [`new`](Self::new), with an id that the caller has chosen.
    pub(super) fn with_id(
        id: ConnectionId,
        role: Role,
        transport: &'static TransportTraits<T>,
    ) -> Arc<Self> {
        Arc::new(Self {
            metadata: Metadata::new(id),
            membership: Membership::default(),
            state: Lock::new(State::new(role, transport)),
        })
    }

    /// The transport will be an HTTP/2 stream: see
    /// [`WriteHalf::split_pings`](super::io::WriteHalf::split_pings).
    pub(crate) fn set_over_http2(&self) {
        self.lock().write_half.split_pings();
    }

    /// The upgrade is complete, and `io` carries frames from now on. Enters the registries, starts
    /// the driver's task, and calls the open hooks. False if the connection was evicted before; the
    /// driver then does the closing handshake over `io`.
    pub(crate) fn open(self: &Arc<Self>, io: T, driver: &Arc<Driver>) -> bool {
        self.metadata.set_driver(Arc::clone(driver));
        // First, so that an eviction from now on finds the connection in its registries.
        let erased = Arc::clone(self) as Arc<dyn ErasedConnection>;
        self.membership.enter(&erased);
        let connection = Arc::clone(self) as Arc<dyn Drive>;
        let mut missing_layer = None;
        let (opened, open_hooks) = self.enter(|state, report| {
            // All layers that the request passes have joined.
            missing_layer = state.missing_layer();
            let opened = state.open(io, connection, Arc::clone(driver), report);
            // Under the lock, so that no end can come before the hooks.
            let has_hooks = opened && state.has_open_hooks;
            let hooks = has_hooks
                .then(|| self.metadata.begin_open_hooks())
                .flatten();
            (opened, hooks)
        });
        driver.start();
        if let Some(layer) = missing_layer {
            settings::log_missing_layer(layer);
        }
        if opened {
            let id = self.metadata.id();
            panic_guard::log(|| tracing::debug!(conn_id = %id, "connection opened"));
        }
        if let Some(hooks) = open_hooks {
            self.metadata.in_runtime(|| self.call_open_hooks(&hooks));
            // Perhaps the last references, if a hook has ended the connection and its layer is gone.
            panic_guard::discard(self.metadata.id(), hooks);
        }
        opened
    }

    /// Evicts a connection that was opened while its registry is being drained. It is in the
    /// registry by now, so either the drain's list has it, or this call sees that the drain has
    /// begun.
    pub(super) fn evict_if_draining(self: &Arc<Self>) {
        let mut registries = self.membership.registries().into_iter();
        if let Some((reason, frame)) = registries.find_map(|registry| registry.drain_order()) {
            Arc::clone(self).evict(reason, frame);
        }
    }

    /// The response announced an upgrade that then failed.
    pub(crate) fn upgrade_failed(self: &Arc<Self>) {
        self.enter(|state, _| state.upgrade_failed(self.metadata.created_moment()));
    }

    /// The response is not an upgrade, so for the layers there was no connection. Hooks that the
    /// handler added to its handle are called.
    pub(crate) fn not_upgraded(self: &Arc<Self>) {
        self.metadata.detach_layers();
        self.membership.dissolve();
        self.upgrade_failed();
    }

    /// # Panics
    ///
    /// During a poll of this connection's transport.
    pub(super) fn lock(&self) -> Locked<'_, State<T>> {
        let mut state = self.lock_for_handler();
        state.routine = false;
        state
    }

    /// [`lock`](Self::lock) for an operation of the handler, which may be
    /// [routine](State::routine).
    #[inline(always)]
    pub(super) fn lock_for_handler(&self) -> Locked<'_, State<T>> {
        // After a panic of the transport or of a waker, no more bytes are read, and the transport
        // is dropped without a shutdown.
        self.state.lock(|state| {
            state.routine = false;
            state.read_half.mark_ended();
            state.write_half.skip_shutdown();
        })
    }

    /// A waker that schedules the driver for this connection.
    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    pub(super) fn describe(&self, reason: Reason, state: &State<T>, report: &Report) -> Eviction {
        let view = self.view_of(state);
        let kernel = report.kernel.as_deref();
        Eviction {
            id: self.metadata.id(),
            reason,
            label: state.eviction_label(),
            lifetime: view.lifetime,
            last_seen: view.last_seen,
            idle_for: view.idle_for,
            rtt: view.rtt,
            stats: kernel.map_or(view.stats, |kernel| state.monitor.stats_with(&kernel.view)),
            peer_kernel: kernel.map(|kernel| kernel.peer_kernel).unwrap_or_default(),
            session: self.metadata.session(),
            seats: None,
        }
    }

    fn view_of(&self, state: &State<T>) -> View {
        let monitor = &state.monitor;
        let (Some(driver), true) = (self.metadata.driver(), monitor.was_opened()) else {
            return View {
                health: monitor.health(Moment::START, &state.policy),
                lifetime: Duration::ZERO,
                last_seen: self.metadata.created(),
                idle_for: Duration::ZERO,
                rtt: None,
                stats: Stats::default(),
            };
        };
        let clock = driver.clock();
        let now = clock.now();
        View {
            health: monitor.health(now, &state.policy),
            lifetime: now.since(monitor.opened()),
            last_seen: clock.instant(monitor.last_inbound()),
            idle_for: now.since(monitor.last_active(&state.policy)),
            rtt: monitor.rtt(),
            stats: monitor.stats(),
        }
    }

    /// Adds the hooks of a layer. False if they are there already.
    fn attach_hooks(&self, state: &mut State<T>, hooks: &Arc<LayerHooks>) -> bool {
        if !hooks.health_hooks.is_empty() {
            let events = || Box::new(HealthEvents::new());
            state.rare().health_events.get_or_insert_with(events);
        }
        state.has_open_hooks |= !hooks.open_hooks.is_empty();
        self.metadata.attach(hooks)
    }

    /// Has the driver visit this connection.
    pub(super) fn schedule(self: &Arc<Self>) {
        let Some(driver) = self.metadata.driver() else {
            return;
        };
        if !self.metadata.scheduled.swap(true, Ordering::AcqRel) {
            driver.schedule(Arc::clone(self) as Arc<dyn Drive>);
        }
    }

    /// Has the driver begin the closing handshake. Without a driver the transport is dropped.
    pub(super) fn schedule_close_handshake(self: &Arc<Self>) {
        let driver = self.metadata.driver();
        let scheduled =
            driver.is_some_and(|driver| driver.schedule(Arc::clone(self) as Arc<dyn Drive>));
        if !scheduled {
            self.enter(|state, _| state.skip_close_handshake());
        }
    }
}

impl<T> Drive for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn drive(self: Arc<Self>, now: Moment, scratch: &mut [u8]) -> bool {
        // Acquires what happened before the wake-up: this visit may be the one to see it.
        self.metadata.scheduled.swap(false, Ordering::AcqRel);
        let waker = self.waker();
        let mut report = Report::default();
        let driven = panic_guard::catch(|| {
            self.enter_with(&mut report, |state, report| {
                state.drive(now, &waker, scratch, report);
                state.monitor.has_ended() || state.may_call_hooks()
            })
        });
        driven.unwrap_or_else(|| {
            let message = "a transport panicked while it was driven";
            let id = self.metadata.id();
            panic_guard::log(|| tracing::warn!(conn_id = %id, "{message}"));
            self.enter_with(&mut report, |state, _| state.transport_panicked());
            true
        })
    }

    fn abandon(self: Arc<Self>) {
        self.enter(|state, _| state.runtime_shut_down());
    }
}

impl<T> Wake for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn wake(self: Arc<Self>) {
        self.schedule();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.schedule();
    }
}

impl<T> ErasedConnection for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn view(&self) -> View {
        self.view_of(&self.lock())
    }

    fn stats(&self) -> Stats {
        let state = self.lock();
        match state.kernel_view() {
            Some(kernel) => state.monitor.stats_with(&kernel),
            None => state.monitor.stats(),
        }
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        let state = self.lock();
        (state.transport.peer_addr)(state.io.as_ref()?)
    }

    fn is_polled(&self) -> bool {
        self.state.is_locked_by_this_thread()
    }

    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool {
        let now = self.metadata.now();
        self.enter(|state, _| state.evict(now, reason, frame))
    }

    fn evict_as(self: Arc<Self>, label: &'static str, reason: Reason, frame: CloseFrame) -> bool {
        let now = self.metadata.now();
        self.enter(|state, _| state.evict_as(now, label, reason, frame))
    }

    fn evict_at_boundary(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool {
        let now = self.metadata.now();
        self.enter(|state, _| state.evict_at_boundary(now, reason, frame))
    }

    fn cut(self: Arc<Self>) {
        let now = self.metadata.now();
        if self.enter(|state, _| state.stop_waiting(now)) {
            // At once, and not after the driver's visits to other connections. Nothing is read.
            self.drive(now, &mut []);
        }
    }

    fn warn_before_expiry(self: Arc<Self>, before: Duration, hook: ExpiryHook) {
        let unused = self.enter(|state, _| state.warn_before_expiry(before, hook));
        panic_guard::discard(self.metadata.id(), unused);
    }

    fn ping(self: Arc<Self>) -> oneshot::Receiver<Duration> {
        let now = self.metadata.now();
        self.enter(|state, _| state.ping(now))
    }

    fn override_policy(self: Arc<Self>, overrides: &Overrides) {
        let now = self.metadata.now();
        self.enter(|state, report| state.override_policy(now, None, overrides, report));
    }

    fn change_policy(self: Arc<Self>, overrides: &Overrides) -> bool {
        let now = self.metadata.now();
        self.enter(|state, report| {
            let fits = overrides.missing_layer(&state.policy).is_none();
            if fits {
                state.override_policy(now, None, overrides, report);
            }
            fits
        })
    }

    fn attach(&self, layer: &LayerConfig, admission: Option<Admission>) {
        let mut state = self.lock();
        state.attach(&layer.policy);
        self.attach_hooks(&mut state, &layer.hooks);
        drop(state);
        let rest = admission.map(|admission| self.membership.add(admission));
        drop(rest);
    }

    fn join(
        self: Arc<Self>,
        layer: &Arc<LayerConfig>,
        within: Option<AttachmentId>,
        admission: Option<Admission>,
        overrides: Option<&Overrides>,
    ) -> AttachmentId {
        let now = self.metadata.now();
        let id = AttachmentId::next();
        // In one step: a layer that leaves at the same time must see all of this layer, or nothing.
        let rest = self.enter(|state, report| {
            let owns_hooks = self.attach_hooks(state, &layer.hooks);
            let added = admission.map(|admission| self.membership.add(admission));
            let attached = InnerLayer {
                id,
                within,
                layer: Arc::clone(layer),
                owns_hooks,
                owns_admission: matches!(added, Some((true, _))),
                accepted: false,
            };
            state.join(now, attached, overrides, report);
            added
        });
        drop(rest);
        id
    }

    fn leave(self: Arc<Self>, id: AttachmentId) {
        let now = self.metadata.now();
        let left = self.enter(|state, report| {
            let removed = state.leave(now, id, report);
            let mut admissions = Vec::new();
            for attached in &removed {
                let layer = &attached.layer;
                let Some(others) = state.attachments() else {
                    break;
                };
                if attached.owns_hooks && !others.inherit_hooks(layer) {
                    self.metadata.detach(&layer.hooks);
                }
                if let Some(registry) = layer.registry.as_ref().filter(|_| attached.owns_admission)
                {
                    if !others.inherit_admission(layer) {
                        admissions.extend(self.membership.remove(registry, self.metadata.id()));
                    }
                }
            }
            if !self.metadata.has_health_hooks() {
                state.drop_health_events();
            }
            (removed, admissions, state.take_final_attachments())
        });
        // It may own the last references to hooks.
        panic_guard::discard(self.metadata.id(), left);
    }

    fn accept(&self, id: AttachmentId) {
        let mut state = self.lock();
        if let Some(attachments) = state.attachments() {
            attachments.accept(id);
        }
        let left = state.take_final_attachments();
        drop(state);
        panic_guard::discard(self.metadata.id(), left);
    }

    fn is_in(&self, registry: &Arc<dyn ErasedRegistry>) -> bool {
        self.membership.is_in(registry)
    }

    fn registries(&self) -> Registries {
        self.membership.registries()
    }

    #[cfg(feature = "test-util")]
    fn is_detached(&self) -> bool {
        TypeId::of::<T>() == TypeId::of::<NoTransport>()
    }
}
