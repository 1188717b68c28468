//! Keeps the driver's task from waiting behind a task that blocks its worker thread.
//!
//! A tokio worker keeps a task that is woken by the task it runs in its LIFO slot, from which other
//! workers do not steal, and a task that yields on a list that only it reads. Both wait until the
//! worker has run what it runs, or runs next. If that is a handler that blocks its thread, the
//! driver would wait with it while other workers are idle, and all connections with the driver.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{try_id, yield_now};
use tokio::time::Instant;

use crate::sync::Sleep;

/// How long a yield waits for the worker on which it began, before another one may go on.
///
/// The shorter, the more often a timer wakes a worker for nothing: once per yield, at most a
/// hundred times a second.
const STUCK: Duration = Duration::from_millis(10);

/// The runtime of the driver's task if it has several workers. With one there is no other to go on.
#[derive(Clone)]
pub(super) struct Workers(Option<Handle>);

impl Workers {
    /// The workers of the current runtime.
    pub(super) fn current() -> Self {
        let runtime = Handle::current();
        let has_several = runtime.metrics().num_workers() > 1;
        Self(has_several.then_some(runtime))
    }

    /// Lets any worker run the driver's task, which was just woken or spawned.
    pub(super) fn offer(&self) {
        let Some(runtime) = &self.0 else {
            return;
        };
        // Outside of a task the slot does no harm: a thread that is no worker does not use it, and
        // a worker that wakes the driver while it handles events and timers runs it before any
        // handler can block.
        if try_id().is_none() {
            return;
        }
        // Takes the slot over, so that the driver moves into the queue that other workers steal
        // from. This is a new task each time: to wake an existing one would do nothing while that
        // is itself in the slot of a blocked worker.
        drop(runtime.spawn(async {}));
    }

    /// Lets other tasks of the worker run, and the worker look for events. If it does not come back
    /// in time, another worker that has looked for events goes on. Moves the deadline of `sleep`.
    pub(super) async fn yield_now(&self, mut sleep: Pin<&mut Sleep>) {
        let mut yielded = pin!(yield_now());
        if self.0.is_none() {
            return yielded.await;
        }
        // Timers fire right after a look for events, on the worker that has looked.
        sleep.as_mut().reset(Instant::now() + STUCK);
        poll_fn(|cx| match yielded.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => sleep.as_mut().poll(cx),
        })
        .await;
    }
}
