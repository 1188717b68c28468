//! Seats that outlive their connection for a grace period, and the sessions in them.
//!
//! A *session* begins with the registration of a seat and lasts over all connections that resume it.
//!
//! | file | what |
//! |---|---|
//! | this file | [`Linger`], the settings of a map's lingering seats, and their list |
//! | [`builder`] | its builder |
//! | [`stage`] | how far one session has come: the one place where it is resumed or ended |
//! | [`lingering`] | a seat that lingers, and its end |
//! | [`register`] | [`Liveness::register_lingering`](crate::Liveness::register_lingering) |
//! | [`session_end`] | what the hooks of a session are given |

mod builder;
mod lingering;
mod register;
mod session_end;
mod stage;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::replace_policy::ReplacePolicy;
use crate::config_error::{self, ConfigError};
use crate::hooks;
use crate::monitor::Reason;
use crate::panic_guard;
use crate::sync::{Mutex, MutexGuard};

pub use builder::LingerBuilder;
pub(super) use lingering::LingeringSession;
pub use register::{Registered, Resumed};
pub use session_end::{SessionEnd, SessionEndCause};
pub use stage::SeatState;
pub(super) use stage::{Claimant, Session, WeakSession};

/// Keeps seats in their map for a grace period after the end of their connection.
///
/// A client that comes back within that time gets its seat with the same value: see
/// [`Liveness::register_lingering`](crate::Liveness::register_lingering). Otherwise the seat is
/// removed, and the session is over. Create one per map, and keep it beside the map. Cloning is cheap,
/// and clones share the list of lingering seats.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
/// use std::time::Duration;
///
/// use tokio::{io::duplex, time::sleep};
/// use tower_ws_liveness::{HeartbeatLayer, Linger, Seat, SeatState};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// struct Player {
///     score: u32,
/// }
///
/// let players: Arc<Mutex<HashMap<&str, Seat<Player>>>> = Arc::default();
/// let linger = Linger::builder(Duration::from_secs(30))
///     .on_session_end(|end| println!("{} has left: {}", end.key(), end.cause()))
///     .build()?;
///
/// let layer = HeartbeatLayer::default();
/// let (io, live) = layer.wrap_server(duplex(64).0);
/// live.register_lingering(&players, "alice", Player { score: 7 }, &linger)?;
/// drop(io);
/// sleep(Duration::from_secs(10)).await;
/// let state = players.lock().unwrap()["alice"].state();
/// assert!(matches!(state, SeatState::Lingering { .. }));
///
/// let (_io, live) = layer.wrap_server(duplex(64).0);
/// let registered = live.register_lingering(&players, "alice", Player { score: 0 }, &linger)?;
/// let resumed = registered.resumed().expect("within the grace period");
/// assert_eq!(resumed.away().as_secs(), 10);
/// assert_eq!(registered.seat().score, 7);
/// # Ok(())
/// # }
/// ```
///
/// A seat lingers after every end from which a client may come back: see
/// [`LingerBuilder::after`] for the default and for another choice. A connection that was never open
/// leaves no lingering seat, and neither does one whose runtime is shut down.
///
/// The end of the grace period is an entry in the timer wheel of the connections: a lingering seat
/// has no task and no timer of its own. Its memory is that of its connection's state, without the
/// transport.
pub struct Linger<K, V> {
    grace: Duration,
    shared: Arc<Shared<K, V>>,
}

type SessionHook<K, V> = Box<dyn Fn(&SessionEnd<K, V>) + Send + Sync>;

struct Shared<K, V> {
    capacity: usize,
    after: Box<dyn Fn(Reason) -> bool + Send + Sync>,
    policy: ReplacePolicy,
    hooks: Vec<SessionHook<K, V>>,
    list: Mutex<List<K, V>>,
}

/// The seats that linger, the one that has lingered longest first.
struct List<K, V> {
    seats: BTreeMap<u64, Arc<dyn LingeringSeat<K, V>>>,
    next_place: u64,
    /// No seat lingers any more.
    closed: bool,
}

/// A lingering seat in some map.
trait LingeringSeat<K, V>: Send + Sync {
    /// Removes the seat from its map and ends its session, unless it no longer lingers.
    fn end_lingering(&self, cause: SessionEndCause) -> Option<SessionEnd<K, V>>;
}

impl<K, V> Linger<K, V> {
    /// A builder with the grace period, which is between 1 ms and 365 days.
    pub fn builder(grace: Duration) -> LingerBuilder<K, V> {
        LingerBuilder::new(grace)
    }

