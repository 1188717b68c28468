//! The driver's task: sleeps until the next deadline and drives the connections that are due.
//!
//! It ends when it has found no connections for [`MAX_UNUSED_MILLIS`].
//!
//! Opening, ending or scheduling a connection takes the lock of the driver's queue. So the work
//! under that lock is bounded, also when a hundred thousand deadlines expire together: the wheel
//! advances in bounded steps, and the lock is released between two of them.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::{Clock, Drive, Driver, Key, MAX_UNUSED_MILLIS, TaskState, Workers, lock};
use crate::monitor::Moment;
use crate::sync::{Sleep, sleep_until};

/// Size of the buffer for bytes that the task reads on behalf of a connection.
const SCRATCH_BYTES: usize = 16 * 1024;

/// The task yields to its runtime's other tasks after this time, once a visit may have called a hook
/// or a session map or closed a transport. A visit that only sends a ping takes some 10 µs and the
/// close of a socket 30 µs, but a hook takes as long as the application likes.
const MAX_BATCH_TIME: Duration = Duration::from_micros(200);

/// The most connections that are driven between two yields, also while the clock stands still.
const MAX_DRIVES_PER_BATCH: usize = 16;

/// The most entries of the wheel that are visited under the lock. With a million entries one visit
/// takes up to 200 ns, since neither the entry nor its connection is cached: some 0.2 ms in all.
#[cfg(not(all(test, liveness_loom)))]
const MAX_ENTRIES_PER_LOCK: usize = 1024;

/// A model has two or three connections.
#[cfg(all(test, liveness_loom))]
const MAX_ENTRIES_PER_LOCK: usize = 1;

/// The most bounded steps of the wheel between two yields, also while the clock stands still.
const MAX_ADVANCES_PER_ITERATION: usize = 4;

/// The most scheduled connections that are driven before the wheel advances again. An eviction is
/// reported at the deadline, and its Close frame, which takes longer, is sent by scheduled work.
/// When thousands of peers are dead, a report must not wait for the Close frames of other
/// connections.
const MAX_SCHEDULED_PER_ITERATION: usize = 16 * MAX_DRIVES_PER_BATCH;

/// Runs the task. The caller creates `task` before it spawns this future, so that the `Drop` of
/// [`DriverTask`] also runs for a future that is dropped before its first poll.
pub(super) async fn run(mut task: DriverTask) {
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut sleep = std::pin::pin!(sleep_until(Instant::now()));
    while let Some(now) = poll_fn(|cx| task.poll_due(cx, sleep.as_mut())).await {
        // A transport is ready only once the runtime has polled for events, which a stalled thread
        // has not done. The runtime polls for events before it resumes this task, so every byte
        // that arrived before `now` is readable below. The yield also lets other tasks run: a
        // connection may have scheduled itself again already.
        task.workers.yield_now(sleep.as_mut()).await;
        if task.wheel_unfinished {
            // Driving takes much longer than advancing the wheel. Entries not visited yet may be
            // due already, and would wait for all connections found so far.
            continue;
        }
        let mut due = mem::take(&mut task.due);
        let mut ready = mem::take(&mut task.ready);
        let scheduled = ready.len().min(MAX_SCHEDULED_PER_ITERATION);
        // The yield counts as work if it took time. The first batch is then shorter.
        let mut batch = Batch::begin(now);
        let mut is_full = false;
        for connection in due.drain(..).chain(ready.drain(..scheduled)) {
            if is_full {
                task.workers.yield_now(sleep.as_mut()).await;
                batch = Batch::begin(task.driver.clock.now());
            }
            is_full = batch.drive(connection, now, &mut scratch, &task.driver.clock);
        }
        // Keeps the allocations for the next iteration.
        task.due = due;
        task.ready = ready;
    }
}

/// The connections that are driven between two yields.
struct Batch {
    begun: Moment,
    drives: usize,
}

impl Batch {
    fn begin(now: Moment) -> Self {
        Self {
            begun: now,
            drives: 0,
        }
    }

