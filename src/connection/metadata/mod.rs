//! What of a connection does not depend on its transport: identity, hooks, seats, registries.

mod created_at;
mod end_record;
mod health_events;
mod inner_layers;
mod layer_config;
mod membership;
mod ping_waiters;
mod registrations;

pub(crate) use created_at::CreatedAt;
pub(crate) use end_record::{EndRecord, Listeners};
pub(crate) use health_events::HealthEvents;
pub(crate) use inner_layers::{Attached, AttachmentId, Attachments};
pub(crate) use layer_config::LayerConfig;
pub(crate) use membership::{Admission, ErasedConnection, Membership, Refused, Tracker, View};
pub(crate) use ping_waiters::PingWaiters;
pub(crate) use registrations::{Registration, RegistrationId};

use std::any::Any;
use std::mem;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::driver::Driver;
use crate::eviction::{ConnectionId, Eviction};
use crate::hooks;
use crate::hooks::OnHealth;
use crate::hooks::{LocalHook, OnEvict};
use crate::monitor::{Moment, Reason};
use crate::panic_guard;
use crate::sync::{Mutex, MutexGuard, Notify, OnceLock, in_runtime};
use end_record::notify;
use registrations::vacate;

/// The part of a connection that does not know its transport.
pub(crate) struct Metadata {
    id: ConnectionId,
    created: CreatedAt,
    driver: OnceLock<Arc<Driver>>,
    extras: Mutex<EndRecord>,
}

// There may be 100,000 connections, and most have nothing to do but to be there.
#[cfg(all(
    test,
    not(liveness_loom),
    target_os = "linux",
    target_pointer_width = "64"
))]
const _: () = assert!(size_of::<Metadata>() <= 72);

