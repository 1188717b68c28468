//! Who is let in, and when everybody has gone.

use std::fmt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::sync::Notify;

use crate::connection::Refused;
use crate::panic_guard;

/// Stands for no limit. No machine has so many sockets.
const UNLIMITED: usize = usize::MAX;

pub(super) struct Gate {
    limit: AtomicUsize,
    /// In seconds.
    retry_after: AtomicU64,
    /// Handshakes under way and live connections: what the limit counts.
    admitted: AtomicUsize,
    /// These, and what has ended but is not wholly over.
    present: AtomicUsize,
    /// `present` came down to zero.
    idle: Notify,
    draining: AtomicBool,
    /// What those are told who open when a drain has begun.
    farewell: AtomicU16,
    /// `draining` was set.
    begun: Notify,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(UNLIMITED),
            retry_after: AtomicU64::new(10),
            admitted: AtomicUsize::new(0),
            present: AtomicUsize::new(0),
            idle: Notify::new(),
            draining: AtomicBool::new(false),
            // Going away (RFC 6455 section 7.4.1).
            farewell: AtomicU16::new(1001),
            begun: Notify::new(),
        }
    }
}

impl Gate {
    pub(super) fn limit(&self, max: Option<usize>) {
        self.limit.store(max.unwrap_or(UNLIMITED), SeqCst);
    }

    pub(super) fn retry_after(&self, delay: Duration) {
        let part = u64::from(delay.subsec_nanos() > 0);
        let seconds = delay.as_secs().saturating_add(part);
        self.retry_after.store(seconds, Relaxed);
    }

    /// Lets one more in, or nobody. Each success is followed by one [`vacated`](Self::vacated) and
    /// one [`left`](Self::left).
    pub(super) fn admit(&self) -> Result<(), Refused> {
        if self.is_draining() {
            return Err(self.refused("draining"));
        }
        let limit = self.limit.load(SeqCst);
        let one_more = |admitted| (admitted < limit).then_some(admitted + 1);
        if self
            .admitted
            .fetch_update(SeqCst, SeqCst, one_more)
            .is_err()
        {
            return Err(self.refused("limit"));
        }
        self.present.fetch_add(1, SeqCst);
        // Looked at again once this one can be seen: whoever began the drain since may have found
        // nobody, and gone.
        if self.is_draining() {
            self.vacated();
            self.left();
            return Err(self.refused("draining"));
        }
        Ok(())
    }

    /// Counts one that cannot be refused.
    pub(super) fn take_in(&self) {
        self.admitted.fetch_add(1, SeqCst);
        self.present.fetch_add(1, SeqCst);
    }

    pub(super) fn vacated(&self) {
        self.admitted.fetch_sub(1, SeqCst);
    }

    pub(super) fn left(&self) {
        if self.present.fetch_sub(1, SeqCst) == 1 {
            wake_all(&self.idle);
        }
    }

    /// The Close code for those who come too late.
    pub(super) fn say(&self, code: u16) {
        self.farewell.store(code, Relaxed);
    }

    /// What whoever opens now is to be told, if it comes too late.
    pub(super) fn farewell(&self) -> Option<u16> {
        self.is_draining().then(|| self.farewell.load(Relaxed))
    }

    pub(super) fn begin_drain(&self) {
        if !self.draining.swap(true, SeqCst) {
            wake_all(&self.begun);
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    pub(super) async fn draining(&self) {
        // Asked for before the look, it tells of everything after.
        let begun = self.begun.notified();
        if !self.is_draining() {
            begun.await;
        }
    }

    pub(super) async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.present.load(SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(super) fn describe(&self, debug: &mut fmt::DebugStruct<'_, '_>) {
        let limit = self.limit.load(SeqCst);
        debug
            .field("limit", &(limit != UNLIMITED).then_some(limit))
            .field("admitted", &self.admitted.load(SeqCst))
            .field("present", &self.present.load(SeqCst))
            .field("draining", &self.is_draining());
    }

    fn refused(&self, cause: &'static str) -> Refused {
        Refused {
            cause,
            retry_after: self.retry_after.load(Relaxed),
        }
    }
}

/// A waker that panics must not stop a connection's end, or a drain.
fn wake_all(waiting: &Notify) {
    if panic_guard::catch(|| waiting.notify_waiters()).is_none() {
        panic_guard::log(|| tracing::warn!("a waker panicked"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Meets another thread at `step`, on the spot: what is looked for takes nanoseconds.
    fn meet(steps: &[AtomicUsize; 2], me: usize, step: usize) {
        steps[me].store(step, SeqCst);
        while steps[1 - me].load(SeqCst) < step {
            // Of two threads on one core, the other one has to run.
            if fastrand::u8(..) == 0 {
                thread::yield_now();
            }
        }
    }

    /// Whoever closes the door and finds nobody inside may go home.
    #[test]
    fn nobody_comes_in_behind_a_drain() {
        const ROUNDS: usize = 50_000;
        let gates: Vec<_> = (0..ROUNDS).map(|_| Gate::default()).collect();
        let steps = [AtomicUsize::new(0), AtomicUsize::new(0)];
        thread::scope(|scope| {
            let newcomers = scope.spawn(|| {
                let admitted = gates.iter().enumerate().map(|(round, gate)| {
                    meet(&steps, 0, round + 1);
                    gate.admit().is_ok()
                });
                admitted.collect::<Vec<_>>()
            });
            let closed = gates.iter().enumerate().map(|(round, gate)| {
                meet(&steps, 1, round + 1);
                gate.begin_drain();
                gate.present.load(SeqCst) == 0
            });
            let closed: Vec<_> = closed.collect();
            let admitted = newcomers.join().unwrap();
            for ((gate, empty), admitted) in gates.iter().zip(closed).zip(admitted) {
                assert!(!(empty && admitted));
                assert_eq!(gate.present.load(SeqCst), usize::from(admitted));
                assert_eq!(gate.admitted.load(SeqCst), usize::from(admitted));
            }
        });
    }

    #[test]
    fn the_limit_is_exact() {
        let gate = Gate::default();
        gate.limit(Some(2));
        assert!(gate.admit().is_ok() && gate.admit().is_ok());
        assert_eq!(gate.admit().unwrap_err().cause, "limit");
        gate.take_in();
        gate.vacated();
        assert!(gate.admit().is_err(), "two are inside");
        gate.vacated();
        assert!(gate.admit().is_ok());
        gate.begin_drain();
        gate.limit(None);
        assert_eq!(gate.admit().unwrap_err().cause, "draining");
    }

    #[test]
    fn seconds_are_rounded_up() {
        let gate = Gate::default();
        gate.limit(Some(0));
        assert_eq!(gate.admit().unwrap_err().retry_after, 10);
        let table = [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_secs(60), 60),
            (Duration::from_millis(60_001), 61),
            (Duration::MAX, u64::MAX),
        ];
        for (delay, seconds) in table {
            gate.retry_after(delay);
            assert_eq!(gate.admit().unwrap_err().retry_after, seconds);
        }
    }
}
