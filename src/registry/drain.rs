//! Graceful shutdown: evicts all connections in batches and cuts the rest at a deadline.

use std::borrow::Cow;
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

/// The drain yields to the executor after this many connections in a row.
const CONNECTIONS_PER_YIELD: usize = 64;

/// tokio's timer rounds a sleep up to whole milliseconds.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// The Close frame of a drain by default (RFC 6455 section 7.4.1).
pub(super) const GOING_AWAY: CloseFrame = CloseFrame {
    code: 1001,
    reason: Cow::Borrowed("server is going away"),
};

/// The settings of [`Registry::drain`].
///
/// ```
/// use std::time::Duration;
///
/// use tower_ws_liveness::Drain;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let registry = tower_ws_liveness::Registry::new();
/// // The orchestrator kills the process after 15 s.
/// let drain = Drain::default()
///     .deadline(Duration::from_secs(10))
///     .reason("a new version is deployed");
/// registry.drain(drain).await;
/// assert!(registry.is_empty());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "settings do nothing until they are passed to `Registry::drain`"]
pub struct Drain {
    /// The status code of the Close frames. Default: 1001, going away (RFC 6455 section 7.4.1).
    /// A code that must not be sent is replaced by 1011, as by
    /// [`Liveness::evict`](crate::Liveness::evict).
    pub code: u16,
    /// The text of the Close frames. Default: "server is going away". A text of more than 123 bytes
    /// is cut at the last character that fits.
    pub reason: Cow<'static, str>,
    /// The number of connections that are evicted before the first pause, and between two pauses.
    /// Default: 100. 0 counts as 1.
    ///
    /// Every connection is evicted within the first half of the deadline, so batches are larger if
    /// the pauses would not fit into it: with the defaults, for more than 15,000 connections.
    pub batch: usize,
    /// The mean time between two batches. Default: 100 ms. Each pause lasts a random time between
    /// half of this and one and a half times this, so that the clients do not reconnect in step. It
    /// is shorter if the first half of the deadline would otherwise end before the last batch. With
    /// zero there is no pause, but the drain still yields to other tasks.
    pub pause: Duration,
    /// The total time. Default: 30 s. Connections that are not closed by then are cut; with zero,
    /// all connections are. Values above 365 days count as 365 days.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            code: GOING_AWAY.code,
            reason: GOING_AWAY.reason,
            batch: 100,
            pause: Duration::from_millis(100),
            deadline: Duration::from_secs(30),
        }
    }
}

impl Drain {
    /// Sets [`code`](Self::code).
    pub fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// Sets [`reason`](Self::reason).
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into().into();
        self
    }

    /// Sets [`batch`](Self::batch).
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Sets [`pause`](Self::pause).
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets [`deadline`](Self::deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The Close frame, with a code that may be sent.
    fn close_frame(&self) -> CloseFrame {
        CloseFrame {
            code: config_error::on_wire(self.code),
            reason: self.reason.clone(),
        }
    }

    /// The batch size for `count` connections with which the pauses fit into the first half of the
    /// deadline.
    fn batch_size(&self, count: usize) -> usize {
        if self.pause.is_zero() {
            return self.batch.max(1);
        }
        let pauses = self.deadline.as_nanos() / 2 / self.pause.max(TIMER_STEP).as_nanos();
        let pauses = usize::try_from(pauses).unwrap_or(usize::MAX);
        let needed = count.div_ceil(pauses.saturating_add(1));
        self.batch.max(needed).max(1)
    }

    /// Draws a random pause such that `pauses` (at least 1) of them always fit into `budget`.
    fn pause_within(&self, budget: Duration, pauses: usize) -> Duration {
        // Reserves half a mean pause, because the last pause may last one and a half times the
        // mean.
        let mean = self.pause.min(budget.div_f64(pauses as f64 + 0.5));
        mean / 2 + mean.mul_f64(fastrand::f64())
    }
}

