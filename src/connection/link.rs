//! Where a connection stands with the driver, and what the driver is told when its deadline moves.

use std::sync::Arc;

use crate::driver::{Driver, Key, tick};
use crate::monitor::Moment;

/// A connection's place in the driver's wheel.
pub(super) struct Link {
    pub(super) driver: Arc<Driver>,
    pub(super) key: Key,
    /// The tick at which the driver comes by; `u64::MAX` while it is here because of that.
    pub(super) armed: u64,
    /// In ticks: deadlines are rounded up to multiples of it.
    pub(super) granularity: u32,
}

/// Which moves of a deadline the driver is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moves {
    /// Those that bring it nearer. Traffic puts it off all the time, which is found out when the driver
    /// comes by.
    Forward,
    /// All of them. A pong that the driver has read itself puts off what is otherwise a visit for
    /// nothing, once for every ping.
    BothWays,
}

impl Link {
    /// Tells the driver that the deadline is another one now, if it is to know of that.
    pub(super) fn rearm(&mut self, deadline: Moment, moves: Moves) {
        let deadline = tick(deadline, self.granularity);
        if deadline < self.armed || moves == Moves::BothWays && deadline > self.armed {
            self.armed = deadline;
            self.driver.rearm(self.key, deadline);
        }
    }
}
