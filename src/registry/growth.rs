//! Whether sessions are piling up, with the time passed in.

use std::time::Duration;

/// Into how many steps the time is divided that is looked back on.
const STEPS: usize = 16;

/// Tells when there are more than `limit` sessions more than the fewest within the last `per`, and
/// does so at most once per `per`.
#[derive(Debug)]
pub(super) struct Pile {
    limit: usize,
    per: Duration,
    recent: Recent,
    told: Option<Duration>,
}

impl Pile {
    /// `live` sessions at the time zero.
    pub(super) fn new(limit: usize, per: Duration, live: usize) -> Self {
        Self {
            limit,
            per,
            recent: Recent::new(per, live),
            told: None,
        }
    }

    pub(super) fn per(&self) -> Duration {
        self.per
    }

    /// A session went, and so many are left.
    pub(super) fn went(&mut self, now: Duration, live: usize) {
        self.recent.record(now, live);
    }

    /// A session came, and so many there are. Returns by how many they have grown, if that is to be
    /// told.
    pub(super) fn came(&mut self, now: Duration, live: usize) -> Option<usize> {
        self.recent.record(now, live);
        let grown = live.saturating_sub(self.recent.lowest());
        let muted = self.told.is_some_and(|told| now < told + self.per);
        if grown <= self.limit || muted {
            return None;
        }
        self.told = Some(now);
        Some(grown)
    }
}

/// The lowest number in each of the last steps of time.
#[derive(Debug)]
struct Recent {
    /// In nanoseconds.
    step: u128,
    /// A ring: the present step, which is not over yet, and `STEPS` before it.
    lows: [usize; STEPS + 1],
    /// The present step, counted from the time zero.
    present: u128,
    /// The number since the last record.
    live: usize,
}

impl Recent {
    fn new(per: Duration, live: usize) -> Self {
        Self {
            step: per.as_nanos().div_ceil(STEPS as u128),
            lows: [live; STEPS + 1],
            present: 0,
            live,
        }
    }

    /// The number is `live` from `now` on. A time that has gone back counts as the last one.
    fn record(&mut self, now: Duration, live: usize) {
        let step = now.as_nanos() / self.step;
        let passed = step.saturating_sub(self.present);
        self.present += passed;
        // A step that began since has begun with what the number was until now.
        let begun = usize::try_from(passed).unwrap_or(usize::MAX);
        for back in 0..begun.min(self.lows.len()) {
            *self.low(back) = self.live;
        }
        let low = self.low(0);
        *low = live.min(*low);
        self.live = live;
    }

    fn lowest(&self) -> usize {
        self.lows.iter().copied().fold(self.live, usize::min)
    }

    /// That of a step `back` before the present one, which lies no further back than the ring.
    fn low(&mut self, back: usize) -> &mut usize {
        let len = self.lows.len();
        let present = (self.present % len as u128) as usize;
        &mut self.lows[(present + len - back) % len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PER: Duration = Duration::from_millis(1_600);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Comings and goings: when, the number after it, and what is told.
    #[test]
    fn table() {
        type Row = (u64, usize, Option<usize>);
        let tables: [(&str, &[Row]); 7] = [
            (
                "up to the limit",
                &[(0, 1, None), (0, 2, None), (0, 3, None)],
            ),
            ("over it", &[(0, 3, None), (10, 4, Some(4)), (20, 5, None)]),
            (
                "once per time",
                &[(0, 4, Some(4)), (1_599, 5, None), (1_600, 6, Some(6))],
            ),
            (
                "slowly",
                &[(1_000, 3, None), (2_000, 4, Some(4)), (2_600, 5, None)],
            ),
            (
                "slowly enough",
                &[(1_000, 3, None), (2_700, 6, None), (4_400, 9, None)],
            ),
            (
                "back and forth",
                &[(0, 3, None), (10, 1, None), (20, 3, None), (30, 1, None)],
            ),
            (
                "from a dip",
                &[
                    (0, 3, None),
                    (5_000, 3, None),
                    (5_010, 1, None),
                    (5_020, 5, Some(4)),
                ],
            ),
        ];
        for (name, rows) in tables {
            let mut pile = Pile::new(3, PER, 0);
            let mut before = 0;
            for &(at, live, told) in rows {
                if live > before {
                    assert_eq!(pile.came(ms(at), live), told, "{name}, at {at}");
                } else {
                    pile.went(ms(at), live);
                }
                before = live;
            }
        }
    }

    /// The step in which the last `per` began counts as a whole.
    #[test]
    fn the_edge_of_the_window() {
        for (at, lowest) in [(1_600, 1), (1_699, 1), (1_700, 10)] {
            let mut recent = Recent::new(PER, 1);
            recent.record(ms(99), 10);
            recent.record(ms(at), 10);
            assert_eq!(recent.lowest(), lowest, "at {at}");
        }
    }

    #[test]
    fn a_time_that_goes_back_and_one_far_ahead() {
        let mut pile = Pile::new(3, PER, 2);
        pile.went(ms(5_000), 0);
        assert_eq!(pile.came(ms(10), 4), Some(4));
        assert_eq!(pile.came(Duration::MAX / 2, 5), None);
        assert_eq!(pile.came(Duration::MAX / 2, 9), Some(5));
        let mut shortest = Pile::new(1, ms(1), 0);
        assert_eq!(shortest.came(Duration::from_secs(1 << 40), 2), Some(2));
    }

    proptest! {
        /// Against a list of everything that ever was.
        #[test]
        fn lowest_of_a_list(
            per in 1_u64..5_000,
            first in 0_usize..50,
            events in prop::collection::vec((0_u64..2_000, 0_usize..50), 1..80),
        ) {
            let per = ms(per);
            let mut recent = Recent::new(per, first);
            let step = recent.step;
            let mut list = vec![(0_u128, first)];
            let mut now = 0;
            for (pause, live) in events {
                now += pause;
                list.push((ms(now).as_nanos(), live));
                recent.record(ms(now), live);
                let lowest_since = |from: u128| {
                    // What it was when `from` came is the last before it.
                    let held = list.iter().rposition(|(at, _)| *at < from).unwrap_or(0);
                    list[held..].iter().map(|(_, live)| *live).min().unwrap()
                };
                let now = ms(now).as_nanos();
                let from = (now / step).saturating_sub(STEPS as u128) * step;
                prop_assert_eq!(recent.lowest(), lowest_since(from));
                // And the promise: all of `per`, and not more than a step besides.
                prop_assert!(from <= now.saturating_sub(per.as_nanos()));
                prop_assert!(from + step * (STEPS as u128 + 1) > now);
            }
        }
    }
}
