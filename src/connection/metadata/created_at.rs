//! When a connection came.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// An instant in eight bytes instead of sixteen, since every connection has one: nanoseconds from an
/// epoch that all connections share.
///
/// Signed, because the epoch is when the first of them came by the clock of its runtime. Another
/// runtime's clock may be behind, where a test has stopped it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CreatedAt(i64);

impl CreatedAt {
    pub(crate) fn now() -> Self {
        Self::at(Instant::now())
    }

    pub(crate) fn instant(self) -> Instant {
        let distance = Duration::from_nanos(self.0.unsigned_abs());
        if self.0 < 0 {
            epoch() - distance
        } else {
            epoch() + distance
        }
    }

    fn at(instant: Instant) -> Self {
        let nanos = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
        Self(match instant.checked_duration_since(epoch()) {
            Some(after) => nanos(after),
            None => -nanos(epoch() - instant),
        })
    }
}

/// std's own lock: it outlives a model's run, and nothing waits for another thread under it.
fn epoch() -> Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

    *EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_instant_on_either_side_of_the_epoch() {
        for millis in [0, 1, 40_000] {
            let distance = Duration::from_millis(millis) + Duration::from_nanos(7);
            for instant in [epoch() + distance, epoch() - distance] {
                assert_eq!(CreatedAt::at(instant).instant(), instant);
            }
        }
    }
}
