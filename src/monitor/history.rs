//! What went wrong with a connection lately, and for how long that counts.

use std::time::Duration;

use super::moment::Moment;
use super::policy::{HeartbeatPolicy, Policy, WRITE_TIMEOUT};

/// An error counts for so many rounds of a silent connection's heartbeat. A link that loses one ping
/// in ten is then degraded all the time, rather than by turns.
const ROUNDS: u32 = 10;

/// The errors of a connection that goes on. All of them count for the same time, so the latest says
/// how long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    latest: Option<Moment>,
}

impl History {
    pub(super) fn error(&mut self, now: Moment) {
        self.latest = self.latest.max(Some(now));
    }

    /// When nothing of it will count any more.
    pub(super) fn over(&self, thresholds: &Thresholds) -> Option<Moment> {
        Some(self.latest? + thresholds.memory)
    }
}

/// Where health draws its lines. Where there is no heartbeat they are those of one with the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// A ping is unanswered for so long, or its pong takes longer.
    pub(super) silence: Duration,
    /// The transport accepts nothing for so long.
    pub(super) write_stall: Duration,
    /// The handler leaves bytes or a frame for so long.
    pub(super) handler_stall: Duration,
    /// An error counts for so long.
    pub(super) memory: Duration,
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
            memory: (heartbeat.interval + heartbeat.timeout) * ROUNDS,
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
            memory: secs(140),
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn what_is_off_or_missing_is_judged_by_the_defaults() {
        let expected = Thresholds {
            silence: Duration::from_millis(7_500),
            write_stall: secs(15),
            handler_stall: secs(30),
            memory: secs(450),
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
    fn the_latest_error_decides() {
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
