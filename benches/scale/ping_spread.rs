//! How the first pings of many connections are spread over their first interval.

use std::time::Duration;

use super::support::plot::{self, Labels};
use super::{Result, Size};

/// Parts of an interval that are counted apart.
const PARTS: usize = 50;
/// Parts after it, for what came late.
const AFTER: usize = 10;

/// Prints the spread of `firsts`, which are microseconds from openings to first pings, and draws it if
/// it is worth being kept.
pub(crate) fn show(firsts: &[u64], interval: Duration, size: Size) -> Result<()> {
    let mut parts = [0u64; PARTS + AFTER];
    for &first in firsts {
        let part = u128::from(first) * PARTS as u128 / interval.as_micros();
        parts[usize::try_from(part)?.min(PARTS + AFTER - 1)] += 1;
    }
    // Jitter is half of the interval by default.
    let (early, due) = parts[..PARTS].split_at(PARTS / 2);
    let early: u64 = early.iter().sum();
    println!("| first pings before half of the interval, by the clients' clocks | {early} |");
    println!(
        "| first pings in each 1/{PARTS} of the interval after that | {} to {} |",
        due.iter().min().unwrap_or(&0),
        due.iter().max().unwrap_or(&0),
    );
    if size == Size::Full {
        let width = interval.as_secs_f64() / PARTS as f64;
        let bars = parts.iter().enumerate();
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
