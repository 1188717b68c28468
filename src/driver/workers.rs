//! Keeps the driver's task from waiting behind a task that blocks its worker thread.
//!
//! When the task that a tokio worker polls wakes another task, the worker keeps that task in its
//! LIFO slot, from which other workers do not steal. A task that yields is kept in a list that only
//! its worker reads. Both are polled only after the worker has finished polling its current task,
//! or its next one. If that is a handler that blocks its thread, the driver would wait with it
//! while other workers are idle, and so would the verdicts on all connections.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{try_id, yield_now};
use tokio::time::Instant;

use crate::sync::Sleep;

/// How long a yield waits for its own worker before another worker may run the driver's task.
///
/// The timer wakes a worker needlessly at most once per yield: with 10 ms at most a hundred times a
/// second. A shorter time makes that more frequent.
const YIELD_TIMEOUT: Duration = Duration::from_millis(10);

/// The runtime of the driver's task; `None` if it has a single worker, which alone can run the
/// task.
#[derive(Clone)]
pub(super) struct Workers(Option<Handle>);

impl Workers {
    pub(super) fn of(runtime: &Handle) -> Self {
        let has_several = runtime.metrics().num_workers() > 1;
        Self(has_several.then(|| runtime.clone()))
    }

    /// Lets any worker run the driver's task, which was just woken or spawned.
    pub(super) fn displace_from_lifo_slot(&self) {
        let Some(runtime) = &self.0 else {
            return;
        };
        // Outside of a task the LIFO slot does no harm: a thread that is not a worker does not use
        // it, and a worker that wakes the driver while it handles events and timers runs the driver
        // before any handler can block.
        if try_id().is_none() {
            return;
        }
        // An empty task replaces the driver in the slot, so that the driver moves to the queue from
        // which other workers steal. It is a new task each time: waking an existing one would do
        // nothing while that one is in the slot of a blocked worker.
        drop(runtime.spawn(async {}));
    }

    /// Yields to the worker's other tasks and lets it poll for events. If the worker does not run
    /// this task again within [`YIELD_TIMEOUT`], another worker does. Resets the deadline of
    /// `sleep`.
    pub(super) async fn yield_now(&self, mut sleep: Pin<&mut Sleep>) {
        let mut yielded = pin!(yield_now());
        if self.0.is_none() {
            return yielded.await;
        }
        // A timer fires right after a worker has polled for events, and wakes the task on that
        // worker.
        sleep.as_mut().reset(Instant::now() + YIELD_TIMEOUT);
        poll_fn(|cx| match yielded.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => sleep.as_mut().poll(cx),
        })
        .await;
    }
}
