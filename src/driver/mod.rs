//! One task per runtime that keeps every connection's deadline.
//!
//! A connection is in the [`wheel`] once, whatever layers it has. Traffic does not touch the wheel:
//! a deadline that traffic put off is found too early when it comes up, and put back. Only one that
//! came nearer is told to the wheel at once, and whatever the driver itself has moved by a visit.
//!
//! The task (in [`task`]) starts with the first connection of a runtime and ends with the last. A
//! handler that blocks its worker thread does not delay it (see [`workers`]), but a transport that blocks
//! while the task polls it, or a hook that blocks while the task calls it, does.

mod clock;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod runtimes;
mod task;
mod timer_entry;
mod wheel;
mod workers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::Waker;

use tokio::runtime::Handle;
use tokio::task::unconstrained;

pub(crate) use clock::Clock;
pub(crate) use runtimes::NoDriver;
use task::Turn;
pub(crate) use timer_entry::{DeadlineMove, TimerEntry};
use wheel::Key;
use wheel::Wheel;
use workers::Workers;

use crate::monitor::Moment;
use crate::sync::{Mutex, MutexGuard, spawn};

/// A connection, as the driver knows it.
pub(crate) trait Drive: Send + Sync {
    /// Does what is due at `now`, which is a little in the past: everything that had arrived by then
    /// can be seen in the transport. `scratch` is the driver's, for bytes that have no other place yet.
    ///
    /// Called without any lock of the driver held; the connection re-arms or removes its own entry.
    /// Does not panic, or the driver's task would end for all connections.
    fn drive(self: Arc<Self>, now: Moment, scratch: &mut [u8]);

    /// Ends the connection: the runtime is being shut down, so nothing will drive it any more. Called
    /// twice for a connection that also had something to do before its deadline.
    fn abandon(self: Arc<Self>);
}

/// The driver of one runtime. Cheap to share; every connection holds one.
pub(crate) struct Driver {
    runtime: Handle,
    clock: Clock,
    queue: Mutex<Queue>,
}

struct Queue {
    wheel: Wheel<Arc<dyn Drive>>,
    /// Connections that have something to do before their deadline.
    ready: Vec<Arc<dyn Drive>>,
    task: Task,
}

enum Task {
    /// No task, since there are no connections.
    None,
    /// The task exists, and will look at the queue before it sleeps.
    Running,
    /// The task sleeps until `until` (in ticks), or until it is woken.
    Asleep {
        waker: Waker,
        workers: Workers,
        until: u64,
    },
    /// The runtime was shut down.
    Gone,
}

impl Driver {
    fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            clock: Clock::start(),
            queue: Mutex::new(Queue {
                wheel: Wheel::new(0),
                ready: Vec::new(),
                task: Task::None,
            }),
        }
    }

    /// The runtime that the driver's task runs on, which may have been shut down.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Takes a connection in, to be driven for the first time at `deadline`. `None` if the runtime
    /// is being shut down.
    ///
    /// The caller has to call [`start`](Self::start) when it has given its locks back.
    pub(crate) fn insert(&self, connection: Arc<dyn Drive>, deadline: u64) -> Option<Key> {
        let mut queue = lock(&self.queue);
        if let Task::Gone = queue.task {
            return None;
        }
        let key = queue.wheel.insert(deadline, connection);
        wake(queue, Some(deadline));
        Some(key)
    }

    /// Starts the task, if there are connections and there is none.
    ///
    /// A runtime that is being shut down drops the task in here, which then gives all connections
    /// up: no lock may be held.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut queue = lock(&self.queue);
        if !matches!(queue.task, Task::None) {
            return;
        }
        if queue.wheel.is_empty() {
            // It was given up again meanwhile; so is whatever it wanted.
            let ready = std::mem::take(&mut queue.ready);
            drop(queue);
            drop(ready);
            return;
        }
        queue.task = Task::Running;
        drop(queue);
        // Deadlines of all connections hang on it, and what a transport says must be the
        // transport's word, not that of a scheduler's budget. It yields in each turn.
        let workers = Workers::current();
        let turn = Turn::new(Arc::clone(self), workers.clone());
        spawn(unconstrained(task::run(turn)));
        workers.offer();
    }

    /// DeadlineMove the deadline of a connection.
    pub(crate) fn rearm(&self, key: Key, deadline: u64) {
        let mut queue = lock(&self.queue);
        if let Task::Gone = queue.task {
            return;
        }
        queue.wheel.rearm(key, deadline);
        wake(queue, Some(deadline));
    }

    /// Has a connection driven as soon as possible. False if nobody is there to do it: the
    /// connection was given up already, or the runtime was shut down.
    pub(crate) fn schedule(&self, connection: Arc<dyn Drive>) -> bool {
        let mut queue = lock(&self.queue);
        let deserted = match queue.task {
            // With a connection in the wheel, the task is about to be started.
            Task::None => queue.wheel.is_empty(),
            Task::Gone => true,
            Task::Running | Task::Asleep { .. } => false,
        };
        if deserted {
            return false;
        }
        queue.ready.push(connection);
        wake(queue, None);
        true
    }

    /// Gives a connection up.
    pub(crate) fn remove(&self, key: Key) {
        let mut queue = lock(&self.queue);
        if let Task::Gone = queue.task {
            return;
        }
        // Dropped after the lock: it may be the last reference, and a transport hangs on it.
        let connection = queue.wheel.remove(key);
        let last = queue.wheel.is_empty();
        if last {
            wake(queue, None);
        } else {
            drop(queue);
        }
        drop(connection);
    }

    /// The runtime is gone, and its driver's task with it: a new runtime may get the same id.
    fn retire(self: &Arc<Self>) {
        self.forget();
        let mut queue = lock(&self.queue);
        queue.task = Task::Gone;
        // Connections hold their driver: without this, they would keep each other alive.
        let wheel = std::mem::replace(&mut queue.wheel, Wheel::new(0));
        let ready = std::mem::take(&mut queue.ready);
        drop(queue);
        for connection in wheel.into_values().chain(ready) {
            // Panics of hooks are caught elsewhere. If a waker or a tracing subscriber of the application
            // panics, the other connections must still be abandoned.
            let _ = catch_unwind(AssertUnwindSafe(|| connection.abandon()));
        }
    }
}

/// Wakes the task if it sleeps past `deadline` (in ticks), or in any case.
fn wake(mut queue: MutexGuard<'_, Queue>, deadline: Option<u64>) {
    let asleep = match &queue.task {
        Task::Asleep { until, .. } => deadline.is_none_or(|deadline| deadline < *until),
        Task::None | Task::Running | Task::Gone => false,
    };
    if !asleep {
        return;
    }
    let task = std::mem::replace(&mut queue.task, Task::Running);
    drop(queue);
    if let Task::Asleep { waker, workers, .. } = task {
        waker.wake();
        workers.offer();
    }
}

/// The wheel's ticks are milliseconds; `granularity` is a power of two of them, to which deadlines
/// are rounded up so that neighbours come up together.
pub(crate) fn tick(deadline: Moment, granularity: u32) -> u64 {
    deadline
        .ceil_millis()
        .checked_next_multiple_of(u64::from(granularity))
        .unwrap_or(u64::MAX)
}

/// A panic elsewhere cannot leave these queues half-changed in a way that matters: every change is
/// one call into a structure that keeps its own invariants.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}
