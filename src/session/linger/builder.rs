//! [`LingerBuilder`]: how long seats linger, after which ends, and how many.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Linger, List, SessionEnd, SessionHook, Shared};
use crate::config_error::{self, ConfigError};
use crate::monitor::Reason;
use crate::session::ReplacePolicy;
use crate::sync::Mutex;

/// Builds a [`Linger`]; created by [`Linger::builder`].
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::{ConfigError, Linger, Reason, ReplacePolicy};
///
/// # fn main() -> Result<(), ConfigError> {
/// let linger = Linger::<String, ()>::builder(Duration::from_secs(60))
///     .capacity(1_000)
///     // Only for clients that were lost, not for those that closed.
///     .after(|reason| matches!(reason, Reason::HeartbeatTimeout { .. } | Reason::PeerVanished))
///     .replace_policy(ReplacePolicy::oldest_wins())
///     .on_session_end(|end| println!("{}: {}", end.key(), end.cause()))
///     .build()?;
/// assert_eq!(linger.lingering(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use = "call `build`"]
pub struct LingerBuilder<K, V> {
    grace: Duration,
    capacity: usize,
    after: Box<dyn Fn(Reason) -> bool + Send + Sync>,
    policy: ReplacePolicy,
    hooks: Vec<SessionHook<K, V>>,
}

impl<K, V> LingerBuilder<K, V> {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            capacity: 10_000,
            after: Box::new(is_recoverable),
            policy: ReplacePolicy::newest_wins(),
            hooks: Vec::new(),
        }
    }

    /// How many seats may linger at the same time. Default: 10,000.
    ///
    /// If there is one more, the session that has lingered longest ends with
    /// [`SessionEndCause::OverCapacity`](super::SessionEndCause::OverCapacity).
    pub fn capacity(mut self, seats: usize) -> Self {
        self.capacity = seats;
        self
    }

    /// After which ends of a connection its seat lingers.
    ///
    /// By default after all but these, which end the session:
    /// [`Kicked`](Reason::Kicked), [`Replaced`](Reason::Replaced), [`Drained`](Reason::Drained),
    /// [`ServerClosed`](Reason::ServerClosed), [`ControlFlood`](Reason::ControlFlood) and
    /// [`UpgradeFailed`](Reason::UpgradeFailed). To end a session when the user signs out, call
    /// [`unregister`](crate::Liveness::unregister).
    ///
    /// Called for each seat at the end of its connection, on the task that notices it, and perhaps
    /// when another connection resumes the session at that moment, outside every lock. It must not
    /// block. If it panics, the seat is removed.
    pub fn after(mut self, lingers: impl Fn(Reason) -> bool + Send + Sync + 'static) -> Self {
        self.after = Box::new(lingers);
        self
    }

    /// Adds ends of a connection after which its seat lingers, to the defaults or to those of
    /// [`after`](Self::after).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tower_ws_liveness::{ConfigError, Linger, Reason};
    ///
    /// # fn main() -> Result<(), ConfigError> {
    /// let linger = Linger::<String, ()>::builder(Duration::from_secs(60))
    ///     // Saved by `Linger::hand_over` after the drain, for the next process.
    ///     .also_after(|reason| reason == Reason::Drained)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn also_after(mut self, lingers: impl Fn(Reason) -> bool + Send + Sync + 'static) -> Self {
        let before = self.after;
        self.after = Box::new(move |reason| before(reason) || lingers(reason));
        self
    }

    /// What happens if the seat's connection is still open when another one registers at its key.
    /// Default: [`ReplacePolicy::newest_wins`].
    ///
    /// Where the newest connection wins, it resumes the session: the older connection is most likely
    /// that of the same client, and its end has not been detected yet. A seat that lingers is
    /// resumed under every policy.
    pub fn replace_policy(mut self, policy: ReplacePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Calls `hook` at the end of each session, once, whichever connections it had. Several hooks
    /// may be added.
    ///
    /// It is called without a lock of this crate, on the task or thread that ends the session: the
    /// driver's when the grace period is over; after the hooks of the connection when a connection
    /// ends after which the seat does not linger; that of the call for
    /// [`Linger::close`](super::Linger::close), `unregister` and a registration that takes the seat,
    /// which need not be in a runtime. The seat is out of its map by then, and a new session may have
    /// begun at the key. A hook must not block; a panic is caught and logged, as that of
    /// [`OnEvict`](crate::OnEvict).
    pub fn on_session_end(
        mut self,
        hook: impl Fn(&SessionEnd<K, V>) + Send + Sync + 'static,
    ) -> Self {
        self.hooks.push(Box::new(hook));
        self
    }

    /// Builds the [`Linger`].
    ///
    /// # Errors
    ///
    /// Returns an error for a grace period below 1 ms or above 365 days, and for a capacity of 0.
    pub fn build(self) -> Result<Linger<K, V>, ConfigError> {
        config_error::duration("Linger::builder", self.grace)?;
        config_error::at_least_one("LingerBuilder::capacity", self.capacity)?;
        let shared = Arc::new(Shared {
            capacity: self.capacity,
            after: self.after,
            policy: self.policy,
            hooks: self.hooks,
            list: Mutex::new(List {
                seats: Default::default(),
                next_place: 0,
                closed: false,
            }),
        });
        Ok(Linger {
            grace: self.grace,
            shared,
        })
    }
}

impl<K, V> fmt::Debug for LingerBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LingerBuilder")
            .field("grace", &self.grace)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// Whether a client may come back to its session after this end.
fn is_recoverable(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Kicked { .. }
            | Reason::Replaced
            | Reason::Drained
            | Reason::ServerClosed { .. }
            | Reason::ControlFlood
            | Reason::UpgradeFailed
    )
}
