//! Graceful shutdown: everybody is told to go, in batches, waited for, and cut in the end.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use super::Registry;
use crate::config_error;
use crate::connection::Liveness;
use crate::eviction::ConnectionId;
use crate::monitor::{CloseFrame, Reason};

/// After so many connections in a row the executor's other tasks run.
const BREATH: usize = 64;

/// tokio's timer rounds a sleep up to whole milliseconds.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// How [`Registry::drain`] goes about it.
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::Drain;
///
/// let drain = Drain {
///     deadline: Duration::from_secs(10),
///     ..Drain::default()
/// };
/// # assert_eq!(drain.code, 1001);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The status code of the Close frames: 1001, going away, by default (RFC 6455 section 7.4.1).
    /// A code that must not be sent is replaced by 1011, as by
    /// [`Liveness::evict`](crate::Liveness::evict).
    pub code: u16,
    /// How many connections are closed before the first pause, and between two: 100 by default. 0 is
    /// taken as 1.
    ///
    /// Every connection is evicted within the first half of the deadline, so batches are larger if the
    /// pauses would not fit into it: with the defaults, for more than 15,000 connections.
    pub batch: usize,
    /// The time between two batches: 100 ms by default. Each pause lasts at random from half of this
    /// to one and a half, so that the clients do not all come back in step, and less if the first
    /// half of the deadline would otherwise end before the last batch. At zero there is no pause, but other
    /// tasks still get their turn.
    pub pause: Duration,
    /// The time for all of it: 30 s by default. What is not closed by then is cut; at zero,
    /// everything is. More than 365 days are taken as that.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            code: 1001,
            batch: 100,
            pause: Duration::from_millis(100),
            deadline: Duration::from_secs(30),
        }
    }
}

impl Drain {
    /// How many of `count` connections are evicted between two pauses, so that the pauses fit into the
    /// first half of the deadline.
    fn batch_of(&self, count: usize) -> usize {
        if self.pause.is_zero() {
            return self.batch.max(1);
        }
        let pauses = self.deadline.as_nanos() / 2 / self.pause.max(TIMER_STEP).as_nanos();
        let pauses = usize::try_from(pauses).unwrap_or(usize::MAX);
        let needed = count.div_ceil(pauses.saturating_add(1));
        self.batch.max(needed).max(1)
    }

    /// Draws a pause so that `pauses` (at least 1) of them fit into `budget` at any random value.
    fn pause_within(&self, budget: Duration, pauses: usize) -> Duration {
        // Reserves half a mean pause, because the last pause may last one and a half of it.
        let mean = self.pause.min(budget.div_f64(pauses as f64 + 0.5));
        mean / 2 + mean.mul_f64(fastrand::f64())
    }
}

/// What became of the connections that [`Registry::drain`] came to, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    clean: usize,
    cut: usize,
    already_gone: usize,
}

impl DrainReport {
    /// Connections whose closing handshake was completed (RFC 6455 section 7.1.4): both sides sent
    /// their Close frame, and the transport was shut down.
    #[must_use]
    pub const fn clean(&self) -> usize {
        self.clean
    }

    /// Connections whose transport was dropped without that: the deadline or their `close_timeout`
    /// came first, the peer was dead, the transport failed, or no Close frame could be sent because
    /// the handler was in the middle of a frame, or the framing was malformed.
    #[must_use]
    pub const fn cut(&self) -> usize {
        self.cut
    }

    /// Connections that it found, and that somebody else has ended: for another reason, for another
    /// drain, or, because a drain was under way, as they opened.
    #[must_use]
    pub const fn already_gone(&self) -> usize {
        self.already_gone
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.clean + self.cut + self.already_gone
    }
}

