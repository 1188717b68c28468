//! The machine from outside. A [`Line`] is one connection with a driver that steps from deadline to
//! deadline and does as it is told; a test says what passed when, and what must come of it.

mod ends;
mod health;
mod heartbeat;
mod policy;
mod promises;
mod random;
mod stalls;

use std::sync::Arc;
use std::time::Duration;

use super::*;

/// What the driver did, and at which millisecond.
type Log = Vec<(u64, Act)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Ping,
    Retry,
    End(Reason),
    Cut,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Moment {
    Moment::after_start(ms(millis))
}

fn just_before(moment: Moment) -> Moment {
    Moment::after_start(moment.since_start() - Duration::from_nanos(1))
}

/// A heartbeat alone: a ping after 10 s, 4 s for an answer, no jitter, nothing else.
fn heartbeat(change: impl FnOnce(&mut HeartbeatPolicy)) -> Policy {
    let mut heartbeat = HeartbeatPolicy {
        interval: ms(10_000),
        timeout: ms(4_000),
        jitter: 0.0,
        write_timeout: None,
        close_timeout: ms(1_000),
        ..HeartbeatPolicy::default()
    };
    change(&mut heartbeat);
    Policy {
        heartbeat: Some(Arc::new(heartbeat)),
        idle: None,
    }
}

/// An idle timeout alone, of 60 s.
fn idle(change: impl FnOnce(&mut IdlePolicy)) -> Policy {
    let mut idle = IdlePolicy {
        timeout: ms(60_000),
        close_timeout: ms(3_000),
        ..IdlePolicy::default()
    };
    change(&mut idle);
    Policy {
        heartbeat: None,
        idle: Some(Arc::new(idle)),
    }
}

fn both(heartbeat: Policy, idle: Policy) -> Policy {
    Policy {
        heartbeat: heartbeat.heartbeat,
        idle: idle.idle,
    }
}

/// One connection, opened at the start of time, with its driver.
struct Line {
    monitor: Monitor,
    policy: Policy,
    outlook: Outlook,
    /// Pings go out as soon as they are asked for.
    flushes: bool,
    /// The transport refuses whatever is offered to it.
    refuses: bool,
    /// Bytes were read ahead.
    waits: bool,
    now: Moment,
    log: Log,
    payloads: Vec<[u8; 8]>,
}

impl Line {
    fn new(policy: Policy) -> Self {
        Self::jittered(policy, 0.0)
    }

    fn jittered(policy: Policy, random: f32) -> Self {
        Self {
            monitor: Monitor::new(Moment::START, &policy, random, 0x5eed << 32),
            policy,
            outlook: Outlook {
                can_inject: true,
                mid_message: false,
                claimed: false,
                blind: false,
            },
            flushes: true,
            refuses: false,
            waits: false,
            now: Moment::START,
            log: Log::new(),
            payloads: Vec::new(),
        }
    }

    fn deadline(&self) -> Moment {
        self.monitor.deadline(&self.policy)
    }

    /// Lets time pass until `until`, and does what is due on the way; `until` itself is included.
    fn run(&mut self, until: u64) -> &mut Self {
        while self.deadline() <= at(until) && !matches!(self.log.last(), Some((_, Act::Cut))) {
            let deadline = self.deadline();
            if just_before(deadline) > self.now {
                let mut early = self.monitor.clone();
                let action = early.poll(just_before(deadline), &self.policy, self.outlook);
                assert_eq!(action, Action::Wait, "before the deadline");
            }
            self.now = self.now.max(deadline);
            self.act();
        }
        self.now = at(until);
        self
    }

    /// Lets time pass as a runtime does that is away until then.
    fn sleep(&mut self, until: u64) -> &mut Self {
        self.now = at(until);
        self.act();
        self
    }

    /// What the driver does when it comes by.
    fn act(&mut self) {
        let before = self.deadline();
        self.monitor.release_ping(self.now);
        let steps = self.log.len();
        for _ in 0..10 {
            let action = self.monitor.poll(self.now, &self.policy, self.outlook);
            let act = match action {
                Action::Wait => {
                    assert!(
                        before > self.now || self.deadline() > before || self.log.len() > steps,
                        "no progress at {:?}",
                        self.now
                    );
                    return;
                }
                Action::Ping(payload) => {
                    self.payloads.push(payload);
                    if self.refuses {
                        self.monitor.refused(self.now);
                    } else if self.flushes {
                        self.flush();
                    }
                    Act::Ping
                }
                Action::Retry => {
                    if self.refuses {
                        self.monitor.refused(self.now);
                    }
                    Act::Retry
                }
                Action::Evict(reason) => Act::End(reason),
                Action::Cut => Act::Cut,
            };
            self.log.push((self.millis(), act));
            if act == Act::Cut {
                return;
            }
        }
        panic!("the driver was kept busy: {:?}", self.log);
    }

    /// The transport takes the newest ping whole.
    fn flush(&mut self) {
        self.monitor.sent(10);
        self.monitor.accepted(self.now, false, &self.policy);
        self.monitor.ping_flushed(self.now);
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.now.since_start().as_millis()).unwrap()
    }

    fn health(&self) -> Health {
        self.monitor.health(self.now, &self.policy)
    }

    /// Bytes come that end at the end of a frame.
    fn hears(&mut self) -> &mut Self {
        self.monitor
            .received(self.now, Duration::ZERO, 10, false, &self.policy);
        self
    }

    fn hears_part_of_a_frame(&mut self) -> &mut Self {
        self.monitor
            .received(self.now, Duration::ZERO, 10, true, &self.policy);
        self
    }

    fn data_in(&mut self, data: Data) -> &mut Self {
        self.monitor.data_in(self.now, data, &self.policy);
        self
    }

    fn data_out(&mut self, data: Data) -> &mut Self {
        self.monitor.data_out(self.now, data, &self.policy);
        self
    }

    /// The pong for the ping with this index comes. Returns whether it was taken for ours.
    fn pongs(&mut self, index: usize) -> bool {
        let ours = self
            .monitor
            .pong(
                self.now,
                Duration::ZERO,
                Duration::ZERO,
                self.payloads[index],
                &self.policy,
            )
            .is_some();
        self.hears();
        ours
    }

    #[track_caller]
    fn did(&self, log: &[(u64, Act)]) {
        assert_eq!(self.log, log);
    }
}
