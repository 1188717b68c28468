//! The driver's task: sleep until the next deadline, drive what is due, end with the last
//! connection.
//!
//! Whoever opens, ends or schedules a connection waits for the lock of the driver's queue. So the
//! work under it is bounded, also when a hundred thousand deadlines come up together: the wheel goes
//! on piece by piece, with the lock given back in between.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::{Drive, Driver, Key, Task, Workers, lock};
use crate::monitor::Moment;
use crate::sync::{Sleep, sleep_until};

/// Room for bytes that are read on behalf of a connection.
const SCRATCH: usize = 16 * 1024;

/// After so many connections the task lets others of its runtime run.
const BATCH: usize = 16;

/// So many entries of the wheel are looked at while the lock is held. Where there are a million, one
/// takes up to 200 ns, since neither it nor its connection is in a cache: some 0.2 ms in all.
#[cfg(not(all(test, liveness_loom)))]
const PIECE: usize = 1024;

/// A model has two or three connections.
#[cfg(all(test, liveness_loom))]
const PIECE: usize = 1;

/// After so many pieces the task lets others of its runtime run.
const PIECES: usize = 4;

/// So many of those who are scheduled get their turn before the wheel is looked at again. An eviction
/// is told at the deadline; to say goodbye, which takes longer, it is scheduled. When thousands of
/// peers are dead, nobody's verdict is to wait for others' goodbyes.
const SCHEDULED: usize = 16 * BATCH;

/// The whole life of the task. `turn` is made by whoever spawns it, so that a task that is dropped
/// before it ever runs is noticed too.
pub(super) async fn run(mut turn: Turn) {
    let mut scratch = vec![0; SCRATCH];
    let mut sleep = std::pin::pin!(sleep_until(Instant::now()));
    while let Some(now) = poll_fn(|cx| turn.poll_due(cx, sleep.as_mut())).await {
        // A transport knows what the runtime has told it, and after a stall of the thread that may
        // be less than what has arrived. The runtime looks before it lets this task go on, and so
        // `now`, as which everything is judged below, is no later than what can be seen. Besides,
        // others get their turn: a connection may have asked for the next one already.
        turn.workers.yield_now(sleep.as_mut()).await;
        if turn.has_rest {
            // Driving takes much longer than finding out who is due. Whoever is in the rest may be due
            // already, and would have to wait for all who were found before.
            continue;
        }
        let mut due = mem::take(&mut turn.due);
        let mut ready = mem::take(&mut turn.ready);
        let some = ready.len().min(SCHEDULED);
        for (count, connection) in due.drain(..).chain(ready.drain(..some)).enumerate() {
            if count % BATCH == BATCH - 1 {
                turn.workers.yield_now(sleep.as_mut()).await;
            }
            connection.drive(now, &mut scratch);
        }
        // The room is kept for the next turn.
        turn.due = due;
        turn.ready = ready;
    }
}

pub(super) struct Turn {
    driver: Arc<Driver>,
    workers: Workers,
    finished: bool,
    /// The wheel was left before it was done.
    has_rest: bool,
    expired: Vec<Key>,
    /// What the wheel has found due.
    due: Vec<Arc<dyn Drive>>,
    /// What others have scheduled.
    ready: Vec<Arc<dyn Drive>>,
}

impl Turn {
    pub(super) fn new(driver: Arc<Driver>, workers: Workers) -> Self {
        Self {
            driver,
            workers,
            finished: false,
            has_rest: false,
            expired: Vec::new(),
            due: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// `Some` with the time as of which connections are due, `None` when there are none left at all.
    ///
    /// With a [rest](Self::has_rest) it is to be called again before anybody is driven.
    fn poll_due(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Sleep>,
    ) -> Poll<Option<Moment>> {
        let mut pieces = 0;
        loop {
            let now = self.driver.clock.now();
            let mut queue = lock(&self.driver.queue);
            let done = queue.wheel.advance(millis(now), PIECE, &mut self.expired);
            for key in self.expired.drain(..) {
                self.due.extend(queue.wheel.get(key).cloned());
            }
            self.has_rest = !done;
            if self.has_rest {
                queue.task = Task::Running;
                pieces += 1;
                if pieces == PIECES {
                    return Poll::Ready(Some(now));
                }
                continue;
            }
            // An exchange, however many there are.
            if self.ready.is_empty() {
                mem::swap(&mut self.ready, &mut queue.ready);
            }
            if !self.due.is_empty() || !self.ready.is_empty() {
                queue.task = Task::Running;
                return Poll::Ready(Some(now));
            }
            if queue.wheel.is_empty() {
                queue.task = Task::None;
                self.finished = true;
                return Poll::Ready(None);
            }
            let until = queue.wheel.next_expiration();
            queue.task = Task::Asleep {
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
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.finished {
            self.driver.retire();
        }
    }
}

/// Whole milliseconds that have passed: a deadline is due when all of its milliseconds have.
fn millis(now: Moment) -> u64 {
    u64::try_from(now.since_start().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(liveness_loom)))]
mod tests;
