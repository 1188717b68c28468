//! How a connection and the registries of its layers know each other: what either can ask of the
//! other, what the connection takes up in them, and that it is given back once.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::connection::metadata::AttachmentId;
use crate::connection::metadata::LayerConfig;
use crate::connection::metadata::Listeners;
use crate::connection::metadata::Metadata;
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::{CloseFrame, Health, Overrides, Policy, Reason, Rtt, Stats};
use crate::sync::{Mutex, MutexGuard};

/// What can be asked of any connection, whatever its transport.
pub(crate) trait ErasedConnection: Send + Sync {
    fn metadata(&self) -> &Metadata;
    fn membership(&self) -> &Membership;
    fn view(&self) -> View;
    /// Whether this is called from within a poll of the connection's own transport, or from a waker that
    /// is cloned there. [`view`](Self::view) and most methods below then panic.
    fn is_polled(&self) -> bool;
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
    /// Adds an inner layer that may [leave](Self::leave) until its response is
    /// [accepted](Self::accept). `within` is the next inner layer further out, if there is one;
    /// `overrides` came with its request.
    fn join(
        self: Arc<Self>,
        layer: &Arc<LayerConfig>,
        within: Option<AttachmentId>,
        admission: Option<Admission>,
        overrides: Option<&Overrides>,
    ) -> AttachmentId;
    /// Removes an inner layer and all layers within it, with the hooks and the places in registries that
    /// no other layer shares.
    fn leave(self: Arc<Self>, id: AttachmentId);
    /// Records that the response of an inner layer is an upgrade, so the layer stays.
    fn accept(&self, id: AttachmentId);
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
pub(crate) trait Tracker: Send + Sync {
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
    fn opened(&self, connection: Arc<dyn ErasedConnection>);
    /// Tells whoever wants to know what followed from [`opened`](Self::opened).
    fn announce(&self);
    /// What an open connection is to be told at once: nothing, unless it came too late.
    fn farewell(&self) -> Option<(Reason, CloseFrame)>;
    /// Also comes for a connection that was never opened, and for one that goes on without the layer:
    /// then under a lock of the connection's.
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

/// What a connection takes up in one registry, or is about to give back. Dropped, it is given back, and
/// this may wake a task: not under a lock.
pub(crate) struct Admission {
    tracker: Arc<dyn Tracker>,
    /// Takes up room that a limit counts: from the handshake to the eviction.
    permit: bool,
    /// Is waited for by a shutdown: from the handshake to the end of the transport.
    presence: bool,
}

impl Admission {
    pub(crate) fn admit(tracker: &Arc<dyn Tracker>) -> Result<Self, Refused> {
        tracker.admit()?;
        Ok(Self::of(tracker, true, true))
    }

    pub(crate) fn take_in(tracker: &Arc<dyn Tracker>) -> Self {
        tracker.take_in();
        Self::of(tracker, true, true)
    }

