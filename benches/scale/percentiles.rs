//! Distributions of times, as rows of a table.

use std::fmt;

use hdrhistogram::Histogram;

use super::Result;

/// Least, median, 99th percentile and greatest of some times, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    times: [u64; 4],
}

impl Percentiles {
    /// The end of a table's head, for rows that end with these.
    pub(crate) const HEAD: &'static str =
        "count | min | p50 | p99 | max |\n|---|---|---|---|---|---|";

    /// All zero without times.
    pub(crate) fn of(micros: impl IntoIterator<Item = u64>) -> Self {
        let mut histogram = histogram();
        for time in micros {
            histogram.saturating_record(time);
        }
        Self::from(&histogram)
    }

    /// As numbers that [`parse`](Self::parse) understands.
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

/// An empty one of microseconds, up to an hour.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(3_600_000_000, 3).expect("three digits are not too many")
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

/// Cells of a table, in milliseconds.
impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        for time in self.times {
            write!(f, " | {:.3} ms", time as f64 / 1e3)?;
        }
        Ok(())
    }
}
