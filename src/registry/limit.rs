//! Admission of handshakes: connection limit, readiness, drain flag, and waiting for idle.

use std::fmt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::drain::GOING_AWAY;
use crate::connection::Refused;
use crate::monitor::CloseFrame;
use crate::panic_guard;

/// Stands for no limit. No machine has this many sockets.
const UNLIMITED: usize = usize::MAX;

pub(super) struct AdmissionControl {
    limit: AtomicUsize,
    retry_after_seconds: AtomicU64,
    /// The most seconds that a random delay adds to `retry_after_seconds`.
    retry_after_jitter_seconds: AtomicU64,
    refused_total: AtomicU64,
    /// Handshakes in progress and open connections: what the limit counts.
    admitted: AtomicUsize,
    /// As `admitted`, plus ended connections whose transport is open or whose hooks still run.
    present: AtomicUsize,
    /// Notified when `present` falls to zero.
    idle: Notify,
    draining: AtomicBool,
    /// Whether the readiness has been withdrawn; also without `draining`, before a drain.
    unready: AtomicBool,
    /// The Close frame for connections that open after the drain has begun.
    close_frame: Mutex<CloseFrame>,
    /// Notified when `draining` is set.
    drain_begun: Notify,
}

impl Default for AdmissionControl {
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(UNLIMITED),
            retry_after_seconds: AtomicU64::new(10),
            retry_after_jitter_seconds: AtomicU64::new(0),
            refused_total: AtomicU64::new(0),
            admitted: AtomicUsize::new(0),
            present: AtomicUsize::new(0),
            idle: Notify::new(),
            draining: AtomicBool::new(false),
            unready: AtomicBool::new(false),
            close_frame: Mutex::new(GOING_AWAY),
            drain_begun: Notify::new(),
        }
    }
}

impl AdmissionControl {
    pub(super) fn set_limit(&self, max: Option<usize>) {
        self.limit.store(max.unwrap_or(UNLIMITED), SeqCst);
    }

    pub(super) fn set_retry_after(&self, delay: Duration) {
        self.retry_after_seconds
            .store(whole_seconds(delay), Relaxed);
    }

    pub(super) fn set_retry_after_jitter(&self, spread: Duration) {
        let seconds = whole_seconds(spread);
        self.retry_after_jitter_seconds.store(seconds, Relaxed);
    }

    pub(super) fn refused_total(&self) -> u64 {
        self.refused_total.load(Relaxed)
    }

    /// Admits one more handshake, or refuses it. The caller must follow each success with one
    /// [`release_permit`](Self::release_permit) and one
    /// [`release_presence`](Self::release_presence).
    pub(super) fn admit(&self) -> Result<(), Refused> {
        if self.is_draining() {
            return Err(self.refused("draining"));
        }
        let limit = self.limit.load(SeqCst);
        let add_one = |admitted| (admitted < limit).then_some(admitted + 1);
        if self.admitted.fetch_update(SeqCst, SeqCst, add_one).is_err() {
            return Err(self.refused("limit"));
        }
        self.present.fetch_add(1, SeqCst);
        // Checked again now that `present` counts this handshake: a drain that began since the
        // first check may have read zero, and its `wait_idle` may have returned.
        if self.is_draining() {
            self.release_permit();
            self.release_presence();
            return Err(self.refused("draining"));
        }
        Ok(())
    }

    /// Counts a connection that cannot be refused.
    pub(super) fn admit_always(&self) {
        self.admitted.fetch_add(1, SeqCst);
        self.present.fetch_add(1, SeqCst);
    }

    pub(super) fn release_permit(&self) {
        self.admitted.fetch_sub(1, SeqCst);
    }

    pub(super) fn release_presence(&self) {
        if self.present.fetch_sub(1, SeqCst) == 1 {
            panic_guard::wake_waiting(|| self.idle.notify_waiters());
        }
    }

    /// Sets the Close frame for connections that open after the drain has begun.
    pub(super) fn set_close_frame(&self, frame: CloseFrame) {
        *self.close_frame() = frame;
    }

    /// The Close frame for a connection that opens now; `None` if no drain has begun.
    pub(super) fn close_frame_if_draining(&self) -> Option<CloseFrame> {
        self.is_draining().then(|| self.close_frame().clone())
    }