    fn of(tracker: &Arc<dyn Tracker>, permit: bool, presence: bool) -> Self {
        Self {
            tracker: Arc::clone(tracker),
            permit,
            presence,
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

/// What a connection takes up in all its membership: the same in each, and in each once, however many
/// layers share it.
#[derive(Default)]
pub(crate) struct Membership(Mutex<Admissions>);

/// Membership that a connection is in: nearly always one, which then costs no allocation.
pub(crate) type Trackers = SmallVec<[Arc<dyn Tracker>; 1]>;

#[derive(Default)]
struct Admissions {
    trackers: Trackers,
    /// The connection has ended: permits are not kept any more.
    vacated: bool,
    /// All hooks have returned.
    reported: bool,
    /// There is no transport any more, and none will come.
    gone: bool,
}

impl Membership {
    pub(crate) fn is_in(&self, tracker: &Arc<dyn Tracker>) -> bool {
        self.lock().is_in(tracker)
    }

    /// Takes the parts of `admission` that the connection does not hold yet, and returns the rest. True if
    /// it now holds a new place. Dropping the rest may wake a task: do that without a lock.
    pub(crate) fn add(&self, mut admission: Admission) -> (bool, Admission) {
        let mut admissions = self.lock();
        let is_new = !admissions.is_left() && !admissions.is_in(&admission.tracker);
        if is_new {
            admissions.trackers.push(Arc::clone(&admission.tracker));
            admission.permit = admissions.vacated;
            admission.presence = false;
        }
        (is_new, admission)
    }

    /// Leaves one registry, and returns the admission to it. Dropping that may wake a task: do that without
    /// a lock.
    pub(crate) fn remove(&self, tracker: &Arc<dyn Tracker>, id: ConnectionId) -> Option<Admission> {
        let mut admissions = self.lock();
        let mut trackers = admissions.trackers.iter();
        let place = trackers.position(|known| Arc::ptr_eq(known, tracker))?;
        let tracker = admissions.trackers.remove(place);
        // At its end the connection is removed by the task that noticed the end. This runs under the lock,
        // or the connection might be entered again in between.
        if !admissions.vacated {
            tracker.ended(id);
        }
        let (permit, presence) = (!admissions.vacated, !admissions.is_left());
        Some(Admission::of(&tracker, permit, presence))
    }

    pub(crate) fn trackers(&self) -> Trackers {
        self.lock().trackers.clone()
    }

    /// Enters the connection everywhere, unless it has ended: so what is entered is never more than
    /// what is permitted.
    pub(crate) fn enter(&self, connection: &Arc<dyn ErasedConnection>) {
        let admissions = self.lock();
        if admissions.vacated {
            return;
        }
        let trackers = admissions.trackers.clone();
        for tracker in &trackers {
            tracker.opened(Arc::clone(connection));
        }
        drop(admissions);
        for tracker in trackers {
            tracker.announce();
        }
    }

    /// The connection has ended: takes it out everywhere, and gives its room back. Returns whom to pass
    /// the eviction on to.
    pub(crate) fn end(&self, id: ConnectionId) -> Trackers {
        let (trackers, permits) = {
            let mut admissions = self.lock();
            let permits = admissions.give_back(|over| over.vacated = true);
            (admissions.trackers.clone(), permits)
        };
        for tracker in &trackers {
            tracker.ended(id);
        }
        drop(permits);
        trackers
    }

    /// All hooks have returned. When the transport is gone too, nothing is left that a shutdown would
    /// wait for.
    pub(crate) fn reported(&self) {
        self.give_back(|admissions| admissions.reported = true);
    }

    /// There is no transport any more, and none will come.
    pub(crate) fn gone(&self) {
        self.give_back(|admissions| admissions.gone = true);
    }

    /// For the registries there was no connection.
    pub(crate) fn dissolve(&self) {
        let over = Admissions {
            trackers: Trackers::new(),
            vacated: true,
            reported: true,
            gone: true,
        };
        let admissions = mem::replace(&mut *self.lock(), over);
        drop(admissions);
    }

    fn give_back(&self, note: impl FnOnce(&mut Admissions)) {
        let over = self.lock().give_back(note);
        drop(over);
    }

    fn lock(&self) -> MutexGuard<'_, Admissions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admissions {
    fn is_in(&self, tracker: &Arc<dyn Tracker>) -> bool {
        let mut trackers = self.trackers.iter();
        trackers.any(|known| Arc::ptr_eq(known, tracker))
    }

    fn is_left(&self) -> bool {
        self.reported && self.gone
    }

    /// Report something, and returns what is not taken up any more because of it.
    fn give_back(&mut self, note: impl FnOnce(&mut Self)) -> SmallVec<[Admission; 1]> {
        let (vacated, left) = (self.vacated, self.is_left());
        note(self);
        let permit = self.vacated && !vacated;
        let presence = self.is_left() && !left;
        if !permit && !presence {
            return SmallVec::new();
        }
        let trackers = self.trackers.iter();
        trackers
            .map(|tracker| Admission::of(tracker, permit, presence))
            .collect()
    }
}

impl Drop for Admissions {
    /// A connection that nobody has seen to its end.
    fn drop(&mut self) {
        drop(self.give_back(|over| {
            over.vacated = true;
            over.reported = true;
            over.gone = true;
        }));
    }
}
