//! When health is news, and when the driver has to come by for it.

use crate::connection::state::{Phase, State};
use crate::connection::timing::DeadlineMove;
use crate::hooks::HealthChange;
use crate::monitor::Moment;

impl<T: 'static> State<T> {
    /// Report what the health hooks have to be health_events, if there are any. Returns whether the caller has
    /// to tell them, when the lock was given back.
    pub(crate) fn note_health(&mut self) -> bool {
        let Some(health_events) = &mut self.health_events else {
            return false;
        };
        if self.monitor.is_over() {
            self.health_events = None;
            return false;
        }
        if !matches!(self.phase, Phase::Open { .. }) {
            return false;
        }
        let health = self
            .monitor
            .lasting_health(health_events.looked, &self.policy);
        health_events.note(health, self.monitor.rtt(), self.monitor.stats());
        health_events.begin_telling()
    }

    pub(crate) fn next_change(&mut self) -> Option<HealthChange> {
        self.health_events.as_mut()?.next()
    }

    /// When the driver has to come by at the latest: for a verdict, or for news.
    pub(crate) fn deadline(&self) -> Moment {
        let verdict = self.monitor.deadline(&self.policy);
        match &self.health_events {
            Some(health_events) => verdict.min(
                self.monitor
                    .lasting_deadline(health_events.looked, &self.policy),
            ),
            None => verdict,
        }
    }

    /// Tells the driver when that is, if it has moved.
    pub(crate) fn rearm(&mut self, moves: DeadlineMove) {
        let deadline = self.deadline();
        if let Some(timer) = &mut self.timer {
            timer.rearm(deadline, moves);
        }
    }
}
