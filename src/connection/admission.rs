//! What a connection takes up in the registries of its layers, and that it is given back once.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;

use super::managed::Managed;
use crate::evict::{ConnectionId, Eviction};
use crate::monitor::{CloseFrame, Reason};

/// Keeps account of the connections of a layer.
pub(crate) trait Track: Send + Sync {
    /// Whether one more handshake may go on. If so, it takes up room until
    /// [`vacated`](Self::vacated), and is there until [`left`](Self::left).
    fn admit(&self) -> Result<(), Refused>;
    /// The same for a stream whose handshake is over, so that there is nobody to be refused.
    fn take_in(&self);
    /// Room that was taken up is free again.
    fn vacated(&self);
    /// One that was there has gone.
    fn left(&self);

    /// Called under a lock of the connection's: nobody is to be told of it from in here.
    fn opened(&self, connection: Arc<dyn Managed>);
    /// Tells whoever wants to know what followed from [`opened`](Self::opened).
    fn announce(&self);
    /// What an open connection is to be told at once: nothing, unless it came too late.
    fn farewell(&self) -> Option<(Reason, CloseFrame)>;
    /// Also comes for a connection that was never opened.
    fn ended(&self, id: ConnectionId);
    /// Passes the end on. Comes once, after [`ended`](Self::ended).
    fn evicted(&self, eviction: &Eviction);

    /// Completes when a drain has begun.
    fn draining(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A handshake was not let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) cause: &'static str,
    /// When to try again, in seconds.
    pub(crate) retry_after: u64,
}

/// What a connection takes up in one registry. Dropped, it is given back, and this may wake a task:
/// not under a lock.
pub(crate) struct Admission {
    tracker: Arc<dyn Track>,
    /// Takes up room that a limit counts: from the handshake to the eviction.
    permit: bool,
    /// Is waited for by a shutdown: from the handshake to the end of the transport.
    presence: bool,
}

impl Admission {
    pub(super) fn admit(tracker: &Arc<dyn Track>) -> Result<Self, Refused> {
        tracker.admit()?;
        Ok(Self::new(tracker))
    }

    pub(super) fn take_in(tracker: &Arc<dyn Track>) -> Self {
        tracker.take_in();
        Self::new(tracker)
    }

    fn new(tracker: &Arc<dyn Track>) -> Self {
        Self {
            tracker: Arc::clone(tracker),
            permit: true,
            presence: true,
        }
    }

    /// Parts with the permit, if it is still there.
    fn take_permit(&mut self) -> Self {
        Self {
            tracker: Arc::clone(&self.tracker),
            permit: mem::take(&mut self.permit),
            presence: false,
        }
    }

    /// Parts with the presence, if it is still there.
    fn take_presence(&mut self) -> Self {
        Self {
            tracker: Arc::clone(&self.tracker),
            permit: false,
            presence: mem::take(&mut self.presence),
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.permit {
            self.tracker.vacated();
        }
        if self.presence {
            self.tracker.left();
        }
    }
}

/// A connection's admissions, one for each registry, however many layers share it.
#[derive(Default)]
pub(super) struct Admissions {
    list: Vec<Admission>,
    /// The connection has ended: permits are not kept any more.
    vacated: bool,
    /// Nothing is left of it at all.
    left: bool,
}

impl Admissions {
    pub(super) fn is_in(&self, tracker: &Arc<dyn Track>) -> bool {
        let mut admissions = self.list.iter();
        admissions.any(|admission| Arc::ptr_eq(&admission.tracker, tracker))
    }

    /// Keeps of `admission` what the connection still takes up, and returns the rest, to be dropped
    /// after the lock was given back.
    pub(super) fn add(&mut self, mut admission: Admission) -> Option<Admission> {
        if self.left || self.is_in(&admission.tracker) {
            return Some(admission);
        }
        let rest = self.vacated.then(|| admission.take_permit());
        // There is hardly ever a second one.
        self.list.reserve_exact(1);
        self.list.push(admission);
        rest
    }

    pub(super) fn trackers(&self) -> Vec<Arc<dyn Track>> {
        let trackers = self
            .list
            .iter()
            .map(|admission| Arc::clone(&admission.tracker));
        trackers.collect()
    }

    /// Enters the connection everywhere, unless it has ended: so what is entered is never more than
    /// what is permitted.
    pub(super) fn enter(&self, connection: &Arc<dyn Managed>) {
        if !self.vacated {
            for admission in &self.list {
                admission.tracker.opened(Arc::clone(connection));
            }
        }
    }

    /// The connection has ended. What it gives back is to be dropped after the lock.
    pub(super) fn vacate(&mut self) -> Vec<Admission> {
        self.vacated = true;
        self.list.iter_mut().map(Admission::take_permit).collect()
    }

    /// Nothing is left of the connection. What it gives back is to be dropped after the lock.
    pub(super) fn leave(&mut self) -> Vec<Admission> {
        self.left = true;
        self.list.iter_mut().map(Admission::take_presence).collect()
    }

    /// For the registries there was no connection.
    pub(super) fn dissolve(&mut self) -> Vec<Admission> {
        (self.vacated, self.left) = (true, true);
        mem::take(&mut self.list)
    }
}
