//! Limits the rate of a peer's control frames.

use std::time::Duration;

use super::moment::Moment;

/// The limit is per second, and as many frames may arrive at the same time.
const WINDOW: Duration = Duration::from_secs(1);

/// A leaky bucket that holds one second's frames and drains at the limit, stored as the time at
/// which it will be empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlRate {
    /// `None` after the limit was exceeded.
    empty_at: Option<Moment>,
}

impl ControlRate {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            empty_at: Some(now),
        }
    }

    /// Counts a frame that was read at `now` and arrived after `earliest`. With `None` the frame
    /// may have arrived together with the one before it. Returns whether this frame exceeds the
    /// limit.
    ///
    /// The arrival times of frames that were read together are unknown. They count as spread over
    /// the whole time since the last read, so that a peer is not blamed for a server that did not
    /// read.
    pub(super) fn count(&mut self, now: Moment, earliest: Option<Moment>, limit: u32) -> bool {
        let Some(empty_at) = self.empty_at else {
            return false;
        };
        let from = earliest.map_or(empty_at, |earliest| empty_at.max(earliest));
        let empty_at = from + WINDOW / limit;
        self.empty_at = Some(empty_at).filter(|empty_at| *empty_at <= now + WINDOW);
        self.is_exceeded()
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.empty_at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    /// How many of `count` frames at this time are within the limit.
    fn accepted(
        rate: &mut ControlRate,
        now: Moment,
        earliest: Option<Moment>,
        count: usize,
    ) -> usize {
        (0..count)
            .take_while(|_| !rate.count(now, earliest, 10))
            .count()
    }

    #[test]
    fn the_frames_of_one_second_may_arrive_at_once() {
        let mut rate = ControlRate::new(at(0));
        assert_eq!(accepted(&mut rate, at(0), Some(at(0)), 100), 10);
        assert!(rate.is_exceeded());
        assert!(!rate.count(at(0), Some(at(0)), 10), "reported once");
    }

    #[test]
    fn a_quiet_time_does_not_raise_the_limit_if_the_transport_was_read() {
        let mut rate = ControlRate::new(at(0));
        assert_eq!(accepted(&mut rate, at(60_000), Some(at(60_000)), 100), 10);
    }

    #[test]
    fn frames_that_waited_unread_count_as_spread_over_that_time() {
        let mut rate = ControlRate::new(at(0));
        // The transport was read empty at 1 s, and not read for 59 s.
        assert_eq!(accepted(&mut rate, at(60_000), Some(at(1_000)), 590), 590);
        // More frames of the same read.
        assert_eq!(accepted(&mut rate, at(60_000), None, 100), 10);
    }
}
