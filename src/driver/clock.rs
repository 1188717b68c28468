//! The one place where time is read.

use tokio::time::Instant;

use crate::monitor::Moment;

/// Tokio's clock (which tests can pause), counted from the start of a driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.moment(Instant::now())
    }

    pub(crate) fn moment(&self, instant: Instant) -> Moment {
        Moment::after_start(instant.saturating_duration_since(self.epoch))
    }

    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.epoch + moment.since_start()
    }
}
