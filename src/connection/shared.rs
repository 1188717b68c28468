//! The one place that the handler's stream, the driver and the handles share.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::share::{Listeners, Share, Track};
use super::state::{Phase, State};
use super::stream::LivenessStream;
use super::watch::Notes;
use super::{ConnectionId, Liveness};
use crate::driver::{Drive, Driver};
use crate::evict::{self, Eviction, LocalHook, OnEvict};
use crate::monitor::{CloseFrame, Health, Moment, Reason, Rtt, Stats};
use crate::wire::Role;

/// One upgraded connection, from the request that asks for it to its end.
///
/// Lock order: `state`, then the driver's queue. Nothing foreign runs under either: hooks are
/// called, wakers woken and transports dropped after both were given back.
pub(crate) struct Connection<T> {
    core: Core,
    /// Already in the driver's queue of connections with something to do.
    scheduled: AtomicBool,
    state: Mutex<State<T>>,
}

/// The part of a connection that does not know its transport.
pub(crate) struct Core {
    id: ConnectionId,
    created: Instant,
    driver: OnceLock<Arc<Driver>>,
    extras: Mutex<Extras>,
    eviction: OnceLock<Arc<Eviction>>,
    /// All hooks have returned.
    reported: AtomicBool,
    reporting: Notify,
}

#[derive(Default)]
struct Extras {
    session: Option<Arc<dyn Any + Send + Sync>>,
    layers: Vec<Arc<Listeners>>,
    local: Vec<LocalHook>,
    /// The hooks were taken to be called: one that comes now is called by whoever brings it.
    fired: bool,
}

/// What can be said of a connection at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) health: Health,
    pub(crate) lifetime: Duration,
    pub(crate) last_seen: Instant,
    pub(crate) idle_for: Duration,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

/// A connection, for those who do not know its transport.
pub(crate) trait Managed: Send + Sync {
    fn core(&self) -> &Core;
    fn view(&self) -> View;
    /// Ends the connection with this Close frame. False if it has ended before.
    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// Adds a layer. Of two of a kind the later one's settings hold, and both are told of the end.
    fn attach(&self, layer: &Share);
}

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// A connection that is yet to be upgraded.
    pub(crate) fn new(role: Role) -> Arc<Self> {
        Arc::new(Self {
            core: Core {
                id: ConnectionId::next(),
                created: Instant::now(),
                driver: OnceLock::new(),
                extras: Mutex::default(),
                eviction: OnceLock::new(),
                reported: AtomicBool::new(false),
                reporting: Notify::new(),
            },
            scheduled: AtomicBool::new(false),
            state: Mutex::new(State::new(role)),
        })
    }

    /// A handle.
    pub(crate) fn live(self: &Arc<Self>) -> Liveness {
        Liveness::new(Arc::clone(self) as Arc<dyn Managed>)
    }

    /// The upgrade is complete: `io` speaks frames from now on. The connection is counted, and
    /// driven. `None` if it was evicted before it came so far.
    pub(crate) fn open(self: &Arc<Self>, io: T) -> Option<LivenessStream<T>> {
        let driver = Driver::current();
        let _ = self.core.driver.set(Arc::clone(&driver));
        let trackers = self.core.trackers();
        // Counted first, so that an eviction in this very moment finds what it has to remove.
        for tracker in &trackers {
            tracker.opened(self.live());
        }
        let connection = Arc::clone(self) as Arc<dyn Drive>;
        if self.enter(|state| state.open(io, connection, driver)) {
            return Some(LivenessStream::new(Arc::clone(self)));
        }
        for tracker in &trackers {
            tracker.ended(self.core.id);
        }
        None
    }

    /// Like [`open`](Self::open), for a connection that nobody else knows of yet.
    pub(super) fn start(self: &Arc<Self>, io: T) -> LivenessStream<T> {
        // A hook cannot run and nobody has a handle: there is nothing that could have ended it.
        self.open(io)
            .expect("a connection does not end before it is known")
    }

    /// The response announced an upgrade, and none came of it.
    pub(crate) fn upgrade_failed(self: &Arc<Self>) {
        self.enter(|state| state.give_up_opening(self.core.created_moment()));
    }

    /// The response announced no upgrade: for the layers there was no connection. What the handler
    /// itself has asked to be told on its handle, it is told.
    pub(crate) fn not_upgraded(self: &Arc<Self>) {
        self.core.extras().layers.clear();
        self.upgrade_failed();
    }

    /// Does something with the state, and then, with no lock held, all that follows from it.
    pub(super) fn enter<R>(self: &Arc<Self>, act: impl FnOnce(&mut State<T>) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        let aftermath = state.settle();
        let Some(aftermath) = aftermath else {
            return result;
        };
        let eviction = aftermath
            .verdict
            .map(|reason| self.core.describe(reason, self.core.view_of(&state)));
        let evicting = eviction.is_some() && matches!(state.phase, Phase::Evicting { .. });
        drop(state);
        self.core.log(aftermath.notes);
        if let Some(eviction) = eviction {
            self.core.fire(eviction);
        }
        drop(aftermath.io);
        if let Some(link) = aftermath.link {
            link.driver.remove(link.key);
        }
        for waker in aftermath.wakers.into_iter().flatten() {
            waker.wake();
        }
        if evicting {
            self.schedule();
        }
        result
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Whoever panicked in there was a transport, and `drive` has ended its connection.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A waker that has the driver look after this connection.
    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// What a handler's operation fails with after the eviction.
    pub(super) fn eviction_error(reason: Reason) -> io::Error {
        evict::Evicted::new(reason).into_io_error()
    }

    fn schedule(self: &Arc<Self>) {
        let Some(driver) = self.core.driver.get() else {
            return;
        };
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            driver.schedule(Arc::clone(self) as Arc<dyn Drive>);
        }
    }
}

