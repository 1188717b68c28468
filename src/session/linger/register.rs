//! Registers a connection at a key whose session it may resume.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::stage::{Claim, Claimant, SeatState, Session, Taken};
use super::{Linger, LingeringSession, SessionEndCause};
use crate::connection::{Liveness, RegistrationId};
use crate::eviction::ConnectionId;
use crate::monitor::Reason;
use crate::panic_guard;
use crate::session::register::displace;
use crate::session::registration::{Inserted, MapRegistration};
use crate::session::{RegisterError, Seat, SessionMap};

/// A registration with a grace period: see
/// [`Liveness::register_lingering`](crate::Liveness::register_lingering).
///
/// ```
/// use tower_ws_liveness::{Registered, Seat};
///
/// /// The score with which a player begins or goes on.
/// fn seat(registered: Registered<u32>) -> Seat<u32> {
///     match registered.resumed() {
///         Some(resumed) => println!("back after {:?}", resumed.away()),
///         None => println!("a new player"),
///     }
///     registered.into_seat()
/// }
/// ```
#[derive(Debug)]
pub struct Registered<V> {
    seat: Seat<V>,
    resumed: Option<Resumed>,
}

impl<V> Registered<V> {
    /// The seat that is in the map now. Its value is that of the session: if a session was resumed,
    /// not the one that was passed to the registration, which is dropped.
    #[must_use]
    pub fn seat(&self) -> &Seat<V> {
        &self.seat
    }

    /// The seat by value.
    #[must_use]
    pub fn into_seat(self) -> Seat<V> {
        self.seat
    }

    /// What was resumed; `None` if the session is new.
    #[must_use]
    pub fn resumed(&self) -> Option<&Resumed> {
        self.resumed.as_ref()
    }
}

/// The interruption of a session that a connection has resumed.
///
/// ```
/// use tower_ws_liveness::{Reason, Resumed};
///
/// fn describe(resumed: &Resumed) -> String {
///     match resumed.reason() {
///         Reason::Replaced => "the old connection was still open".to_owned(),
///         reason => format!("away for {:?}: {reason}", resumed.away()),
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    connection: ConnectionId,
    reason: Reason,
    away: Duration,
}

impl Resumed {
    /// The connection that had the session before.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// Why that connection ended. [`Reason::Replaced`] if it was open until this registration.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How long the session had no connection; zero if that one was open.
    #[must_use]
    pub fn away(&self) -> Duration {
        self.away
    }
}

impl Liveness {
    /// As [`register`](Self::register), but the seat outlives the connection for a grace period, in
    /// which a newer connection with the same key resumes its session.
    ///
    /// If the map has a seat at `key` whose session is not over, this connection gets it: the value
    /// of the session is kept, and `value` is dropped. That is so while the seat lingers, and while
    /// its connection is open too, since a client often comes back before the end of its old
    /// connection is detected; the older connection is then evicted with [`Reason::Replaced`]. See
    /// [`LingerBuilder::replace_policy`](crate::LingerBuilder::replace_policy) for another policy.
    /// [`Registered::resumed`] tells both from a new session.
    ///
    /// Under any concurrency a connection resumes the session, or the session ends and its hooks are
    /// called, once. At the end of a connection its seat either lingers, and is not among
    /// [`Eviction::seats`](crate::Eviction::seats), or is removed as after `register`.
    ///
    /// Call it in the task that gets the socket. If a handler registers before the upgrade and the
    /// upgrade fails, the session ends.
    ///
    /// Use one [`Linger`] for all seats of a map. A seat that the application removes from the map by
    /// itself cannot be resumed; its session ends when the grace period does. Registering a seat at
    /// the same key without a grace period ends the session with [`SessionEndCause::Replaced`].
    ///
    /// # Errors
    ///
    /// As for [`register`](Self::register). With [`ReplacePolicy::oldest_wins`], also
    /// [`RegisterError::Occupied`] if the connection of the seat is open. The error contains `value`.
    ///
    /// # Panics
    ///
    /// Panics if the map does: see [`register`](Self::register).
    ///
    /// [`ReplacePolicy::oldest_wins`]: crate::ReplacePolicy::oldest_wins
    pub fn register_lingering<K, V, M>(
        &self,
        map: &Arc<M>,
        key: K,
        value: V,
        linger: &Linger<K, V>,
    ) -> Result<Registered<V>, RegisterError<V>>
    where
        K: Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
        M: SessionMap<K, V> + ?Sized,
    {
        let attempt = Attempt {
            live: self,
            map,
            key,
            value: Arc::new(value),
            linger,
            ended_finally: Cell::new(None),
        };
        let registered = loop {
            let outcome = match attempt.begin_session()? {
                Outcome::Resumable(occupant) => attempt.resume(&occupant)?,
                outcome => outcome,
            };
            if let Outcome::Registered(registered) = outcome {
                break registered;
            }
        };
        // Before the return: an unused value that panics when it is dropped must not leak the seat.
        drop(attempt);
        Ok(registered)
    }
}

struct Attempt<'a, K, V, M: ?Sized> {
    live: &'a Liveness,
    map: &'a Arc<M>,
    key: K,
    value: Arc<V>,
    linger: &'a Linger<K, V>,
    /// A seat whose connection has ended for a reason after which no session is resumed, although
    /// its end has not reached the seat yet.
    ended_finally: Cell<Option<RegistrationId>>,
}