impl Registry {
    /// Ends all connections for [`Reason::Drained`], and waits until they are closed.
    ///
    /// 1. Upgrades are refused from now on, as by [`begin_drain`](Self::begin_drain). That is never
    ///    taken back.
    /// 2. The live connections are closed in batches, in the order in which they came, all within the
    ///    first half of the deadline. Each is evicted: its hooks are called, its handler's reads and writes
    ///    fail, and its peer gets a Close frame (RFC 6455 section 5.5.1). A connection that is in the middle
    ///    of a frame which its handler writes is evicted after that frame, so that no message is torn, as
    ///    long as the deadline allows. (A message whose *fragments* the handler writes is not waited for.)
    /// 3. Their closing handshakes are waited for, each at most for the `close_timeout` of its layer,
    ///    and so is whatever else keeps [`wait_idle`](Self::wait_idle) from returning, handshakes
    ///    that were let in before among it.
    /// 4. At the deadline everything that is left is cut. Peers that were not told yet get their
    ///    Close frame if their transport takes it at once.
    ///
    /// When this returns, the registry is empty, the transports of all connections that were in it
    /// are gone, and the hooks of those that the drain has ended have returned. After the deadline
    /// two things may be left: the transport of a connection that had ended before the drain came, or
    /// ended as it opened, within its `close_timeout`; and a handshake that was let in before
    /// and is not answered yet. If it is later, the connection ends as it opens, and its peer is told
    /// `code` as well.
    ///
    /// The handlers are not asked, and what they have not written yet is not sent. To let them finish
    /// first call [`begin_drain`](Self::begin_drain), wait with [`wait_idle`](Self::wait_idle) for as
    /// long as seems right, and drain whoever is left.
    ///
    /// Hooks run inside this call, as in [`Liveness::evict`](crate::Liveness::evict): one that blocks
    /// delays all later evictions, and the deadline. The pauses are shortened by the time that hooks take;
    /// if hooks alone take more than half of the deadline, the last connections are evicted after it.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it returns, the drain has closed some connections, whose closing handshakes go
    /// on; the others live on, and upgrades stay refused. Drain again to go on. Two drains may be
    /// under way at once: each connection is told once, one of them counts it as closed and the
    /// other, if it came to it, as already gone, and the earlier deadline cuts for both.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    pub async fn drain(&self, drain: Drain) -> DrainReport {
        let drain = Drain {
            deadline: drain.deadline.min(config_error::MAX_DURATION),
            ..drain
        };
        let begun = Instant::now();
        let deadline = begun + drain.deadline;
        self.shared.gate.say(drain.code);
        self.begin_drain();
        let mut run = Run {
            registry: self,
            drain,
            begun,
            paused: Duration::ZERO,
            seen: HashSet::new(),
            told: Vec::new(),
            report: DrainReport::default(),
        };
        // Without time, nobody is given any.
        if drain.deadline.is_zero() || timeout_at(deadline, run.gently()).await.is_err() {
            run.cut_all().await;
            run.all_closed().await;
        }
        run.report
    }
}

/// One call of [`Registry::drain`].
struct Run<'a> {
    registry: &'a Registry,
    drain: Drain,
    begun: Instant,
    /// The time that was spent in pauses.
    paused: Duration,
    /// Whom it has come to.
    seen: HashSet<ConnectionId>,
    /// Whom it has told, and not counted yet.
    told: Vec<Liveness>,
    report: DrainReport,
}

impl Run<'_> {
    /// All of it, as long as it takes.
    async fn gently(&mut self) {
        self.tell_all().await;
        self.all_closed().await;
        self.registry.wait_idle().await;
    }

    /// Tells everybody, in batches. Also whoever opens meanwhile.
    async fn tell_all(&mut self) {
        let mut fresh = self.fresh();
        let batch = self.drain.batch_of(fresh.len());
        let mut room = batch;
        while !fresh.is_empty() {
            let all = fresh.len();
            for (count, live) in fresh.into_iter().enumerate() {
                if room == 0 {
                    self.pause(all - count, batch).await;
                    room = batch;
                }
                breathe(count).await;
                if self.tell(live) {
                    room -= 1;
                }
            }
            fresh = self.fresh();
        }
    }

    /// The live connections that this drain has not come to.
    fn fresh(&self) -> Vec<Liveness> {
        let mut handles = self.registry.handles();
        handles.retain(|live| !self.seen.contains(&live.id()));
        handles.sort_unstable_by_key(Liveness::id);
        handles
    }

    /// False if it has ended already, or is about to end.
    fn tell(&mut self, live: Liveness) -> bool {
        self.seen.insert(live.id());
        // First of all, so that there is no moment in which another drain could not cut it.
        self.registry.leaving().enter(live.clone());
        let told = live.evict_at_boundary(Reason::Drained, goodbye(self.drain.code));
        if told {
            self.told.push(live);
        } else {
            self.report.already_gone += 1;
        }
        told
    }

    /// Pauses before the next batch, given how many connections are still to be evicted.
    async fn pause(&mut self, left: usize, batch: usize) {
        let before = Instant::now();
        let elapsed = before - self.begun;
        // Hooks and other tasks are assumed to take as long per connection as they did so far.
        let each = (elapsed.saturating_sub(self.paused)).div_f64(self.seen.len() as f64);
        let budget = (self.drain.deadline / 2)
            .saturating_sub(elapsed + TIMER_STEP)
            .saturating_sub(each.mul_f64(left as f64));
        let pause = self.drain.pause_within(budget, left.div_ceil(batch));
        if pause.is_zero() {
            yield_now().await;
        } else {
            sleep(pause).await;
            self.paused += before.elapsed();
        }
    }

    /// Waits until the transports of all who were told are gone, and counts them.
    async fn all_closed(&mut self) {
        // One after the other: they go on meanwhile. Who was waited for in vain stays in the list.
        while let Some(live) = self.told.last() {
            let clean = live.until_transport_closed().await;
            // The end may have come from elsewhere before the handler had finished its frame.
            let drained = live.evicted().await.reason() == Reason::Drained;
            match (drained, clean) {
                (false, _) => self.report.already_gone += 1,
                (true, true) => self.report.clean += 1,
                (true, false) => self.report.cut += 1,
            }
            self.told.pop();
        }
    }

    /// Cuts everybody, whichever drain has told them.
    async fn cut_all(&mut self) {
        // In this order: whom another drain tells is among the leaving before it ends.
        let mut fresh = self.fresh();
        for (count, live) in self.registry.leaving().open().into_iter().enumerate() {
            breathe(count).await;
            live.cut();
        }
        while !fresh.is_empty() {
            for (count, live) in fresh.into_iter().enumerate() {
                breathe(count).await;
                self.tell(live.clone());
                live.cut();
            }
            fresh = self.fresh();
        }
    }
}

