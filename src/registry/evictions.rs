//! Ends as a stream: bounded, and never in the way of whoever reports them.

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

/// How many evictions wait for a consumer that has no wish of its own.
pub(super) const CAPACITY: usize = 1024;

/// The ends of the connections of a [`Registry`](crate::Registry), in the order in which they were
/// reported. Made by [`Registry::evictions`](crate::Registry::evictions).
///
/// Each consumer gets all of them from the moment on at which it subscribed. A consumer that is too
/// slow misses some, never without being told: see [`Overrun`].
///
/// The stream ends when the registry with all its clones is gone, with the layers and the handles of
/// connections that have one. What was reported before is still delivered. An eviction that waits
/// here keeps the value in its session slot and its seats alive; dropping the stream drops what waits.
/// So a handler that waits for a channel whose sender is in its seat also waits for a lagging consumer.
/// Such a handler should wait for [`evicted`](crate::Liveness::evicted) as well. The capacity bounds the
/// lag.
///
/// ```
/// # async fn run(registry: tower_ws_liveness::Registry) {
/// let mut evictions = registry.evictions();
/// while let Some(next) = evictions.recv().await {
///     match next {
///         Ok(ev) => println!("{} is gone: {}", ev.id(), ev.reason()),
///         Err(overrun) => println!("too slow, {} not seen", overrun.missed()),
///     }
/// }
/// # }
/// ```
#[must_use = "a stream that is dropped gets nothing"]
pub struct Evictions {
    queue: Arc<Queue>,
    subscribers: Weak<Subscribers>,
}

/// Evictions that a consumer did not get, since it was too slow and its queue was full.
///
/// It stands in the stream where they would have stood, and the stream goes on after it: mind that `?`
/// and `try_next` do not. Hooks were told of them as of all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overrun {
    missed: u64,
}

impl Overrun {
    /// How many they were, at least 1.
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
        let queue = Arc::new(Queue {
            capacity,
            state: Mutex::default(),
        });
        subscribers.add(&queue);
        Self {
            queue,
            subscribers: Arc::downgrade(subscribers),
        }
    }

    /// The next eviction, or how many were missed at this place. `None` when there will be no more.
    ///
    /// Cancel safe: what was not returned stays in the stream.
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
            .field("waiting", &self.queue.lock().evictions)
            .finish_non_exhaustive()
    }
}

/// Who gets the ends. The list is replaced as a whole, so that it can be walked without its lock.
#[derive(Default)]
pub(super) struct Subscribers(Mutex<Arc<Vec<Arc<Queue>>>>);

impl Subscribers {
    /// Gives everybody an eviction. No lock may be held.
    pub(super) fn tell(&self, eviction: &Eviction) {
        let queues = Arc::clone(&self.list());
        for queue in queues.iter() {
            hooks::guard_waker(eviction, || queue.push(eviction));
        }
        // If a stream was dropped just now, what waits in it goes here.
        panic_guard::discard(eviction.id(), queues);
    }

    fn add(&self, queue: &Arc<Queue>) {
        let mut list = self.list();
        let mut queues = list.to_vec();
        queues.push(Arc::clone(queue));
        *list = Arc::new(queues);
    }

    fn remove(&self, queue: &Arc<Queue>) {
        let mut list = self.list();
        let others = list.iter().filter(|known| !Arc::ptr_eq(known, queue));
        let others = Arc::new(others.cloned().collect());
        let before = std::mem::replace(&mut *list, others);
        drop(list);
        drop(before);
    }

    fn list(&self) -> MutexGuard<'_, Arc<Vec<Arc<Queue>>>> {
        // Nothing foreign runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        let queues = std::mem::take(&mut *self.list());
        for queue in queues.iter() {
            queue.close();
        }
    }
}

/// What waits for one consumer.
struct Queue {
    /// At least 1.
    capacity: usize,
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Between two overruns there is an eviction, so there are not many of them.
    items: VecDeque<Result<Eviction, Overrun>>,
    /// How many of the items are evictions.
    evictions: usize,
    closed: bool,
    waker: Option<Waker>,
}

impl Queue {
    fn push(&self, eviction: &Eviction) {
        let mut waiting = self.lock();
        if waiting.evictions < self.capacity {
            waiting.evictions += 1;
            waiting.items.push_back(Ok(eviction.clone()));
        } else if let Some(Err(overrun)) = waiting.items.back_mut() {
            overrun.missed += 1;
        } else {
            waiting.items.push_back(Err(Overrun { missed: 1 }));
        }
        let waker = waiting.waker.take();
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
    }

    fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Eviction, Overrun>>> {
        let mut waiting = self.lock();
        if let Some(item) = waiting.items.pop_front() {
            waiting.evictions -= usize::from(item.is_ok());
            return Poll::Ready(Some(item));
        }
        if waiting.closed {
            return Poll::Ready(None);
        }
        let before = waiting.waker.replace(cx.waker().clone());
        drop(waiting);
        // With it may go a task, and whatever is in there.
        drop(before);
        Poll::Pending
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let waker = waiting.waker.take();
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing foreign runs under this lock but the clone of a waker.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
