//! Settings of one connection that differ from those of its layers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::policy::{CloseFrame, IdlePolicy, Policy, ProofOfLife, Traffic};

/// Values that replace those of the layers. A value for a missing layer has no effect.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    pub(crate) heartbeat: HeartbeatOverrides,
    pub(crate) idle: IdleOverrides,
    /// Replaces the value of both layers.
    pub(crate) close_timeout: Option<Duration>,
    /// Replaces the frame of both layers.
    pub(crate) close_frame: Option<CloseFrame>,
    /// When the credentials of the connection expire. Only carried here: the caller has the clock
    /// that turns it into the [`Moment`](super::Moment) of the policy.
    pub(crate) expires_at: Option<Option<Instant>>,
}

/// Values that replace those of the heartbeat layer. Where the value itself is an option, the inner
/// option is the value: `Some(None)` turns the check off for this connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HeartbeatOverrides {
    pub(crate) interval: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) missed_pings: Option<u32>,
    pub(crate) proof_of_life: Option<ProofOfLife>,
    pub(crate) jitter: Option<f64>,
    pub(crate) write_timeout: Option<Option<Duration>>,
    pub(crate) handler_stall_timeout: Option<Option<Duration>>,
    pub(crate) control_frame_limit: Option<Option<u32>>,
    pub(crate) takes_any_bytes: Option<bool>,
    #[cfg(feature = "tcp")]
    pub(crate) tune_tcp: Option<bool>,
}

/// Values that replace those of the idle layer. For inner options see [`HeartbeatOverrides`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct IdleOverrides {
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) watch: Option<Traffic>,
    pub(crate) first_message: Option<Option<Duration>>,
    pub(crate) message_timeout: Option<Option<Duration>>,
    pub(crate) max_lifetime: Option<Option<Duration>>,
    pub(crate) max_lifetime_jitter: Option<f64>,
}

impl Overrides {
    /// Replaces values in `policy`. Other connections that share its layers' policies are
    /// unaffected.
    pub(crate) fn apply(&self, policy: &mut Policy) {
        let closes = self.close_timeout.is_some() || self.close_frame.is_some();
        let changes = closes || self.has_heartbeat();
        if let Some(heartbeat) = policy.heartbeat.as_mut().filter(|_| changes) {
            let heartbeat = Arc::make_mut(heartbeat);
            let by = &self.heartbeat;
            replace(&mut heartbeat.interval, by.interval);
            replace(&mut heartbeat.timeout, by.timeout);
            replace(&mut heartbeat.missed_pings, by.missed_pings);
            replace(&mut heartbeat.proof_of_life, by.proof_of_life);
            replace(&mut heartbeat.jitter, by.jitter);
            replace(&mut heartbeat.write_timeout, by.write_timeout);
            replace(
                &mut heartbeat.handler_stall_timeout,
                by.handler_stall_timeout,
            );
            replace(&mut heartbeat.control_frame_limit, by.control_frame_limit);
            replace(&mut heartbeat.takes_any_bytes, by.takes_any_bytes);
            #[cfg(feature = "tcp")]
            replace(&mut heartbeat.tune_tcp, by.tune_tcp);
            replace(&mut heartbeat.close_timeout, self.close_timeout);
            prefer(&mut heartbeat.close_frame, &self.close_frame);
        }
        if policy.idle.is_none() && self.limits_lifetime() {
            policy.idle = Some(Arc::new(IdlePolicy::without_layer()));
        }
        let changes = closes || self.idle != IdleOverrides::default();
        if let Some(idle) = policy.idle.as_mut().filter(|_| changes) {
            let idle = Arc::make_mut(idle);
            let by = &self.idle;
            if idle.has_layer {
                replace(&mut idle.timeout, by.timeout);
                replace(&mut idle.watch, by.watch);
                replace(&mut idle.first_message, by.first_message);
                replace(&mut idle.message_timeout, by.message_timeout);
                replace(&mut idle.close_timeout, self.close_timeout);
            }
            replace(&mut idle.max_lifetime, by.max_lifetime);
            replace(&mut idle.max_lifetime_jitter, by.max_lifetime_jitter);
            prefer(&mut idle.close_frame, &self.close_frame);
        }
    }