/// The result of [`Registry::drain`]. Each connection that the drain found is counted once.
///
/// ```
/// use futures_util::StreamExt;
/// use tokio::io::duplex;
/// use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
/// use tower_ws_liveness::{Drain, HeartbeatLayer};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let (io, peer) = duplex(1024);
/// let (_io, _live) = layer.wrap_server(io);
/// tokio::spawn(async move {
///     let mut client = WebSocketStream::from_raw_socket(peer, Role::Client, None).await;
///     while client.next().await.is_some() {} // answers the Close frame
/// });
///
/// let report = layer.registry().drain(Drain::default()).await;
/// println!("{} of {} connections were cut", report.cut(), report.total());
/// assert_eq!((report.clean(), report.total()), (1, 1));
/// # }
/// ```
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

    /// Connections whose transport was dropped without a completed closing handshake: the deadline
    /// or their `close_timeout` expired, the peer was dead, the transport failed, or no Close frame
    /// could be sent because the handler was in the middle of a frame or the framing was malformed.
    #[must_use]
    pub const fn cut(&self) -> usize {
        self.cut
    }

    /// Connections that the drain found but did not end: they ended for another reason, through
    /// another drain, or, because a drain was in progress, as they opened.
    #[must_use]
    pub const fn already_gone(&self) -> usize {
        self.already_gone
    }

    /// The number of connections that the drain found: the sum of the other three.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.clean + self.cut + self.already_gone
    }
}

impl Registry {
    /// Evicts all connections with [`Reason::Drained`] and waits until their transports are closed.
    ///
    /// 1. Upgrades are refused from now on, as by [`begin_drain`](Self::begin_drain). This cannot
    ///    be undone.
    /// 2. The open connections are evicted in batches, oldest first, all within the first half of
    ///    the deadline. An eviction calls the connection's hooks, fails its handler's reads and
    ///    writes, and sends its peer a Close frame (RFC 6455 section 5.5.1). If the handler has
    ///    written part of a frame, the connection is evicted after that frame, so that no message
    ///    is torn, provided that the frame ends before the deadline. (The drain does not wait for
    ///    the remaining *fragments* of a message.)
    /// 3. The drain waits for the closing handshakes, each for at most the `close_timeout` of its
    ///    layer, and for everything else that keeps [`wait_idle`](Self::wait_idle) from returning,
    ///    including handshakes that were admitted before.
    /// 4. At the deadline every remaining connection is cut: its transport is dropped. A peer that
    ///    was not sent a Close frame yet gets one if the transport accepts it immediately.
    ///
    /// When this returns, the registry is empty, the transports of all connections that were in it
    /// are dropped, and the hooks of the connections that this drain ended have returned. After the
    /// deadline two things may remain: the transport of a connection that had ended before the
    /// drain found it, or ended as it opened, for at most its `close_timeout`; and a handshake that
    /// was admitted before and has no response yet. If such a handshake completes later, the
    /// connection ends as it opens, and its peer gets the Close frame of this drain as well.
    ///
    /// Handlers are not asked first: data that they have not written yet is not sent. To let them
    /// finish, call [`begin_drain`](Self::begin_drain), wait in [`wait_idle`](Self::wait_idle) for
    /// as long as is acceptable, and then drain the remaining connections.
    ///
    /// Hooks run inside this call, as in [`Liveness::evict`](crate::Liveness::evict): a hook that
    /// blocks delays all later evictions, and the deadline. The pauses are shortened by the time
    /// that hooks take; if the hooks alone take more than half of the deadline, the last
    /// connections are evicted after that half.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the closing handshakes of the connections that
    /// were evicted continue, the other connections stay open, and upgrades stay refused. Call
    /// `drain` again to continue. Two drains may run at the same time: each connection is evicted
    /// once; one drain counts it as clean or cut, the other, if it found it, as already gone; and
    /// the earlier deadline cuts the connections of both.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime with time enabled.
    pub async fn drain(&self, drain: Drain) -> DrainReport {
        let drain = Drain {
            deadline: drain.deadline.min(config_error::MAX_DURATION),
            ..drain
        };
        let started = Instant::now();
        let deadline = started + drain.deadline;
        let close_frame = drain.close_frame();
        self.state.admission.set_close_frame(close_frame.clone());
        self.begin_drain();
        let mut run = DrainRun {
            registry: self,
            drain,
            close_frame,
            started,
            paused: Duration::ZERO,
            found: HashSet::new(),
            closing: Vec::new(),
            report: DrainReport::default(),
        };
        // `timeout_at` polls the future once even if the deadline has passed, hence the first
        // check.
        if deadline == started || timeout_at(deadline, run.run_gracefully()).await.is_err() {
            run.cut_all().await;
            run.wait_closed().await;
        }
        run.report
    }
}

