//! A point in time, read from a clock by the caller.

use std::num::NonZeroU64;
use std::ops::Add;
use std::time::Duration;

/// Nanoseconds since an epoch that the caller chooses (the driver's creation).
///
/// Eight bytes, also as an `Option`: a connection stores several of them, and there may be 100,000
/// connections. They are aligned like a `u32`, which leaves less padding between them and flags. The
/// range ends after 584 years; arithmetic saturates there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(Rust, packed(4))]
pub(crate) struct Moment(NonZeroU64);

impl Moment {
    /// The epoch itself.
    pub(crate) const START: Self = Self(NonZeroU64::MIN);
    /// Later than any deadline.
    pub(crate) const NEVER: Self = Self(NonZeroU64::MAX);

    pub(crate) fn after_start(elapsed: Duration) -> Self {
        Self::START + elapsed
    }

    pub(crate) fn after_millis(millis: u64) -> Self {
        Self::START + Duration::from_millis(millis)
    }

    pub(crate) fn since_start(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }

    /// Time passed since `earlier`; zero if `earlier` lies in the future.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }

    /// The moment `duration` earlier, at the earliest the epoch.
    pub(crate) fn before(self, duration: Duration) -> Self {
        let nanos = self.0.get().saturating_sub(nanos(duration));
        Self(NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN))
    }

    /// Milliseconds since the epoch, rounded up so that a deadline never expires early.
    pub(crate) fn ceil_millis(self) -> u64 {
        (self.0.get() - 1).div_ceil(1_000_000)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

/// The same as [`Duration::as_nanos`], without arithmetic on 128 bits.
fn nanos(duration: Duration) -> u64 {
    let whole = duration.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(u64::from(duration.subsec_nanos()))
}

const _: () = assert!(size_of::<Option<Moment>>() == 8 && align_of::<Moment>() == 4);
