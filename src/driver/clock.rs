//! The clock of a driver: tokio's, relative to the driver's creation.

use tokio::time::Instant;

use crate::monitor::Moment;

/// Converts between tokio's instants, which tests can pause, and a driver's [`Moment`]s. All
/// deadlines of connections are judged by this clock.
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

    #[inline]
    pub(crate) fn now(&self) -> Moment {
        self.moment(Instant::now())
    }

    #[inline]
    pub(crate) fn moment(&self, instant: Instant) -> Moment {
        Moment::after_start(instant.saturating_duration_since(self.epoch))
    }

    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.epoch + moment.since_start()
    }
}
