//! The creation time of a connection, in seven bytes.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// Creation time as microseconds since a process-wide epoch: 7 bytes instead of `Instant`'s 16.
/// They suffice for a thousand years, and leave the eighth of a word to a flag. Less than a
/// microsecond is cut off.
///
/// Signed: the epoch is the creation of the first connection by the clock of its runtime, and the
/// clock of another runtime may be behind if a test has paused it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CreatedAt([u8; 7]);

/// The largest number of microseconds in seven bytes.
const MAX: i64 = i64::MAX >> 8;

impl CreatedAt {
    pub(crate) fn now() -> Self {
        Self::at(Instant::now())
    }

    pub(crate) fn instant(self) -> Instant {
        let [a, b, c, d, e, f, g] = self.0;
        // The shift back extends the sign.
        let micros = i64::from_le_bytes([0, a, b, c, d, e, f, g]) >> 8;
        let distance = Duration::from_micros(micros.unsigned_abs());
        if micros < 0 {
            epoch() - distance
        } else {
            epoch() + distance
        }
    }

    fn at(instant: Instant) -> Self {
        let micros = |distance: Duration| i64::try_from(distance.as_micros()).unwrap_or(MAX);
        let micros = match instant.checked_duration_since(epoch()) {
            Some(after) => micros(after).min(MAX),
            None => -micros(epoch() - instant).min(MAX),
        };
        let [a, b, c, d, e, f, g, _] = micros.to_le_bytes();
        Self([a, b, c, d, e, f, g])
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
            let distance = Duration::from_millis(millis) + Duration::from_micros(7);
            for instant in [epoch() + distance, epoch() - distance] {
                assert_eq!(CreatedAt::at(instant).instant(), instant);
            }
        }
    }
}
