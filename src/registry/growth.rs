//! Detects fast growth of the number of open connections; callers pass the time.

use std::time::Duration;

/// Number of steps into which the window is divided.
const STEPS: usize = 16;

/// Reports when the count exceeds its minimum of the last `per` by more than `limit`, at most once
/// per `per`.
#[derive(Debug)]
pub(super) struct GrowthDetector {
    limit: usize,
    per: Duration,
    window: WindowMinimum,
    last_report: Option<Duration>,
}

impl GrowthDetector {
    /// `live` is the count at time zero.
    pub(super) fn new(limit: usize, per: Duration, live: usize) -> Self {
        Self {
            limit,
            per,
            window: WindowMinimum::new(per, live),
            last_report: None,
        }
    }

    pub(super) fn per(&self) -> Duration {
        self.per
    }

    /// The count has fallen to `live`.
    pub(super) fn on_decrement(&mut self, now: Duration, live: usize) {
        self.window.record(now, live);
    }

    /// The count has risen to `live`. Returns the growth if it must be reported.
    pub(super) fn on_increment(&mut self, now: Duration, live: usize) -> Option<usize> {
        self.window.record(now, live);
        let grown_by = live.saturating_sub(self.window.minimum());
        let is_muted = self
            .last_report
            .is_some_and(|reported| now < reported + self.per);
        if grown_by <= self.limit || is_muted {
            return None;
        }
        self.last_report = Some(now);
        Some(grown_by)
    }
}

/// The minimum of the count in a sliding window, kept per step.
#[derive(Debug)]
struct WindowMinimum {
    step_nanos: u128,
    /// A ring: the current step, which has not ended yet, and the `STEPS` steps before it.
    minima: [usize; STEPS + 1],
    /// The current step, counted from time zero.
    current_step: u128,
    /// The count since the last record.
    live: usize,
}

impl WindowMinimum {
    fn new(per: Duration, live: usize) -> Self {
        Self {
            step_nanos: per.as_nanos().div_ceil(STEPS as u128),
            minima: [live; STEPS + 1],
            current_step: 0,
            live,
        }
    }

    /// Records that the count is `live` from `now` on. A time before the last one counts as the
    /// last one.
    fn record(&mut self, now: Duration, live: usize) {
        let step = now.as_nanos() / self.step_nanos;
        let advance = step.saturating_sub(self.current_step);
        self.current_step += advance;
        // Each step that began since the last record began with the previous count.
        let started = usize::try_from(advance).unwrap_or(usize::MAX);
        for steps_back in 0..started.min(self.minima.len()) {
            *self.minimum_of_step(steps_back) = self.live;
        }
        let minimum = self.minimum_of_step(0);
        *minimum = live.min(*minimum);
        self.live = live;
    }

    fn minimum(&self) -> usize {
        self.minima.iter().copied().fold(self.live, usize::min)
    }

    /// The entry of the step `steps_back` before the current one. The ring holds the last
    /// `STEPS` + 1 steps.
    fn minimum_of_step(&mut self, steps_back: usize) -> &mut usize {
        let len = self.minima.len();
        let current = (self.current_step % len as u128) as usize;
        &mut self.minima[(current + len - steps_back) % len]
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

    #[test]
    fn growth_above_the_limit_is_reported_once_per_window() {
        /// Time in milliseconds, the count from then on, and the expected report.
        type Row = (u64, usize, Option<usize>);
        let tables: [(&str, &[Row]); 7] = [
            (
                "growth by the limit",
                &[(0, 1, None), (0, 2, None), (0, 3, None)],
            ),
            (
                "growth above the limit",
                &[(0, 3, None), (10, 4, Some(4)), (20, 5, None)],
            ),
            (
                "growth that goes on after a report",
                &[(0, 4, Some(4)), (1_599, 5, None), (1_600, 6, Some(6))],
            ),
            (
                "growth above the limit within the window",
                &[(1_000, 3, None), (2_000, 4, Some(4)), (2_600, 5, None)],
            ),
            (
                "growth above the limit over more than the window",
                &[(1_000, 3, None), (2_700, 6, None), (4_400, 9, None)],
            ),
            (
                "a count that rises and falls",
                &[(0, 3, None), (10, 1, None), (20, 3, None), (30, 1, None)],
            ),
            (
                "growth after a decrease",
                &[
                    (0, 3, None),
                    (5_000, 3, None),
                    (5_010, 1, None),
                    (5_020, 5, Some(4)),
                ],
            ),
        ];
        for (name, rows) in tables {
            let mut detector = GrowthDetector::new(3, PER, 0);
            let mut previous = 0;
            for &(at, live, expected) in rows {
                if live > previous {
                    let reported = detector.on_increment(ms(at), live);
                    assert_eq!(reported, expected, "{name}, at {at}");
                } else {
                    detector.on_decrement(ms(at), live);
                }
                previous = live;
            }
        }
    }

    #[test]
    fn the_step_in_which_the_window_begins_counts_as_a_whole() {
        for (at, expected) in [(1_600, 1), (1_699, 1), (1_700, 10)] {
            let mut window = WindowMinimum::new(PER, 1);
            window.record(ms(99), 10);
            window.record(ms(at), 10);
            assert_eq!(window.minimum(), expected, "at {at}");
        }
    }

    #[test]
    fn times_that_go_back_or_far_ahead_are_accepted() {
        let mut detector = GrowthDetector::new(3, PER, 2);
        detector.on_decrement(ms(5_000), 0);
        assert_eq!(detector.on_increment(ms(10), 4), Some(4));
        assert_eq!(detector.on_increment(Duration::MAX / 2, 5), None);
        assert_eq!(detector.on_increment(Duration::MAX / 2, 9), Some(5));
        let mut shortest = GrowthDetector::new(1, ms(1), 0);
        let far_ahead = Duration::from_secs(1 << 40);
        assert_eq!(shortest.on_increment(far_ahead, 2), Some(2));
    }

    proptest! {
        /// Compares with a reference that keeps every record.
        #[test]
        fn the_minimum_is_that_of_the_complete_history(
            per in 1_u64..5_000,
            first in 0_usize..50,
            events in prop::collection::vec((0_u64..2_000, 0_usize..50), 1..80),
        ) {
            let per = ms(per);
            let mut window = WindowMinimum::new(per, first);
            let step = window.step_nanos;
            let mut history = vec![(0_u128, first)];
            let mut now = 0;
            for (pause, live) in events {
                now += pause;
                history.push((ms(now).as_nanos(), live));
                window.record(ms(now), live);
                let minimum_since = |start: u128| {
                    // The last record before `start` is the count at `start`.
                    let last_before = history.iter().rposition(|(at, _)| *at < start);
                    let records = &history[last_before.unwrap_or(0)..];
                    records.iter().map(|(_, live)| *live).min().unwrap()
                };
                let now = ms(now).as_nanos();
                let start = (now / step).saturating_sub(STEPS as u128) * step;
                prop_assert_eq!(window.minimum(), minimum_since(start));
                // The window covers all of `per`, and at most one step more.
                prop_assert!(start <= now.saturating_sub(per.as_nanos()));
                prop_assert!(start + step * (STEPS as u128 + 1) > now);
            }
        }
    }
}