/// The Close frame of a drain.
pub(super) fn goodbye(code: u16) -> CloseFrame {
    CloseFrame {
        code: config_error::on_wire(code),
        reason: "server is going away".into(),
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // Also of a drain that is given up.
        self.registry.leaving().forget_closed();
    }
}

/// Lets others run now and then, given how many were dealt with before.
async fn breathe(count: usize) {
    if count % BREATH == BREATH - 1 {
        yield_now().await;
    }
}

/// The connections that a drain has come to, until they are closed: they are no longer among the
/// live ones, and a deadline that comes has to find them, be it that of another drain.
#[derive(Default)]
pub(super) struct Leaving {
    connections: Mutex<HashMap<ConnectionId, Liveness>>,
}

impl Leaving {
    fn enter(&self, live: Liveness) {
        // Whoever is in it already is the same; a handle's last clone is not dropped under the lock.
        let _known = self.lock().insert(live.id(), live);
    }

    /// Those whose transport is still there.
    fn open(&self) -> Vec<Liveness> {
        let mut handles: Vec<_> = self.lock().values().cloned().collect();
        handles.retain(|live| !live.is_transport_closed());
        handles
    }

    fn forget_closed(&self) {
        let handles: Vec<_> = self.lock().values().cloned().collect();
        let closed = handles.iter().filter(|live| live.is_transport_closed());
        let mut forgotten = Vec::new();
        {
            let mut connections = self.lock();
            forgotten.extend(closed.filter_map(|live| connections.remove(&live.id())));
        }
        // Dropped after the lock was given back: a session value may hang on it.
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Liveness>> {
        // Nothing foreign runs under this lock, and a map is whole between two calls into it.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::HeartbeatLayer;

    #[test]
    fn batches_grow_so_that_all_are_told_in_half_of_the_time() {
        let millis = Duration::from_millis;
        let table = [
            // With the defaults there is room for 150 pauses.
            (Drain::default(), 15_100, 100),
            (Drain::default(), 15_101, 101),
            (Drain::default(), 100_000, 663),
            (Drain::default(), 0, 100),
        ];
        for (drain, count, batch) in table {
            assert_eq!(drain.batch_of(count), batch, "{count}");
        }
        let drain = |batch, pause, deadline| Drain {
            batch,
            pause: millis(pause),
            deadline: millis(deadline),
            ..Drain::default()
        };
        assert_eq!(drain(0, 10, 1_000).batch_of(5), 1);
        assert_eq!(drain(1, 1_000, 1_600).batch_of(52), 52, "no pause fits");
        assert_eq!(drain(7, 0, 1_000).batch_of(1_000_000), 7, "no pauses");
        assert_eq!(drain(1, 0, 0).batch_of(10), 1, "no pauses");
        let endless = Drain {
            deadline: Duration::MAX,
            ..drain(1, 1, 0)
        };
        assert_eq!(endless.batch_of(1_000_000), 1);
        // The timer makes a millisecond of it.
        let short = Drain {
            pause: Duration::from_nanos(1),
            ..drain(1, 0, 1_000)
        };
        assert_eq!(short.batch_of(5_010), 10);
    }

    #[test]
    fn pauses_fit_into_their_budget_however_they_turn_out() {
        let drain = Drain::default();
        let millis = Duration::from_millis;
        for pauses in [1, 2, 3, 150] {
            for budget in [0, 1, 70, 15_000, 1_000_000].map(millis) {
                let mut left = budget;
                for pauses in (1..=pauses).rev() {
                    let pause = drain.pause_within(left, pauses);
                    assert!(pause <= millis(150), "{pause:?}");
                    left = left.checked_sub(pause).expect("no more than was left");
                }
                if budget > millis(150) * pauses as u32 {
                    let pause = drain.pause_within(budget, pauses);
                    assert!(pause >= millis(50), "{pause:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_kept_in_mind_who_is_gone() {
        let layer = HeartbeatLayer::default();
        let registry = layer.registry();
        let _pairs = [(); 3].map(|()| {
            let (ours, theirs) = duplex(64);
            (layer.wrap_server(ours), theirs)
        });
        let cancelled = tokio::time::timeout(Duration::ZERO, registry.drain(Drain::default()));
        assert!(cancelled.await.is_err());
        assert_eq!(registry.leaving().open().len(), 3);
        let deadline = Duration::from_secs(1);
        let drain = Drain {
            deadline,
            ..Drain::default()
        };
        // It came to nobody itself, and yet the first one's were cut at its deadline.
        assert_eq!(registry.drain(drain).await, DrainReport::default());
        assert!(registry.leaving().open().is_empty());
        assert!(registry.leaving().lock().is_empty());
    }
}
