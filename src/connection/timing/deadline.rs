//! When the driver must visit the connection: for a verdict, a change of health, or a warning.

use std::time::Duration;

use crate::connection::expiry::ExpiryWarning;
use crate::connection::layers::ExpiryHook;
use crate::connection::metadata::QueuedChange;
use crate::connection::state::State;
use crate::driver::DeadlineMove;
use crate::monitor::{Lifecycle, Moment};

impl<T: 'static> State<T> {
    /// The latest moment for the next visit of the driver.
    pub(crate) fn deadline(&self) -> Moment {
        let mut deadline = self.monitor.deadline(&self.policy);
        let Some(rare) = &self.rare else {
            return deadline;
        };
        if let Some(events) = &rare.health_events {
            let change = self
                .monitor
                .lasting_deadline(events.read_until, &self.policy);
            deadline = deadline.min(change);
        }
        match self.expiry_warning_deadline() {
            Some((warning, _)) => deadline.min(warning),
            None => deadline,
        }
    }

    /// When the hook that warns before the expiry must be called, and the expiry.
    fn expiry_warning_deadline(&self) -> Option<(Moment, Moment)> {
        if self.monitor.lifecycle != Lifecycle::Open {
            return None;
        }
        let warning = self.rare.as_ref()?.expiry_warning.as_ref()?;
        let expires_at = self.policy.idle.as_ref()?.expires_at?;
        Some((warning.deadline(expires_at)?, expires_at))
    }

    /// Marks the warning before the expiry, if it is due at `now`. At the expiry itself it is too
    /// late for a warning.
    pub(crate) fn check_expiry_warning(&mut self, now: Moment) {
        let deadline = self.expiry_warning_deadline();
        if deadline.is_none_or(|(warning, expiry)| now < warning || now >= expiry) {
            return;
        }
        if let Some(warning) = self.expiry_warning() {
            warning.mark_due();
        }
    }

    /// Sets the hook that warns before the expiry. Returns the hook that is not used any more: drop
    /// it without the lock.
    pub(crate) fn warn_before_expiry(
        &mut self,
        before: Duration,
        hook: ExpiryHook,
    ) -> Option<ExpiryHook> {
        if self.monitor.has_ended() {
            return Some(hook);
        }
        let replaced = match self.expiry_warning() {
            Some(warning) => Some(warning.replace(before, hook)),
            None => {
                let warning = Box::new(ExpiryWarning::new(before, hook));
                self.rare().expiry_warning = Some(warning);
                None
            }
        };
        self.rearm(DeadlineMove::Earlier);
        replaced
    }

    /// `None` without a hook that warns before the expiry.
    pub(crate) fn expiry_warning(&mut self) -> Option<&mut ExpiryWarning> {
        self.rare.as_mut()?.expiry_warning.as_deref_mut()
    }

    /// The hook that must be called now. The end of the connection takes it out: it will not be
    /// called again.
    pub(crate) fn take_expiry_warning(
        &mut self,
    ) -> (Option<ExpiryHook>, Option<Box<ExpiryWarning>>) {
        if self.monitor.has_ended() {
            let rare = self.rare.as_mut();
            return (None, rare.and_then(|rare| rare.expiry_warning.take()));
        }
        let due = self.expiry_warning().and_then(ExpiryWarning::take_due);
        (due, None)
    }

    /// The hook that warns before the expiry has returned.
    pub(crate) fn expiry_hook_returned(&mut self, now: Moment) {
        let expires_at = self.policy.idle.as_ref().and_then(|idle| idle.expires_at);
        if let Some(warning) = self.expiry_warning() {
            warning.returned(now, expires_at);
        }
        self.rearm(DeadlineMove::Earlier);
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