/// One call of [`Registry::drain`].
struct DrainRun<'a> {
    registry: &'a Registry,
    drain: Drain,
    close_frame: CloseFrame,
    started: Instant,
    /// The time spent in pauses.
    paused: Duration,
    /// The connections that this drain has found.
    found: HashSet<ConnectionId>,
    /// The connections that this drain ends and that are not in the report yet.
    closing: Vec<Liveness>,
    report: DrainReport,
}

impl DrainRun<'_> {
    /// Runs the drain without a time limit.
    async fn run_gracefully(&mut self) {
        self.evict_all().await;
        self.wait_closed().await;
        self.registry.wait_idle().await;
    }

    /// Evicts all connections in batches, including those that open meanwhile.
    async fn evict_all(&mut self) {
        let mut pending = self.not_yet_found();
        let batch = self.drain.batch_size(pending.len());
        let mut left_in_batch = batch;
        while !pending.is_empty() {
            let total = pending.len();
            for (processed, live) in pending.into_iter().enumerate() {
                if left_in_batch == 0 {
                    self.pause(total - processed, batch).await;
                    left_in_batch = batch;
                }
                yield_periodically(processed).await;
                if self.evict(live) {
                    left_in_batch -= 1;
                }
            }
            pending = self.not_yet_found();
        }
    }

    /// The open connections that this drain has not found yet, oldest first.
    fn not_yet_found(&self) -> Vec<Liveness> {
        let mut handles = self.registry.handles();
        handles.retain(|live| !self.found.contains(&live.id()));
        handles.sort_unstable_by_key(Liveness::id);
        handles
    }

    /// Evicts a connection after the handler's current frame. Returns false if it has ended
    /// already, or its end is already requested.
    fn evict(&mut self, live: Liveness) -> bool {
        self.found.insert(live.id());
        // Inserted before the eviction, so that another drain can cut it at any time.
        self.registry.draining_connections().insert(live.clone());
        let is_ours = live.evict_at_boundary(Reason::Drained, self.close_frame.clone());
        if is_ours {
            self.closing.push(live);
        } else {
            self.report.already_gone += 1;
        }
        is_ours
    }

    /// Pauses before the next batch. `left` is the number of connections that are not evicted yet.
    async fn pause(&mut self, left: usize, batch: usize) {
        let now = Instant::now();
        let elapsed = now - self.started;
        // Assumes that hooks and other tasks take as long per connection as they did so far.
        let per_connection = elapsed
            .saturating_sub(self.paused)
            .div_f64(self.found.len() as f64);
        let budget = (self.drain.deadline / 2)
            .saturating_sub(elapsed + TIMER_STEP)
            .saturating_sub(per_connection.mul_f64(left as f64));
        let pause = self.drain.pause_within(budget, left.div_ceil(batch));
        if pause.is_zero() {
            yield_now().await;
        } else {
            sleep(pause).await;
            self.paused += now.elapsed();
        }
    }

    /// Waits until the transports of all connections in `closing` are closed, and counts them.
    async fn wait_closed(&mut self) {
        // Waits for one after the other; the others close meanwhile. An entry leaves the list only
        // after it is counted, so a wait that the deadline cancels is repeated after the cut.
        while let Some(live) = self.closing.last() {
            let clean = live.until_transport_closed().await;
            // The connection may have ended for another reason before the handler's frame ended.
            let drained = live.evicted().await.reason() == Reason::Drained;
            match (drained, clean) {
                (false, _) => self.report.already_gone += 1,
                (true, true) => self.report.clean += 1,
                (true, false) => self.report.cut += 1,
            }
            self.closing.pop();
        }
    }

    /// Cuts all connections, including those that other drains end.
    async fn cut_all(&mut self) {
        // In this order: a connection that another drain evicts enters `draining_connections`
        // before it leaves the set of live ones, so one of the two lists has it.
        let mut pending = self.not_yet_found();
        let draining = self.registry.draining_connections().open();
        for (processed, live) in draining.into_iter().enumerate() {
            yield_periodically(processed).await;
            live.cut();
        }
        while !pending.is_empty() {
            for (processed, live) in pending.into_iter().enumerate() {
                yield_periodically(processed).await;
                self.evict(live.clone());
                live.cut();
            }
            pending = self.not_yet_found();
        }
    }
}

impl Drop for DrainRun<'_> {
    fn drop(&mut self) {
        // In `drop`, so that a cancelled drain does it too.
        self.registry.draining_connections().remove_closed();
    }
}

/// Yields to other tasks after every [`CONNECTIONS_PER_YIELD`] connections.
pub(super) async fn yield_periodically(processed: usize) {
    if processed % CONNECTIONS_PER_YIELD == CONNECTIONS_PER_YIELD - 1 {
        yield_now().await;
    }
}