    /// The same list of lingering seats with another grace period, for some of the seats: those of
    /// paying users, for example. The period of a seat is that with which its last connection was
    /// registered. The capacity is shared: the seat that has lingered longest leaves first, whatever
    /// its period.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_ws_liveness::{ConfigError, Linger};
    ///
    /// # fn main() -> Result<(), ConfigError> {
    /// let linger: Linger<String, ()> = Linger::builder(Duration::from_secs(30)).build()?;
    /// let premium = linger.with_grace(Duration::from_secs(600))?;
    /// assert_eq!(premium.grace().as_secs(), 600);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error for a grace period below 1 ms or above 365 days.
    pub fn with_grace(&self, grace: Duration) -> Result<Self, ConfigError> {
        config_error::duration("Linger::with_grace", grace)?;
        Ok(Self {
            grace,
            shared: Arc::clone(&self.shared),
        })
    }

    /// How long a seat lingers that is registered with this.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// The number of seats that linger now.
    #[must_use]
    pub fn lingering(&self) -> usize {
        self.list().seats.len()
    }

    /// Ends the sessions of all lingering seats with [`SessionEndCause::Closed`], and calls their
    /// hooks. Returns their number. From then on no seat lingers: at the end of its connection it is
    /// removed, as after [`Liveness::register`](crate::Liveness::register).
    ///
    /// For a shutdown, before or after the drain of the connections:
    /// [`hand_over`](Self::hand_over) saves the sessions instead.
    pub fn close(&self) -> usize {
        let ends = self.end_all();
        for end in &ends {
            self.call_hooks(end);
        }
        ends.len()
    }

    /// As [`close`](Self::close), but returns the sessions instead of calling their hooks, for a
    /// store that another process restores them from.
    ///
    /// Other tasks may still have the values. If one contains an [`Outbox`](crate::Outbox), call
    /// `end.value().outbox.close()` before you save it: no hook has closed it, and a message that it
    /// accepts after that is lost.
    #[must_use = "the sessions are over, and their hooks were not called"]
    pub fn hand_over(&self) -> Vec<SessionEnd<K, V>> {
        self.end_all()
    }

    fn end_all(&self) -> Vec<SessionEnd<K, V>> {
        let seats = {
            let mut list = self.list();
            list.closed = true;
            std::mem::take(&mut list.seats)
        };
        // Each on its own: a key or a value that panics must not lose the others.
        let end = |seat: Arc<dyn LingeringSeat<K, V>>| {
            panic_guard::catch(move || seat.end_lingering(SessionEndCause::Closed)).flatten()
        };
        seats.into_values().filter_map(end).collect()
    }

    /// Adds a seat, and returns its place. `None` if no seat lingers any more.
    fn add(&self, seat: Arc<dyn LingeringSeat<K, V>>) -> Option<u64> {
        let mut list = self.list();
        if list.closed {
            return None;
        }
        let place = list.next_place;
        list.next_place += 1;
        list.seats.insert(place, seat);
        Some(place)
    }

    fn remove(&self, place: u64) {
        let removed = self.list().seats.remove(&place);
        // Dropped without the lock: it owns a key and a value of the application.
        drop(removed);
    }

    /// Ends the sessions that have lingered longest, while more seats linger than configured.
    fn end_excess(&self) {
        let next = || {
            let mut list = self.list();
            let has_excess = list.seats.len() > self.shared.capacity;
            has_excess.then(|| list.seats.pop_first()).flatten()
        };
        while let Some((_, seat)) = next() {
            panic_guard::catch(move || {
                if let Some(end) = seat.end_lingering(SessionEndCause::OverCapacity) {
                    self.call_hooks(&end);
                }
            });
        }
    }

    fn has_excess(&self) -> bool {
        self.list().seats.len() > self.shared.capacity
    }

    fn call_hooks(&self, end: &SessionEnd<K, V>) {
        for hook in &self.shared.hooks {
            hooks::call_on_session_end(end.connection(), end.cause().as_str(), || hook(end));
        }
    }

    fn list(&self) -> MutexGuard<'_, List<K, V>> {
        self.shared
            .list
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Clone for Linger<K, V> {
    fn clone(&self) -> Self {
        Self {
            grace: self.grace,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, V> fmt::Debug for Linger<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Linger")
            .field("grace", &self.grace)
            .field("capacity", &self.shared.capacity)
            .field("lingering", &self.lingering())
            .finish_non_exhaustive()
    }
}
