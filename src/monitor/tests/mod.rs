//! Tests of the [`Monitor`] through its interface, with a simulated driver and transport.
//!
//! A [`Simulation`] is one connection whose driver advances from deadline to deadline and performs
//! the actions that the monitor returns. A test injects events and asserts the log of actions.

mod ends;
mod health;
mod heartbeat;
mod kernel_view;
mod policy;
mod promises;
mod random;
mod stalls;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::*;

/// The actions of the driver, each with its time in milliseconds.
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

fn nanosecond_before(moment: Moment) -> Moment {
    Moment::after_start(moment.since_start() - Duration::from_nanos(1))
}

/// Only a heartbeat: a ping after 10 s, 4 s for an answer, no jitter, no other timeouts.
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

/// Only an idle timeout, of 60 s.
fn idle(change: impl FnOnce(&mut IdlePolicy)) -> Policy {
    let mut idle = IdlePolicy {
        timeout: Some(ms(60_000)),
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

/// A kernel to which all is acknowledged, and which has received nothing.
fn idle_kernel() -> KernelView {
    KernelView {
        unacknowledged: 0,
        awaits_ack: false,
        retransmitting: false,
        last_ack: Moment::START,
        last_data: Moment::START,
        received_behind_gap: 0,
        data_segments: 0,
        rtt_micros: Some(1_000),
        peer_may_send: true,
    }
}

/// One connection, opened at [`Moment::START`], with its driver.
struct Simulation {
    monitor: Monitor,
    policy: Policy,
    io_state: IoState,
    /// The transport flushes each ping at once.
    auto_flush: bool,
    /// The transport refuses all writes.
    refuse_writes: bool,
    /// Bytes were read ahead and wait for the handler.
    bytes_unread: bool,
    /// What the kernel shows when it is asked.
    kernel: Option<KernelView>,
    /// The view for the last verdict.
    judged: Option<JudgedView>,
    /// How many times the receive window was widened.
    widened: Cell<u32>,
    now: Moment,
    log: Log,
    payloads: Vec<[u8; 8]>,
}

impl Simulation {
    fn new(policy: Policy) -> Self {
        Self::jittered(policy, 0.0)
    }

    fn jittered(policy: Policy, random: f32) -> Self {
        Self {
            monitor: Monitor::new(Moment::START, random, 0x5eed),
            policy,
            io_state: IoState {
                can_inject: true,
                mid_message: false,
                claimed: false,
                read_ahead_full: false,
            },
            auto_flush: true,
            refuse_writes: false,
            bytes_unread: false,
            kernel: None,
            judged: None,
            widened: Cell::new(0),
            now: Moment::START,
            log: Log::new(),
            payloads: Vec::new(),
        }
    }

    fn deadline(&self) -> Moment {
        self.monitor.deadline(&self.policy)
    }

    /// Advances time to millisecond `until` (included), and polls at each deadline on the way.
    fn run_until(&mut self, until: u64) -> &mut Self {
        while self.deadline() <= at(until) && !matches!(self.log.last(), Some((_, Act::Cut))) {
            let deadline = self.deadline();
            if nanosecond_before(deadline) > self.now {
                let mut early = self.monitor.clone();
                let before = nanosecond_before(deadline);
                let never = || panic!("the kernel is asked before the deadline");
                let kernel = &mut Kernel::new(&never, &|| ());
                let action = early.poll(before, &self.policy, self.io_state, kernel);
                assert_eq!(action, Action::Wait, "before the deadline");
            }
            self.now = self.now.max(deadline);
            self.poll();
        }
        self.now = at(until);
        self
    }

    /// Advances time to millisecond `until` and polls once, like a runtime that was paused.
    fn pause_until(&mut self, until: u64) -> &mut Self {
        self.now = at(until);
        self.poll();
        self
    }

    /// Polls as the driver does when it drives the connection.
    fn poll(&mut self) {
        let before = self.deadline();
        self.monitor.release_ping(self.now, &self.policy);
        let steps = self.log.len();
        for _ in 0..10 {
            let action = self.poll_once();
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
                    if self.refuse_writes {
                        self.monitor.refused(self.now);
                    } else if self.auto_flush {
                        self.flush_ping();
                    }
                    Act::Ping
                }
                Action::Retry => {
                    if self.refuse_writes {
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
        panic!("the monitor never waits: {:?}", self.log);
    }

    fn poll_once(&mut self) -> Action {
        let (view, asked) = (self.kernel, Cell::new(0));
        let ask = || {
            asked.set(asked.get() + 1);
            view
        };
        let widen = || self.widened.set(self.widened.get() + 1);
        let mut kernel = Kernel::new(&ask, &widen);
        let action = self
            .monitor
            .poll(self.now, &self.policy, self.io_state, &mut kernel);
        assert!(asked.get() <= 1, "asked once");
        self.judged = kernel.judged().or(self.judged);
        action
    }

    /// The transport accepts and flushes the newest ping.
    fn flush_ping(&mut self) {
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

    /// Receives bytes that end at the end of a frame.
    fn receive_frame(&mut self) -> &mut Self {
        self.monitor
            .received(self.now, Duration::ZERO, 10, false, &self.policy);
        self
    }

    fn receive_partial_frame(&mut self) -> &mut Self {
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

    /// Receives the pong to the ping with this index. Returns whether it was recognised as ours.
    fn receive_pong(&mut self, index: usize) -> bool {
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
        self.receive_frame();
        ours
    }

    #[track_caller]
    fn assert_log(&self, log: &[(u64, Act)]) {
        assert_eq!(self.log, log);
    }
}