    /// The layer that `policy` does not have although a value is for it, if there is one.
    pub(crate) fn missing_layer(&self, policy: &Policy) -> Option<&'static str> {
        if policy.heartbeat.is_none() && self.has_heartbeat() {
            Some("HeartbeatLayer")
        } else if !policy.has_idle_layer() && self.idle.need_layer() {
            Some("IdleTimeoutLayer")
        } else {
            None
        }
    }

    /// Whether the connection ends by a time that is its own.
    fn limits_lifetime(&self) -> bool {
        self.idle.max_lifetime.flatten().is_some() || self.expires_at.flatten().is_some()
    }

    /// Replaces values with those that are set in `later`.
    pub(crate) fn merge(&mut self, later: &Self) {
        let Self {
            heartbeat,
            idle,
            close_timeout,
            close_frame,
            expires_at,
        } = later;
        self.heartbeat.merge(heartbeat);
        self.idle.merge(idle);
        prefer(&mut self.close_timeout, close_timeout);
        prefer(&mut self.close_frame, close_frame);
        prefer(&mut self.expires_at, expires_at);
    }

    /// Whether there is a value for the heartbeat alone.
    pub(crate) fn has_heartbeat(&self) -> bool {
        self.heartbeat != HeartbeatOverrides::default()
    }
}

impl HeartbeatOverrides {
    fn merge(&mut self, later: &Self) {
        let Self {
            interval,
            timeout,
            missed_pings,
            proof_of_life,
            jitter,
            write_timeout,
            handler_stall_timeout,
            control_frame_limit,
            takes_any_bytes,
            #[cfg(feature = "tcp")]
            tune_tcp,
        } = later;
        prefer(&mut self.interval, interval);
        prefer(&mut self.timeout, timeout);
        prefer(&mut self.missed_pings, missed_pings);
        prefer(&mut self.proof_of_life, proof_of_life);
        prefer(&mut self.jitter, jitter);
        prefer(&mut self.write_timeout, write_timeout);
        prefer(&mut self.handler_stall_timeout, handler_stall_timeout);
        prefer(&mut self.control_frame_limit, control_frame_limit);
        prefer(&mut self.takes_any_bytes, takes_any_bytes);
        #[cfg(feature = "tcp")]
        prefer(&mut self.tune_tcp, tune_tcp);
    }
}

impl IdleOverrides {
    /// Whether a value has no effect without an idle layer. The lifetime needs none.
    fn need_layer(&self) -> bool {
        let Self {
            timeout,
            watch,
            first_message,
            message_timeout,
            max_lifetime: _,
            max_lifetime_jitter: _,
        } = self;
        let bounds = [timeout, first_message, message_timeout];
        watch.is_some() || bounds.iter().any(|bound| bound.is_some())
    }

    fn merge(&mut self, later: &Self) {
        let Self {
            timeout,
            watch,
            first_message,
            message_timeout,
            max_lifetime,
            max_lifetime_jitter,
        } = later;
        prefer(&mut self.timeout, timeout);
        prefer(&mut self.watch, watch);
        prefer(&mut self.first_message, first_message);
        prefer(&mut self.message_timeout, message_timeout);
        prefer(&mut self.max_lifetime, max_lifetime);
        prefer(&mut self.max_lifetime_jitter, max_lifetime_jitter);
    }
}

fn replace<V>(value: &mut V, by: Option<V>) {
    if let Some(by) = by {
        *value = by;
    }
}

