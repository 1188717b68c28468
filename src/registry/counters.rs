//! Counts open connections and calls the high-water and growth hooks.

use std::mem;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::growth::GrowthDetector;
use crate::panic_guard;

/// The number of open connections has risen above a mark: see
/// [`Registry::on_high_water`](crate::Registry::on_high_water).
///
/// ```
/// use tokio::io::duplex;
/// use tower_ws_liveness::{HeartbeatLayer, HighWater, Registry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let (tx, alarms) = std::sync::mpsc::channel();
/// layer.registry().on_high_water(1, move |_: &Registry, high_water: &HighWater| {
///     let _ = tx.send(format!("{} connections", high_water.live()));
/// });
/// let _connections = [(); 2].map(|()| layer.wrap_server(duplex(64).0));
/// assert_eq!(alarms.try_recv().unwrap(), "2 connections");
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HighWater {
    live: usize,
    mark: usize,
}

impl HighWater {
    /// The number of open connections when it rose above the mark.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// The mark that was passed to [`Registry::on_high_water`](crate::Registry::on_high_water).
    #[must_use]
    pub fn mark(&self) -> usize {
        self.mark
    }
}

/// The number of open connections has grown by more than a limit: see
/// [`Registry::on_growth`](crate::Registry::on_growth).
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::{ConfigError, Growth, Registry};
///
/// # fn main() -> Result<(), ConfigError> {
/// let registry = Registry::new();
/// registry.on_growth(1_000, Duration::from_secs(10), |_: &Registry, growth: &Growth| {
///     let per_second = growth.grown_by() as f64 / growth.within().as_secs_f64();
///     eprintln!("{} connections, {per_second:.0} more per second", growth.live());
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Growth {
    live: usize,
    grown_by: usize,
    within: Duration,
}

impl Growth {
    /// The number of open connections.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// The difference between [`live`](Self::live) and the minimum within
    /// [`within`](Self::within).
    #[must_use]
    pub fn grown_by(&self) -> usize {
        self.grown_by
    }

    /// The length of the window: the `per` that was passed to
    /// [`Registry::on_growth`](crate::Registry::on_growth).
    #[must_use]
    pub fn within(&self) -> Duration {
        self.within
    }
}

pub(super) type AlarmHook<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// The counters change only under the lock of `alarms`, so that alarms see every value, in order.
#[derive(Default)]
pub(super) struct Counters {
    live: AtomicUsize,
    high_water: AtomicUsize,
    opened_total: AtomicU64,
    alarms: Mutex<Alarms>,
}

#[derive(Default)]
struct Alarms {
    high_water: Vec<HighWaterAlarm>,
    growth: Vec<GrowthAlarm>,
    /// Hook calls that must wait until no lock is held.
    due: Vec<DueCall>,
}

struct HighWaterAlarm {
    mark: usize,
    /// The hook is not called again until the count falls to nine tenths of `mark`.
    triggered: bool,
    hook: AlarmHook<HighWater>,
}

struct GrowthAlarm {
    detector: GrowthDetector,
    /// Time zero of the detector.
    start: Instant,
    hook: AlarmHook<Growth>,
}

enum DueCall {
    HighWater(AlarmHook<HighWater>, HighWater),
    Growth(AlarmHook<Growth>, Growth),
}

impl Counters {
    pub(super) fn live(&self) -> usize {
        self.live.load(Acquire)
    }

    pub(super) fn high_water(&self) -> usize {
        self.high_water.load(Acquire)
    }

    pub(super) fn opened_total(&self) -> u64 {
        self.opened_total.load(Relaxed)
    }

    pub(super) fn on_high_water(&self, mark: usize, hook: AlarmHook<HighWater>) {
        self.alarms().high_water.push(HighWaterAlarm {
            mark,
            triggered: false,
            hook,
        });
    }

    pub(super) fn on_growth(&self, limit: usize, per: Duration, hook: AlarmHook<Growth>) {
        let mut alarms = self.alarms();
        let detector = GrowthDetector::new(limit, per, self.live());
        alarms.growth.push(GrowthAlarm {
            detector,
            start: Instant::now(),
            hook,
        });
    }

    pub(super) fn increment(&self) {
        let mut alarms = self.alarms();
        self.opened_total.fetch_add(1, Relaxed);
        let live = self.live.fetch_add(1, Release) + 1;
        self.high_water.fetch_max(live, Release);
        alarms.on_increment(live);
    }

    pub(super) fn decrement(&self) {
        let mut alarms = self.alarms();
        let live = self.live.fetch_sub(1, Release) - 1;
        alarms.on_decrement(live);
    }

