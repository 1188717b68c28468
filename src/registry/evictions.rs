//! Evictions as a bounded stream whose producer never waits.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use crate::eviction::Eviction;
use crate::hooks;
use crate::panic_guard;

/// Capacity of a stream whose consumer does not set one.
pub(super) const DEFAULT_CAPACITY: usize = 1024;

/// A stream of the evictions of a [`Registry`](crate::Registry), in the order in which they were
/// reported. Created by [`Registry::evictions`](crate::Registry::evictions).
///
/// Each consumer gets every eviction that is reported after it subscribed. A consumer that is too
/// slow misses some, and gets an [`Overrun`] in their place.
///
/// The stream ends when the registry and all its clones are dropped, including those that layers
/// and the handles of connections hold. Evictions that were reported before are still delivered. An
/// eviction that is queued here keeps the value in its session slot and its seats alive; dropping
/// the stream drops the queue. So a handler that waits for the end of a channel whose sender is in
/// its seat also waits for a lagging consumer: let such a handler wait for
/// [`evicted`](crate::Liveness::evicted) as well. The capacity bounds the lag.
///
/// ```
/// # async fn run(registry: tower_ws_liveness::Registry) {
/// let mut evictions = registry.evictions();
/// while let Some(next) = evictions.recv().await {
///     match next {
///         Ok(ev) => println!("{} ended: {}", ev.id(), ev.reason()),
///         Err(overrun) => println!("too slow: missed {}", overrun.missed()),
///     }
/// }
/// # }
/// ```
#[must_use = "a stream that is dropped gets nothing"]
pub struct Evictions {
    queue: Arc<EvictionQueue>,
    subscribers: Weak<Subscribers>,
}

/// The number of evictions that a consumer missed because its queue was full.
///
/// It takes their place in the stream, which continues after it; note that `?` and `try_next` stop
/// here. Hooks are called for missed evictions as for all others.
///
/// A consumer that mirrors the open connections rebuilds its copy after an overrun:
///
/// ```
/// use std::collections::HashSet;
///
/// use tokio::io::duplex;
/// use tower_ws_liveness::HeartbeatLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let registry = layer.registry();
/// let mut evictions = registry.evictions_with_capacity(1);
/// # let connections = [(); 3].map(|()| layer.wrap_server(duplex(64).0));
/// let mut open: HashSet<_> = registry.snapshot().iter().map(|found| found.id()).collect();
/// # assert_eq!(open.len(), 3);
/// # drop(connections);
/// # for expected in [2, 0] {
/// match evictions.recv().await.expect("the registry exists") {
///     Ok(ev) => {
///         open.remove(&ev.id());
///     }
///     Err(overrun) => {
///         assert_eq!(overrun.missed(), 2);
///         open = registry.snapshot().iter().map(|found| found.id()).collect();
///     }
/// }
/// # assert_eq!(open.len(), expected);
/// # }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overrun {
    missed: u64,
}

impl Overrun {
    /// The number of missed evictions, at least 1.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "consumer too slow: {} evictions missed", self.missed)
    }
}

impl Error for Overrun {}

impl Evictions {
    pub(super) fn subscribe(subscribers: &Arc<Subscribers>, capacity: usize) -> Self {
        let queue = Arc::new(EvictionQueue {
            capacity,
            state: Mutex::default(),
        });
        subscribers.add(&queue);
        Self {
            queue,
            subscribers: Arc::downgrade(subscribers),
        }
    }

    /// Waits for the next eviction, or the number of evictions that were missed at this place.
    /// Returns `None` when the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the next item stays in the stream.
    pub async fn recv(&mut self) -> Option<Result<Eviction, Overrun>> {
        poll_fn(|cx| self.queue.poll_pop(cx)).await
    }
}

impl Stream for Evictions {
    type Item = Result<Eviction, Overrun>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_pop(cx)
    }
}

impl Drop for Evictions {
    fn drop(&mut self) {
        if let Some(subscribers) = self.subscribers.upgrade() {
            subscribers.remove(&self.queue);
        }
    }
}

impl fmt::Debug for Evictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evictions")
            .field("capacity", &self.queue.capacity)
            .field("waiting", &self.queue.lock().queued_evictions)
            .finish_non_exhaustive()
    }
}

/// The queues of all consumers. Changes replace the whole list, so that `publish` iterates over it
/// without holding the lock.
#[derive(Default)]
pub(super) struct Subscribers(Mutex<QueueList>);

type QueueList = Arc<Vec<Arc<EvictionQueue>>>;

impl Subscribers {
    /// Appends an eviction to every queue. The caller must hold no lock, because this wakes tasks.
    pub(super) fn publish(&self, eviction: &Eviction) {
        let queues = Arc::clone(&self.list());
        for queue in queues.iter() {
            hooks::guard_waker(eviction, || queue.push(eviction));
        }
        // May drop the last reference to the queue of a stream that was dropped meanwhile.
        panic_guard::discard(eviction.id(), queues);
    }

    fn add(&self, queue: &Arc<EvictionQueue>) {
        let mut list = self.list();
        let mut queues = list.to_vec();
        queues.push(Arc::clone(queue));
        *list = Arc::new(queues);
    }

    fn remove(&self, queue: &Arc<EvictionQueue>) {
        let mut list = self.list();
        let others = list.iter().filter(|known| !Arc::ptr_eq(known, queue));
        let others = Arc::new(others.cloned().collect());
        let previous = std::mem::replace(&mut *list, others);
        drop(list);
        drop(previous);
    }

    fn list(&self) -> MutexGuard<'_, QueueList> {
        // No application code runs under this lock, so a poisoned one still holds a complete list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        let queues = std::mem::take(&mut *self.list());
        for queue in queues.iter() {
            panic_guard::wake_waiting(|| queue.close());
        }
    }
}

/// The items that one consumer has not taken yet.
struct EvictionQueue {
    /// At least 1. Bounds the evictions; overruns do not count.
    capacity: usize,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    /// Two overruns are never adjacent, so there is at most one more of them than of evictions.
    items: VecDeque<Result<Eviction, Overrun>>,
    /// The number of items that are evictions.
    queued_evictions: usize,
    closed: bool,
    waker: Option<Waker>,
}

impl EvictionQueue {
    fn push(&self, eviction: &Eviction) {
        let mut state = self.lock();
        if state.queued_evictions < self.capacity {
            state.queued_evictions += 1;
            state.items.push_back(Ok(eviction.clone()));
        } else if let Some(Err(overrun)) = state.items.back_mut() {
            overrun.missed += 1;
        } else {
            state.items.push_back(Err(Overrun { missed: 1 }));
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Eviction, Overrun>>> {
        let mut state = self.lock();
        if let Some(item) = state.items.pop_front() {
            state.queued_evictions -= usize::from(item.is_ok());
            return Poll::Ready(Some(item));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        let previous = state.waker.replace(cx.waker().clone());
        drop(state);
        // With the lock released: a waker may be the last owner of a task and all that it holds.
        drop(previous);
        Poll::Pending
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // The only code from outside that runs under this lock is the clone of a waker, which
        // changes nothing here if it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
