//! The part of a connection that does not know its transport: its name, who is told of its end, and
//! that they are told once.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::{Admission, Admissions, Refused, Track};
use super::places::{Place, PlaceId, vacate};
use crate::driver::Driver;
use crate::evict::{self, ConnectionId, Eviction, LocalHook, OnEvict, Seats};
use crate::health_hook::OnHealth;
use crate::monitor::{CloseFrame, Health, Moment, Overrides, Policy, Reason, Rtt, Stats};
use crate::sync::{Mutex, MutexGuard, Notify, OnceLock};

/// A connection, for those who do not know its transport.
pub(crate) trait Managed: Send + Sync {
    fn core(&self) -> &Core;
    fn view(&self) -> View;
    /// Ends the connection with this Close frame. False if it has ended before.
    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// Replaces values of the layers' settings, also of layers that are yet to come.
    fn override_policy(self: Arc<Self>, overrides: &Overrides);
    /// The same, unless a value is for a layer that is not there: then nothing is done, and false.
    fn change_policy(self: Arc<Self>, overrides: &Overrides) -> bool;
    /// Asks for a ping, and for the round trip that its pong will give.
    fn ping(self: Arc<Self>) -> oneshot::Receiver<Duration>;
    /// Adds a layer, with what its registry gave it. Of two of a kind the later one's
    /// settings hold, and both are told of the end.
    fn attach(&self, layer: &Share, admission: Option<Admission>);
}

/// What a layer gives to each of its connections: its settings, and who is told of them. One
/// allocation each, shared by all connections.
#[derive(Clone)]
pub(crate) struct Share {
    pub(crate) policy: Policy,
    listeners: Arc<Listeners>,
}

struct Listeners {
    tracker: Option<Arc<dyn Track>>,
    hooks: Vec<Arc<dyn OnEvict>>,
    health_hooks: Vec<Arc<dyn OnHealth>>,
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

/// The part of a connection that does not know its transport.
pub(crate) struct Core {
    id: ConnectionId,
    created: Instant,
    driver: OnceLock<Arc<Driver>>,
    extras: Mutex<Extras>,
    /// Without the session value and the seats, which are in the extras until everybody has been
    /// told.
    eviction: OnceLock<Eviction>,
    /// The session was set, or all hooks have returned.
    changed: Notify,
}

#[derive(Default)]
struct Extras {
    session: Option<Arc<dyn Any + Send + Sync>>,
    /// Where this connection has seats in maps of the application's.
    places: Vec<Arc<dyn Place>>,
    /// The seats that were its own to the end.
    seats: Option<Seats>,
    layers: Vec<Arc<Listeners>>,
    admissions: Admissions,
    local: Vec<LocalHook>,
    /// The hooks were taken to be called: one that comes now is called by whoever brings it.
    fired: bool,
    /// All hooks have returned.
    reported: bool,
    /// There is no transport any more, and none will come.
    gone: bool,
    /// How many may still ask for the session: the hooks, as long as they have not all returned,
    /// the handler, as long as it has its stream, and everybody who awaits the end. When the last
    /// of them is gone the slot is emptied, and so are the seats, for what is in them may well hold a
    /// handle of this connection, and they would keep each other alive.
    holders: usize,
}

impl Share {
    pub(crate) fn new(
        policy: Policy,
        tracker: Option<Arc<dyn Track>>,
        hooks: Vec<Arc<dyn OnEvict>>,
        health_hooks: Vec<Arc<dyn OnHealth>>,
    ) -> Self {
        Self {
            policy,
            listeners: Arc::new(Listeners {
                tracker,
                hooks,
                health_hooks,
            }),
        }
    }

    /// Asks the layer's registry, if it has one, for a place for one more handshake.
    pub(crate) fn admit(&self) -> Result<Option<Admission>, Refused> {
        let tracker = self.listeners.tracker.as_ref();
        tracker.map(Admission::admit).transpose()
    }

    /// A place for a stream whose handshake is over, which cannot be refused.
    pub(crate) fn take_in(&self) -> Option<Admission> {
        self.listeners.tracker.as_ref().map(Admission::take_in)
    }

