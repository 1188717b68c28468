//! What a connection keeps for its end: hooks, seats, the session value, and the end itself.
//!
//! Most connections keep next to nothing, so the rest is boxed in [`OnDemand`].

use std::any::Any;
use std::mem;
use std::sync::Arc;

use smallvec::SmallVec;

use super::registrations::{Registration, SessionHooks};
use crate::connection::on_health::OnHealth;
use crate::connection::on_open::OnOpen;
use crate::eviction::{Eviction, Seats};
use crate::hooks::{LocalHook, OnEvict};
use crate::monitor::Announced;
use crate::sync::Notify;

/// The hooks of one layer.
#[derive(Default)]
pub(crate) struct LayerHooks {
    pub(crate) open_hooks: Vec<Arc<dyn OnOpen>>,
    pub(crate) hooks: Vec<Arc<dyn OnEvict>>,
    pub(crate) health_hooks: Vec<Arc<dyn OnHealth>>,
}

impl LayerHooks {
    pub(crate) fn is_empty(&self) -> bool {
        self.open_hooks.is_empty() && self.hooks.is_empty() && self.health_hooks.is_empty()
    }
}

/// What a connection keeps for its end.
#[derive(Default)]
pub(crate) struct EndRecord {
    /// The layers that have hooks, outermost first. Rarely more than one of each kind.
    layers: [Option<Arc<LayerHooks>>; 2],
    on_demand: Option<Box<OnDemand>>,
    /// How many may still read the session and the seats: the hooks until they have all returned,
    /// and each task that awaits the end. After the last of them and the handler, the slot is
    /// emptied, since its value may hold a handle of this connection, and they would keep each
    /// other alive.
    pub(crate) readers: u32,
    /// The handler has its stream and may read the session. Not the seats: it may wait for a value
    /// in its seat to be dropped, such as the sender of its channel.
    pub(crate) handler_reads: bool,
    pub(crate) announced: Announced,
    /// The open hooks are being called.
    pub(crate) calls_open_hooks: bool,
    /// The transport is closed, or the upgrade failed. True if the closing handshake of an eviction
    /// was completed.
    pub(crate) transport_closed: Option<bool>,
}

/// What most connections do not have before their end.
#[derive(Default)]
pub(crate) struct OnDemand {
    pub(crate) session: Option<Arc<dyn Any + Send + Sync>>,
    /// The connection's seats in the application's maps.
    pub(crate) registrations: Vec<Arc<dyn Registration>>,
    /// The seats that the connection held at its end.
    pub(crate) seats: Option<Seats>,
    /// Further layers that have hooks.
    layers: Vec<Arc<LayerHooks>>,
    pub(crate) local_hooks: Vec<LocalHook>,
    /// Calls of the hooks of sessions that ended with the connection.
    pub(crate) session_hooks: Vec<SessionHooks>,
    /// The end, without session and seats.
    pub(crate) eviction: Option<Box<Eviction>>,
    /// The end, while its hooks wait for the open hooks to return.
    pub(crate) deferred: Option<Box<Eviction>>,
    /// Notified when the session is set, all hooks have returned, or the transport is gone. Made by
    /// the first task that waits, under the same lock as these changes, so no change is missed.
    pub(crate) changed: Option<Arc<Notify>>,
}

impl EndRecord {
    pub(crate) fn new() -> Self {
        Self {
            readers: 1,
            ..Self::default()
        }
    }

    pub(crate) fn on_demand(&mut self) -> &mut OnDemand {
        self.on_demand.get_or_insert_default()
    }

    pub(crate) fn existing(&self) -> Option<&OnDemand> {
        self.on_demand.as_deref()
    }

    pub(crate) fn existing_mut(&mut self) -> Option<&mut OnDemand> {
        self.on_demand.as_deref_mut()
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Arc<LayerHooks>> {
        let more = self.on_demand.iter().flat_map(|rest| &rest.layers);
        self.layers.iter().flatten().chain(more)
    }

    pub(crate) fn add_layer(&mut self, hooks: Arc<LayerHooks>) {
        match self.layers.iter_mut().find(|layer| layer.is_none()) {
            Some(layer) => *layer = Some(hooks),
            None => self.on_demand().layers.push(hooks),
        }
    }

    pub(crate) fn remove_layer(&mut self, hooks: &Arc<LayerHooks>) -> Option<Arc<LayerHooks>> {
        let mut layers = self.take_layers();
        let index = layers.iter().position(|known| Arc::ptr_eq(known, hooks));
        let removed = index.map(|index| layers.remove(index));
        for layer in layers {
            self.add_layer(layer);
        }
        removed
    }

    /// Takes all layers that have hooks, outermost first. Drop them without the lock.
    pub(crate) fn take_layers(&mut self) -> SmallVec<[Arc<LayerHooks>; 2]> {
        let rest = self.on_demand.as_mut();
        let more = rest.map(|rest| mem::take(&mut rest.layers));
        let layers = mem::take(&mut self.layers).into_iter().flatten();
        layers.chain(more.into_iter().flatten()).collect()
    }

    pub(crate) fn eviction(&self) -> Option<&Eviction> {
        self.existing()?.eviction.as_deref()
    }

    /// Whether the session may still be read.
    pub(crate) fn session_has_readers(&self) -> bool {
        self.handler_reads || self.readers > 0
    }

    /// The tasks to wake for the present change, once the lock is released.
    pub(crate) fn changed(&self) -> Changed {
        Changed(self.existing().and_then(|rest| rest.changed.clone()))
    }
}

/// Wakes the tasks that wait for a change of an [`EndRecord`].
pub(crate) struct Changed(Option<Arc<Notify>>);

impl Changed {
    pub(crate) fn notify(self) {
        if let Some(notify) = self.0 {
            notify.notify_waiters();
        }
    }
}
