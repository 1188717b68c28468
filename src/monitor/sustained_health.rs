//! Health as it is told to whoever wants to hear of its changes: what has lasted for a while, so that
//! not every ping is news.

use super::health::Health;
use super::history::Thresholds;
use super::inputs::{Ending, Monitor};
use super::moment::Moment;
use super::policy::Policy;

/// From when on each state is told, if nothing happens until then. `None`: nothing speaks for it.
#[derive(Clone, Copy, Debug)]
struct Marks {
    backlog: Option<Moment>,
    write_stall: Option<Moment>,
    silence: Option<Moment>,
    half_written: Option<Moment>,
    /// The errors of the past count *until* then.
    forgotten: Option<Moment>,
    idle: Option<Moment>,
}

impl Marks {
    fn of(monitor: &Monitor, policy: &Policy) -> Self {
        let thresholds = Thresholds::of(policy);
        let silence = match monitor.pings.missed() {
            0 => monitor
                .pings
                .waiting()
                .map(|since| since + thresholds.silence),
            _ => Some(Moment::START),
        };
        Self {
            backlog: monitor
                .backlog
                .map(|since| since + thresholds.handler_stall),
            write_stall: monitor
                .blocked
                .map(|blocked| blocked.refused + thresholds.write_stall),
            silence,
            half_written: monitor
                .half_written()
                .map(|since| since + thresholds.handler_stall),
            forgotten: monitor.history.over(&thresholds),
            idle: monitor.idle_from(policy),
        }
    }

    fn all(&self) -> [Option<Moment>; 6] {
        [
            self.backlog,
            self.write_stall,
            self.silence,
            self.half_written,
            self.forgotten,
            self.idle,
        ]
    }
}

impl Monitor {
    /// The state that has lasted until `now`: what [`health`](Self::health) shows at once is in it only
    /// after half the time that a verdict would take.
    pub(crate) fn lasting_health(&self, now: Moment, policy: &Policy) -> Health {
        let marks = Marks::of(self, policy);
        match self.ending {
            Ending::Over { .. } => Health::Ended,
            Ending::ServerClosing { .. } => Health::Closing,
            Ending::Open if reached(marks.backlog, now) => Health::HandlerStalled,
            Ending::Open if reached(marks.write_stall, now) => Health::WriteStalled,
            Ending::Open if reached(marks.silence, now) => Health::PeerSilent {
                missed: self.pings.missed(),
            },
            Ending::Open if reached(marks.half_written, now) => Health::HandlerStalled,
            Ending::Open => self.calm(now, policy),
        }
    }

    /// The first moment after `asked` at which [`lasting_health`](Self::lasting_health) may be another
    /// one, though nothing happens.
    pub(crate) fn lasting_deadline(&self, asked: Moment, policy: &Policy) -> Moment {
        if self.ending != Ending::Open {
            return Moment::NEVER;
        }
        let marks = Marks::of(self, policy).all();
        let ahead = marks.into_iter().flatten().filter(|mark| *mark > asked);
        ahead.min().unwrap_or(Moment::NEVER)
    }

    /// The state of a connection that nothing is wrong with now.
    pub(super) fn calm(&self, now: Moment, policy: &Policy) -> Health {
        let forgotten = self.history.over(&Thresholds::of(policy));
        if self.passive || forgotten.is_some_and(|over| now < over) {
            Health::Degraded
        } else if reached(self.idle_from(policy), now) {
            Health::Idle
        } else {
            Health::Live
        }
    }

    /// From when on the connection is idle, though not for long enough to be evicted.
    fn idle_from(&self, policy: &Policy) -> Option<Moment> {
        let idle = policy.idle.as_ref()?;
        Some(self.active(idle.watch) + idle.timeout / 2)
    }
}

fn reached(mark: Option<Moment>, now: Moment) -> bool {
    mark.is_some_and(|mark| now >= mark)
}
