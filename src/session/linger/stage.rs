//! The stage of a session: connected, lingering, claimed or over.
//!
//! Every path that ends or resumes a session takes it out of its stage under one lock, so only one
//! succeeds: the end of the connection, the end of the grace period, a newer registration, or the
//! application.

use std::mem;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::session_end::SessionEndCause;
use crate::driver::TimerEntry;
use crate::monitor::{Moment, Reason};
use crate::sync::{Mutex, MutexGuard};

/// Whether the seat's client is connected: see [`Seat::state`](crate::Seat::state).
///
/// ```
/// use tokio::sync::mpsc;
/// use tower_ws_liveness::{Seat, SeatState};
///
/// /// Pushes to a client that is connected.
/// fn push(seat: &Seat<mpsc::Sender<String>>, text: &str) -> bool {
///     seat.state() == SeatState::Connected && seat.try_send(text.to_owned()).is_ok()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeatState {
    /// The connection of the seat is open.
    Connected,
    /// The connection has ended, and the seat waits for another to resume its session.
    Lingering {
        /// Why the connection ended.
        reason: Reason,
        /// How long ago.
        away: Duration,
    },
    /// The seat has left its map. Its session is over, or goes on in the seat of a newer connection.
    Left,
}

/// The session of a seat, whatever the types of its map.
pub(in crate::session) trait Session: Send + Sync {
    fn stage(&self) -> &Stage;
    /// Removes the timer entry and the list place of a seat whose session was taken.
    fn stop_lingering(&self, lingering: Lingering);
    /// Ends the session for a cause that lies with the application, unless it is over, and calls its
    /// hooks. `reason` is why its connection ended, if it has. The caller holds no lock.
    fn end_session(&self, cause: SessionEndCause, reason: Option<Reason>);
}

/// A seat's reference to its session: weak, since the map that has the seat belongs to the
/// registration.
pub(in crate::session) type WeakSession = Weak<dyn Session>;

/// A registration that resumes a session.
pub(in crate::session) trait Claimant: Send + Sync {
    /// Whether the current thread is inserting the seat.
    fn is_current_thread(&self) -> bool;
    /// Waits until the map has inserted the seat.
    fn wait_until_inserted(&self);
}

/// How far the session of one registration has come. It only moves forward.
pub(in crate::session) struct Stage(Mutex<State>);

enum State {
    Connected,
    Lingering(Lingering),
    /// A newer registration resumes the session, and its seat is not in the map yet.
    Claimed(Arc<dyn Claimant>),
    /// The session is over, or goes on with a newer registration.
    Over,
}

/// The timer entry and the list place of a lingering seat.
pub(in crate::session) struct Lingering {
    pub(super) reason: Reason,
    pub(super) since: Moment,
    pub(super) timer: TimerEntry,
    /// Where it is in the list of lingering seats.
    pub(super) place: u64,
}

/// The stage from which a session was taken.
pub(super) enum Taken {
    Connected,
    Lingering(Lingering),
}

/// The answer to a registration that wants to resume a session.
pub(super) enum Claim {
    Taken(Taken),
    /// Another registration is resuming it.
    Busy(Arc<dyn Claimant>),
    Over,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State::Connected))
    }

    /// Lets a connected session linger. `begin` is called under the lock; with `None` the session
    /// stays connected. Returns whether it lingers.
    pub(super) fn linger(&self, begin: impl FnOnce() -> Option<Lingering>) -> bool {
        let mut state = self.lock();
        if !matches!(*state, State::Connected) {
            return false;
        }
        let Some(lingering) = begin() else {
            return false;
        };
        *state = State::Lingering(lingering);
        true
    }

    /// Takes the session for `claimant`, until [`finish_claim`](Self::finish_claim).
    pub(super) fn claim(&self, claimant: Arc<dyn Claimant>) -> Claim {
        let mut state = self.lock();
        match mem::replace(&mut *state, State::Over) {
            State::Connected => {
                *state = State::Claimed(claimant);
                Claim::Taken(Taken::Connected)
            }
            State::Lingering(lingering) => {
                *state = State::Claimed(claimant);
                Claim::Taken(Taken::Lingering(lingering))
            }
            State::Claimed(other) => {
                *state = State::Claimed(Arc::clone(&other));
                Claim::Busy(other)
            }
            State::Over => Claim::Over,
        }
    }

    /// The seat of the claimant is in the map, or will never be.
    pub(super) fn finish_claim(&self) {
        let before = mem::replace(&mut *self.lock(), State::Over);
        // Dropped without the lock: a claimant owns a key of the application.
        drop(before);
    }

    /// Takes a session that must end. `None` if it is over or claimed.
    pub(super) fn take(&self) -> Option<Taken> {
        self.take_if(|_| true)
    }

    /// As [`take`](Self::take), if it lingers.
    pub(super) fn take_lingering(&self) -> Option<Lingering> {
        match self.take_if(|state| matches!(state, State::Lingering(_)))? {
            Taken::Lingering(lingering) => Some(lingering),
            Taken::Connected => None,
        }
    }

    fn take_if(&self, condition: impl FnOnce(&State) -> bool) -> Option<Taken> {
        let mut state = self.lock();
        if !condition(&state) {
            return None;
        }
        match mem::replace(&mut *state, State::Over) {
            State::Connected => Some(Taken::Connected),
            State::Lingering(lingering) => Some(Taken::Lingering(lingering)),
            State::Claimed(claimant) => {
                *state = State::Claimed(claimant);
                None
            }
            State::Over => None,
        }
    }

    /// Whether a newer registration may resume the session, perhaps after another has.
    pub(in crate::session) fn is_resumable(&self) -> bool {
        match &*self.lock() {
            State::Connected | State::Lingering(_) => true,
            // It would wait for itself.
            State::Claimed(claimant) => !claimant.is_current_thread(),
            State::Over => false,
        }
    }

    pub(in crate::session) fn seat_state(&self) -> SeatState {
        match &*self.lock() {
            // A newer connection is taking the seat over.
            State::Connected | State::Claimed(_) => SeatState::Connected,
            State::Lingering(lingering) => SeatState::Lingering {
                reason: lingering.reason,
                away: lingering.away(),
            },
            State::Over => SeatState::Left,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lingering {
    pub(super) fn away(&self) -> Duration {
        self.timer.now().since(self.since)
    }
}
