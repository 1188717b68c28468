//! One connection under liveness: the handler's stream, the driver and the handles meet here.
//!
//! | where | what |
//! |---|---|
//! | this file | [`Connection`]: the lock around the state, and what runs after it is released |
//! | [`state`] | what the lock protects: transport, monitor, both I/O halves |
//! | [`settings`] | layers and overrides that join, change and leave |
//! | [`effects`] | what an operation entails once the lock is released |
//! | [`handle`] | [`Liveness`] |
//! | [`stream`] | [`LivenessStream`] |
//! | [`erased`] | what layers, registries and handles may ask of a connection of any transport |
//! | [`io`] | bytes: read half, write half, our pings and Close frames, wakers |
//! | [`timing`] | the driver's visits, deadlines, the closing handshake |
//! | [`end`] | the end of a connection: at a frame boundary, announced once, transport released |
//! | [`metadata`] | what does not depend on the transport: identity, hooks, seats, registries |

mod end;
mod handle;
mod io;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod metadata;
mod state;
mod stream;
mod timing;

pub(crate) use handle::Attachment;
pub use handle::Liveness;
pub(crate) use io::TransportTraits;
pub(crate) use metadata::{
    AttachmentId, ErasedConnection, LayerConfig, Refused, Registration, RegistrationId, Tracker,
    View,
};
pub use stream::LivenessStream;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::connection::end::drop_transport;
use crate::connection::io::Report;
use crate::connection::metadata::Attached;
use crate::connection::metadata::HealthEvents;
use crate::connection::metadata::Listeners;
use crate::connection::metadata::Metadata;
use crate::connection::metadata::{Admission, Membership};
use crate::connection::state::State;
use crate::driver::{Drive, Driver};
use crate::eviction::Eviction;
use crate::hooks;
use crate::monitor::{CloseFrame, Moment, Overrides, Policy, Reason, Stats};
use crate::panic_guard;
use crate::sync::{AtomicBool, Lock, Locked};
use crate::wire::Role;

/// One upgraded connection, from the request that asks for it to its end.
///
/// Lock order: `state`, then the core's extras, the registries', or the driver's queue. What is
/// foreign runs under none of them: hooks are called, wakers woken, log lines written and transports
/// dropped after all were given back. (A transport is *polled* under `state`, which is what that lock
/// is for, a waker may be cloned, and the driver's own task is woken. A transport or a waker that locks
/// `state` from there panics. The application's map is called under a lock that belongs to one
/// registration alone, see [`register`](crate::Liveness::register). Inside of that map the extras are
/// locked, so no other lock is acquired while they are held.)
pub(crate) struct Connection<T: 'static> {
    metadata: Metadata,
    membership: Membership,
    /// Already in the driver's queue of connections with something to do.
    scheduled: AtomicBool,
    state: Lock<State<T>>,
}