/// Replaces `value` with `later`, if that is set.
fn prefer<V: Clone>(value: &mut Option<V>, later: &Option<V>) {
    if later.is_some() {
        value.clone_from(later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{HeartbeatPolicy, IdlePolicy};

    const SECOND: Duration = Duration::from_secs(1);

    fn both_layers() -> Policy {
        Policy {
            heartbeat: Some(Arc::default()),
            idle: Some(Arc::default()),
        }
    }

    fn frame() -> CloseFrame {
        CloseFrame {
            code: 4000,
            reason: "own".into(),
        }
    }

    /// An override of every value, none of which is the default.
    fn all() -> Overrides {
        Overrides {
            heartbeat: HeartbeatOverrides {
                interval: Some(SECOND),
                timeout: Some(2 * SECOND),
                missed_pings: Some(3),
                proof_of_life: Some(ProofOfLife::MatchingPong),
                jitter: Some(0.25),
                write_timeout: Some(None),
                handler_stall_timeout: Some(Some(4 * SECOND)),
                control_frame_limit: Some(Some(5)),
                takes_any_bytes: Some(true),
                #[cfg(feature = "tcp")]
                tune_tcp: Some(false),
            },
            idle: IdleOverrides {
                timeout: Some(None),
                watch: Some(Traffic::Inbound),
                first_message: Some(Some(6 * SECOND)),
                message_timeout: Some(Some(7 * SECOND)),
                max_lifetime: Some(Some(8 * SECOND)),
                max_lifetime_jitter: Some(0.75),
            },
            close_timeout: Some(9 * SECOND),
            close_frame: Some(frame()),
            expires_at: Some(None),
        }
    }

    #[test]
    fn every_value_is_replaced() {
        let mut changed = both_layers();
        all().apply(&mut changed);
        let heartbeat = HeartbeatPolicy {
            interval: SECOND,
            timeout: 2 * SECOND,
            missed_pings: 3,
            proof_of_life: ProofOfLife::MatchingPong,
            jitter: 0.25,
            write_timeout: None,
            handler_stall_timeout: Some(4 * SECOND),
            control_frame_limit: Some(5),
            takes_any_bytes: true,
            close_timeout: 9 * SECOND,
            close_frame: Some(frame()),
            #[cfg(feature = "tcp")]
            tune_tcp: false,
        };
        let idle = IdlePolicy {
            timeout: None,
            watch: Traffic::Inbound,
            first_message: Some(6 * SECOND),
            message_timeout: Some(7 * SECOND),
            max_lifetime: Some(8 * SECOND),
            max_lifetime_jitter: 0.75,
            expires_at: None,
            close_timeout: 9 * SECOND,
            close_frame: Some(frame()),
            has_layer: true,
        };
        assert_eq!(changed.heartbeat.as_deref(), Some(&heartbeat));
        assert_eq!(changed.idle.as_deref(), Some(&idle));
    }

    #[test]
    fn only_values_that_are_set_are_replaced() {
        let mut changed = both_layers();
        let overrides = Overrides {
            heartbeat: HeartbeatOverrides {
                timeout: Some(SECOND),
                ..HeartbeatOverrides::default()
            },
            idle: IdleOverrides {
                first_message: Some(Some(SECOND)),
                ..IdleOverrides::default()
            },
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
            idle: IdleOverrides {
                first_message: Some(None),
                ..IdleOverrides::default()
            },
            ..Overrides::default()
        };
        off.apply(&mut changed);
        assert_eq!(changed.idle.unwrap().first_message, None);
    }

    #[test]
    fn other_connections_keep_their_values() {
        let shared = both_layers();
        let mut own = shared.clone();
        let overrides = Overrides {
            heartbeat: HeartbeatOverrides {
                interval: Some(SECOND),
                ..HeartbeatOverrides::default()
            },
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
    fn without_an_idle_layer_only_the_lifetime_is_limited() {
        let mut policy = Policy::default();
        all().apply(&mut policy);
        assert!(policy.heartbeat.is_none() && !policy.has_idle_layer());
        let lifetime_alone = IdlePolicy {
            timeout: None,
            max_lifetime: Some(8 * SECOND),
            max_lifetime_jitter: 0.75,
            close_frame: Some(frame()),
            has_layer: false,
            ..IdlePolicy::default()
        };
        assert_eq!(policy.idle.as_deref(), Some(&lifetime_alone));
        // An idle layer that joins later gets all.
        policy.add(&both_layers());
        all().apply(&mut policy);
        assert!(policy.has_idle_layer());
        assert_eq!(policy.idle.unwrap().watch, Traffic::Inbound);
        assert_eq!(
            all().missing_layer(&Policy::default()),
            Some("HeartbeatLayer")
        );
        let lifetime = Overrides {
            idle: IdleOverrides {
                max_lifetime: Some(Some(SECOND)),
                max_lifetime_jitter: Some(0.0),
                ..IdleOverrides::default()
            },
            expires_at: Some(Some(Instant::now())),
            ..Overrides::default()
        };
        assert_eq!(lifetime.missing_layer(&Policy::default()), None);
        let off = Overrides {
            idle: IdleOverrides {
                max_lifetime: Some(None),
                ..IdleOverrides::default()
            },
            ..Overrides::default()
        };
        let mut none = Policy::default();
        off.apply(&mut none);
        assert!(none.idle.is_none(), "there is nothing to turn off");
    }

    #[test]
    fn a_missing_layer_is_named() {
        let all = all();
        let [mut no_heartbeat, mut no_idle] = [both_layers(), both_layers()];
        (no_heartbeat.heartbeat, no_idle.idle) = (None, None);
        assert_eq!(all.missing_layer(&both_layers()), None);
        assert_eq!(all.missing_layer(&no_heartbeat), Some("HeartbeatLayer"));
        assert_eq!(all.missing_layer(&no_idle), Some("IdleTimeoutLayer"));
        let of_both = Overrides {
            close_timeout: Some(SECOND),
            close_frame: Some(frame()),
            ..Overrides::default()
        };
        for one in [no_heartbeat, no_idle] {
            assert_eq!(of_both.missing_layer(&one), None);
        }
    }

    #[test]
    fn the_later_of_two_overrides_takes_precedence() {
        let mut first = Overrides::default();
        first.merge(&all());
        assert_eq!(first, all());
        first.merge(&Overrides::default());
        assert_eq!(first, all());
        first.merge(&Overrides {
            heartbeat: HeartbeatOverrides {
                timeout: Some(SECOND),
                ..HeartbeatOverrides::default()
            },
            idle: IdleOverrides {
                max_lifetime: Some(None),
                ..IdleOverrides::default()
            },
            ..Overrides::default()
        });
        let mut expected = all();
        expected.heartbeat.timeout = Some(SECOND);
        expected.idle.max_lifetime = Some(None);
        assert_eq!(first, expected);
    }
}