impl Metadata {
    pub(crate) fn new() -> Self {
        Self {
            id: ConnectionId::next(),
            created: CreatedAt::now(),
            driver: OnceLock::new(),
            extras: Mutex::new(EndRecord {
                audience: 1,
                ..EndRecord::default()
            }),
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(crate) fn created(&self) -> Instant {
        self.created.instant()
    }

    /// The driver that looks after the connection, once it is open.
    pub(crate) fn driver(&self) -> Option<&Arc<Driver>> {
        self.driver.get()
    }

    /// Names the driver. A connection is opened once, so the first one stays.
    pub(crate) fn set_driver(&self, driver: Arc<Driver>) {
        let _ = self.driver.set(driver);
    }

    /// Calls hooks, or other code of the application, in the context of the driver's runtime: the thread
    /// that notices an end may have none. A connection that was never open has no driver, and `act` is then
    /// called without one.
    pub(crate) fn in_runtime<R>(&self, act: impl FnOnce() -> R) -> R {
        match self.driver() {
            Some(driver) => in_runtime(driver.runtime(), act),
            None => act(),
        }
    }

    /// Adds the hooks of a layer. False if there are none, or if they were added before.
    pub(crate) fn attach(&self, listeners: &Arc<Listeners>) -> bool {
        if listeners.is_empty() {
            return false;
        }
        let mut extras = self.extras();
        let is_new = !extras.layers().any(|known| Arc::ptr_eq(known, listeners));
        if is_new {
            extras.add_layer(Arc::clone(listeners));
        }
        is_new
    }

    /// Removes the hooks of a layer, unless they have been taken to be called.
    pub(crate) fn detach(&self, listeners: &Arc<Listeners>) {
        let removed = self.extras().remove_layer(listeners);
        // Not the last reference: the caller still has the layer.
        drop(removed);
    }

    /// Nobody but the connection's own hooks is to be told of its end.
    pub(crate) fn detach_layers(&self) {
        let layers = self.extras().take_layers();
        drop(layers);
    }

    pub(crate) fn now(&self) -> Moment {
        self.driver
            .get()
            .map_or(Moment::START, |driver| driver.clock().now())
    }

    pub(crate) fn created_moment(&self) -> Moment {
        self.driver.get().map_or(Moment::START, |driver| {
            driver.clock().moment(self.created())
        })
    }

    fn extras(&self) -> MutexGuard<'_, EndRecord> {
        self.extras.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a layer has health hooks.
    pub(crate) fn has_health_hooks(&self) -> bool {
        let extras = self.extras();
        extras.layers().any(|layer| !layer.health_hooks.is_empty())
    }

    /// Those who are told of the connection's health: each once, and nobody after the end.
    pub(crate) fn health_hooks(&self) -> Vec<Arc<dyn OnHealth>> {
        let mut hooks: Vec<Arc<dyn OnHealth>> = Vec::new();
        let extras = self.extras();
        for hook in extras.layers().flat_map(|layer| &layer.health_hooks) {
            if !hooks.iter().any(|known| Arc::ptr_eq(known, hook)) {
                hooks.push(Arc::clone(hook));
            }
        }
        hooks
    }

    /// Its eviction is being told, or was.
    pub(crate) fn has_ended(&self) -> bool {
        self.reason().is_some()
    }

    /// Report the end and its reason, for whoever asks. False if they are known already.
    pub(crate) fn begin_end(&self, eviction: &Eviction) -> bool {
        let parted = Box::new(Eviction {
            session: None,
            ..eviction.clone()
        });
        let mut extras = self.extras();
        if extras.eviction().is_some() {
            return false;
        }
        extras.rare().eviction = Some(parted);
        drop(extras);
        let missed = match eviction.reason() {
            Reason::HeartbeatTimeout { missed } => Some(missed),
            _ => None,
        };
        panic_guard::log(|| {
            tracing::debug!(
                conn_id = %self.id,
                reason = eviction.reason().as_str(),
                missed,
                idle_ms = millis(eviction.idle_for()),
                rtt_ms = eviction.rtt().map(|rtt| millis(rtt.smoothed())),
                "connection ended"
            );
        });
        true
    }

    /// Leaves all seats that are still the connection's, and adds them to its eviction. From now on
    /// none are taken.
    pub(crate) fn leave_places(&self, eviction: &mut Eviction) {
        let places = {
            let mut extras = self.extras();
            extras.fired = true;
            mem::take(&mut extras.rare().places)
        };
        if let Some(seats) = vacate(places, eviction) {
            eviction.seats = Some(seats.clone());
            self.extras().rare().seats = Some(seats);
        }
    }

    /// Calls all hooks, and wakes whoever awaits the end.
    pub(crate) fn report(&self, eviction: Eviction) {
        let (local, layers) = {
            let mut extras = self.extras();
            (mem::take(&mut extras.rare().local), extras.take_layers())
        };
        for hook in local {
            hooks::call_local(hook, &eviction);
        }
        // The same hook may have been given to several layers; it is told once.
        let mut told: Vec<&Arc<dyn OnEvict>> = Vec::new();
        for hook in layers.iter().flat_map(|layer| &layer.hooks) {
            if !told.iter().any(|known| Arc::ptr_eq(known, hook)) {
                told.push(hook);
                hooks::call_on_evict(&**hook, &eviction);
            }
        }
        let changed = {
            let mut extras = self.extras();
            extras.reported = true;
            extras.changed()
        };
        hooks::guard_waker(&eviction, || notify(changed));
        // Its session may be the last one, if a hook has put another into the slot.
        panic_guard::discard(self.id, eviction);
        self.let_go(|extras| extras.audience -= 1);
    }

    /// The end, as soon as all hooks have been told of it.
    pub(crate) async fn reported(&self) -> Eviction {
        let _held = AudienceGuard::new(self);
        let changed = self.awaited();
        loop {
            let notified = changed.notified();
            let reported = self.extras().reported;
            if let (true, Some(eviction)) = (reported, self.ended()) {
                return eviction;
            }
            notified.await;
        }
    }

    /// The session, as soon as there is one of this type; or why there will be none.
    pub(crate) async fn session_set<S>(&self) -> Result<Arc<S>, Reason>
    where
        S: Any + Send + Sync,
    {
        let _held = AudienceGuard::new(self);
        let changed = self.awaited();
        loop {
            let notified = changed.notified();
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
    pub(crate) fn depart(&self, clean: bool) {
        let changed = {
            let mut extras = self.extras();
            extras.departed = Some(clean);
            extras.changed()
        };
        panic_guard::wake(self.id, || notify(changed));
    }

    /// Whether the transport is gone, and how: see [`departed`](Self::departed).
    pub(crate) fn departure(&self) -> Option<bool> {
        self.extras().departed
    }

    /// Waits until the transport is gone. Whether the closing handshake of the connection's eviction
    /// was completed before: false if the peer did not answer in time, or not at all, if no Close
    /// frame could be sent, and if it was not evicted but ended otherwise.
    pub(crate) async fn departed(&self) -> bool {
        let changed = self.awaited();
        loop {
            let notified = changed.notified();
            if let Some(clean) = self.departure() {
                return clean;
            }
            notified.await;
        }
    }

    /// Why the connection has ended, if it has: its hooks may still be at it.
    pub(crate) fn reason(&self) -> Option<Reason> {
        Some(self.extras().eviction()?.reason())
    }

    /// What is known of the end, if it has come, with the session and the seats if they are still
    /// there.
    fn ended(&self) -> Option<Eviction> {
        let extras = self.extras();
        let rare = extras.rare.as_ref()?;
        Some(Eviction {
            session: rare.session.clone(),
            seats: rare.seats.clone(),
            ..Eviction::clone(rare.eviction.as_ref()?)
        })
    }

    /// Report a place that is to be left at the end. Whoever comes after the end is told why it came.
    pub(crate) fn take_place(&self, place: Arc<dyn Registration>) -> Result<(), Reason> {
        let mut extras = self.extras();
        if !extras.fired {
            extras.rare().places.push(place);
            return Ok(());
        }
        drop(extras);
        Err(self.reason().expect("fired says that the reason is set"))
    }

    /// Forgets a place, if it is still known.
    pub(crate) fn leave_place(&self, id: RegistrationId) {
        let mut extras = self.extras();
        let left = extras.rare.as_mut().and_then(|rare| {
            let index = rare.places.iter().position(|place| place.id() == id)?;
            Some(rare.places.swap_remove(index))
        });
        drop(extras);
        // Dropped after the lock was given back: a key and a map of the application's hang on it.
        drop(left);
    }

    /// Adds a hook, or calls it if the connection has ended.
    pub(crate) fn add_local(&self, hook: LocalHook) {
        let mut extras = self.extras();
        if !extras.fired {
            extras.rare().local.push(hook);
            return;
        }
        drop(extras);
        if let Some(eviction) = self.ended() {
            self.in_runtime(|| hooks::call_local(hook, &eviction));
        }
    }

    /// The handler may ask for the session from now on.
    pub(crate) fn hold(&self) {
        self.extras().held = true;
    }

    /// The handler will not ask for the session any more.
    pub(crate) fn release(&self) {
        self.let_go(|extras| extras.held = false);
    }

    /// Whoever `leaves` may no longer ask for the session, nor for the seats if it was one of the
    /// audience.
    fn let_go(&self, leaves: impl FnOnce(&mut EndRecord)) {
        let mut guard = self.extras();
        let extras = &mut *guard;
        leaves(extras);
        let (unattended, unheld) = (extras.audience == 0, !extras.is_held());
        let Some(rare) = &mut extras.rare else {
            return;
        };
        let seats = rare.seats.take_if(|_| unattended);
        let session = rare.session.take_if(|_| unheld);
        drop(guard);
        // Dropped after the lock was given back: they are the application's, and may panic.
        panic_guard::discard(self.id, seats);
        panic_guard::discard(self.id, session);
    }

    pub(crate) fn session(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.extras().rare.as_ref()?.session.clone()
    }

    /// Fills the slot, unless nobody is left who could ask for it.
    pub(crate) fn set_session(
        &self,
        session: Arc<dyn Any + Send + Sync>,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let mut extras = self.extras();
        if !extras.is_held() {
            return None;
        }
        let before = extras.rare().session.replace(session);
        let changed = extras.changed();
        drop(extras);
        notify(changed);
        before
    }

    /// What is notified of every change from now on.
    fn awaited(&self) -> Arc<Notify> {
        let mut extras = self.extras();
        let make = || Arc::new(Notify::new());
        Arc::clone(extras.rare().changed.get_or_insert_with(make))
    }
}

/// Holds the session and the seats for whoever awaits the end.
struct AudienceGuard<'a>(&'a Metadata);

impl<'a> AudienceGuard<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        metadata.extras().audience += 1;
        Self(metadata)
    }
}

impl Drop for AudienceGuard<'_> {
    fn drop(&mut self) {
        self.0.let_go(|extras| extras.audience -= 1);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