// What every connection takes, besides its transport. Whoever makes it more says why. Asked of our own
// tests alone: elsewhere std's locks may be larger.
#[cfg(all(
    test,
    not(liveness_loom),
    target_os = "linux",
    target_pointer_width = "64"
))]
const _: () = assert!(size_of::<Connection<()>>() <= 728);

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Creates a connection before its upgrade. `capabilities` describe its transport.
    pub(crate) fn new(role: Role, capabilities: &'static TransportTraits<T>) -> Arc<Self> {
        Arc::new(Self {
            metadata: Metadata::new(),
            membership: Membership::default(),
            scheduled: AtomicBool::new(false),
            state: Lock::new(State::new(role, capabilities)),
        })
    }

    /// The transport will be a stream of HTTP/2, which hides that its peer grants no window.
    pub(crate) fn over_http2(&self) {
        self.lock().write_half.in_strokes();
    }

    /// The upgrade is complete: `io` speaks frames from now on. The connection is counted, and
    /// driven. False if it was evicted before it came so far; the driver then does its closing
    /// handshake over `io`.
    pub(crate) fn open(self: &Arc<Self>, io: T) -> bool {
        let driver = Driver::expect_current();
        self.metadata.set_driver(Arc::clone(&driver));
        // Counted first, so that an eviction in this very moment finds what it has to remove.
        let managed = Arc::clone(self) as Arc<dyn ErasedConnection>;
        self.membership.enter(&managed);
        let connection = Arc::clone(self) as Arc<dyn Drive>;
        let opened = self.enter(|state| state.open(io, connection, Arc::clone(&driver)));
        driver.start();
        if opened {
            panic_guard::log(
                || tracing::debug!(conn_id = %self.metadata.id(), "connection opened"),
            );
        }
        opened
    }

    /// Ends a connection that was opened after its registry began to be drained. It is entered by
    /// now: either the drain has found it, or it finds the drain.
    fn heed_drain(self: &Arc<Self>) {
        let mut trackers = self.membership.trackers().into_iter();
        if let Some((reason, frame)) = trackers.find_map(|tracker| tracker.farewell()) {
            Arc::clone(self).evict(reason, frame);
        }
    }

    /// The response announced an upgrade, and none came of it.
    pub(crate) fn upgrade_failed(self: &Arc<Self>) {
        self.enter(|state| state.give_up_opening(self.metadata.created_moment()));
    }

    /// The response announced no upgrade: for the layers there was no connection. What the handler
    /// itself has asked to be told on its handle, it is health_events.
    pub(crate) fn not_upgraded(self: &Arc<Self>) {
        self.metadata.detach_layers();
        self.membership.dissolve();
        self.upgrade_failed();
    }

    /// The handler, who has its stream now, may ask for the session.
    fn hold_session(&self) {
        self.metadata.hold();
    }

    /// The handler has dropped its stream.
    fn release_session(&self) {
        self.metadata.release();
    }

    /// Does something with the state, and then, with no lock held, all that follows from it.
    fn enter<R>(self: &Arc<Self>, act: impl FnOnce(&mut State<T>) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        if !state.is_settled() {
            self.follow_up(state);
        }
        result
    }

    /// The rare part of [`enter`](Self::enter), kept out of the way of the usual one.
    #[inline(never)]
    fn follow_up(self: &Arc<Self>, mut state: Locked<'_, State<T>>) {
        let Some(aftermath) = state.settle() else {
            return;
        };
        let eviction = aftermath
            .verdict
            .map(|reason| self.describe(reason, self.view_of(&state)));
        let unwatched = aftermath.notes.uncertain || aftermath.notes.pinged && state.is_unwatched();
        let shuts_down = state.is_to_shut_down();
        drop(state);
        self.log(aftermath.notes);
        if let Some(eviction) = eviction {
            self.metadata.in_runtime(|| self.tell_end(eviction));
        }
        if let Some(timer) = aftermath.timer {
            timer.driver.remove(timer.key);
        }
        let id = self.metadata.id();
        let gone = aftermath.io.map(|io| drop_transport(io, shuts_down));
        if gone == Some(false) {
            let message = "a transport panicked while it was dropped";
            panic_guard::log(|| tracing::warn!(conn_id = %id, "{message}"));
        }
        if let Some(clean) = aftermath.departed {
            self.metadata.depart(clean);
            self.membership.gone();
        }
        for waker in aftermath.spent.into_iter().flatten() {
            panic_guard::wake(id, || drop(waker));
        }
        if let Some(ping_waiters) = aftermath.ping_waiters {
            ping_waiters.tell(id);
        }
        for waker in aftermath.wakers.into_iter().flatten() {
            panic_guard::wake(id, || waker.wake());
        }
        if aftermath.closes {
            self.schedule_closing();
        } else if unwatched {
            self.schedule();
        }
        if aftermath.news {
            self.metadata.in_runtime(|| self.tell_health());
        }
    }

    /// Tells everybody of the end, in this order: the membership, which no longer count it; the maps,
    /// in which it has seats; the streams of evictions; the hooks.
    fn tell_end(&self, mut eviction: Eviction) {
        if !self.metadata.begin_end(&eviction) {
            return;
        }
        let trackers = self.membership.end(eviction.id());
        self.metadata.leave_places(&mut eviction);
        for tracker in trackers {
            tracker.evicted(&eviction);
        }
        self.metadata.report(eviction);
        self.membership.reported();
    }

    /// Tells the health hooks all that waits for them, also what comes meanwhile.
    fn tell_health(&self) {
        let next = || self.lock().next_change();
        while let Some(change) = next() {
            for hook in self.metadata.health_hooks() {
                // The hook before may have ended the connection.
                if self.metadata.has_ended() {
                    break;
                }
                hooks::call_on_health(&*hook, &change);
            }
        }
    }

    /// # Panics
    ///
    /// From within a poll of this connection's transport.
    fn lock(&self) -> Locked<'_, State<T>> {
        // What panicked in there was a transport, and `drive` has ended its connection.
        self.state.lock(|state| {
            state.read_half.give_up();
            state.write_half.give_up();
        })
    }

    /// A waker that has the driver look after this connection.
    fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    fn describe(&self, reason: Reason, view: View) -> Eviction {
        Eviction {
            id: self.metadata.id(),
            reason,
            lifetime: view.lifetime,
            last_seen: view.last_seen,
            idle_for: view.idle_for,
            rtt: view.rtt,
            stats: view.stats,
            session: self.metadata.session(),
            seats: None,
        }
    }

    fn view_of(&self, state: &State<T>) -> View {
        let (Some(driver), true) = (self.metadata.driver(), state.was_opened()) else {
            return View {
                health: state.health(Moment::START),
                lifetime: Duration::ZERO,
                last_seen: self.metadata.created(),
                idle_for: Duration::ZERO,
                rtt: None,
                stats: Stats::default(),
            };
        };
        let (clock, monitor) = (driver.clock(), &state.monitor);
        let now = clock.now();
        View {
            health: state.health(now),
            lifetime: now.since(monitor.opened()),
            last_seen: clock.instant(monitor.last_inbound()),
            idle_for: now.since(monitor.last_active(&state.policy)),
            rtt: monitor.rtt(),
            stats: monitor.stats(),
        }
    }

    fn log(&self, notes: Report) {
        let id = self.metadata.id();
        if notes.pinged {
            panic_guard::log(|| tracing::trace!(conn_id = %id, "ping sent"));
        }
        if let Some(kind) = notes.untuned {
            let error = std::io::Error::from(kind);
            panic_guard::log(
                || tracing::debug!(conn_id = %id, %error, "transport's options not set"),
            );
        }
        if let Some((direction, rule)) = notes.malformed {
            let direction = direction.as_str();
            let message = "malformed frame, passing bytes on unseen";
            panic_guard::log(|| tracing::debug!(conn_id = %id, direction, %rule, "{message}"));
        }
    }

    /// Adds the hooks of a layer. False if they are there already.
    fn attach_listeners(&self, state: &mut State<T>, listeners: &Arc<Listeners>) -> bool {
        if !listeners.health_hooks.is_empty() {
            let health_events = || Box::new(HealthEvents::new(self.metadata.id()));
            state.health_events.get_or_insert_with(health_events);
        }
        self.metadata.attach(listeners)
    }

    fn schedule(self: &Arc<Self>) {
        let Some(driver) = self.metadata.driver() else {
            return;
        };
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            driver.schedule(Arc::clone(self) as Arc<dyn Drive>);
        }
    }

    fn schedule_closing(self: &Arc<Self>) {
        let driven = self
            .metadata
            .driver()
            .is_some_and(|driver| driver.schedule(Arc::clone(self) as Arc<dyn Drive>));
        if !driven {
            self.enter(State::close_now);
        }
    }
}