impl<T> Drive for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn drive(self: Arc<Self>, scratch: &mut [u8]) {
        self.scheduled.store(false, Ordering::Release);
        let waker = self.waker();
        let driven = catch_unwind(AssertUnwindSafe(|| {
            self.enter(|state| state.drive(&waker, scratch));
        }));
        if driven.is_err() {
            tracing::warn!(conn_id = %self.core.id, "a transport panicked while it was driven");
            self.enter(State::transport_panicked);
        }
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

impl<T> Managed for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn core(&self) -> &Core {
        &self.core
    }

    fn view(&self) -> View {
        self.core.view_of(&self.lock())
    }

    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool {
        let now = self.core.now();
        self.enter(|state| state.evict(now, reason, frame))
    }

    fn attach(&self, layer: &Share) {
        self.lock().attach(&layer.policy);
        let mut extras = self.core.extras();
        let listeners = &layer.listeners;
        if !extras
            .layers
            .iter()
            .any(|known| Arc::ptr_eq(known, listeners))
        {
            extras.layers.push(Arc::clone(listeners));
        }
    }
}

impl Core {
    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    fn now(&self) -> Moment {
        self.driver
            .get()
            .map_or(Moment::START, |driver| driver.clock().now())
    }

    fn created_moment(&self) -> Moment {
        self.driver
            .get()
            .map_or(Moment::START, |driver| driver.clock().moment(self.created))
    }

    fn extras(&self) -> MutexGuard<'_, Extras> {
        self.extras.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trackers(&self) -> Vec<Arc<dyn Track>> {
        let extras = self.extras();
        extras
            .layers
            .iter()
            .filter_map(|layer| layer.tracker.clone())
            .collect()
    }

    fn view_of<T>(&self, state: &State<T>) -> View {
        let (Some(driver), true) = (self.driver.get(), state.was_opened()) else {
            return View {
                health: state.health(),
                lifetime: Duration::ZERO,
                last_seen: self.created,
                idle_for: Duration::ZERO,
                rtt: None,
                stats: Stats::default(),
            };
        };
        let (clock, monitor) = (driver.clock(), &state.monitor);
        let now = clock.now();
        View {
            health: state.health(),
            lifetime: now.since(monitor.opened()),
            last_seen: clock.instant(monitor.last_inbound()),
            idle_for: now.since(monitor.last_active(&state.policy)),
            rtt: monitor.rtt(),
            stats: monitor.stats(),
        }
    }

    fn log(&self, notes: Notes) {
        if notes.pinged {
            tracing::trace!(conn_id = %self.id, "ping sent");
        }
        if let Some((direction, rule)) = notes.malformed {
            tracing::debug!(
                conn_id = %self.id,
                direction,
                %rule,
                "malformed frame, passing bytes on unseen"
            );
        }
    }

    fn describe(&self, reason: Reason, view: View) -> Eviction {
        Eviction {
            id: self.id,
            reason,
            lifetime: view.lifetime,
            last_seen: view.last_seen,
            idle_for: view.idle_for,
            rtt: view.rtt,
            stats: view.stats,
            session: self.session(),
        }
    }

    /// Tells everybody, once. The caller holds no lock, and the verdict that only one caller gets.
    fn fire(&self, eviction: Eviction) {
        let eviction = Arc::new(eviction);
        if self.eviction.set(Arc::clone(&eviction)).is_err() {
            return;
        }
        let (layers, local) = {
            let mut extras = self.extras();
            extras.fired = true;
            (
                std::mem::take(&mut extras.layers),
                std::mem::take(&mut extras.local),
            )
        };
        tracing::debug!(
            conn_id = %self.id,
            reason = eviction.reason().as_str(),
            idle_ms = eviction.idle_for().as_millis() as u64,
            "connection ended"
        );
        for tracker in layers.iter().filter_map(|layer| layer.tracker.as_ref()) {
            tracker.ended(self.id);
        }
        for hook in local {
            evict::call_local(hook, &eviction);
        }
        // The same hook may have been given to several layers; it is told once.
        let mut told: Vec<&Arc<dyn OnEvict>> = Vec::new();
        for hook in layers.iter().flat_map(|layer| &layer.hooks) {
            if !told.iter().any(|known| Arc::ptr_eq(known, hook)) {
                told.push(hook);
                evict::call(&**hook, &eviction);
            }
        }
        self.reported.store(true, Ordering::Release);
        self.reporting.notify_waiters();
    }

    /// The end, as soon as all hooks have been told of it.
    pub(super) async fn reported(&self) -> Arc<Eviction> {
        loop {
            let notified = self.reporting.notified();
            match self.eviction.get() {
                Some(eviction) if self.reported.load(Ordering::Acquire) => {
                    return Arc::clone(eviction);
                }
                Some(_) | None => notified.await,
            }
        }
    }

    /// Adds a hook, or calls it if the connection has ended.
    pub(super) fn add_local(&self, hook: LocalHook) {
        let mut extras = self.extras();
        if !extras.fired {
            extras.local.push(hook);
            return;
        }
        drop(extras);
        if let Some(eviction) = self.eviction.get() {
            evict::call_local(hook, eviction);
        }
    }

    pub(super) fn session(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.extras().session.clone()
    }

    pub(super) fn set_session(
        &self,
        session: Arc<dyn Any + Send + Sync>,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        self.extras().session.replace(session)
    }
}
