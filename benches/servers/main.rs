//! Compares server processes in alternating rounds: bare axum, a hand-written heartbeat, both
//! layers, and two rivals.
//!
//! ```text
//! cargo bench --bench servers                   # everything
//! cargo bench --bench servers -- echo pings     # some of it
//! cargo bench --bench servers -- --quick        # everything, too short for figures
//! ```
//!
//! All traffic is on loopback and bounded in time and count. A run fails if a live peer is evicted
//! or a dead one is not. A missed bar is only printed. Linux only, since the figures come from
//! `/proc`. All servers count their allocations, which costs each of them a little.

use std::error::Error;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::process::SERVE;
use support::server;

mod churn;
mod deaths;
mod echo;
mod memory;
mod pings;
#[allow(dead_code, reason = "each bench uses what it needs of it")]
#[path = "../support/mod.rs"]
mod support;
mod upgrades;

/// Counts the allocations, in all servers alike.
#[global_allocator]
static HEAP: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The extent of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Shows only that the bench works: two or three minutes for everything.
    Quick,
    /// Long enough for figures.
    Full,
}

type Measure = fn(Size) -> Result<()>;

const MEASURES: [(&str, Measure); 6] = [
    ("echo", echo::run),
    ("upgrades", upgrades::run),
    ("pings", pings::run),
    ("memory", memory::run),
    ("deaths", deaths::run),
    ("churn", churn::run),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((role, args)) if role == SERVE => server::run(args, heap),
        _ => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("servers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &[String]) -> Result<()> {
    // `cargo bench` passes `--bench`; `cargo test --benches` does not, and needs a short run.
    let measured = args.iter().any(|arg| arg == "--bench");
    let mut size = if measured { Size::Full } else { Size::Quick };
    let mut wanted = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--quick" => size = Size::Quick,
            "--bench" => {}
            name => {
                let known = MEASURES.iter().find(|(known, _)| *known == name);
                wanted.push(known.ok_or_else(|| format!("unknown measurement: {name}"))?);
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(&MEASURES);
    }
    // A failure, such as a low limit of open files, must not keep the others from running.
    let mut failed = Vec::new();
    for (name, run) in wanted {
        println!("\n## {name}\n");
        if let Err(error) = run(size) {
            println!("{name} failed: {error}");
            failed.push(format!("{name}: {error}"));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(failed.join("; ").into())
}

/// Returns the allocated bytes of heap.
fn heap() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}
