//! Where a connection stands with the driver, and what the driver is told when its deadline moves.

use std::sync::Arc;

use crate::driver::{Driver, Key, tick};
use crate::monitor::Moment;

/// A connection's place in the driver's wheel.
pub(crate) struct TimerEntry {
    pub(crate) driver: Arc<Driver>,
    pub(crate) key: Key,
    /// The tick at which the driver comes by; `u64::MAX` while it is here because of that.
    pub(crate) armed: u64,
    /// In ticks: deadlines are rounded up to multiples of it.
    pub(crate) granularity: u32,
}

/// Which moves of a deadline the driver is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineMove {
    /// Those that bring it nearer. Traffic puts it off all the time, which is found out when the driver
    /// comes by.
    Forward,
    /// All of them. A pong that the driver has read itself puts off what is otherwise a visit for
    /// nothing, once for every ping.
    BothWays,
}

impl TimerEntry {
    /// Tells the driver that the deadline is another one now, if it is to know of that.
    pub(crate) fn rearm(&mut self, deadline: Moment, moves: DeadlineMove) {
        let deadline = tick(deadline, self.granularity);
        if deadline < self.armed || moves == DeadlineMove::BothWays && deadline > self.armed {
            self.armed = deadline;
            self.driver.rearm(self.key, deadline);
        }
    }
}
