//! The driver's timer wheel with one deadline for each of 1 k, 100 k and 1 M connections.
//!
//! There are two baselines: the `DelayQueue` of tokio-util, and one tokio `Sleep` per connection.
//!
//! | | one iteration |
//! |---|---|
//! | `insert`, `re-arm`, `cancel` | one entry, at a random place |
//! | `idle tick` | time advances by a millisecond in which no entry is due |
//! | `busy tick` | time advances by a millisecond in which 1 % of the entries expire |
//!
//! Deadlines are one to two minutes ahead, except for those of a busy tick. A new entry reuses the
//! slot of a removed one, as a new connection does. The baselines need a runtime for the time, and
//! get one with a paused clock that the bench advances. `wheel/clock` measures this without any
//! entries: subtract it from their ticks.
//!
//! The wake of a task for each expired `Sleep` is not counted. A `Sleep` whose deadline is
//! postponed keeps its slot in tokio's wheel until the old deadline: what `re-arm` saves, the ticks
//! pay, idle ones too.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, Criterion};
use tokio::runtime::{Builder, Runtime};
use tokio::time::advance;

use self::timers::{DelayQueueTimers, SleepTimers, TICK, Timers, WheelTimers};

mod timers;

const SIZES: [(&str, usize); 3] = [("1 k", 1_000), ("100 k", 100_000), ("1 M", 1_000_000)];

/// Operations per reading of the clock, so that its cost is negligible.
const OPERATIONS_PER_SAMPLE: usize = 100;

/// Milliseconds until a deadline.
const DEADLINE_MS: std::ops::Range<u32> = 60_000..120_000;

/// Milliseconds after all entries are re-armed in which no entry is due or cascades.
const QUIET_MS: usize = 50_000;

pub(crate) fn run(criterion: &mut Criterion) {
    criterion.bench_function("wheel/clock", |bencher| {
        let runtime = paused_runtime();
        bencher.iter(|| runtime.block_on(advance(TICK)));
    });
    for (size, count) in SIZES {
        let mut group = criterion.benchmark_group(format!("wheel/{size}"));
        group.sample_size(10);
        measure(&mut group, "wheel", count, WheelTimers::new);
        let runtime = paused_runtime();
        let entered = runtime.enter();
        measure(&mut group, "DelayQueue", count, || {
            DelayQueueTimers::new(&runtime)
        });
        drop(entered);
        let runtime = paused_runtime();
        let entered = runtime.enter();
        measure(&mut group, "Sleep each", count, || {
            SleepTimers::new(&runtime)
        });
        drop(entered);
        group.finish();
    }
}

/// A runtime with a paused clock.
fn paused_runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

fn measure<T: Timers>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    count: usize,
    timers: impl Fn() -> T,
) {
    // Created by the first bench that runs, since creation is slow.
    let mut entries = None;
    let mut bench = |what: &str, run: fn(&mut TimerSet<T>, usize) -> Duration| {
        group.bench_function(format!("{what}, {name}"), |bencher: &mut Bencher<'_>| {
            let entries = entries.get_or_insert_with(|| TimerSet::new(timers(), count));
            bencher.iter_custom(|iters| {
                let mut left = iters as usize;
                let mut took = Duration::ZERO;
                while left > 0 {
                    let batch = left.min(OPERATIONS_PER_SAMPLE);
                    took += run(entries, batch);
                    left -= batch;
                }
                took
            });
        });
    };
    bench("insert", TimerSet::insert);
    bench("re-arm", TimerSet::rearm);
    bench("cancel", TimerSet::cancel);
    bench("idle tick", TimerSet::idle_ticks);
    bench("busy tick", TimerSet::busy_ticks);
}

/// Timers whose number of entries is the same before and after each bench.
struct TimerSet<T> {
    timers: T,
    /// All entries in random order.
    shuffled: Vec<u32>,
    next: usize,
    rng: fastrand::Rng,
    /// Milliseconds for which no entry is due.
    quiet_ms: usize,
}

impl<T: Timers> TimerSet<T> {
    fn new(timers: T, count: usize) -> Self {
        let mut entries = Self {
            timers,
            shuffled: (0..count as u32).collect(),
            next: 0,
            rng: fastrand::Rng::with_seed(7),
            quiet_ms: QUIET_MS,
        };
        for &entry in &entries.shuffled {
            entries.timers.insert(entry, entries.rng.u32(DEADLINE_MS));
        }
        entries.rng.shuffle(&mut entries.shuffled);
        entries
    }

    /// Returns `count` entries, different ones on each call, with a new deadline for each.
    fn next_entries(&mut self, count: usize) -> Vec<(u32, u32)> {
        if self.next + count > self.shuffled.len() {
            self.next = 0;
        }
        let entries = &self.shuffled[self.next..][..count];
        self.next += count;
        let rng = &mut self.rng;
        entries
            .iter()
            .map(|&entry| (entry, rng.u32(DEADLINE_MS)))
            .collect()
    }

    fn insert(&mut self, count: usize) -> Duration {
        let batch = self.next_entries(count);
        for &(entry, _) in &batch {
            self.timers.cancel(entry);
        }
        timed(|| {
            for &(entry, after) in &batch {
                self.timers.insert(entry, after);
            }
        })
    }

    fn rearm(&mut self, count: usize) -> Duration {
        let batch = self.next_entries(count);
        timed(|| {
            for &(entry, after) in &batch {
                self.timers.rearm(entry, after);
            }
        })
    }

    fn cancel(&mut self, count: usize) -> Duration {
        let batch = self.next_entries(count);
        let took = timed(|| {
            for &(entry, _) in &batch {
                self.timers.cancel(entry);
            }
        });
        for (entry, after) in batch {
            self.timers.insert(entry, after);
        }
        took
    }

    fn idle_ticks(&mut self, count: usize) -> Duration {
        self.ensure_quiet(count);
        timed(|| {
            for _ in 0..count {
                self.timers.tick(&[]);
            }
        })
    }

    fn busy_ticks(&mut self, count: usize) -> Duration {
        self.ensure_quiet(count);
        let mut took = Duration::ZERO;
        for _ in 0..count {
            let due = self.next_entries(self.shuffled.len() / 100);
            for &(entry, _) in &due {
                self.timers.rearm(entry, 1);
            }
            took += timed(|| self.timers.tick(&due));
            for (entry, after) in due {
                self.timers.put_back(entry, after);
            }
        }
        took
    }

    /// Re-arms all entries if one could be due within `ticks` milliseconds.
    fn ensure_quiet(&mut self, ticks: usize) {
        if self.quiet_ms < ticks {
            for &entry in &self.shuffled {
                self.timers.rearm(entry, self.rng.u32(DEADLINE_MS));
            }
            self.quiet_ms = QUIET_MS;
        }
        self.quiet_ms -= ticks;
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
