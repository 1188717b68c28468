//! When health is news, and when the driver has to come by for it.

use super::link::Moves;
use super::state::{Phase, State};
use crate::health_hook::HealthChange;
use crate::monitor::Moment;

impl<T: 'static> State<T> {
    /// Notes what the health hooks have to be told, if there are any. Returns whether the caller has
    /// to tell them, when the lock was given back.
    pub(super) fn note_health(&mut self) -> bool {
        let Some(told) = &mut self.told else {
            return false;
        };
        if self.monitor.is_over() {
            self.told = None;
            return false;
        }
        if !matches!(self.phase, Phase::Open { .. }) {
            return false;
        }
        let health = self.monitor.lasting_health(told.looked, &self.policy);
        told.note(health, self.monitor.rtt(), self.monitor.stats());
        told.begin_telling()
    }

    pub(super) fn next_change(&mut self) -> Option<HealthChange> {
        self.told.as_mut()?.next()
    }

    /// When the driver has to come by at the latest: for a verdict, or for news.
    pub(super) fn deadline(&self) -> Moment {
        let verdict = self.monitor.deadline(&self.policy);
        match &self.told {
            Some(told) => verdict.min(self.monitor.lasting_deadline(told.looked, &self.policy)),
            None => verdict,
        }
    }

    /// Tells the driver when that is, if it has moved.
    pub(super) fn rearm(&mut self, moves: Moves) {
        let deadline = self.deadline();
        if let Some(link) = &mut self.link {
            link.rearm(deadline, moves);
        }
    }
}
