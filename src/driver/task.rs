//! The driver's task: sleep until the next deadline, drive what is due, end with the last
//! connection.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::yield_now;
use tokio::time::Instant;

use super::{Drive, Driver, Key, Task, lock};
use crate::monitor::Moment;
use crate::sync::{Sleep, sleep_until};

/// Room for bytes that are read on behalf of a connection.
const SCRATCH: usize = 16 * 1024;

/// After so many connections the task lets others of its runtime run.
const BATCH: usize = 64;

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
        yield_now().await;
        let mut due = mem::take(&mut turn.due);
        for (count, connection) in due.drain(..).enumerate() {
            if count % BATCH == BATCH - 1 {
                yield_now().await;
            }
            connection.drive(now, &mut scratch);
        }
        // The room is kept for the next turn.
        turn.due = due;
    }
}

pub(super) struct Turn {
    driver: Arc<Driver>,
    finished: bool,
    expired: Vec<Key>,
    due: Vec<Arc<dyn Drive>>,
}

impl Turn {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        Self {
            driver,
            finished: false,
            expired: Vec::new(),
            due: Vec::new(),
        }
    }

    /// `Some` with the time as of which connections are due, `None` when there are none left at all.
    fn poll_due(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Sleep>,
    ) -> Poll<Option<Moment>> {
        loop {
            let now = self.driver.clock.now();
            let mut queue = lock(&self.driver.queue);
            queue.wheel.advance(millis(now), &mut self.expired);
            for key in self.expired.drain(..) {
                self.due.extend(queue.wheel.get(key).cloned());
            }
            self.due.append(&mut queue.ready);
            if !self.due.is_empty() {
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