    /// Calls the hooks that are due. The caller must hold no lock.
    pub(super) fn call_alarms(&self) {
        let due = mem::take(&mut self.alarms().due);
        for call in due {
            let (alarm, live) = match &call {
                DueCall::HighWater(_, high_water) => ("high water", high_water.live),
                DueCall::Growth(_, growth) => ("growth", growth.live),
            };
            let call_hook = || match call {
                DueCall::HighWater(hook, high_water) => hook(&high_water),
                DueCall::Growth(hook, growth) => hook(&growth),
            };
            let slow =
                |took_ms| tracing::warn!(alarm, live, took_ms, "a hook of a registry was slow");
            panic_guard::call_timed(call_hook, slow, |panic| {
                tracing::warn!(alarm, live, panic, "a hook of a registry panicked");
            });
        }
    }

    fn alarms(&self) -> MutexGuard<'_, Alarms> {
        // No application code runs under this lock, so a poisoned one still holds consistent data.
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alarms {
    fn on_increment(&mut self, live: usize) {
        for alarm in &mut self.high_water {
            if live > alarm.mark && !alarm.triggered {
                alarm.triggered = true;
                let high_water = HighWater {
                    live,
                    mark: alarm.mark,
                };
                let hook = Arc::clone(&alarm.hook);
                self.due.push(DueCall::HighWater(hook, high_water));
            }
        }
        if self.growth.is_empty() {
            return;
        }
        let now = Instant::now();
        for alarm in &mut self.growth {
            let elapsed = now.saturating_duration_since(alarm.start);
            if let Some(grown_by) = alarm.detector.on_increment(elapsed, live) {
                let growth = Growth {
                    live,
                    grown_by,
                    within: alarm.detector.per(),
                };
                let hook = Arc::clone(&alarm.hook);
                self.due.push(DueCall::Growth(hook, growth));
            }
        }
    }

    fn on_decrement(&mut self, live: usize) {
        for alarm in &mut self.high_water {
            // Nine tenths of the mark, rounded down.
            let rearm_at = alarm.mark - alarm.mark.div_ceil(10);
            alarm.triggered &= live > rearm_at;
        }
        if self.growth.is_empty() {
            return;
        }
        let now = Instant::now();
        for alarm in &mut self.growth {
            let elapsed = now.saturating_duration_since(alarm.start);
            alarm.detector.on_decrement(elapsed, live);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Logs;

    #[test]
    fn slow_hooks_are_logged_with_their_duration() {
        let logs = Logs::keep();
        let counters = Counters::default();
        let duration = Duration::from_millis(150);
        let slow_high_water = move |_: &HighWater| std::thread::sleep(duration);
        counters.on_high_water(0, Arc::new(slow_high_water));
        let slow_growth = move |_: &Growth| std::thread::sleep(duration);
        counters.on_growth(1, Duration::from_secs(1), Arc::new(slow_growth));
        for _ in 0..2 {
            counters.increment();
            counters.call_alarms();
        }
        let lines = logs.lines();
        let expected = [("high water", "live=1"), ("growth", "live=2")];
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for (line, (alarm, live)) in lines.iter().zip(expected) {
            for wanted in ["WARN", "a hook of a registry was slow", alarm, live] {
                assert!(line.contains(wanted), "{wanted:?} is not in {line}");
            }
            let (_, took) = line.split_once("took_ms=").unwrap();
            let took = took.split(' ').next().unwrap();
            assert!(took.parse::<u64>().unwrap() >= 150, "{line}");
        }
    }

    #[test]
    fn a_hook_that_panics_is_logged_and_the_others_are_called() {
        let logs = Logs::keep();
        let counters = Counters::default();
        let (sender, calls) = std::sync::mpsc::channel();
        counters.on_high_water(0, Arc::new(|_: &HighWater| panic!("a literal")));
        let panics = |growth: &Growth| panic!("grown by {}", growth.grown_by());
        counters.on_growth(1, Duration::from_secs(1), Arc::new(panics));
        let records = move |growth: &Growth| sender.send(growth.grown_by()).unwrap();
        counters.on_growth(1, Duration::from_secs(1), Arc::new(records));
        for _ in 0..2 {
            counters.increment();
            counters.call_alarms();
        }
        assert_eq!(calls.try_iter().collect::<Vec<_>>(), [2]);
        let lines = logs.lines();
        let expected = [("high water", "a literal"), ("growth", "grown by 2")];
        // A panic that prints its backtrace on a busy machine may be slow as well.
        let lines: Vec<_> = lines
            .iter()
            .filter(|line| !line.contains("was slow"))
            .collect();
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for (line, (alarm, panic)) in lines.iter().zip(expected) {
            for wanted in ["WARN", "a hook of a registry panicked", alarm, panic] {
                assert!(line.contains(wanted), "{wanted:?} is not in {line}");
            }
        }
    }
}