impl<T> Drive for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn drive(self: Arc<Self>, now: Moment, scratch: &mut [u8]) {
        // Acquires what the waker's caller did before: it may be what is looked at now.
        self.scheduled.swap(false, Ordering::AcqRel);
        let waker = self.waker();
        let driven = panic_guard::catch(|| self.enter(|state| state.drive(now, &waker, scratch)));
        if driven.is_none() {
            let (id, message) = (
                self.metadata.id(),
                "a transport panicked while it was driven",
            );
            panic_guard::log(|| tracing::warn!(conn_id = %id, "{message}"));
            self.enter(State::transport_panicked);
        }
    }

    fn abandon(self: Arc<Self>) {
        self.enter(State::abandon);
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

    fn membership(&self) -> &Membership {
        &self.membership
    }

    fn view(&self) -> View {
        self.view_of(&self.lock())
    }

    fn is_polled(&self) -> bool {
        self.state.is_held()
    }

    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool {
        let now = self.metadata.now();
        self.enter(|state| state.evict(now, reason, frame))
    }

    fn part(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool {
        let now = self.metadata.now();
        self.enter(|state| state.part(now, reason, frame))
    }

    fn cut(self: Arc<Self>) {
        let now = self.metadata.now();
        if self.enter(|state| state.hurry(now)) {
            // What the driver would do when it comes by, which may be after others: nothing is waited
            // for now, and nothing read.
            self.drive(now, &mut []);
        }
    }

    fn ping(self: Arc<Self>) -> oneshot::Receiver<Duration> {
        let now = self.metadata.now();
        self.enter(|state| state.ping(now))
    }

    fn override_policy(self: Arc<Self>, overrides: &Overrides) {
        let now = self.metadata.now();
        self.enter(|state| state.override_policy(now, None, overrides));
    }

    fn change_policy(self: Arc<Self>, overrides: &Overrides) -> bool {
        let now = self.metadata.now();
        self.enter(|state| {
            let fits = overrides.fits(&state.policy);
            if fits {
                state.override_policy(now, None, overrides);
            }
            fits
        })
    }

    fn attach(&self, policy: &Policy, listeners: &Arc<Listeners>) {
        let mut state = self.lock();
        state.attach(policy);
        self.attach_listeners(&mut state, listeners);
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
        let added = self.enter(|state| {
            let owns_listeners = self.attach_listeners(state, &layer.listeners);
            let added = admission.map(|admission| self.membership.add(admission));
            let attached = Attached {
                id,
                within,
                layer: Arc::clone(layer),
                owns_listeners,
                owns_place: matches!(added, Some((true, _))),
                accepted: false,
            };
            state.join(now, attached, overrides);
            added
        });
        drop(added);
        id
    }

    fn leave(self: Arc<Self>, id: AttachmentId) {
        let now = self.metadata.now();
        let left = self.enter(|state| {
            let removed = state.leave(now, id);
            let mut admissions = Vec::new();
            for Attached {
                layer,
                owns_listeners,
                owns_place,
                ..
            } in &removed
            {
                let Some(others) = state.attachments() else {
                    break;
                };
                if *owns_listeners && !others.inherit_listeners(layer) {
                    self.metadata.detach(&layer.listeners);
                }
                if let Some(tracker) = layer.tracker.as_ref().filter(|_| *owns_place) {
                    if !others.inherit_place(layer) {
                        admissions.extend(self.membership.remove(tracker, self.metadata.id()));
                    }
                }
            }
            if !self.metadata.has_health_hooks() {
                state.health_events = None;
            }
            (removed, admissions, state.take_final_attachments())
        });
        // Hooks may hang on it.
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
}
