//! Changes of health that wait for the health hooks.
//!
//! Only connections with health hooks have this. Health gets worse with time alone, and for it time
//! advances only at a visit of the driver, after the driver has read: so bytes that lie unread do
//! not make a peer look silent, and an operation of the handler needs no clock.

use std::collections::VecDeque;

use crate::monitor::{Health, Moment, Rtt, Stats};

/// How many changes may wait for slow hooks before the latest are merged.
const MAX_QUEUED_CHANGES: usize = 16;

#[derive(Debug)]
pub(crate) struct HealthEvents {
    /// The state after the last change, whether delivered or queued.
    health: Health,
    /// When the driver last read the transport.
    pub(crate) read_until: Moment,
    queue: VecDeque<QueuedChange>,
    /// A thread is calling hooks, and continues until the queue is empty.
    delivering: bool,
}

/// A change of health, without the connection's handle: that would keep the connection alive.
#[derive(Debug)]
pub(crate) struct QueuedChange {
    pub(crate) from: Health,
    pub(crate) to: Health,
    pub(crate) rtt: Option<Rtt>,
    pub(crate) stats: Stats,
}

impl HealthEvents {
    pub(crate) fn new() -> Self {
        Self {
            health: Health::Live,
            read_until: Moment::START,
            queue: VecDeque::new(),
            delivering: false,
        }
    }

    pub(crate) fn record_read(&mut self, now: Moment) {
        self.read_until = self.read_until.max(now);
    }

    /// Queues the change to `to`, if it is one.
    pub(crate) fn queue(&mut self, to: Health, rtt: Option<Rtt>, stats: Stats) {
        let mut from = self.health;
        if to == from {
            return;
        }
        self.health = to;
        if self.queue.len() == MAX_QUEUED_CHANGES {
            if let Some(last) = self.queue.pop_back() {
                from = last.from;
            }
        }
        if from != to {
            self.queue.push_back(QueuedChange {
                from,
                to,
                rtt,
                stats,
            });
        }
    }

    /// Whether the caller must deliver the queue.
    pub(crate) fn begin_delivery(&mut self) -> bool {
        let begin = !self.queue.is_empty() && !self.delivering;
        self.delivering |= begin;
        begin
    }

    /// The next change, for the thread that delivers them. `None` ends the delivery.
    pub(crate) fn next(&mut self) -> Option<QueuedChange> {
        let next = self.queue.pop_front();
        self.delivering = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(events: &mut HealthEvents, health: Health) {
        events.queue(health, None, Stats::default());
    }

    fn delivered(events: &mut HealthEvents) -> Vec<(Health, Health)> {
        std::iter::from_fn(|| events.next())
            .map(|change| (change.from, change.to))
            .collect()
    }

    #[test]
    fn one_thread_delivers_until_the_queue_is_empty() {
        let mut state = HealthEvents::new();
        queue(&mut state, Health::Live);
        assert!(!state.begin_delivery(), "no change");
        queue(&mut state, Health::Idle);
        assert!(state.begin_delivery());
        assert!(!state.begin_delivery());
        assert!(state.next().is_some());
        queue(&mut state, Health::Live);
        assert!(!state.begin_delivery(), "a delivery is under way");
        assert!(state.next().is_some() && state.next().is_none());
        assert!(!state.begin_delivery());
        queue(&mut state, Health::Idle);
        assert!(state.begin_delivery());
    }

    #[test]
    fn changes_that_slow_hooks_miss_are_merged_and_each_from_is_the_last_to() {
        for extra in 0..6 {
            let mut state = HealthEvents::new();
            let cycle = [Health::Idle, Health::Degraded, Health::Live];
            let count = MAX_QUEUED_CHANGES + extra;
            for health in cycle.into_iter().cycle().take(count) {
                queue(&mut state, health);
            }
            let changes = delivered(&mut state);
            assert!(changes.len() <= MAX_QUEUED_CHANGES);
            assert_eq!(changes[0].0, Health::Live);
            assert_eq!(
                changes[changes.len() - 1].1,
                cycle[(count - 1) % 3],
                "{extra} extra"
            );
            assert!(changes.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert!(changes.iter().all(|(from, to)| from != to));
        }
    }

    #[test]
    fn a_change_and_its_reverse_cancel_out_in_a_full_queue() {
        let mut state = HealthEvents::new();
        for turn in 0..MAX_QUEUED_CHANGES {
            queue(&mut state, [Health::Idle, Health::Live][turn % 2]);
        }
        queue(&mut state, Health::Idle);
        assert_eq!(delivered(&mut state).len(), MAX_QUEUED_CHANGES - 1);
    }
}
