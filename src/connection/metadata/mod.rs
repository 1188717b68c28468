//! The part of a connection that does not depend on its transport: identity, hooks, seats, session.

mod created_at;
mod end_record;
mod health_events;
mod ping_waiters;
mod registrations;

use std::any::Any;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use created_at::CreatedAt;
use end_record::EndRecord;
pub(crate) use end_record::LayerHooks;
pub(crate) use health_events::{HealthEvents, QueuedChange};
pub(crate) use ping_waiters::PingWaiters;
pub(crate) use registrations::{Registration, RegistrationId, SessionHooks, Vacated, vacate};

use super::on_health::OnHealth;
use super::on_open::OnOpen;
use crate::driver::Driver;
use crate::eviction::{ConnectionId, Eviction};
use crate::hooks::{self, LocalHook};
use crate::monitor::{Announced, Moment, Reason};
use crate::panic_guard;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Notify, OnceLock, in_runtime};

/// The part of a connection that does not depend on the type of its transport.
pub(crate) struct Metadata {
    pub(crate) id: ConnectionId,
    created: CreatedAt,
    /// The connection is in the driver's ready queue.
    pub(crate) scheduled: AtomicBool,
    driver: OnceLock<Arc<Driver>>,
    record: Mutex<EndRecord>,
}

// An idle connection must be small: a server may have 100,000.
#[cfg(all(
    test,
    not(liveness_loom),
    target_os = "linux",
    target_pointer_width = "64"
))]
const _: () = assert!(size_of::<Metadata>() <= 72);

