//! One call of [`Registry::drain`]: evicts all connections, waits, and cuts the rest.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Drain, DrainReport, TIMER_STEP};
use crate::config_error;
use crate::connection::Liveness;
use crate::eviction::ConnectionId;
use crate::monitor::{CloseFrame, Reason};
use crate::registry::Registry;

/// The drain yields to the executor after this many connections in a row.
const CONNECTIONS_PER_YIELD: usize = 64;

/// One call of [`Registry::drain`].
pub(super) struct DrainRun<'a> {
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

impl<'a> DrainRun<'a> {
    /// Refuses upgrades from now on.
    pub(super) fn new(registry: &'a Registry, drain: Drain) -> Self {
        let started = Instant::now();
        let drain = Drain {
            deadline: drain.deadline.min(config_error::MAX_DURATION),
            ..drain
        };
        let close_frame = drain.close_frame();
        registry
            .state
            .admission
            .set_close_frame(close_frame.clone());
        registry.begin_drain();
        Self {
            registry,
            drain,
            close_frame,
            started,
            paused: Duration::ZERO,
            found: HashSet::new(),
            closing: Vec::new(),
            report: DrainReport::default(),
        }
    }

    pub(super) async fn run(mut self) -> DrainReport {
        let deadline = self.started + self.drain.deadline;
        // `timeout_at` polls the future once even if the deadline has passed, hence the first
        // check.
        if deadline == self.started || timeout_at(deadline, self.run_gracefully()).await.is_err() {
            self.cut_all().await;
            self.wait_closed().await;
        }
        self.report
    }

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
pub(in crate::registry) async fn yield_periodically(processed: usize) {
    if processed % CONNECTIONS_PER_YIELD == CONNECTIONS_PER_YIELD - 1 {
        yield_now().await;
    }
}
