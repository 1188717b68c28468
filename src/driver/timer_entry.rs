//! A connection's entry in the driver's timer wheel.

use std::sync::Arc;

use super::wheel::Key;
use super::{Clock, Drive, Driver, tick};
use crate::monitor::Moment;

/// A connection's entry in the driver's timer wheel.
pub(crate) struct TimerEntry {
    driver: Arc<Driver>,
    key: Key,
    /// The tick at which the entry expires; `u64::MAX` from the expiry to the next `rearm`.
    expires: u64,
    /// Deadlines are rounded up to multiples of this, in ticks.
    pub(crate) granularity: u32,
}

/// Which changes of a deadline are passed on to the wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineMove {
    /// Only earlier ones. Traffic postpones the deadline all the time; the next visit finds that
    /// out.
    Earlier,
    /// All. Once per ping this saves the visit at a deadline that a pong has postponed.
    Any,
}

impl TimerEntry {
    /// Adds an entry for `connection`. `None` if the runtime is being shut down.
    pub(crate) fn insert(
        driver: Arc<Driver>,
        connection: Arc<dyn Drive>,
        deadline: Moment,
        granularity: u32,
    ) -> Option<Self> {
        let expires = tick(deadline, granularity);
        let key = driver.insert(connection, expires)?;
        Some(Self {
            driver,
            key,
            expires,
            granularity,
        })
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.driver.clock()
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock().now()
    }

    /// Whether the entry has expired at `now`. If so, the wheel has parked it or is about to, and
    /// the next [`rearm`](Self::rearm) links it again. (The wheel is never later than `now`: a
    /// deadline in between would be lost.)
    pub(crate) fn take_expired(&mut self, now: Moment) -> bool {
        let expired = now >= Moment::after_millis(self.expires);
        if expired {
            self.expires = u64::MAX;
        }
        expired
    }

    /// Moves the entry to `deadline`, if `moves` covers that.
    pub(crate) fn rearm(&mut self, deadline: Moment, moves: DeadlineMove) {
        let expires = tick(deadline, self.granularity);
        if expires < self.expires || moves == DeadlineMove::Any && expires > self.expires {
            self.expires = expires;
            self.driver.rearm(self.key, expires);
        }
    }

    /// Removes the entry from the wheel. The caller holds no lock of the connection.
    pub(crate) fn remove(self) {
        self.driver.remove(self.key);
    }
}
