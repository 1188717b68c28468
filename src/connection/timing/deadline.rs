//! When the driver must visit the connection: for a verdict, or for a change of health.

use crate::connection::metadata::QueuedChange;
use crate::connection::state::State;
use crate::driver::DeadlineMove;
use crate::monitor::Moment;

impl<T: 'static> State<T> {
    /// The latest moment for the next visit of the driver.
    pub(crate) fn deadline(&self) -> Moment {
        let verdict = self.monitor.deadline(&self.policy);
        let rare = self.rare.as_ref();
        match rare.and_then(|rare| rare.health_events.as_ref()) {
            Some(events) => {
                let change = self
                    .monitor
                    .lasting_deadline(events.read_until, &self.policy);
                verdict.min(change)
            }
            None => verdict,
        }
    }

    /// Moves the timer entry to the present deadline.
    pub(crate) fn rearm(&mut self, moves: DeadlineMove) {
        let deadline = self.deadline();
        if let Some(timer) = &mut self.timer {
            timer.rearm(deadline, moves);
        }
    }

    /// No health hook is left, or the connection has ended.
    pub(crate) fn drop_health_events(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.health_events = None;
        }
    }

    /// Queues the change of health that the last operation brought, if there are health hooks.
    /// Returns whether the caller must deliver the queue once the lock is released.
    pub(crate) fn queue_health_change(&mut self) -> bool {
        if self.monitor.has_ended() {
            self.drop_health_events();
        }
        let usable = self.monitor.lifecycle.is_usable();
        let rare = self.rare.as_mut().filter(|_| usable);
        let Some(events) = rare.and_then(|rare| rare.health_events.as_mut()) else {
            return false;
        };
        let health = self.monitor.lasting_health(events.read_until, &self.policy);
        events.queue(health, self.monitor.rtt(), self.monitor.stats());
        events.begin_delivery()
    }

    pub(crate) fn next_health_change(&mut self) -> Option<QueuedChange> {
        self.health_events()?.next()
    }
}
