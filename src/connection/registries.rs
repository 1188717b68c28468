//! How a connection and the registries of its layers know each other: what either can ask of the
//! other, what the connection takes up in them, and that it is given back once.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::core::{Core, Listeners};
use crate::evict::{ConnectionId, Eviction};
use crate::monitor::{CloseFrame, Health, Overrides, Policy, Reason, Rtt, Stats};
use crate::sync::{Mutex, MutexGuard};

/// What can be asked of any connection, whatever its transport.
pub(crate) trait Managed: Send + Sync {
    fn core(&self) -> &Core;
    fn registries(&self) -> &Registries;
    fn view(&self) -> View;
    /// Ends the connection with this Close frame. False if it has ended before.
    fn evict(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// The same, but after the frame that the handler is in the middle of: a message is not torn.
    /// False if it has ended before, or is to end this way already.
    fn part(self: Arc<Self>, reason: Reason, frame: CloseFrame) -> bool;
    /// Waits no longer for an end that has come or was asked for: what can be said to the peer at
    /// once is said, and the transport is gone. A connection that lives on is left alone.
    fn cut(self: Arc<Self>);
    /// Replaces values of the layers' settings, also of layers that are yet to come.
    fn override_policy(self: Arc<Self>, overrides: &Overrides);
    /// The same, unless a value is for a layer that is not there: then nothing is done, and false.
    fn change_policy(self: Arc<Self>, overrides: &Overrides) -> bool;
    /// Asks for a ping, and for the round trip that its pong will give.
    fn ping(self: Arc<Self>) -> oneshot::Receiver<Duration>;
    /// Adds a layer. Of two of a kind the later one's settings hold, and both are told of the end.
    fn attach(&self, policy: &Policy, listeners: &Arc<Listeners>);
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
pub(crate) struct Registries(Mutex<Admissions>);

#[derive(Default)]
struct Admissions {
    list: Vec<Admission>,
    /// The connection has ended: permits are not kept any more.
    vacated: bool,
    /// All hooks have returned.
    reported: bool,
    /// There is no transport any more, and none will come.
    gone: bool,
}

impl Registries {
    pub(super) fn is_in(&self, tracker: &Arc<dyn Track>) -> bool {
        self.lock().is_in(tracker)
    }

    /// Keeps of `admission` what the connection still takes up.
    pub(super) fn add(&self, mut admission: Admission) {
        let mut admissions = self.lock();
        let rest = if admissions.is_left() || admissions.is_in(&admission.tracker) {
            Some(admission)
        } else {
            let rest = admissions.vacated.then(|| admission.take_permit());
            // There is hardly ever a second one.
            admissions.list.reserve_exact(1);
            admissions.list.push(admission);
            rest
        };
        drop(admissions);
        // It may wake a task, so not under the lock.
        drop(rest);
    }

    pub(super) fn trackers(&self) -> Vec<Arc<dyn Track>> {
        self.lock().trackers()
    }

    /// Enters the connection everywhere, unless it has ended: so what is entered is never more than
    /// what is permitted.
    pub(super) fn enter(&self, connection: &Arc<dyn Managed>) {
        let admissions = self.lock();
        if admissions.vacated {
            return;
        }
        for admission in &admissions.list {
            admission.tracker.opened(Arc::clone(connection));
        }
        let trackers = admissions.trackers();
        drop(admissions);
        for tracker in trackers {
            tracker.announce();
        }
    }

    /// The connection has ended: takes it out everywhere, and gives its room back. Returns whom to pass
    /// the eviction on to.
    pub(super) fn end(&self, id: ConnectionId) -> Vec<Arc<dyn Track>> {
        let (trackers, permits) = {
            let mut admissions = self.lock();
            admissions.vacated = true;
            let permits = admissions.list.iter_mut().map(Admission::take_permit);
            let permits: Vec<_> = permits.collect();
            (admissions.trackers(), permits)
        };
        for tracker in &trackers {
            tracker.ended(id);
        }
        drop(permits);
        trackers
    }

    /// All hooks have returned. When the transport is gone too, nothing is left that a shutdown would
    /// wait for.
    pub(super) fn reported(&self) {
        self.leave(|admissions| admissions.reported = true);
    }

    /// There is no transport any more, and none will come.
    pub(super) fn gone(&self) {
        self.leave(|admissions| admissions.gone = true);
    }

    fn leave(&self, note: impl FnOnce(&mut Admissions)) {
        let mut admissions = self.lock();
        note(&mut admissions);
        let presences: Vec<_> = if admissions.is_left() {
            let presences = admissions.list.iter_mut().map(Admission::take_presence);
            presences.collect()
        } else {
            Vec::new()
        };
        drop(admissions);
        drop(presences);
    }

    /// For the registries there was no connection.
    pub(super) fn dissolve(&self) {
        let admissions = {
            let mut admissions = self.lock();
            let over = Admissions {
                list: Vec::new(),
                vacated: true,
                reported: true,
                gone: true,
            };
            mem::replace(&mut *admissions, over)
        };
        drop(admissions);
    }

    fn lock(&self) -> MutexGuard<'_, Admissions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admissions {
    fn is_in(&self, tracker: &Arc<dyn Track>) -> bool {
        let mut admissions = self.list.iter();
        admissions.any(|admission| Arc::ptr_eq(&admission.tracker, tracker))
    }

    fn is_left(&self) -> bool {
        self.reported && self.gone
    }

    fn trackers(&self) -> Vec<Arc<dyn Track>> {
        let admissions = self.list.iter();
        admissions
            .map(|admission| Arc::clone(&admission.tracker))
            .collect()
    }
}
