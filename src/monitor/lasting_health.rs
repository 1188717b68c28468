//! Health that has lasted: health hooks are called for it and not for every ping.

use super::Monitor;
use super::health::Health;
use super::history::Thresholds;
use super::lifecycle::Lifecycle;
use super::moment::Moment;
use super::policy::Policy;

/// The moment from which each state counts as lasting if nothing changes until then; `None` if the
/// state does not apply.
#[derive(Clone, Copy, Debug)]
struct LastingFrom {
    backlog: Option<Moment>,
    write_stall: Option<Moment>,
    silence: Option<Moment>,
    unfinished_frame_since: Option<Moment>,
    /// Past errors count *until* then.
    errors_expire: Option<Moment>,
    idle: Option<Moment>,
}

impl LastingFrom {
    fn of(monitor: &Monitor, policy: &Policy) -> Self {
        let thresholds = Thresholds::of(policy);
        let silence = match monitor.pings.missed() {
            0 => monitor
                .pings
                .timeout_since()
                .map(|since| since + thresholds.silence),
            _ => Some(Moment::START),
        };
        Self {
            backlog: monitor
                .backlog
                .map(|since| since + thresholds.handler_stall),
            write_stall: monitor
                .blocked()
                .map(|blocked| blocked.refused + thresholds.write_stall),
            silence,
            unfinished_frame_since: monitor
                .unfinished_frame_since()
                .map(|since| since + thresholds.handler_stall),
            errors_expire: monitor.errors_expire(&thresholds),
            idle: monitor.idle_from(policy),
        }
    }

    fn all(&self) -> [Option<Moment>; 6] {
        [
            self.backlog,
            self.write_stall,
            self.silence,
            self.unfinished_frame_since,
            self.errors_expire,
            self.idle,
        ]
    }
}

impl Monitor {
    /// The state that has lasted until `now`. A state that [`health`](Self::health) shows
    /// immediately appears here after half the time that a verdict would take.
    pub(crate) fn lasting_health(&self, now: Moment, policy: &Policy) -> Health {
        let marks = LastingFrom::of(self, policy);
        match self.lifecycle {
            Lifecycle::Opening => Health::Opening,
            Lifecycle::Ended { .. } => Health::Ended,
            Lifecycle::Closing { .. } => Health::Closing,
            Lifecycle::Open if reached(marks.backlog, now) => Health::HandlerStalled,
            Lifecycle::Open if reached(marks.write_stall, now) => Health::WriteStalled,
            Lifecycle::Open if reached(marks.silence, now) => Health::PeerSilent {
                missed: self.pings.missed(),
            },
            Lifecycle::Open if reached(marks.unfinished_frame_since, now) => Health::HandlerStalled,
            Lifecycle::Open => self.faultless_health(now, policy),
        }
    }

    /// The first moment after `observed` at which [`lasting_health`](Self::lasting_health) may
    /// change without an event.
    pub(crate) fn lasting_deadline(&self, observed: Moment, policy: &Policy) -> Moment {
        if self.lifecycle != Lifecycle::Open {
            return Moment::NEVER;
        }
        let marks = LastingFrom::of(self, policy).all();
        let ahead = marks.into_iter().flatten().filter(|mark| *mark > observed);
        ahead.min().unwrap_or(Moment::NEVER)
    }

    /// The state of a connection without a present fault.
    pub(super) fn faultless_health(&self, now: Moment, policy: &Policy) -> Health {
        let errors_expire = self.errors_expire(&Thresholds::of(policy));
        if self.passive || errors_expire.is_some_and(|expire| now < expire) {
            Health::Degraded
        } else if reached(self.idle_from(policy), now) {
            Health::Idle
        } else {
            Health::Live
        }
    }

    /// Until when past errors count.
    fn errors_expire(&self, thresholds: &Thresholds) -> Option<Moment> {
        self.faults.as_ref()?.history.over(thresholds)
    }

    /// From when on the connection counts as idle: half of the idle timeout.
    fn idle_from(&self, policy: &Policy) -> Option<Moment> {
        let idle = policy.idle.as_ref()?;
        Some(self.last_data(idle.watch) + idle.timeout? / 2)
    }
}

fn reached(mark: Option<Moment>, now: Moment) -> bool {
    mark.is_some_and(|mark| now >= mark)
}
