//! The driver: one task per runtime that watches the deadlines of all connections.
//!
//! A connection has one entry in the timer [`wheel`], however many layers it has, and so has a seat
//! that lingers after the end of its connection. Traffic does not
//! touch the wheel: a deadline that traffic postponed expires too early there, and the driver
//! re-arms the entry. The wheel is updated immediately only for a deadline that moves nearer, and
//! after the driver has driven the connection.
//!
//! The task (in [`task`]) starts with the first connection of a runtime and ends within two seconds
//! after the last. So connections that come one by one share a task, and few of them wake it. A
//! handler that blocks its worker thread does not delay it (see [`workers`]), but a transport that
//! blocks while the task polls it, or a hook that blocks while the task calls it, does.

mod clock;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod runtimes;
mod task;
mod timer_entry;
mod wheel;
mod workers;

use std::sync::{Arc, PoisonError};
use std::task::Waker;

use tokio::runtime::Handle;
use tokio::task::unconstrained;

pub(crate) use clock::Clock;
pub(crate) use runtimes::NoDriver;
use task::DriverTask;
pub(crate) use timer_entry::{DeadlineMove, TimerEntry};
use wheel::Key;
use wheel::Wheel;
use workers::Workers;

use crate::monitor::Moment;
use crate::panic_guard;
use crate::sync::{Mutex, MutexGuard, spawn};

/// A connection as seen by the driver, or a lingering seat.
pub(crate) trait Drive: Send + Sync {
    /// Handles what is due at `now`, which is slightly in the past: bytes that arrived before `now`
    /// are readable in the transport. `scratch` is a read buffer that belongs to the driver.
    ///
    /// Called without any lock of the driver held; the connection re-arms or removes its own entry.
    /// Must not panic: a panic would end the driver's task for all connections.
    ///
    /// Returns whether the visit may have taken long: it called hooks or session maps, or closed
    /// the transport.
    fn drive(self: Arc<Self>, now: Moment, scratch: &mut [u8]) -> bool;

    /// Ends the connection because the runtime is being shut down and will not drive it again.
    /// Called twice for a connection that was also scheduled before its deadline.
    fn abandon(self: Arc<Self>);
}

/// The driver of one runtime. Every connection holds a reference to it.
pub(crate) struct Driver {
    runtime: Handle,
    clock: Clock,
    queue: Mutex<TimerQueue>,
}

struct TimerQueue {
    wheel: Wheel<Arc<dyn Drive>>,
    /// Connections that were scheduled before their deadline.
    ready: Vec<Arc<dyn Drive>>,
    task: TaskState,
}

/// How long the task remains after it has found no connections.
#[cfg(not(all(test, liveness_loom)))]
const MAX_UNUSED_MILLIS: u64 = 1_000;

/// A model ends when all tasks have ended, and time does not pass by itself.
#[cfg(all(test, liveness_loom))]
const MAX_UNUSED_MILLIS: u64 = 0;

enum TaskState {
    /// There is no task, since there are no connections.
    None,
    /// The task exists, and will check the queue before it sleeps.
    Running,
    /// The task sleeps until tick `until`, or until it is woken.
    Asleep {
        waker: Waker,
        workers: Workers,
        until: u64,
    },
    /// The runtime was shut down.
    ShutDown,
}