impl Metadata {
    pub(crate) fn new(id: ConnectionId) -> Self {
        Self {
            id,
            created: CreatedAt::now(),
            scheduled: AtomicBool::new(false),
            driver: OnceLock::new(),
            record: Mutex::new(EndRecord::new()),
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(crate) fn created(&self) -> Instant {
        self.created.instant()
    }

    /// The driver of the connection; `None` before the upgrade is complete.
    pub(crate) fn driver(&self) -> Option<&Arc<Driver>> {
        self.driver.get()
    }

    /// Sets the driver. A connection is opened once, so the first one stays.
    pub(crate) fn set_driver(&self, driver: Arc<Driver>) {
        let _ = self.driver.set(driver);
    }

    /// Calls code of the application in the context of the driver's runtime, since the present
    /// thread may have none. Before the upgrade there is no driver, and `act` is called without it.
    pub(crate) fn in_runtime<R>(&self, act: impl FnOnce() -> R) -> R {
        match self.driver() {
            Some(driver) => in_runtime(driver.runtime(), act),
            None => act(),
        }
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

    pub(crate) fn record(&self) -> MutexGuard<'_, EndRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- hooks ---------------------------------------------------------------------------------

    /// Adds the hooks of a layer. False if there are none, or if they were added before.
    pub(crate) fn attach(&self, hooks: &Arc<LayerHooks>) -> bool {
        if hooks.is_empty() {
            return false;
        }
        let mut record = self.record();
        let is_new = !record.layers().any(|known| Arc::ptr_eq(known, hooks));
        if is_new {
            record.add_layer(Arc::clone(hooks));
        }
        is_new
    }

    /// Removes the hooks of a layer, unless they have been taken to be called.
    pub(crate) fn detach(&self, hooks: &Arc<LayerHooks>) {
        let removed = self.record().remove_layer(hooks);
        // Not the last reference: the caller still has the layer.
        drop(removed);
    }

    /// Removes the hooks of all layers, so that only the connection's own hooks are called.
    pub(crate) fn detach_layers(&self) {
        let layers = self.record().take_layers();
        drop(layers);
    }

    pub(crate) fn has_health_hooks(&self) -> bool {
        let record = self.record();
        record.layers().any(|layer| !layer.health_hooks.is_empty())
    }

    /// The health hooks, each once; none after the end.
    pub(crate) fn health_hooks(&self) -> Vec<Arc<dyn OnHealth>> {
        let mut hooks: Vec<Arc<dyn OnHealth>> = Vec::new();
        let record = self.record();
        for hook in record.layers().flat_map(|layer| &layer.health_hooks) {
            if !hooks.iter().any(|known| Arc::ptr_eq(known, hook)) {
                hooks.push(Arc::clone(hook));
            }
        }
        hooks
    }

    /// Takes the open hooks, each once, when the connection has opened. Until
    /// [`finish_open_hooks`](Self::finish_open_hooks), which the caller must call then, an end calls no
    /// eviction hooks. `None` without open hooks.
    pub(crate) fn begin_open_hooks(&self) -> Option<Vec<Arc<dyn OnOpen>>> {
        let mut hooks: Vec<Arc<dyn OnOpen>> = Vec::new();
        let mut record = self.record();
        for hook in record.layers().flat_map(|layer| &layer.open_hooks) {
            if !hooks.iter().any(|known| Arc::ptr_eq(known, hook)) {
                hooks.push(Arc::clone(hook));
            }
        }
        record.calls_open_hooks = !hooks.is_empty();
        record.calls_open_hooks.then_some(hooks)
    }

    /// All open hooks have returned. Returns the end that was announced meanwhile, if there is one:
    /// the caller must call the eviction hooks.
    pub(crate) fn finish_open_hooks(&self) -> Option<Eviction> {
        let mut record = self.record();
        record.calls_open_hooks = false;
        let deferred = record.existing_mut()?.deferred.take();
        deferred.map(|eviction| *eviction)
    }

    /// Adds a hook of this connection alone. After the end it is called immediately.
    pub(crate) fn add_local_hook(&self, hook: LocalHook) {
        let mut record = self.record();
        if record.announced == Announced::No {
            record.on_demand().local_hooks.push(hook);
            return;
        }
        drop(record);
        if let Some(eviction) = self.eviction() {
            self.in_runtime(|| hooks::call_local(hook, &eviction));
        }
    }

    // ---- seats ---------------------------------------------------------------------------------

    /// Adds a seat that must be removed from its map at the end. Fails with the reason after the
    /// end.
    pub(crate) fn add_registration(
        &self,
        registration: Arc<dyn Registration>,
    ) -> Result<(), Reason> {
        let mut record = self.record();
        if record.announced == Announced::No {
            record.on_demand().registrations.push(registration);
            return Ok(());
        }
        drop(record);
        Err(self.reason().expect("an announced end has a reason"))
    }

    /// Forgets a seat that has left its map, if it is still known.
    pub(crate) fn forget_registration(&self, id: RegistrationId) {
        let mut record = self.record();
        let removed = record.existing_mut().and_then(|rest| {
            let mut registrations = rest.registrations.iter();
            let index = registrations.position(|registration| registration.id() == id)?;
            Some(rest.registrations.swap_remove(index))
        });
        drop(record);
        // Dropped without the lock: it owns a key and a map of the application.
        drop(removed);
    }

    // ---- the session slot ----------------------------------------------------------------------

    pub(crate) fn session(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.record().existing()?.session.clone()
    }

    /// Fills the slot, unless it has no readers left. Returns the previous value.
    pub(crate) fn set_session(
        &self,
        session: Arc<dyn Any + Send + Sync>,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let mut record = self.record();
        if !record.session_has_readers() {
            return None;
        }
        let before = record.on_demand().session.replace(session);
        let changed = record.changed();
        drop(record);
        panic_guard::wake(self.id, || changed.notify());
        before
    }

    /// The handler got its stream, and may read the session.
    pub(crate) fn handler_has_stream(&self) {
        self.record().handler_reads = true;
    }

    /// The handler dropped its stream.
    pub(crate) fn handler_dropped_stream(&self) {
        self.release_session(|record| record.handler_reads = false);
    }

    /// Removes a reader with `leave`, and empties the session slot and the seats after the last
    /// one.
    pub(crate) fn release_session(&self, leave: impl FnOnce(&mut EndRecord)) {
        let mut record = self.record();
        leave(&mut record);
        let (no_readers, session_unread) = (record.readers == 0, !record.session_has_readers());
        let Some(rest) = record.existing_mut() else {
            return;
        };
        let seats = rest.seats.take_if(|_| no_readers);
        let session = rest.session.take_if(|_| session_unread);
        drop(record);
        // Dropped without the lock: they are the application's, and may panic.
        panic_guard::discard(self.id, seats);
        panic_guard::discard(self.id, session);
    }

    // ---- the end -------------------------------------------------------------------------------

    /// Whether the end is known; its hooks may still run.
    pub(crate) fn has_ended(&self) -> bool {
        self.reason().is_some()
    }

    /// Why the connection has ended; `None` if it has not.
    pub(crate) fn reason(&self) -> Option<Reason> {
        Some(self.record().eviction()?.reason())
    }

    /// How long the connection was open; `None` before the end.
    pub(crate) fn lifetime(&self) -> Option<Duration> {
        Some(self.record().eviction()?.lifetime())
    }

    /// The end, with the session and the seats if they are still there; `None` before the end.
    fn eviction(&self) -> Option<Eviction> {
        let record = self.record();
        let rest = record.existing()?;
        Some(Eviction {
            session: rest.session.clone(),
            seats: rest.seats.clone(),
            ..Eviction::clone(rest.eviction.as_ref()?)
        })
    }

    /// The transport is closed, or the upgrade failed. The caller holds no lock.
    pub(crate) fn transport_closed(&self, clean: bool) {
        let changed = {
            let mut record = self.record();
            record.transport_closed = Some(clean);
            record.changed()
        };
        panic_guard::wake(self.id, || changed.notify());
    }

    /// Whether the transport is gone: see [`until_transport_closed`](Self::until_transport_closed)
    /// for the value.
    pub(crate) fn transport_closed_cleanly(&self) -> Option<bool> {
        self.record().transport_closed
    }

    /// Waits until the transport is gone. Returns whether the closing handshake of an eviction was
    /// completed: false if the peer did not answer in time, if no Close frame could be sent, and if
    /// the connection ended without an eviction.
    pub(crate) async fn until_transport_closed(&self) -> bool {
        self.until(|| self.transport_closed_cleanly()).await
    }

    /// Waits for the end, until all hooks have returned.
    pub(crate) async fn until_announced(&self) -> Eviction {
        let _reader = Reader::new(self);
        self.until(|| match self.is_announced() {
            true => self.eviction(),
            false => None,
        })
        .await
    }

    /// Waits for a session of this type. Fails if the connection ends without one.
    pub(crate) async fn until_session_set<S>(&self) -> Result<Arc<S>, Reason>
    where
        S: Any + Send + Sync,
    {
        let _reader = Reader::new(self);
        self.until(|| {
            let announced = self.is_announced();
            let session = self.session().and_then(|any| any.downcast().ok());
            match session {
                Some(session) => Some(Ok(session)),
                None => self.reason().filter(|_| announced).map(Err),
            }
        })
        .await
    }

    fn is_announced(&self) -> bool {
        self.record().announced == Announced::Done
    }

    /// Waits for a change of the record after which `poll` returns a value.
    async fn until<R>(&self, poll: impl Fn() -> Option<R>) -> R {
        let changed = {
            let mut record = self.record();
            let make = || Arc::new(Notify::new());
            Arc::clone(record.on_demand().changed.get_or_insert_with(make))
        };
        loop {
            let notified = changed.notified();
            if let Some(result) = poll() {
                return result;
            }
            notified.await;
        }
    }
}

/// A task that awaits the end, and may read the session and the seats.
struct Reader<'a>(&'a Metadata);

impl<'a> Reader<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        metadata.record().readers += 1;
        Self(metadata)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.release_session(|record| record.readers -= 1);
    }
}