    /// Drives a connection. Returns whether other tasks must run before the next one.
    fn drive(
        &mut self,
        connection: Arc<dyn Drive>,
        now: Moment,
        scratch: &mut [u8],
        clock: &Clock,
    ) -> bool {
        let may_be_long = connection.drive(now, scratch);
        self.drives += 1;
        // The clock is not read after a visit whose cost is bounded, such as that of a ping.
        self.drives == MAX_DRIVES_PER_BATCH
            || may_be_long && clock.now().since(self.begun) >= MAX_BATCH_TIME
    }
}

/// The state of the driver's task. If it is dropped before the task has ended, the runtime is being
/// shut down, and all connections are abandoned.
pub(super) struct DriverTask {
    driver: Arc<Driver>,
    workers: Workers,
    finished: bool,
    /// The tick at which the task ends if there are no connections: set when it finds none.
    unused_until: Option<u64>,
    /// The last call of [`Wheel::advance`](super::Wheel::advance) reached its limit.
    wheel_unfinished: bool,
    expired: Vec<Key>,
    /// Connections whose deadline has expired.
    due: Vec<Arc<dyn Drive>>,
    /// Connections that were scheduled before their deadline.
    ready: Vec<Arc<dyn Drive>>,
}

impl DriverTask {
    pub(super) fn new(driver: Arc<Driver>, workers: Workers) -> Self {
        Self {
            driver,
            workers,
            finished: false,
            unused_until: None,
            wheel_unfinished: false,
            expired: Vec::new(),
            due: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Resolves to the time as of which connections are due, or to `None` when no connections are
    /// left.
    ///
    /// While [`wheel_unfinished`](Self::wheel_unfinished) is set, it must be called again before a
    /// connection is driven.
    fn poll_due(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Sleep>,
    ) -> Poll<Option<Moment>> {
        let begun = self.driver.clock.now();
        let mut now = begun;
        let mut advances = 0;
        loop {
            let mut queue = lock(&self.driver.queue);
            let done = queue
                .wheel
                .advance(millis(now), MAX_ENTRIES_PER_LOCK, &mut self.expired);
            for key in self.expired.drain(..) {
                self.due.extend(queue.wheel.get(key).cloned());
            }
            self.wheel_unfinished = !done;
            if self.wheel_unfinished {
                queue.task = TaskState::Running;
                drop(queue);
                advances += 1;
                now = self.driver.clock.now();
                if advances == MAX_ADVANCES_PER_ITERATION || now.since(begun) >= MAX_BATCH_TIME {
                    return Poll::Ready(Some(now));
                }
                continue;
            }
            // A swap takes constant time under the lock, however many connections are scheduled.
            if self.ready.is_empty() {
                mem::swap(&mut self.ready, &mut queue.ready);
            }
            if !self.due.is_empty() || !self.ready.is_empty() {
                queue.task = TaskState::Running;
                return Poll::Ready(Some(now));
            }
            let until = if queue.wheel.is_empty() {
                let latest = millis(now) + MAX_UNUSED_MILLIS;
                let unused_until = *self.unused_until.get_or_insert(latest);
                if millis(now) >= unused_until {
                    queue.task = TaskState::None;
                    self.finished = true;
                    return Poll::Ready(None);
                }
                Some(unused_until)
            } else {
                self.unused_until = None;
                queue.wheel.next_expiration()
            };
            queue.task = TaskState::Asleep {
                waker: cx.waker().clone(),
                workers: self.workers.clone(),
                until: until.unwrap_or(u64::MAX),
            };
            drop(queue);
            let Some(until) = until else {
                return Poll::Pending;
            };
            let wake_at = self.driver.clock.instant(Moment::after_millis(until));
            if sleep.deadline() != wake_at {
                sleep.as_mut().reset(wake_at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            now = self.driver.clock.now();
        }
    }
}

impl Drop for DriverTask {
    fn drop(&mut self) {
        if !self.finished {
            self.driver.shut_down();
        }
    }
}

/// The whole milliseconds that have passed, rounded down: a deadline expires only once its last
/// millisecond has passed.
fn millis(now: Moment) -> u64 {
    u64::try_from(now.since_start().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(liveness_loom)))]
mod tests;
