//! Finds the time at which the n-th byte of a stream was moved.

use super::log::Event;
use super::world::World;

/// Entries that move bytes: running total, index in the log, time.
pub(crate) struct Times(Vec<(usize, usize, u64)>);

impl Times {
    pub(crate) fn of(world: &World, count: impl Fn(Event) -> Option<usize>) -> Self {
        let mut total = 0;
        let times = world.log.iter().enumerate().filter_map(|(index, entry)| {
            total += count(entry.event)?;
            Some((total, index, entry.at))
        });
        Self(times.collect())
    }

    pub(crate) fn arrivals(world: &World) -> Self {
        Self::of(world, |event| match event {
            Event::Arrived(count) => Some(count),
            _ => None,
        })
    }

    /// Index and time of the first entry with a total of at least `count`.
    pub(crate) fn reached(&self, count: usize) -> Option<(usize, u64)> {
        let place = self.0.partition_point(|(total, ..)| *total < count);
        self.0.get(place).map(|(_, index, at)| (*index, *at))
    }
}