/// The connections that a drain has evicted and whose transport may still be open.
///
/// They are no longer in the set of open connections, but a deadline must find them, also that of
/// another drain.
#[derive(Default)]
pub(super) struct DrainingConnections {
    connections: Mutex<HashMap<ConnectionId, Liveness>>,
}

impl DrainingConnections {
    fn insert(&self, live: Liveness) {
        // A replaced handle is one of the same connection, so this does not drop its last handle
        // under the lock.
        let _replaced = self.lock().insert(live.id(), live);
    }

    /// The connections whose transport is still open.
    fn open(&self) -> Vec<Liveness> {
        let mut handles: Vec<_> = self.lock().values().cloned().collect();
        handles.retain(|live| !live.is_transport_closed());
        handles
    }

    fn remove_closed(&self) {
        let handles: Vec<_> = self.lock().values().cloned().collect();
        let closed = handles.iter().filter(|live| live.is_transport_closed());
        let mut removed = Vec::new();
        {
            let mut connections = self.lock();
            removed.extend(closed.filter_map(|live| connections.remove(&live.id())));
        }
        // Dropped with the lock released: a handle may be the last owner of a session value, whose
        // `Drop` is application code.
        drop(removed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Liveness>> {
        // No application code runs under this lock, so a poisoned one still holds a consistent map.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DrainingConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainingConnections")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::HeartbeatLayer;

    #[test]
    fn batches_grow_so_that_all_are_evicted_within_half_of_the_deadline() {
        let millis = Duration::from_millis;
        let table = [
            // With the defaults 150 pauses fit.
            (Drain::default(), 15_100, 100),
            (Drain::default(), 15_101, 101),
            (Drain::default(), 100_000, 663),
            (Drain::default(), 0, 100),
        ];
        for (drain, count, batch) in table {
            assert_eq!(drain.batch_size(count), batch, "{count}");
        }
        let drain = |batch, pause, deadline| {
            let drain = Drain::default().batch(batch);
            drain.pause(millis(pause)).deadline(millis(deadline))
        };
        assert_eq!(drain(0, 10, 1_000).batch_size(5), 1);
        assert_eq!(drain(1, 1_000, 1_600).batch_size(52), 52, "no pause fits");
        assert_eq!(drain(7, 0, 1_000).batch_size(1_000_000), 7, "no pauses");
        assert_eq!(drain(1, 0, 0).batch_size(10), 1, "no pauses");
        let endless = drain(1, 1, 0).deadline(Duration::MAX);
        assert_eq!(endless.batch_size(1_000_000), 1);
        // The timer rounds this pause up to a millisecond.
        let short = drain(1, 0, 1_000).pause(Duration::from_nanos(1));
        assert_eq!(short.batch_size(5_010), 10);
    }

    #[test]
    fn random_pauses_always_fit_into_their_budget() {
        let drain = Drain::default();
        let millis = Duration::from_millis;
        for pauses in [1, 2, 3, 150] {
            for budget in [0, 1, 70, 15_000, 1_000_000].map(millis) {
                let mut left = budget;
                for pauses in (1..=pauses).rev() {
                    let pause = drain.pause_within(left, pauses);
                    assert!(pause <= millis(150), "{pause:?}");
                    left = left.checked_sub(pause).expect("a pause fits into the rest");
                }
                if budget > millis(150) * pauses as u32 {
                    let pause = drain.pause_within(budget, pauses);
                    assert!(pause >= millis(50), "{pause:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closed_connections_are_removed_and_a_cancelled_drain_is_cut_by_the_next() {
        let layer = HeartbeatLayer::default();
        let registry = layer.registry();
        let _pairs = [(); 3].map(|()| {
            let (ours, theirs) = duplex(64);
            (layer.wrap_server(ours), theirs)
        });
        let cancelled = tokio::time::timeout(Duration::ZERO, registry.drain(Drain::default()));
        assert!(cancelled.await.is_err());
        assert_eq!(registry.draining_connections().open().len(), 3);
        let drain = Drain::default().deadline(Duration::from_secs(1));
        // The second drain finds no open connection, and still cuts those of the first.
        assert_eq!(registry.drain(drain).await, DrainReport::default());
        assert!(registry.draining_connections().open().is_empty());
        assert!(registry.draining_connections().lock().is_empty());
    }
}
