//! The distribution of first pings over the first interval of many connections.

use std::time::Duration;

use super::support::plot::{self, Labels};
use super::{Result, Size};

/// Bins per interval.
const BINS: usize = 50;
/// Bins after the interval, for late pings.
const LATE_BINS: usize = 10;

/// Prints the distribution of `firsts`, the microseconds from opening to first ping. Draws it
/// unless `size` is [`Size::Quick`].
pub(crate) fn show(firsts: &[u64], interval: Duration, size: Size) -> Result<()> {
    let mut bins = [0u64; BINS + LATE_BINS];
    for &first in firsts {
        let bin = u128::from(first) * BINS as u128 / interval.as_micros();
        bins[usize::try_from(bin)?.min(BINS + LATE_BINS - 1)] += 1;
    }
    // The default jitter leaves the first half of the interval without pings.
    let (early, due) = bins[..BINS].split_at(BINS / 2);
    let early: u64 = early.iter().sum();
    println!("| first pings before half of the interval, by the clients' clocks | {early} |");
    println!(
        "| first pings in each 1/{BINS} of the interval after that | {} to {} |",
        due.iter().min().unwrap_or(&0),
        due.iter().max().unwrap_or(&0),
    );
    if size == Size::Full {
        let width = interval.as_secs_f64() / BINS as f64;
        let bars = bins.iter().enumerate();
        let bars: Vec<_> = bars
            .map(|(index, &count)| (index as f64 * width, count as f64))
            .collect();
        let labels = Labels {
            file: "ping_spread",
            title: &format!("First pings of {} connections", firsts.len()),
            x: "seconds since the connection was opened",
            y: "pings",
        };
        plot::bars(&labels, width, &bars)?;
    }
    Ok(())
}
