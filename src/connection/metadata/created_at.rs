//! The creation time of a connection, in eight bytes.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// Creation time as nanoseconds since a process-wide epoch: 8 bytes instead of `Instant`'s 16.
///
/// Signed: the epoch is the creation of the first connection by the clock of its runtime, and the
/// clock of another runtime may be behind if a test has paused it.
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

/// std's lock, also in loom models: it outlives a model's run, and nothing blocks under it.
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
