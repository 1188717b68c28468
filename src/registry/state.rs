//! What all clones of a registry share, and what its layers tell it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::counters::Tally;
use super::drain::{self, Leaving};
use super::evictions::Subscribers;
use super::limit::Gate;
use super::shards::Shards;
use crate::connection::{DrainOrder, ErasedConnection, Liveness, Refused, Tracker};
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::Reason;

/// Lock order: the connection's, a shard's, the tally's. The subscribers' stand alone.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) set: Shards,
    pub(super) tally: Tally,
    pub(super) gate: Gate,
    pub(super) subscribers: Arc<Subscribers>,
    pub(super) leaving: Leaving,
}

impl Tracker for Shared {
    fn admit(&self) -> Result<(), Refused> {
        self.gate.admit()
    }

    fn admit_always(&self) {
        self.gate.take_in();
    }

    fn vacated(&self) {
        self.gate.vacated();
    }

    fn left(&self) {
        self.gate.left();
    }

    fn opened(&self, connection: Arc<dyn ErasedConnection>) {
        let live = Liveness::new(connection);
        self.set.insert(live, || self.tally.came());
    }

    fn call_alarms(&self) {
        self.tally.announce();
    }

    fn drain_order(&self) -> Option<DrainOrder> {
        let code = self.gate.farewell()?;
        Some((Reason::Drained, drain::goodbye(code)))
    }

    fn ended(&self, id: ConnectionId) {
        let removed = self.set.remove(id, || self.tally.went());
        drop(removed);
    }

    fn evicted(&self, eviction: &Eviction) {
        self.subscribers.tell(eviction);
    }

    fn draining(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { self.gate.draining().await })
    }
}
