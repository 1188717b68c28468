//! Minimum, median and maximum of a figure over several rounds.

use std::fmt;

/// Minimum, median and maximum of some figures. One round alone means little on a shared machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// # Panics
    ///
    /// If `figures` is empty.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<_> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = if figures.len() % 2 == 1 {
            figures[middle]
        } else {
            (figures[middle - 1] + figures[middle]) / 2.0
        };
        Self {
            min: figures[0],
            median,
            max: figures[figures.len() - 1],
        }
    }

    /// The spread of `figures` divided by `base`, round by round.
    pub(crate) fn of_ratios(figures: &[f64], base: &[f64]) -> Self {
        Self::of(figures.iter().zip(base).map(|(figure, base)| figure / base))
    }
}

/// `median (min to max)`, with the requested number of decimals (two by default).
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = f.precision().unwrap_or(2);
        let Self { min, median, max } = self;
        write!(f, "{median:.places$} ({min:.places$} to {max:.places$})")
    }
}
