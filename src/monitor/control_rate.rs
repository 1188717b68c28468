//! Whether a peer keeps to a limit on control frames.

use std::time::Duration;

use super::moment::Moment;

/// What the limit is a limit per, and how much of it may come at once.
const WINDOW: Duration = Duration::from_secs(1);

/// Each control frame takes up its share of a second: a bucket that leaks at the limit, kept as the
/// time at which it will be empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlRate {
    /// `None` once the limit was exceeded.
    empty_at: Option<Moment>,
}

impl ControlRate {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            empty_at: Some(now),
        }
    }

    /// Counts a frame that was seen at `now` and came after `earliest`; `None` if it may have lain
    /// unread together with those before it. Returns whether it is the one that is too many.
    ///
    /// What piled up while nobody looked came at a rate that nobody knows, and is taken to have come
    /// as slowly as it may have: a peer is not to blame for a server that was away.
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

    /// How many of `count` frames at this time are let through.
    fn passed(
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
    fn a_seconds_worth_may_come_at_once() {
        let mut rate = ControlRate::new(at(0));
        assert_eq!(passed(&mut rate, at(0), Some(at(0)), 100), 10);
        assert!(rate.is_exceeded());
        assert!(!rate.count(at(0), Some(at(0)), 10), "it is said once");
    }

    #[test]
    fn what_was_not_used_is_gone_once_somebody_has_looked() {
        let mut rate = ControlRate::new(at(0));
        assert_eq!(passed(&mut rate, at(60_000), Some(at(60_000)), 100), 10);
    }

    #[test]
    fn what_may_have_come_slowly_did() {
        let mut rate = ControlRate::new(at(0));
        // Seen empty at 1 s, and then not for 59 s.
        assert_eq!(passed(&mut rate, at(60_000), Some(at(1_000)), 590), 590);
        // The rest of the same pile.
        assert_eq!(passed(&mut rate, at(60_000), None, 100), 10);
    }
}