impl Driver {
    fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            clock: Clock::start(),
            queue: Mutex::new(TimerQueue {
                wheel: Wheel::new(0),
                ready: Vec::new(),
                task: TaskState::None,
            }),
        }
    }

    /// The runtime of the driver's task. It may have been shut down.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Adds a connection whose first deadline is tick `deadline`. `None` if the runtime is being
    /// shut down.
    ///
    /// The caller must call [`start`](Self::start) after releasing its locks.
    pub(super) fn insert(&self, connection: Arc<dyn Drive>, deadline: u64) -> Option<Key> {
        let mut queue = lock(&self.queue);
        if let TaskState::ShutDown = queue.task {
            return None;
        }
        let key = queue.wheel.insert(deadline, connection);
        wake(queue, Some(deadline));
        Some(key)
    }

    /// Spawns the task if there are connections and no task.
    ///
    /// A runtime that is being shut down drops the task inside this call, and the drop abandons all
    /// connections: the caller must not hold a lock.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut queue = lock(&self.queue);
        if !matches!(queue.task, TaskState::None) {
            return;
        }
        if queue.wheel.is_empty() {
            // The connection was removed before this call, so its scheduled work is obsolete.
            let ready = std::mem::take(&mut queue.ready);
            drop(queue);
            drop(ready);
            return;
        }
        queue.task = TaskState::Running;
        drop(queue);
        let workers = Workers::of(&self.runtime);
        let task = DriverTask::new(Arc::clone(self), workers.clone());
        // Unconstrained: with tokio's cooperative budget used up, a transport would return
        // `Pending` though it is ready. The task yields in each iteration.
        spawn(&self.runtime, unconstrained(task::run(task)));
        workers.displace_from_lifo_slot();
    }

    /// Changes the deadline of a connection.
    pub(super) fn rearm(&self, key: Key, deadline: u64) {
        let mut queue = lock(&self.queue);
        if let TaskState::ShutDown = queue.task {
            return;
        }
        queue.wheel.rearm(key, deadline);
        wake(queue, Some(deadline));
    }

    /// Has a connection driven as soon as possible. Returns false if there is no task to do it: the
    /// last connection was removed already, or the runtime was shut down.
    pub(crate) fn schedule(&self, connection: Arc<dyn Drive>) -> bool {
        let mut queue = lock(&self.queue);
        let has_no_task = match queue.task {
            // With a connection in the wheel, the task is about to be started.
            TaskState::None => queue.wheel.is_empty(),
            TaskState::ShutDown => true,
            TaskState::Running | TaskState::Asleep { .. } => false,
        };
        if has_no_task {
            return false;
        }
        queue.ready.push(connection);
        wake(queue, None);
        true
    }

    /// Removes a connection.
    pub(super) fn remove(&self, key: Key) {
        let mut queue = lock(&self.queue);
        if let TaskState::ShutDown = queue.task {
            return;
        }
        // Dropped after the lock is released: this may be the last reference to a transport.
        let connection = queue.wheel.remove(key);
        let last = queue.wheel.is_empty();
        if last {
            // The task may sleep until a deadline in the far future.
            let unused_until = self.clock.now().ceil_millis() + MAX_UNUSED_MILLIS;
            wake(queue, Some(unused_until));
        } else {
            drop(queue);
        }
        drop(connection);
    }

    /// Abandons all connections after the runtime dropped the task, and removes the driver from the
    /// registry, since a new runtime may get the same id.
    fn shut_down(self: &Arc<Self>) {
        self.unregister();
        let mut queue = lock(&self.queue);
        queue.task = TaskState::ShutDown;
        // Breaks the reference cycle between the driver and its connections.
        let wheel = std::mem::replace(&mut queue.wheel, Wheel::new(0));
        let ready = std::mem::take(&mut queue.ready);
        drop(queue);
        for connection in wheel.into_values().chain(ready) {
            // Foreign code is guarded where it is called. Should a panic get here, the other
            // connections must still be abandoned.
            panic_guard::catch(|| connection.abandon());
        }
    }
}

/// Wakes the task if it sleeps past tick `deadline`; with `None`, if it sleeps at all.
fn wake(mut queue: MutexGuard<'_, TimerQueue>, deadline: Option<u64>) {
    let asleep = match &queue.task {
        TaskState::Asleep { until, .. } => deadline.is_none_or(|deadline| deadline < *until),
        TaskState::None | TaskState::Running | TaskState::ShutDown => false,
    };
    if !asleep {
        return;
    }
    let task = std::mem::replace(&mut queue.task, TaskState::Running);
    drop(queue);
    if let TaskState::Asleep { waker, workers, .. } = task {
        waker.wake();
        workers.displace_from_lifo_slot();
    }
}

/// Converts a deadline to a tick of the wheel, one millisecond each. Deadlines are rounded up to a
/// multiple of `granularity`, a power of two in ticks, so that close deadlines share one wake-up.
fn tick(deadline: Moment, granularity: u32) -> u64 {
    deadline
        .ceil_millis()
        .checked_next_multiple_of(u64::from(granularity))
        .unwrap_or(u64::MAX)
}

/// Ignores poisoning: every change under the lock is one call into a structure that keeps its own
/// invariants, so a panic cannot leave the queue inconsistent.
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
