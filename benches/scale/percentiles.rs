//! Percentiles of times, formatted as table cells.

use std::fmt;

use hdrhistogram::Histogram;

use super::Result;

/// Minimum, median, 99th percentile and maximum of some times, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    times: [u64; 4],
}

impl Percentiles {
    /// The last columns of a table's head, for rows that end with percentiles.
    pub(crate) const HEAD: &'static str =
        "count | min | p50 | p99 | max |\n|---|---|---|---|---|---|";

    /// Computes the percentiles. Without times all of them are zero.
    pub(crate) fn of(micros: impl IntoIterator<Item = u64>) -> Self {
        let mut histogram = histogram();
        for time in micros {
            histogram.saturating_record(time);
        }
        Self::from(&histogram)
    }

    /// Returns the numbers that [`parse`](Self::parse) accepts.
    pub(crate) fn figures(self) -> impl Iterator<Item = u64> {
        [self.count].into_iter().chain(self.times)
    }

    pub(crate) fn parse(figures: &[u64]) -> Result<Self> {
        let &[count, ref times @ ..] = figures else {
            return Err("no percentiles".into());
        };
        let times = times.try_into()?;
        Ok(Self { count, times })
    }
}

/// Returns an empty histogram of microseconds, up to an hour.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(3_600_000_000, 3).expect("three significant digits are valid")
}

impl From<&Histogram<u64>> for Percentiles {
    fn from(histogram: &Histogram<u64>) -> Self {
        let at = |part| histogram.value_at_quantile(part);
        Self {
            count: histogram.len(),
            times: [histogram.min(), at(0.5), at(0.99), histogram.max()],
        }
    }
}

/// Formats table cells in milliseconds.
impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        for time in self.times {
            write!(f, " | {:.3} ms", time as f64 / 1e3)?;
        }
        Ok(())
    }
}
