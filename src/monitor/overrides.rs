//! Settings of one connection that differ from those of its layers.

use std::sync::Arc;
use std::time::Duration;

use super::policy::Policy;

/// Values that replace those of the layers. A value for a missing layer has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) interval: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) missed_pings: Option<u32>,
    pub(crate) idle_timeout: Option<Duration>,
    /// The inner option is the value: `Some(None)` turns the bound off for this connection.
    pub(crate) first_message: Option<Option<Duration>>,
    pub(crate) message_timeout: Option<Option<Duration>>,
    pub(crate) max_lifetime: Option<Option<Duration>>,
}

impl Overrides {
    /// Replaces values in `policy`. Other connections that share its layers' policies are
    /// unaffected.
    pub(crate) fn apply(&self, policy: &mut Policy) {
        if let Some(heartbeat) = policy.heartbeat.as_mut().filter(|_| self.has_heartbeat()) {
            let heartbeat = Arc::make_mut(heartbeat);
            replace(&mut heartbeat.interval, self.interval);
            replace(&mut heartbeat.timeout, self.timeout);
            replace(&mut heartbeat.missed_pings, self.missed_pings);
        }
        if let Some(idle) = policy.idle.as_mut().filter(|_| self.has_idle()) {
            let idle = Arc::make_mut(idle);
            replace(&mut idle.timeout, self.idle_timeout.map(Some));
            replace(&mut idle.first_message, self.first_message);
            replace(&mut idle.message_timeout, self.message_timeout);
            replace(&mut idle.max_lifetime, self.max_lifetime);
        }
    }

    /// Whether `policy` has a layer for every value that is set.
    pub(crate) fn fits(&self, policy: &Policy) -> bool {
        (policy.heartbeat.is_some() || !self.has_heartbeat())
            && (policy.idle.is_some() || !self.has_idle())
    }

    /// Replaces values with those that are set in `later`.
    pub(crate) fn merge(&mut self, later: &Self) {
        let Self {
            interval,
            timeout,
            missed_pings,
            idle_timeout,
            first_message,
            message_timeout,
            max_lifetime,
        } = later;
        self.interval = interval.or(self.interval);
        self.timeout = timeout.or(self.timeout);
        self.missed_pings = missed_pings.or(self.missed_pings);
        self.idle_timeout = idle_timeout.or(self.idle_timeout);
        self.first_message = first_message.or(self.first_message);
        self.message_timeout = message_timeout.or(self.message_timeout);
        self.max_lifetime = max_lifetime.or(self.max_lifetime);
    }

    fn has_heartbeat(&self) -> bool {
        self.interval.is_some() || self.timeout.is_some() || self.missed_pings.is_some()
    }

    fn has_idle(&self) -> bool {
        let Self {
            idle_timeout,
            first_message,
            message_timeout,
            max_lifetime,
            ..
        } = self;
        let bounds = [first_message, message_timeout, max_lifetime];
        idle_timeout.is_some() || bounds.iter().any(|bound| bound.is_some())
    }
}

fn replace<V>(value: &mut V, by: Option<V>) {
    if let Some(by) = by {
        *value = by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{HeartbeatPolicy, IdlePolicy};

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy {
            heartbeat: Some(Arc::default()),
            idle: Some(Arc::default()),
        }
    }

    #[test]
    fn only_values_that_are_set_are_replaced() {
        let mut changed = policy();
        let overrides = Overrides {
            timeout: Some(SECOND),
            first_message: Some(Some(SECOND)),
            ..Overrides::default()
        };
        overrides.apply(&mut changed);
        let heartbeat = HeartbeatPolicy {
            timeout: SECOND,
            ..HeartbeatPolicy::default()
        };
        let idle = IdlePolicy {
            first_message: Some(SECOND),
            ..IdlePolicy::default()
        };
        assert_eq!(changed.heartbeat.as_deref(), Some(&heartbeat));
        assert_eq!(changed.idle.as_deref(), Some(&idle));

        let off = Overrides {
            first_message: Some(None),
            ..Overrides::default()
        };
        off.apply(&mut changed);
        assert_eq!(changed.idle.unwrap().first_message, None);
    }

    #[test]
    fn other_connections_keep_their_values() {
        let shared = policy();
        let mut own = shared.clone();
        let overrides = Overrides {
            interval: Some(SECOND),
            ..Overrides::default()
        };
        overrides.apply(&mut own);
        assert_eq!(
            shared.heartbeat.as_deref(),
            Some(&HeartbeatPolicy::default())
        );
        let untouched = (&own.idle, &shared.idle);
        assert!(
            matches!(untouched, (Some(own), Some(shared)) if Arc::ptr_eq(own, shared)),
            "an unchanged layer policy is not copied"
        );
    }

    #[test]
    fn a_missing_layer_stays_missing() {
        let mut none = Policy::default();
        let all = Overrides {
            interval: Some(SECOND),
            timeout: Some(SECOND),
            missed_pings: Some(2),
            idle_timeout: Some(SECOND),
            first_message: Some(None),
            message_timeout: Some(None),
            max_lifetime: Some(None),
        };
        all.apply(&mut none);
        assert!(none.heartbeat.is_none() && none.idle.is_none());
        assert!(all.fits(&policy()) && !all.fits(&none));
        let [mut one, mut other] = [policy(), policy()];
        (one.heartbeat, other.idle) = (None, None);
        assert!(!all.fits(&one) && !all.fits(&other));
        assert!(Overrides::default().fits(&none));
    }

    #[test]
    fn the_later_of_two_overrides_takes_precedence() {
        let mut first = Overrides {
            interval: Some(SECOND),
            timeout: Some(SECOND),
            max_lifetime: Some(Some(SECOND)),
            ..Overrides::default()
        };
        first.merge(&Overrides {
            timeout: Some(2 * SECOND),
            missed_pings: Some(3),
            idle_timeout: Some(SECOND),
            first_message: Some(None),
            message_timeout: Some(None),
            max_lifetime: Some(None),
            ..Overrides::default()
        });
        let expected = Overrides {
            interval: Some(SECOND),
            timeout: Some(2 * SECOND),
            missed_pings: Some(3),
            idle_timeout: Some(SECOND),
            first_message: Some(None),
            message_timeout: Some(None),
            max_lifetime: Some(None),
        };
        assert_eq!(first, expected);
    }
}
