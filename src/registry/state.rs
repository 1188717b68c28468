//! The state that all clones of a registry share, and its [`ErasedRegistry`] implementation.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::counters::Counters;
use super::drain::DrainingConnections;
use super::evictions::Subscribers;
use super::limit::AdmissionControl;
use super::shards::Shards;
use crate::connection::{DrainOrder, ErasedConnection, ErasedRegistry, Liveness, Refused};
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::Reason;

/// Lock order: a connection's lock, then a shard's, then that of the counters. The lock of the
/// subscribers, and that of a drain's Close frame, is never held together with another.
#[derive(Default)]
pub(super) struct RegistryState {
    pub(super) live: Shards,
    pub(super) counters: Counters,
    pub(super) admission: AdmissionControl,
    pub(super) subscribers: Arc<Subscribers>,
    pub(super) draining: DrainingConnections,
}

impl ErasedRegistry for RegistryState {
    fn admit(&self) -> Result<(), Refused> {
        self.admission.admit()
    }

    fn admit_always(&self) {
        self.admission.admit_always();
    }

    fn release_permit(&self) {
        self.admission.release_permit();
    }

    fn release_presence(&self) {
        self.admission.release_presence();
    }

    fn opened(&self, connection: Arc<dyn ErasedConnection>) {
        let live = Liveness::new(connection);
        self.live.insert(live, || self.counters.increment());
    }

    fn call_alarms(&self) {
        self.counters.call_alarms();
    }

    fn drain_order(&self) -> Option<DrainOrder> {
        let frame = self.admission.close_frame_if_draining()?;
        Some((Reason::Drained, frame))
    }

    fn ended(&self, id: ConnectionId) {
        let removed = self.live.remove(id, || self.counters.decrement());
        // With the shard's lock released.
        drop(removed);
    }

    fn evicted(&self, eviction: &Eviction) {
        self.subscribers.publish(eviction);
    }

    fn draining(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { self.admission.draining().await })
    }
}
