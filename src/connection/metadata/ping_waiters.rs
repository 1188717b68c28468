//! The tasks that await the pong of a requested ping.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::eviction::ConnectionId;
use crate::monitor::{Answer, Moment};
use crate::panic_guard;

/// The calls of [`Liveness::ping`](crate::Liveness::ping) that are not answered yet. A connection
/// has one from the first call on.
#[derive(Debug, Default)]
pub(crate) struct PingWaiters {
    waiting: Vec<PingWaiter>,
    /// Notified once the lock is released.
    answered: Vec<(oneshot::Sender<Duration>, Duration)>,
}

#[derive(Debug)]
struct PingWaiter {
    /// The sequence number of the awaited pong. A later one answers too, since peers may answer
    /// only the latest ping (RFC 6455 section 5.5.3).
    sequence: u32,
    since: Moment,
    answer: oneshot::Sender<Duration>,
}

impl PingWaiters {
    pub(crate) fn add(&mut self, sequence: u32, since: Moment) -> oneshot::Receiver<Duration> {
        // Cancelled calls are removed here, so that they do not pile up. They are dropped without
        // the lock, like the others, since they may own a waker.
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (gone, waiting): (Vec<_>, _) = waiting.partition(|waiter| waiter.answer.is_closed());
        self.waiting = waiting;
        let gone = gone.into_iter();
        self.answered
            .extend(gone.map(|waiter| (waiter.answer, Duration::ZERO)));
        let (answer, receiver) = oneshot::channel();
        self.waiting.push(PingWaiter {
            sequence,
            since,
            answer,
        });
        receiver
    }

    /// The connection is open, and the first ping has this sequence number.
    pub(crate) fn begin(&mut self, sequence: u32, now: Moment) {
        for waiter in &mut self.waiting {
            waiter.sequence = sequence;
            waiter.since = now;
        }
    }

    /// A pong to one of our pings came.
    pub(crate) fn answer(&mut self, now: Moment, answer: Answer) {
        let mut index = 0;
        while let Some(waiter) = self.waiting.get(index) {
            if waiter.sequence > answer.sequence {
                index += 1;
                continue;
            }
            let waiter = self.waiting.swap_remove(index);
            // If the moment of the flush is unknown, it was after the call.
            let rtt = answer.rtt.unwrap_or_else(|| now.since(waiter.since));
            self.answered.push((waiter.answer, rtt));
        }
    }

    /// The ping with this sequence number was flushed.
    pub(crate) fn flushed(&mut self, sequence: u32, now: Moment) {
        for waiter in &mut self.waiting {
            if waiter.sequence == sequence {
                waiter.since = now;
            }
        }
    }

    pub(crate) fn has_waiting(&self) -> bool {
        let mut ping_waiters = self.waiting.iter();
        ping_waiters.any(|waiter| !waiter.answer.is_closed())
    }

    pub(crate) fn has_answers(&self) -> bool {
        !self.answered.is_empty()
    }

    pub(crate) fn take_answers(&mut self) -> Self {
        Self {
            waiting: Vec::new(),
            answered: std::mem::take(&mut self.answered),
        }
    }

    /// Notifies the answered calls, and fails the others by dropping them. The waiter holds no
    /// lock.
    pub(crate) fn notify(self, id: ConnectionId) {
        for (waiter, rtt) in self.answered {
            // A cancelled call needs no answer.
            panic_guard::wake(id, || {
                let _ = waiter.send(rtt);
            });
        }
        for waiter in self.waiting {
            panic_guard::wake(id, || drop(waiter));
        }
    }
}
