//! The timers under comparison, behind a common trait.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::{self, Sleep, advance, sleep};
use tokio_util::time::{DelayQueue, delay_queue};

use crate::driver::wheel::{Key, Wheel};

pub(super) const TICK: Duration = Duration::from_millis(1);

/// Work per call of `advance`, as in the driver.
const ADVANCE_BUDGET: usize = 1024;

/// Deadlines of many entries. Entries are numbered from 0; `after` is in milliseconds from now.
pub(super) trait Timers {
    fn insert(&mut self, entry: u32, after: u32);
    fn rearm(&mut self, entry: u32, after: u32);
    fn cancel(&mut self, entry: u32);
    /// Advances time by a millisecond and asserts that exactly the entries in `due` expire.
    fn tick(&mut self, due: &[(u32, u32)]);
    /// Gives an expired entry a new deadline.
    fn put_back(&mut self, entry: u32, after: u32);
}

/// The crate's wheel. Like the driver, it looks up the value of every expired entry.
pub(super) struct WheelTimers {
    wheel: Wheel<u32>,
    keys: Vec<Option<Key>>,
    now: u64,
    expired: Vec<Key>,
}

impl WheelTimers {
    pub(super) fn new() -> Self {
        Self {
            wheel: Wheel::new(0),
            keys: Vec::new(),
            now: 0,
            expired: Vec::new(),
        }
    }
}

impl Timers for WheelTimers {
    fn insert(&mut self, entry: u32, after: u32) {
        let key = self.wheel.insert(self.now + u64::from(after), entry);
        *slot_mut(&mut self.keys, entry) = Some(key);
    }

    fn rearm(&mut self, entry: u32, after: u32) {
        let key = self.keys[entry as usize].expect("an entry");
        self.wheel.rearm(key, self.now + u64::from(after));
    }

    fn cancel(&mut self, entry: u32) {
        let key = self.keys[entry as usize].take().expect("an entry");
        self.wheel.remove(key);
    }

    fn tick(&mut self, due: &[(u32, u32)]) {
        self.now += 1;
        let (mut found, mut done) = (0, false);
        while !done {
            done = self
                .wheel
                .advance(self.now, ADVANCE_BUDGET, &mut self.expired);
            found += self.expired.len();
            for key in self.expired.drain(..) {
                black_box(self.wheel.get(key));
            }
        }
        assert_eq!(found, due.len());
    }

    fn put_back(&mut self, entry: u32, after: u32) {
        self.rearm(entry, after);
    }
}

/// One `DelayQueue`.
pub(super) struct DelayQueueTimers<'a> {
    queue: DelayQueue<u32>,
    keys: Vec<Option<delay_queue::Key>>,
    runtime: &'a Runtime,
}

impl<'a> DelayQueueTimers<'a> {
    pub(super) fn new(runtime: &'a Runtime) -> Self {
        Self {
            queue: DelayQueue::new(),
            keys: Vec::new(),
            runtime,
        }
    }
}

impl Timers for DelayQueueTimers<'_> {
    fn insert(&mut self, entry: u32, after: u32) {
        let key = self.queue.insert(entry, millis(after));
        *slot_mut(&mut self.keys, entry) = Some(key);
    }

    fn rearm(&mut self, entry: u32, after: u32) {
        let key = self.keys[entry as usize].as_ref().expect("an entry");
        self.queue.reset(key, millis(after));
    }

    fn cancel(&mut self, entry: u32) {
        let key = self.keys[entry as usize].take().expect("an entry");
        self.queue.remove(&key);
    }

    fn tick(&mut self, due: &[(u32, u32)]) {
        self.runtime.block_on(advance(TICK));
        let mut found = 0;
        while let Poll::Ready(Some(expired)) = self.queue.poll_expired(&mut noop_context()) {
            black_box(expired);
            found += 1;
        }
        assert_eq!(found, due.len());
    }

    /// An expired entry has been removed from the queue.
    fn put_back(&mut self, entry: u32, after: u32) {
        self.insert(entry, after);
    }
}

/// One `Sleep` per entry.
pub(super) struct SleepTimers<'a> {
    sleeps: Vec<Option<Pin<Box<Sleep>>>>,
    runtime: &'a Runtime,
}

impl<'a> SleepTimers<'a> {
    pub(super) fn new(runtime: &'a Runtime) -> Self {
        Self {
            sleeps: Vec::new(),
            runtime,
        }
    }

    fn sleep(&mut self, entry: u32) -> Pin<&mut Sleep> {
        let sleep = self.sleeps[entry as usize].as_mut();
        sleep.expect("an entry").as_mut()
    }
}

impl Timers for SleepTimers<'_> {
    fn insert(&mut self, entry: u32, after: u32) {
        let mut sleep = Box::pin(sleep(millis(after)));
        // The first poll registers it with the runtime's wheel.
        assert!(sleep.as_mut().poll(&mut noop_context()).is_pending());
        *slot_mut(&mut self.sleeps, entry) = Some(sleep);
    }

    fn rearm(&mut self, entry: u32, after: u32) {
        let deadline = time::Instant::now() + millis(after);
        self.sleep(entry).reset(deadline);
    }

    fn cancel(&mut self, entry: u32) {
        self.sleeps[entry as usize] = None;
    }

    fn tick(&mut self, due: &[(u32, u32)]) {
        self.runtime.block_on(advance(TICK));
        for &(entry, _) in due {
            assert!(self.sleep(entry).poll(&mut noop_context()).is_ready());
        }
    }

    fn put_back(&mut self, entry: u32, after: u32) {
        self.rearm(entry, after);
        assert!(self.sleep(entry).poll(&mut noop_context()).is_pending());
    }
}

/// Returns the slot of `entry`. New entries must be inserted in order.
fn slot_mut<T>(slots: &mut Vec<Option<T>>, entry: u32) -> &mut Option<T> {
    if slots.len() == entry as usize {
        slots.push(None);
    }
    &mut slots[entry as usize]
}

fn millis(count: u32) -> Duration {
    Duration::from_millis(count.into())
}

fn noop_context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
