//! The part of a connection that does not know its transport: its name, who is told of its end, and
//! that they are told once.

use std::any::Any;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::places::{Place, PlaceId, vacate};
use crate::driver::Driver;
use crate::evict::{self, ConnectionId, Eviction, LocalHook, OnEvict, Seats};
use crate::health_hook::OnHealth;
use crate::monitor::{Moment, Reason};
use crate::sync::{Mutex, MutexGuard, Notify, OnceLock};

/// The part of a connection that does not know its transport.
pub(crate) struct Core {
    id: ConnectionId,
    created: Instant,
    driver: OnceLock<Arc<Driver>>,
    extras: Mutex<Extras>,
    /// Without the session value and the seats, which are in the extras until everybody has been
    /// told.
    eviction: OnceLock<Box<Eviction>>,
    /// The session was set, all hooks have returned, or the transport is gone.
    changed: Notify,
}

/// Who is told of a layer's connections.
pub(crate) struct Listeners {
    pub(super) hooks: Vec<Arc<dyn OnEvict>>,
    pub(super) health_hooks: Vec<Arc<dyn OnHealth>>,
}

#[derive(Default)]
struct Extras {
    session: Option<Arc<dyn Any + Send + Sync>>,
    /// Where this connection has seats in maps of the application's.
    places: Vec<Arc<dyn Place>>,
    /// The seats that were its own to the end.
    seats: Option<Seats>,
    layers: Vec<Arc<Listeners>>,
    local: Vec<LocalHook>,
    /// The hooks were taken to be called: one that comes now is called by whoever brings it.
    fired: bool,
    /// All hooks have returned.
    reported: bool,
    /// There is no transport any more, and none will come. True if the closing handshake of the
    /// connection's eviction was completed before.
    departed: Option<bool>,
    /// How many may still ask for the session: the hooks, as long as they have not all returned,
    /// the handler, as long as it has its stream, and everybody who awaits the end. When the last
    /// of them is gone the slot is emptied, for what is in it may well hold a handle of this
    /// connection, and they would keep each other alive.
    holders: usize,
    /// Those of them for whom the seats are kept: all but the handler. It may be waiting for what
    /// hangs on its seat to go, the sender of its channel say.
    audience: usize,
}

impl Core {
    pub(super) fn new() -> Self {
        Self {
            id: ConnectionId::next(),
            created: Instant::now(),
            driver: OnceLock::new(),
            extras: Mutex::new(Extras {
                holders: 1,
                audience: 1,
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

    pub(super) fn attach(&self, listeners: &Arc<Listeners>) {
        let mut extras = self.extras();
        let mut layers = extras.layers.iter();
        if !layers.any(|known| Arc::ptr_eq(known, listeners)) {
            extras.layers.push(Arc::clone(listeners));
        }
    }

    /// Nobody but the connection's own hooks is to be told of its end.
    pub(super) fn detach_layers(&self) {
        let layers = mem::take(&mut self.extras().layers);
        drop(layers);
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
    pub(crate) fn has_ended(&self) -> bool {
        self.eviction.get().is_some()
    }

    /// Notes the end and its reason, for whoever asks. False if they are known already.
    pub(super) fn begin_end(&self, eviction: &Eviction) -> bool {
        let parted = Eviction {
            session: None,
            ..eviction.clone()
        };
        if self.eviction.set(Box::new(parted)).is_err() {
            return false;
        }
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
        true
    }

    /// Leaves all seats that are still the connection's, and adds them to its eviction. From now on
    /// none are taken.
    pub(super) fn leave_places(&self, eviction: &mut Eviction) {
        let places = {
            let mut extras = self.extras();
            extras.fired = true;
            mem::take(&mut extras.places)
        };
        if let Some(seats) = vacate(places, eviction) {
            eviction.seats = Some(seats.clone());
            self.extras().seats = Some(seats);
        }
    }

    /// Calls all hooks, and wakes whoever awaits the end.
    pub(super) fn report(&self, eviction: Eviction) {
        let (local, layers) = {
            let mut extras = self.extras();
            (mem::take(&mut extras.local), mem::take(&mut extras.layers))
        };
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
        self.extras().reported = true;
        evict::guard_waker(&eviction, || self.changed.notify_waiters());
        // Its session may be the last one, if a hook has put another into the slot.
        evict::discard(self.id, eviction);
        self.let_go(true);
    }

    /// The end, as soon as all hooks have been told of it.
    pub(super) async fn reported(&self) -> Eviction {
        let _held = Held::new(self);
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
        let _held = Held::new(self);
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

    /// There is no transport any more, and none will come. The caller holds no lock.
    pub(super) fn depart(&self, clean: bool) {
        self.extras().departed = Some(clean);
        self.changed.notify_waiters();
    }

    /// Whether the transport is gone, and how: see [`departed`](Self::departed).
    pub(super) fn departure(&self) -> Option<bool> {
        self.extras().departed
    }

    /// Waits until the transport is gone. Whether the closing handshake of the connection's eviction
    /// was completed before: false if the peer did not answer in time, or not at all, if no Close
    /// frame could be sent, and if it was not evicted but ended otherwise.
    pub(super) async fn departed(&self) -> bool {
        loop {
            let notified = self.changed.notified();
            if let Some(clean) = self.departure() {
                return clean;
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
            ..Eviction::clone(eviction)
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

    /// The handler may ask for the session from now on.
    pub(super) fn hold(&self) {
        self.extras().holders += 1;
    }

    /// The handler will not ask for the session any more.
    pub(super) fn release(&self) {
        self.let_go(false);
    }

    /// One fewer may ask for the session, and for the seats if it was one of the `audience`.
    fn let_go(&self, audience: bool) {
        let mut guard = self.extras();
        let extras = &mut *guard;
        extras.holders -= 1;
        extras.audience -= usize::from(audience);
        let seats = extras.seats.take_if(|_| extras.audience == 0);
        let session = extras.session.take_if(|_| extras.holders == 0);
        drop(guard);
        // Dropped after the lock was given back: they are the application's, and may panic.
        evict::discard(self.id, seats);
        evict::discard(self.id, session);
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

/// Holds the session and the seats for whoever awaits the end.
struct Held<'a>(&'a Core);

impl<'a> Held<'a> {
    fn new(core: &'a Core) -> Self {
        let mut extras = core.extras();
        extras.holders += 1;
        extras.audience += 1;
        drop(extras);
        Self(core)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.let_go(true);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