enum Outcome<V> {
    Registered(Registered<V>),
    /// The seat has a session to resume.
    Resumable(Seat<V>),
    /// The session of the seat has ended meanwhile, or was resumed by another connection.
    Changed,
}

impl<K, V, M> Attempt<'_, K, V, M>
where
    K: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    M: SessionMap<K, V> + ?Sized,
{
    /// Takes a seat that is free, for a new session.
    fn begin_session(&self) -> Result<Outcome<V>, RegisterError<V>> {
        let registration = self.registration(&self.value);
        let insertion = registration
            .begin(self.live)
            .map_err(|reason| self.ended(reason))?;
        let (id, policy) = (self.live.id(), &self.linger.shared.policy);
        let mut resumable = false;
        let inserted = insertion.insert(&self.value, &mut |occupant| {
            let admitted = occupant.yields_to(id, policy);
            let is_final = self.ended_finally.get() == Some(occupant.registration());
            resumable = admitted && !is_final && occupant.is_resumable();
            admitted && !resumable
        });
        match inserted {
            Inserted::Occupied(occupant) if resumable => Ok(Outcome::Resumable(occupant)),
            inserted => self.conclude(&registration, inserted, None),
        }
    }

    /// Takes the seat of `occupant` with its session.
    fn resume(&self, occupant: &Seat<V>) -> Result<Outcome<V>, RegisterError<V>> {
        let Some(session) = occupant.session() else {
            return Ok(Outcome::Changed);
        };
        let value = occupant.value();
        let registration = self.registration(value);
        let ended = occupant.live().metadata().reason();
        if let (Some(reason), Some(own)) = (ended, &registration.session) {
            let is_connected = session.stage().seat_state() == SeatState::Connected;
            if is_connected && !own.lingers_after(reason) {
                self.ended_finally.set(Some(occupant.registration()));
                return Ok(Outcome::Changed);
            }
        }
        let insertion = registration
            .begin(self.live)
            .map_err(|reason| self.ended(reason))?;
        let claimant = Arc::clone(&registration) as Arc<dyn Claimant>;
        let (reason, away) = match session.stage().claim(claimant) {
            Claim::Taken(Taken::Connected) => (ended.unwrap_or(Reason::Replaced), Duration::ZERO),
            Claim::Taken(Taken::Lingering(lingering)) => {
                let interrupted = (lingering.reason, lingering.away());
                session.stop_lingering(lingering);
                interrupted
            }
            Claim::Busy(claimant) => {
                insertion.cancel();
                claimant.wait_until_inserted();
                return Ok(Outcome::Changed);
            }
            Claim::Over => {
                insertion.cancel();
                return Ok(Outcome::Changed);
            }
        };
        // Also if the map panics: the session is this connection's now.
        let claim = ClaimGuard(&*session);
        if let Some(session) = &registration.session {
            session.begin();
        }
        let (id, policy) = (self.live.id(), &self.linger.shared.policy);
        let inserted = catch_unwind(AssertUnwindSafe(|| {
            insertion.insert(value, &mut |present| {
                present.registration() == occupant.registration() || present.yields_to(id, policy)
            })
        }));
        drop(claim);
        let inserted = inserted.unwrap_or_else(|panicked| {
            // The older seat may be in the map still, and nothing else would remove it.
            panic_guard::catch(|| drop(self.map.remove_if(&self.key, occupant.id())));
            resume_unwind(panicked)
        });
        let resumed = Resumed {
            connection: occupant.id(),
            reason,
            away,
        };
        self.conclude(&registration, inserted, Some(resumed))
    }

    fn conclude(
        &self,
        registration: &Arc<MapRegistration<K, V, M>>,
        inserted: Inserted<V>,
        resumed: Option<Resumed>,
    ) -> Result<Outcome<V>, RegisterError<V>> {
        match inserted {
            Inserted::Occupied(occupant) => {
                if resumed.is_some() {
                    // A registration that resumes nothing has taken the seat in between.
                    registration.end_session(SessionEndCause::Replaced, None);
                }
                let value = Arc::clone(&self.value);
                Err(RegisterError::Occupied { occupant, value })
            }
            Inserted::Seated {
                previous,
                seat,
                ended,
            } => {
                if let Some(previous) = &previous {
                    displace(previous, self.live.id(), &self.linger.shared.policy);
                }
                if ended {
                    let reason = self.live.metadata().reason();
                    let reason = reason.expect("the reason precedes the end of seats");
                    if resumed.is_some() {
                        let cause = SessionEndCause::ConnectionEnded;
                        registration.end_session(cause, Some(reason));
                    }
                    return Err(self.ended(reason));
                }
                Ok(Outcome::Registered(Registered { seat, resumed }))
            }
        }
    }

    fn registration(&self, value: &Arc<V>) -> Arc<MapRegistration<K, V, M>> {
        let session = LingeringSession::new(self.linger, value);
        MapRegistration::new(self.live, self.map, self.key.clone(), Some(session))
    }

    fn ended(&self, reason: Reason) -> RegisterError<V> {
        RegisterError::Ended {
            reason,
            value: Arc::clone(&self.value),
        }
    }
}

/// A session that was claimed. Its newer registration is in the map when this is dropped, or never
/// will be.
struct ClaimGuard<'a>(&'a dyn Session);

impl Drop for ClaimGuard<'_> {
    fn drop(&mut self) {
        self.0.stage().finish_claim();
    }
}
