//! Rule (k): a connection ends at its maximum lifetime or its expiry, and is warned of the expiry.

use tower_ws_liveness::Reason;

use super::bounds::slack;
use super::facts::{Check, Facts};
use super::log::{Entry, Event};
use super::reasons::closed_by_handler;

/// How long before the expiry the hook is called, in ms.
pub(crate) const WARNING_MS: u64 = 20;

/// The default of `max_lifetime_jitter`, for connections without an idle layer.
const DEFAULT_JITTER: f64 = 0.1;

/// The connection's times after the log entries so far, in ms.
struct LifetimeWalk {
    jitter: f64,
    lifetime: Option<u64>,
    expiry: Option<u64>,
    /// When one of the two was set last.
    set_at: u64,
    /// When the present expiry was set.
    expiry_set_at: u64,
    /// Whether the hook was called for the present expiry.
    warned: bool,
    standstill_end: u64,
}

pub(crate) fn check(facts: &Facts<'_>) -> Check {
    let idle = facts.world.plan.config.idle;
    let mut walk = LifetimeWalk {
        jitter: idle.map_or(DEFAULT_JITTER, |idle| idle.lifetime_jitter),
        lifetime: idle.and_then(|idle| idle.max_lifetime),
        expiry: None,
        set_at: 0,
        expiry_set_at: 0,
        warned: false,
        standstill_end: 0,
    };
    let slack = slack(&facts.slow);
    // In a closing handshake only `close_timeout` applies.
    let closing = closed_by_handler(facts, None).unwrap_or(u64::MAX);
    for entry in &facts.world.log {
        if entry.at <= closing {
            walk.check_missed(entry, slack)?;
        }
        match entry.event {
            Event::SetsMaxLifetime(lifetime) => {
                (walk.lifetime, walk.set_at) = (lifetime, entry.at);
            }
            Event::SetsExpiry(expiry) => {
                (walk.expiry, walk.set_at) = (expiry, entry.at);
                (walk.expiry_set_at, walk.warned) = (entry.at, false);
            }
            Event::Warned => walk.check_warning(facts, entry.at)?,
            Event::Standstill(span) => walk.standstill_end = entry.at + span,
            Event::Evicted(report) => return walk.check_reason(report.reason, entry.at),
            _ => {}
        }
    }
    Ok(())
}

impl LifetimeWalk {
    /// An end and a warning that were due must have come before `entry`.
    fn check_missed(&self, entry: &Entry, slack: u64) -> Check {
        let late = |due: u64| entry.at > due.max(self.standstill_end) + slack;
        if let Some(end) = self.lifetime.into_iter().chain(self.expiry).min() {
            let due = end.max(self.set_at);
            if late(due) {
                return Err(format!(
                    "(k) the end of the lifetime was due by {due} ms, and {entry} came first"
                ));
            }
        }
        let Some(expiry) = self.expiry.filter(|_| !self.warned) else {
            return Ok(());
        };
        let due = expiry.saturating_sub(WARNING_MS).max(self.expiry_set_at);
        // When the driver comes so late, the expiry may have come.
        if late(due) && due.max(self.standstill_end) + slack < expiry {
            return Err(format!(
                "(k) the warning was due by {due} ms, and {entry} came first"
            ));
        }
        Ok(())
    }

    fn check_warning(&mut self, facts: &Facts<'_>, at: u64) -> Check {
        let Some(expiry) = self.expiry else {
            return Err(format!("(k) a warning at {at} ms without an expiry"));
        };
        if std::mem::replace(&mut self.warned, true) {
            return Err(format!("(k) a second warning at {at} ms of {expiry} ms"));
        }
        // The driver judges as of its wake-up, and the process may have stood still since.
        let judged_at = facts.standstill_ending_at(at).unwrap_or(at);
        if at + WARNING_MS < expiry || judged_at >= expiry {
            return Err(format!(
                "(k) a warning at {at} ms, but the expiry is {expiry} ms"
            ));
        }
        Ok(())
    }

    fn check_reason(&self, reason: Reason, at: u64) -> Check {
        if reason != Reason::MaxLifetime {
            return Ok(());
        }
        let earliest = |lifetime: u64| lifetime as f64 * (1.0 - self.jitter);
        let lived = self
            .lifetime
            .is_some_and(|lifetime| at as f64 >= earliest(lifetime));
        if lived || self.expiry.is_some_and(|expiry| at >= expiry) {
            return Ok(());
        }
        let (lifetime, expiry) = (self.lifetime, self.expiry);
        Err(format!(
            "(k) {reason:?} at {at} ms, but the lifetime is {lifetime:?} and the expiry {expiry:?}"
        ))
    }
}