    /// Somebody wants to hear of the connections' health.
    pub(super) fn has_health_hooks(&self) -> bool {
        !self.listeners.health_hooks.is_empty()
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Core {
    pub(super) fn new() -> Self {
        Self {
            id: ConnectionId::next(),
            created: Instant::now(),
            driver: OnceLock::new(),
            extras: Mutex::new(Extras {
                holders: 1,
                ..Extras::default()
            }),
            eviction: OnceLock::new(),
            changed: Notify::new(),
        }
    }

    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(super) fn created(&self) -> Instant {
        self.created
    }

    /// The driver that looks after the connection, once it is open.
    pub(super) fn driver(&self) -> Option<&Arc<Driver>> {
        self.driver.get()
    }

    /// Names the driver. A connection is opened once, so the first one stays.
    pub(super) fn set_driver(&self, driver: Arc<Driver>) {
        let _ = self.driver.set(driver);
    }

    pub(super) fn attach(&self, layer: &Share, admission: Option<Admission>) {
        let mut extras = self.extras();
        let listeners = &layer.listeners;
        if !extras
            .layers
            .iter()
            .any(|known| Arc::ptr_eq(known, listeners))
        {
            extras.layers.push(Arc::clone(listeners));
        }
        let spare = admission.and_then(|admission| extras.admissions.add(admission));
        drop(extras);
        drop(spare);
    }

    /// Whether the layer's registry knows the connection by another layer.
    pub(super) fn is_admitted(&self, layer: &Share) -> bool {
        let tracker = layer.listeners.tracker.as_ref();
        tracker.is_some_and(|tracker| self.extras().admissions.is_in(tracker))
    }

    /// Nobody but the connection's own hooks is to be told of its end.
    pub(super) fn detach_layers(&self) {
        let mut extras = self.extras();
        let layers = std::mem::take(&mut extras.layers);
        let admissions = extras.admissions.dissolve();
        drop(extras);
        drop((layers, admissions));
    }

    pub(super) fn now(&self) -> Moment {
        self.driver
            .get()
            .map_or(Moment::START, |driver| driver.clock().now())
    }

    pub(super) fn created_moment(&self) -> Moment {
        self.driver
            .get()
            .map_or(Moment::START, |driver| driver.clock().moment(self.created))
    }

    fn extras(&self) -> MutexGuard<'_, Extras> {
        self.extras.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trackers(&self) -> Vec<Arc<dyn Track>> {
        self.extras().admissions.trackers()
    }

    /// The registries count the connection, unless it has ended.
    pub(super) fn enter_registries(&self, connection: Arc<dyn Managed>) {
        self.extras().admissions.enter(&connection);
        for tracker in self.trackers() {
            tracker.announce();
        }
    }

    /// There is no transport any more, and none will come. When the hooks have returned too, nothing
    /// is left that a shutdown would wait for.
    pub(super) fn transport_gone(&self) {
        let mut extras = self.extras();
        extras.gone = true;
        let presences = extras.reported.then(|| extras.admissions.leave());
        drop(extras);
        drop(presences);
    }

    /// Those who are told of the connection's health: each once, and nobody after the end.
    pub(super) fn health_hooks(&self) -> Vec<Arc<dyn OnHealth>> {
        let mut hooks: Vec<Arc<dyn OnHealth>> = Vec::new();
        let extras = self.extras();
        for hook in extras.layers.iter().flat_map(|layer| &layer.health_hooks) {
            if !hooks.iter().any(|known| Arc::ptr_eq(known, hook)) {
                hooks.push(Arc::clone(hook));
            }
        }
        hooks
    }

    /// Its eviction is being told, or was.
    pub(super) fn has_ended(&self) -> bool {
        self.eviction.get().is_some()
    }

    pub(super) fn describe(&self, reason: Reason, view: View) -> Eviction {
        Eviction {
            id: self.id,
            reason,
            lifetime: view.lifetime,
            last_seen: view.last_seen,
            idle_for: view.idle_for,
            rtt: view.rtt,
            stats: view.stats,
            session: self.session(),
            seats: None,
        }
    }

    /// Tells everybody, once. The caller holds no lock, and the verdict that only one caller gets.
    pub(super) fn fire(&self, mut eviction: Eviction) {
        let parted = Eviction {
            session: None,
            ..eviction.clone()
        };
        if self.eviction.set(parted).is_err() {
            return;
        }
        let (places, layers, local, trackers, permits) = {
            let mut extras = self.extras();
            extras.fired = true;
            (
                std::mem::take(&mut extras.places),
                std::mem::take(&mut extras.layers),
                std::mem::take(&mut extras.local),
                extras.admissions.trackers(),
                extras.admissions.vacate(),
            )
        };
        let missed = match eviction.reason() {
            Reason::HeartbeatTimeout { missed } => Some(missed),
            _ => None,
        };
        tracing::debug!(
            conn_id = %self.id,
            reason = eviction.reason().as_str(),
            missed,
            idle_ms = millis(eviction.idle_for()),
            rtt_ms = eviction.rtt().map(|rtt| millis(rtt.smoothed())),
            "connection ended"
        );
        for tracker in &trackers {
            tracker.ended(self.id);
        }
        drop(permits);
        if let Some(seats) = vacate(places, &eviction) {
            eviction.seats = Some(Arc::clone(&seats));
            self.extras().seats = Some(seats);
        }
        for tracker in &trackers {
            tracker.evicted(&eviction);
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
        drop(eviction);
        let presences = {
            let mut extras = self.extras();
            extras.reported = true;
            extras.gone.then(|| extras.admissions.leave())
        };
        self.changed.notify_waiters();
        self.release();
        drop(presences);
    }

    /// The end, as soon as all hooks have been told of it.
    pub(super) async fn reported(&self) -> Eviction {
        self.hold();
        let _held = Held(self);
        loop {
            let notified = self.changed.notified();
            let reported = self.extras().reported;
            if let (true, Some(eviction)) = (reported, self.ended()) {
                return eviction;
            }
            notified.await;
        }
    }

    /// The session, as soon as there is one of this type; or why there will be none.
    pub(super) async fn session_set<S>(&self) -> Result<Arc<S>, Reason>
    where
        S: Any + Send + Sync,
    {
        self.hold();
        let _held = Held(self);
        loop {
            let notified = self.changed.notified();
            let reported = self.extras().reported;
            if let Some(session) = self.session().and_then(|any| any.downcast().ok()) {
                return Ok(session);
            }
            if let (true, Some(reason)) = (reported, self.reason()) {
                return Err(reason);
            }
            notified.await;
        }
    }

    /// Why the connection has ended, if it has: its hooks may still be at it.
    pub(crate) fn reason(&self) -> Option<Reason> {
        Some(self.eviction.get()?.reason())
    }

    /// What is known of the end, if it has come, with the session and the seats if they are still
    /// there.
    fn ended(&self) -> Option<Eviction> {
        let eviction = self.eviction.get()?;
        let extras = self.extras();
        Some(Eviction {
            session: extras.session.clone(),
            seats: extras.seats.clone(),
            ..eviction.clone()
        })
    }

    /// Notes a place that is to be left at the end. Whoever comes after the end is told why it came.
    pub(crate) fn take_place(&self, place: Arc<dyn Place>) -> Result<(), Reason> {
        let mut extras = self.extras();
        if !extras.fired {
            extras.places.push(place);
            return Ok(());
        }
        drop(extras);
        Err(self.reason().expect("fired says that the reason is set"))
    }

    /// Forgets a place, if it is still known.
    pub(crate) fn leave_place(&self, id: PlaceId) {
        let mut extras = self.extras();
        let index = extras.places.iter().position(|place| place.id() == id);
        let left = index.map(|index| extras.places.swap_remove(index));
        drop(extras);
        // Dropped after the lock was given back: a key and a map of the application's hang on it.
        drop(left);
    }

    /// Adds a hook, or calls it if the connection has ended.
    pub(super) fn add_local(&self, hook: LocalHook) {
        let mut extras = self.extras();
        if !extras.fired {
            extras.local.push(hook);
            return;
        }
        drop(extras);
        if let Some(eviction) = self.ended() {
            evict::call_local(hook, &eviction);
        }
    }

    /// Somebody more may ask for the session.
    pub(super) fn hold(&self) {
        self.extras().holders += 1;
    }

    /// One fewer may ask for the session.
    pub(super) fn release(&self) {
        let (session, seats) = {
            let mut extras = self.extras();
            extras.holders -= 1;
            if extras.holders > 0 {
                return;
            }
            (extras.session.take(), extras.seats.take())
        };
        // Dropped after the lock was given back: they are the application's, and may panic.
        let dropped = [
            catch_unwind(AssertUnwindSafe(|| drop(session))),
            catch_unwind(AssertUnwindSafe(|| drop(seats))),
        ];
        if dropped.iter().any(Result::is_err) {
            tracing::warn!(conn_id = %self.id, "a session value panicked while it was dropped");
        }
    }

    pub(super) fn session(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.extras().session.clone()
    }

    /// Fills the slot, unless nobody is left who could ask for it.
    pub(super) fn set_session(
        &self,
        session: Arc<dyn Any + Send + Sync>,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let mut extras = self.extras();
        if extras.holders == 0 {
            return None;
        }
        let before = extras.session.replace(session);
        drop(extras);
        self.changed.notify_waiters();
        before
    }
}

/// Holds the session for whoever awaits the end.
struct Held<'a>(&'a Core);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
