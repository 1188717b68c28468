//! The driver's timer wheel with a deadline for each of 1 k, 100 k and 1 M connections, and beside it
//! the two baselines that people use: `DelayQueue` of tokio-util, and one tokio `Sleep` for each
//! connection.
//!
//! | | one iteration |
//! |---|---|
//! | `insert`, `re-arm`, `cancel` | one entry, anywhere among the others |
//! | `idle tick` | time goes on by a millisecond, in which nothing is due |
//! | `busy tick` | time goes on by a millisecond, in which 1 % of the entries are due and are found |
//!
//! Deadlines lie one to two minutes ahead, but for what is due in a busy tick. An entry that is
//! inserted gets the place of one that has just gone, as a new connection does. The baselines need a
//! runtime to tell them the time, and get one whose clock is paused and moved by hand. What that takes
//! without any entries is `wheel/clock`: subtract it from their ticks.
//!
//! Not counted is the task that is woken for each `Sleep` that is due. And a `Sleep` whose deadline
//! moves away stays where it is, to be moved when its time comes: what it saves at `re-arm` it pays in
//! ticks, idle ones too.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, Criterion};
use tokio::runtime::{Builder, Runtime};
use tokio::time::advance;

use self::timers::{Asleep, Driven, Queued, TICK, Timers};

mod timers;

const SIZES: [(&str, usize); 3] = [("1 k", 1_000), ("100 k", 100_000), ("1 M", 1_000_000)];

/// What is timed together, so that reading the clock does not count.
const BATCH: usize = 100;

/// How far ahead deadlines lie, in milliseconds.
const AHEAD: std::ops::Range<u32> = 60_000..120_000;

/// How long after that nothing happens to anything: nothing is due, nothing cascades.
const QUIET: usize = 50_000;

pub(crate) fn run(criterion: &mut Criterion) {
    criterion.bench_function("wheel/clock", |bencher| {
        let runtime = paused();
        bencher.iter(|| runtime.block_on(advance(TICK)));
    });
    for (size, count) in SIZES {
        let mut group = criterion.benchmark_group(format!("wheel/{size}"));
        group.sample_size(10);
        measure(&mut group, "wheel", count, Driven::new);
        let runtime = paused();
        let entered = runtime.enter();
        measure(&mut group, "DelayQueue", count, || Queued::new(&runtime));
        drop(entered);
        let runtime = paused();
        let entered = runtime.enter();
        measure(&mut group, "Sleep each", count, || Asleep::new(&runtime));
        drop(entered);
        group.finish();
    }
}

/// A runtime whose time stands still until it is moved.
fn paused() -> Runtime {
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
    // Made by the first bench that is wanted: it takes a while.
    let mut made = None;
    let mut bench = |what: &str, run: fn(&mut Crowd<T>, usize) -> Duration| {
        group.bench_function(format!("{what}, {name}"), |bencher: &mut Bencher<'_>| {
            let crowd = made.get_or_insert_with(|| Crowd::new(timers(), count));
            bencher.iter_custom(|iters| {
                let mut left = iters as usize;
                let mut took = Duration::ZERO;
                while left > 0 {
                    let batch = left.min(BATCH);
                    took += run(crowd, batch);
                    left -= batch;
                }
                took
            });
        });
    };
    bench("insert", Crowd::insert);
    bench("re-arm", Crowd::rearm);
    bench("cancel", Crowd::cancel);
    bench("idle tick", Crowd::idle_ticks);
    bench("busy tick", Crowd::busy_ticks);
}

/// Timers with a number of entries, which is the same before and after each bench.
struct Crowd<T> {
    timers: T,
    /// All entries, in an order without any order.
    shuffled: Vec<u32>,
    next: usize,
    rng: fastrand::Rng,
    /// Milliseconds for which nothing is due.
    quiet: usize,
}

impl<T: Timers> Crowd<T> {
    fn new(timers: T, count: usize) -> Self {
        let mut crowd = Self {
            timers,
            shuffled: (0..count as u32).collect(),
            next: 0,
            rng: fastrand::Rng::with_seed(7),
            quiet: QUIET,
        };
        for &entry in &crowd.shuffled {
            crowd.timers.insert(entry, crowd.rng.u32(AHEAD));
        }
        crowd.rng.shuffle(&mut crowd.shuffled);
        crowd
    }

    /// Some of the entries, others each time, and a deadline for each.
    fn some(&mut self, count: usize) -> Vec<(u32, u32)> {
        if self.next + count > self.shuffled.len() {
            self.next = 0;
        }
        let entries = &self.shuffled[self.next..][..count];
        self.next += count;
        let rng = &mut self.rng;
        entries
            .iter()
            .map(|&entry| (entry, rng.u32(AHEAD)))
            .collect()
    }

    fn insert(&mut self, count: usize) -> Duration {
        let some = self.some(count);
        for &(entry, _) in &some {
            self.timers.cancel(entry);
        }
        timed(|| {
            for &(entry, after) in &some {
                self.timers.insert(entry, after);
            }
        })
    }

    fn rearm(&mut self, count: usize) -> Duration {
        let some = self.some(count);
        timed(|| {
            for &(entry, after) in &some {
                self.timers.rearm(entry, after);
            }
        })
    }

    fn cancel(&mut self, count: usize) -> Duration {
        let some = self.some(count);
        let took = timed(|| {
            for &(entry, _) in &some {
                self.timers.cancel(entry);
            }
        });
        for (entry, after) in some {
            self.timers.insert(entry, after);
        }
        took
    }

    fn idle_ticks(&mut self, count: usize) -> Duration {
        self.rest(count);
        timed(|| {
            for _ in 0..count {
                self.timers.tick(&[]);
            }
        })
    }

    fn busy_ticks(&mut self, count: usize) -> Duration {
        self.rest(count);
        let mut took = Duration::ZERO;
        for _ in 0..count {
            let due = self.some(self.shuffled.len() / 100);
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

    /// Sees to it that nothing is due by itself for so many milliseconds.
    fn rest(&mut self, ticks: usize) {
        if self.quiet < ticks {
            for &entry in &self.shuffled {
                self.timers.rearm(entry, self.rng.u32(AHEAD));
            }
            self.quiet = QUIET;
        }
        self.quiet -= ticks;
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
