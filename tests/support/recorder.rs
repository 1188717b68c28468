//! An eviction hook that records its calls.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tower_ws_liveness::{ConnectionId, Eviction, Reason};

use super::{ms, never, within};

/// One call of the hook.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: ConnectionId,
    pub(crate) reason: Reason,
    pub(crate) at: Instant,
    pub(crate) eviction: Eviction,
}

/// Records every call of its hook. A test can wait for the n-th.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    events: Arc<Mutex<Vec<Event>>>,
    total: Arc<watch::Sender<usize>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A hook for `on_evict`. May be called several times.
    pub(crate) fn hook(&self) -> impl Fn(&Eviction) + Send + Sync + 'static + use<> {
        let this = self.clone();
        move |ev: &Eviction| this.record(ev)
    }

    pub(crate) fn record(&self, ev: &Eviction) {
        let event = Event {
            id: ev.id(),
            reason: ev.reason(),
            at: Instant::now(),
            eviction: ev.clone(),
        };
        self.events.lock().unwrap().push(event);
        self.total.send_modify(|total| *total += 1);
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn total(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// Number of events of this connection.
    pub(crate) fn count(&self, id: ConnectionId) -> usize {
        self.all().iter().filter(|event| event.id == id).count()
    }

    /// Waits for the n-th event, counted from 1. Panics after [`PATIENCE`](super::PATIENCE).
    pub(crate) async fn nth(&self, n: usize) -> Event {
        within(&format!("eviction number {n}"), self.reached(n)).await;
        self.all()[n - 1].clone()
    }

    /// Asserts that there are `n` events, and no further one in 150 ms.
    pub(crate) async fn stays_at(&self, n: usize) {
        self.stays_at_for(n, ms(150)).await;
    }

    pub(crate) async fn stays_at_for(&self, n: usize, span: Duration) {
        never("one eviction too many", span, self.reached(n + 1)).await;
        assert_eq!(self.total(), n, "{:?}", self.all());
    }

    /// Completes at the n-th event, and returns all events so far.
    pub(crate) fn reached(&self, n: usize) -> impl Future<Output = Vec<Event>> + use<> {
        let this = self.clone();
        let mut total = self.total.subscribe();
        async move {
            total.wait_for(|total| *total >= n).await.unwrap();
            this.all()
        }
    }
}
