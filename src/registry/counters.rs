//! How many are live, and who wants to hear of too many.

use std::mem;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::growth::Pile;
use crate::panic_guard;

/// More connections are live than the mark: see
/// [`Registry::on_high_water`](crate::Registry::on_high_water).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HighWater {
    live: usize,
    mark: usize,
}

impl HighWater {
    /// How many connections were live when the mark was passed.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// The mark.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.mark
    }
}

/// Sessions are piling up: see [`Registry::on_growth`](crate::Registry::on_growth).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Growth {
    live: usize,
    grown_by: usize,
    within: Duration,
}

impl Growth {
    /// How many connections were live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// How many that were more than the fewest lately.
    #[must_use]
    pub fn grown_by(&self) -> usize {
        self.grown_by
    }

    /// What "lately" is: the `per` of the hook.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.within
    }
}

pub(super) type Hook<T> = Arc<dyn Fn(&T) + Send + Sync>;

/// The numbers are changed under the lock, so that alarms see each of them, in order.
#[derive(Default)]
pub(super) struct Tally {
    live: AtomicUsize,
    high_water: AtomicUsize,
    alarms: Mutex<Alarms>,
}

#[derive(Default)]
struct Alarms {
    marks: Vec<Mark>,
    piles: Vec<(Pile, Instant, Hook<Growth>)>,
    /// To be told as soon as no lock is held.
    due: Vec<Due>,
}

struct Mark {
    mark: usize,
    passed: bool,
    hook: Hook<HighWater>,
}

enum Due {
    HighWater(Hook<HighWater>, HighWater),
    Growth(Hook<Growth>, Growth),
}

impl Tally {
    pub(super) fn live(&self) -> usize {
        self.live.load(Acquire)
    }

    pub(super) fn high_water(&self) -> usize {
        self.high_water.load(Acquire)
    }

    pub(super) fn on_high_water(&self, mark: usize, hook: Hook<HighWater>) {
        let passed = false;
        self.alarms().marks.push(Mark { mark, passed, hook });
    }

    pub(super) fn on_growth(&self, limit: usize, per: Duration, hook: Hook<Growth>) {
        let mut alarms = self.alarms();
        let pile = Pile::new(limit, per, self.live());
        alarms.piles.push((pile, Instant::now(), hook));
    }

    pub(super) fn came(&self) {
        let mut alarms = self.alarms();
        let live = self.live.fetch_add(1, Release) + 1;
        self.high_water.fetch_max(live, Release);
        alarms.came(live);
    }

    pub(super) fn went(&self) {
        let mut alarms = self.alarms();
        let live = self.live.fetch_sub(1, Release) - 1;
        alarms.went(live);
    }

    /// Tells what is due. No lock may be held.
    pub(super) fn announce(&self) {
        let due = mem::take(&mut self.alarms().due);
        for due in due {
            let (alarm, live) = match &due {
                Due::HighWater(_, high) => ("high water", high.live),
                Due::Growth(_, growth) => ("growth", growth.live),
            };
            let tell = || match due {
                Due::HighWater(hook, high) => hook(&high),
                Due::Growth(hook, growth) => hook(&growth),
            };
            let slow =
                |took_ms| tracing::warn!(alarm, live, took_ms, "a hook of a registry was slow");
            panic_guard::call_timed(tell, slow, |panic| {
                tracing::warn!(alarm, live, panic, "a hook of a registry panicked");
            });
        }
    }

    fn alarms(&self) -> MutexGuard<'_, Alarms> {
        // Nothing foreign runs under this lock.
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alarms {
    fn came(&mut self, live: usize) {
        for Mark { mark, passed, hook } in &mut self.marks {
            let mark = *mark;
            if live > mark && !*passed {
                *passed = true;
                let high = HighWater { live, mark };
                self.due.push(Due::HighWater(Arc::clone(hook), high));
            }
        }
        if self.piles.is_empty() {
            return;
        }
        let now = Instant::now();
        for (pile, since, hook) in &mut self.piles {
            if let Some(grown_by) = pile.came(now.saturating_duration_since(*since), live) {
                let growth = Growth {
                    live,
                    grown_by,
                    within: pile.per(),
                };
                self.due.push(Due::Growth(Arc::clone(hook), growth));
            }
        }
    }

    fn went(&mut self, live: usize) {
        for Mark { mark, passed, .. } in &mut self.marks {
            // Nine tenths, rounded down.
            *passed &= live > *mark - mark.div_ceil(10);
        }
        if self.piles.is_empty() {
            return;
        }
        let now = Instant::now();
        for (pile, since, _) in &mut self.piles {
            pile.went(now.saturating_duration_since(*since), live);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_test::traced_test;

    #[traced_test]
    #[test]
    fn slow_hooks_are_logged_with_their_duration() {
        let tally = Tally::default();
        let nap = Duration::from_millis(150);
        tally.on_high_water(0, Arc::new(move |_: &HighWater| std::thread::sleep(nap)));
        let slow = move |_: &Growth| std::thread::sleep(nap);
        tally.on_growth(1, Duration::from_secs(1), Arc::new(slow));
        for _ in 0..2 {
            tally.came();
            tally.announce();
        }
        logs_assert(|lines| {
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
            Ok(())
        });
    }

    #[traced_test]
    #[test]
    fn a_hook_that_panics_is_logged_and_the_others_are_told() {
        let tally = Tally::default();
        let (tell, told) = std::sync::mpsc::channel();
        tally.on_high_water(0, Arc::new(|_: &HighWater| panic!("a literal")));
        let panics = |growth: &Growth| panic!("grown by {}", growth.grown_by());
        tally.on_growth(1, Duration::from_secs(1), Arc::new(panics));
        let hook = move |growth: &Growth| tell.send(growth.grown_by()).unwrap();
        tally.on_growth(1, Duration::from_secs(1), Arc::new(hook));
        for _ in 0..2 {
            tally.came();
            tally.announce();
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [2]);
        logs_assert(|lines| {
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
            Ok(())
        });
    }
}
