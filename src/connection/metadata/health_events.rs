//! What the health hooks were told of a connection, and what they are yet to be told.
//!
//! Only connections of layers with such hooks have this. Worse health comes with time alone, and time
//! goes on only with a visit of the driver, who has looked at the transport then: what the handler
//! does in between needs no clock, and nobody is blamed for what lies unread.

use std::collections::VecDeque;

use crate::eviction::ConnectionId;
use crate::hooks::HealthChange;
use crate::monitor::{Health, Moment, Rtt, Stats};

/// Changes that may wait for slow hooks, before the latest are merged.
const WAITING: usize = 16;

#[derive(Debug)]
pub(crate) struct HealthEvents {
    id: ConnectionId,
    /// The state that the last change led to, told or waiting.
    health: Health,
    /// The driver's last look.
    pub(crate) looked: Moment,
    waiting: VecDeque<HealthChange>,
    /// Somebody is telling what waits, and will go on until nothing does.
    telling: bool,
}

impl HealthEvents {
    pub(crate) fn new(id: ConnectionId) -> Self {
        Self {
            id,
            health: Health::Live,
            looked: Moment::START,
            waiting: VecDeque::new(),
            telling: false,
        }
    }

    pub(crate) fn look(&mut self, now: Moment) {
        self.looked = self.looked.max(now);
    }

    /// Keeps the change to `to`, if it is one.
    pub(crate) fn note(&mut self, to: Health, rtt: Option<Rtt>, stats: Stats) {
        let mut from = self.health;
        if to == from {
            return;
        }
        self.health = to;
        if self.waiting.len() == WAITING {
            if let Some(last) = self.waiting.pop_back() {
                from = last.from;
            }
        }
        if from != to {
            self.waiting.push_back(HealthChange {
                id: self.id,
                from,
                to,
                rtt,
                stats,
            });
        }
    }

    /// Whether the caller is to tell what waits.
    pub(crate) fn begin_telling(&mut self) -> bool {
        let begin = !self.waiting.is_empty() && !self.telling;
        self.telling |= begin;
        begin
    }

    /// The next change to be told, for whoever is telling them.
    pub(crate) fn next(&mut self) -> Option<HealthChange> {
        let next = self.waiting.pop_front();
        self.telling = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(told: &mut HealthEvents, health: Health) {
        told.note(health, None, Stats::default());
    }

    fn told(told: &mut HealthEvents) -> Vec<(Health, Health)> {
        std::iter::from_fn(|| told.next())
            .map(|change| (change.from, change.to))
            .collect()
    }

    #[test]
    fn only_one_tells_until_nothing_waits() {
        let mut state = HealthEvents::new(ConnectionId::next());
        note(&mut state, Health::Live);
        assert!(!state.begin_telling(), "no change");
        note(&mut state, Health::Idle);
        assert!(state.begin_telling());
        assert!(!state.begin_telling());
        assert!(state.next().is_some());
        note(&mut state, Health::Live);
        assert!(!state.begin_telling(), "whoever tells asks again");
        assert!(state.next().is_some() && state.next().is_none());
        assert!(!state.begin_telling());
        note(&mut state, Health::Idle);
        assert!(state.begin_telling());
    }

    #[test]
    fn what_slow_hooks_miss_is_merged_and_the_rest_stays_a_chain() {
        for extra in 0..6 {
            let mut state = HealthEvents::new(ConnectionId::next());
            let cycle = [Health::Idle, Health::Degraded, Health::Live];
            let count = WAITING + extra;
            for health in cycle.into_iter().cycle().take(count) {
                note(&mut state, health);
            }
            let told = told(&mut state);
            assert!(told.len() <= WAITING);
            assert_eq!(told[0].0, Health::Live);
            assert_eq!(
                told[told.len() - 1].1,
                cycle[(count - 1) % 3],
                "{extra} extra"
            );
            assert!(told.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert!(told.iter().all(|(from, to)| from != to));
        }
    }

    #[test]
    fn a_change_that_is_taken_back_while_it_waits_for_room_is_none() {
        let mut state = HealthEvents::new(ConnectionId::next());
        for turn in 0..WAITING {
            note(&mut state, [Health::Idle, Health::Live][turn % 2]);
        }
        note(&mut state, Health::Idle);
        assert_eq!(told(&mut state).len(), WAITING - 1);
    }
}
