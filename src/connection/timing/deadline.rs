//! When the driver must visit the connection: for a verdict, or for a change of health.

use crate::connection::state::State;
use crate::driver::DeadlineMove;
use crate::hooks::HealthChange;
use crate::monitor::Moment;

impl<T: 'static> State<T> {
    /// The latest moment for the next visit of the driver.
    pub(crate) fn deadline(&self) -> Moment {
        let verdict = self.monitor.deadline(&self.policy);
        match &self.health_events {
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

    /// Queues the change of health that the last operation brought, if there are health hooks.
    /// Returns whether the caller must deliver the queue once the lock is released.
    pub(crate) fn queue_health_change(&mut self) -> bool {
        if self.monitor.has_ended() {
            self.health_events = None;
        }
        let usable = self.monitor.lifecycle.is_usable();
        let Some(events) = self.health_events.as_mut().filter(|_| usable) else {
            return false;
        };
        let health = self.monitor.lasting_health(events.read_until, &self.policy);
        events.queue(health, self.monitor.rtt(), self.monitor.stats());
        events.begin_delivery()
    }

    pub(crate) fn next_health_change(&mut self) -> Option<HealthChange> {
        self.health_events.as_mut()?.next()
    }
}
