//! What a connection keeps for its end: who is health_events, and what is left to them.
//!
//! Most connections keep next to nothing, so what few of them have is apart, in [`OnDemand`].

use std::any::Any;
use std::mem;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::connection::metadata::Registration;
use crate::eviction::{Eviction, Seats};
use crate::hooks::OnHealth;
use crate::hooks::{LocalHook, OnEvict};
use crate::sync::Notify;

/// Who is told of a layer's connections.
pub(crate) struct Listeners {
    pub(crate) hooks: Vec<Arc<dyn OnEvict>>,
    pub(crate) health_hooks: Vec<Arc<dyn OnHealth>>,
}

#[derive(Default)]
pub(crate) struct EndRecord {
    /// The layers that have hooks, outermost first. There are hardly ever more than one of each kind.
    pub(crate) layers: [Option<Arc<Listeners>>; 2],
    pub(crate) rare: Option<Box<OnDemand>>,
    /// How many may still ask for the session and the seats: the hooks, as long as they have not all
    /// returned, and everybody who awaits the end. When the last of them is gone, and the handler has
    /// let go, the slot is emptied, for what is in it may well hold a handle of this connection, and
    /// they would keep each other alive.
    pub(crate) audience: u32,
    /// The handler has its stream, and may ask for the session. Not for the seats: it may be waiting
    /// for what hangs on its seat to go, the sender of its channel say.
    pub(crate) held: bool,
    /// The hooks were taken to be called: one that comes now is called by whoever brings it.
    pub(crate) fired: bool,
    /// All hooks have returned.
    pub(crate) reported: bool,
    /// There is no transport any more, and none will come. True if the closing handshake of the
    /// connection's eviction was completed before.
    pub(crate) departed: Option<bool>,
}

/// What most connections do not have before their end. Made as soon as there is something of it, so
/// that an idle connection does not pay for it.
#[derive(Default)]
pub(crate) struct OnDemand {
    pub(crate) session: Option<Arc<dyn Any + Send + Sync>>,
    /// Where this connection has seats in maps of the application's.
    pub(crate) places: Vec<Arc<dyn Registration>>,
    /// The seats that were its own to the end.
    pub(crate) seats: Option<Seats>,
    /// Further layers that have hooks.
    pub(crate) layers: Vec<Arc<Listeners>>,
    pub(crate) local: Vec<LocalHook>,
    /// Without the session value and the seats, which are in here until everybody has been health_events.
    pub(crate) eviction: Option<Box<Eviction>>,
    /// The session was set, all hooks have returned, or the transport is gone. Whoever changes one of
    /// these looks under the same lock whether somebody waits, and whoever waits is here before it
    /// looks: so no change is missed.
    pub(crate) changed: Option<Arc<Notify>>,
}

impl EndRecord {
    pub(crate) fn rare(&mut self) -> &mut OnDemand {
        self.rare.get_or_insert_default()
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Arc<Listeners>> {
        let more = self.rare.iter().flat_map(|rare| &rare.layers);
        self.layers.iter().flatten().chain(more)
    }

    pub(crate) fn add_layer(&mut self, listeners: Arc<Listeners>) {
        match self.layers.iter_mut().find(|layer| layer.is_none()) {
            Some(layer) => *layer = Some(listeners),
            None => self.rare().layers.push(listeners),
        }
    }

    pub(crate) fn remove_layer(&mut self, listeners: &Arc<Listeners>) -> Option<Arc<Listeners>> {
        let mut layers = self.take_layers();
        let place = layers
            .iter()
            .position(|known| Arc::ptr_eq(known, listeners));
        let removed = place.map(|place| layers.remove(place));
        for layer in layers {
            self.add_layer(layer);
        }
        removed
    }

    /// All layers that have hooks, in the order in which they came. To be dropped without the lock.
    pub(crate) fn take_layers(&mut self) -> SmallVec<[Arc<Listeners>; 2]> {
        let more = self.rare.as_mut().map(|rare| mem::take(&mut rare.layers));
        let layers = mem::take(&mut self.layers).into_iter().flatten();
        layers.chain(more.into_iter().flatten()).collect()
    }

    pub(crate) fn eviction(&self) -> Option<&Eviction> {
        self.rare.as_ref()?.eviction.as_deref()
    }

    /// Whether somebody may still ask for the session.
    pub(crate) fn is_held(&self) -> bool {
        self.held || self.audience > 0
    }

    /// Whom a change that was just made is to be health_events, after the lock was given back.
    pub(crate) fn changed(&self) -> Option<Arc<Notify>> {
        self.rare.as_ref()?.changed.clone()
    }
}

pub(crate) fn notify(changed: Option<Arc<Notify>>) {
    if let Some(changed) = changed {
        changed.notify_waiters();
    }
}

impl Listeners {
    pub(crate) fn is_empty(&self) -> bool {
        self.hooks.is_empty() && self.health_hooks.is_empty()
    }
}
