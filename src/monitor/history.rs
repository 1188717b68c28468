//! Recent errors of a connection, and the thresholds of its health states.

use std::time::Duration;

use super::moment::Moment;
use super::policy::{HeartbeatPolicy, Policy, WRITE_TIMEOUT};

/// An error counts for this many heartbeat rounds (`interval + timeout`). A link that loses one
/// ping in ten is then degraded all the time and does not alternate between states.
const ERROR_RETENTION_ROUNDS: u32 = 10;

/// The past errors of an open connection. All of them count for the same time, so only the latest
/// is stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    latest: Option<Moment>,
}

impl History {
    /// Records an error.
    pub(super) fn error(&mut self, now: Moment) {
        self.latest = self.latest.max(Some(now));
    }

    /// When the errors stop counting.
    pub(super) fn over(&self, thresholds: &Thresholds) -> Option<Moment> {
        Some(self.latest? + thresholds.error_retention)
    }
}

/// After what time each health state applies. Derived from the heartbeat, or from the default
/// heartbeat if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// A ping is unanswered for this long, or its pong takes longer.
    pub(super) silence: Duration,
    /// The transport accepts nothing for this long.
    pub(super) write_stall: Duration,
    /// The handler leaves bytes unread or a frame unfinished for this long.
    pub(super) handler_stall: Duration,
    /// An error counts for this long.
    error_retention: Duration,
}

impl Thresholds {
    pub(super) fn of(policy: &Policy) -> Self {
        match &policy.heartbeat {
            Some(heartbeat) => Self::of_heartbeat(heartbeat),
            None => Self::of_heartbeat(&HeartbeatPolicy::default()),
        }
    }

    fn of_heartbeat(heartbeat: &HeartbeatPolicy) -> Self {
        let handler_stall = heartbeat.handler_stall_timeout.map(|timeout| timeout / 2);
        Self {
            silence: heartbeat.timeout / 2,
            write_stall: heartbeat.write_timeout.unwrap_or(WRITE_TIMEOUT) / 2,
            handler_stall: handler_stall.unwrap_or(heartbeat.interval),
            error_retention: (heartbeat.interval + heartbeat.timeout) * ERROR_RETENTION_ROUNDS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn of(heartbeat: HeartbeatPolicy) -> Thresholds {
        Thresholds::of(&Policy {
            heartbeat: Some(Arc::new(heartbeat)),
            idle: None,
        })
    }

    #[test]
    fn thresholds_follow_from_the_heartbeat() {
        let all = of(HeartbeatPolicy {
            interval: secs(10),
            timeout: secs(4),
            write_timeout: Some(secs(6)),
            handler_stall_timeout: Some(secs(14)),
            ..HeartbeatPolicy::default()
        });
        let expected = Thresholds {
            silence: secs(2),
            write_stall: secs(3),
            handler_stall: secs(7),
            error_retention: secs(140),
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn disabled_or_missing_settings_use_the_default_thresholds() {
        let expected = Thresholds {
            silence: Duration::from_millis(7_500),
            write_stall: secs(15),
            handler_stall: secs(30),
            error_retention: secs(450),
        };
        let off = HeartbeatPolicy {
            write_timeout: None,
            handler_stall_timeout: None,
            ..HeartbeatPolicy::default()
        };
        assert_eq!(of(off), expected);
        assert_eq!(Thresholds::of(&Policy::default()), expected);
    }

    #[test]
    fn the_latest_error_determines_when_errors_stop_counting() {
        let thresholds = Thresholds::of(&Policy::default());
        let mut history = History::default();
        assert_eq!(history.over(&thresholds), None);
        let at = |secs| Moment::after_start(Duration::from_secs(secs));
        for (error, over) in [(10, 460), (30, 480), (20, 480)] {
            history.error(at(error));
            assert_eq!(history.over(&thresholds), Some(at(over)));
        }
        history.error(Moment::NEVER);
        assert_eq!(history.over(&thresholds), Some(Moment::NEVER), "saturates");
    }
}