    pub(super) fn begin_drain(&self) {
        if !self.draining.swap(true, SeqCst) {
            panic_guard::wake_waiting(|| self.drain_begun.notify_waiters());
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Withdraws the readiness, before a drain begins.
    pub(super) fn set_unready(&self) {
        self.unready.store(true, SeqCst);
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.unready.load(SeqCst) && !self.is_draining()
    }

    pub(super) async fn draining(&self) {
        // `notified` receives every `notify_waiters` after its creation, so it must exist before
        // the flag is read.
        let begun = self.drain_begun.notified();
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

    pub(super) fn debug_fields(&self, debug: &mut fmt::DebugStruct<'_, '_>) {
        let limit = self.limit.load(SeqCst);
        debug
            .field("limit", &(limit != UNLIMITED).then_some(limit))
            .field("admitted", &self.admitted.load(SeqCst))
            .field("present", &self.present.load(SeqCst))
            .field("ready", &self.is_ready())
            .field("draining", &self.is_draining());
    }

    fn close_frame(&self) -> MutexGuard<'_, CloseFrame> {
        // A frame is replaced as a whole, so a poisoned lock still holds a complete one.
        self.close_frame
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, cause: &'static str) -> Refused {
        self.refused_total.fetch_add(1, Relaxed);
        let jitter = fastrand::u64(..=self.retry_after_jitter_seconds.load(Relaxed));
        let retry_after = self.retry_after_seconds.load(Relaxed);
        Refused {
            cause,
            retry_after: retry_after.saturating_add(jitter),
        }
    }
}

/// The duration in seconds, rounded up.
fn whole_seconds(duration: Duration) -> u64 {
    let rounded_up = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(rounded_up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Spins until the other thread has reached `step` too: the race lasts nanoseconds, and a
    /// blocking barrier would miss it.
    fn rendezvous(steps: &[AtomicUsize; 2], thread: usize, step: usize) {
        steps[thread].store(step, SeqCst);
        while steps[1 - thread].load(SeqCst) < step {
            // On a single core the other thread must get to run.
            if fastrand::u8(..) == 0 {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn no_handshake_is_admitted_after_a_drain_found_none_present() {
        const ROUNDS: usize = 50_000;
        let controls: Vec<_> = (0..ROUNDS).map(|_| AdmissionControl::default()).collect();
        let steps = [AtomicUsize::new(0), AtomicUsize::new(0)];
        thread::scope(|scope| {
            let admitting = scope.spawn(|| {
                let admitted = controls.iter().enumerate().map(|(round, control)| {
                    rendezvous(&steps, 0, round + 1);
                    control.admit().is_ok()
                });
                admitted.collect::<Vec<_>>()
            });
            let idle = controls.iter().enumerate().map(|(round, control)| {
                rendezvous(&steps, 1, round + 1);
                control.begin_drain();
                control.present.load(SeqCst) == 0
            });
            let idle: Vec<_> = idle.collect();
            let admitted = admitting.join().unwrap();
            for ((control, idle), admitted) in controls.iter().zip(idle).zip(admitted) {
                assert!(!(idle && admitted));
                assert_eq!(control.present.load(SeqCst), usize::from(admitted));
                assert_eq!(control.admitted.load(SeqCst), usize::from(admitted));
            }
        });
    }

    #[test]
    fn the_limit_is_exact() {
        let control = AdmissionControl::default();
        control.set_limit(Some(2));
        assert!(control.admit().is_ok() && control.admit().is_ok());
        assert_eq!(control.admit().unwrap_err().cause, "limit");
        control.admit_always();
        control.release_permit();
        assert!(control.admit().is_err(), "two permits are taken");
        control.release_permit();
        assert!(control.admit().is_ok());
        control.begin_drain();
        control.set_limit(None);
        assert_eq!(control.admit().unwrap_err().cause, "draining");
    }

    #[test]
    fn retry_after_is_rounded_up_to_seconds() {
        let control = AdmissionControl::default();
        control.set_limit(Some(0));
        assert_eq!(control.admit().unwrap_err().retry_after, 10);
        let table = [
            (Duration::ZERO, 0),
            (Duration::from_nanos(1), 1),
            (Duration::from_secs(60), 60),
            (Duration::from_millis(60_001), 61),
            (Duration::MAX, u64::MAX),
        ];
        for (delay, seconds) in table {
            control.set_retry_after(delay);
            assert_eq!(control.admit().unwrap_err().retry_after, seconds);
        }
        assert_eq!(control.refused_total(), 6);
    }

    #[test]
    fn jitter_spreads_retry_after_over_whole_seconds() {
        let control = AdmissionControl::default();
        control.set_limit(Some(0));
        control.set_retry_after(Duration::from_secs(10));
        control.set_retry_after_jitter(Duration::from_millis(1_001));
        let mut drawn = [0; 3];
        for _ in 0..1_000 {
            let refused = control.admit().unwrap_err();
            drawn[usize::try_from(refused.retry_after - 10).unwrap()] += 1;
        }
        assert!(drawn.iter().all(|&count| count > 200), "{drawn:?}");
        control.set_retry_after_jitter(Duration::MAX);
        control.set_retry_after(Duration::MAX);
        assert_eq!(control.admit().unwrap_err().retry_after, u64::MAX);
    }
}
