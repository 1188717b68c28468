//! Who waits for the pong of a ping on demand.

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
    /// Answered, and to be told so as soon as the lock is given back.
    answered: Vec<(oneshot::Sender<Duration>, Duration)>,
}

#[derive(Debug)]
struct PingWaiter {
    /// The sequence number of the ping whose pong is awaited; that of a later one will do, since
    /// peers may answer only the latest (RFC 6455 section 5.5.3).
    sequence: u32,
    since: Moment,
    answer: oneshot::Sender<Duration>,
}

impl PingWaiters {
    pub(crate) fn add(&mut self, sequence: u32, since: Moment) -> oneshot::Receiver<Duration> {
        // Those who gave up are let go of here, so that they do not pile up; like the others after
        // the lock was given back, since a waker of theirs may hang on it.
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (gone, waiting): (Vec<_>, _) = waiting.partition(|caller| caller.answer.is_closed());
        self.waiting = waiting;
        let gone = gone.into_iter();
        self.answered
            .extend(gone.map(|caller| (caller.answer, Duration::ZERO)));
        let (answer, receiver) = oneshot::channel();
        self.waiting.push(PingWaiter {
            sequence,
            since,
            answer,
        });
        receiver
    }

    /// The connection is open now, and this is the first ping that will go out.
    pub(crate) fn begin(&mut self, sequence: u32, now: Moment) {
        for caller in &mut self.waiting {
            caller.sequence = sequence;
            caller.since = now;
        }
    }

    /// A pong of ours came.
    pub(crate) fn answer(&mut self, now: Moment, answer: Answer) {
        let mut index = 0;
        while let Some(caller) = self.waiting.get(index) {
            if caller.sequence > answer.sequence {
                index += 1;
                continue;
            }
            let caller = self.waiting.swap_remove(index);
            // Where it is not known when the ping went out, it was not before the call.
            let rtt = answer.rtt.unwrap_or_else(|| now.since(caller.since));
            self.answered.push((caller.answer, rtt));
        }
    }

    /// The ping of this sequence number was handed to the transport.
    pub(crate) fn flushed(&mut self, sequence: u32, now: Moment) {
        for caller in &mut self.waiting {
            if caller.sequence == sequence {
                caller.since = now;
            }
        }
    }

    pub(crate) fn any(&self) -> bool {
        let mut ping_waiters = self.waiting.iter();
        ping_waiters.any(|caller| !caller.answer.is_closed())
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

    /// Wakes those who were answered. The others, if they are still here, wait in vain, and learn
    /// that by being dropped.
    pub(crate) fn tell(self, id: ConnectionId) {
        for (caller, rtt) in self.answered {
            // A caller that gave up needs no answer.
            panic_guard::wake(id, || {
                let _ = caller.send(rtt);
            });
        }
        for caller in self.waiting {
            panic_guard::wake(id, || drop(caller));
        }
    }
}
