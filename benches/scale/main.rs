//! Very many connections: 100,000 real sockets, and a million in-memory streams in one process.
//!
//! ```text
//! cargo bench --bench scale                # both: some six minutes, 2 cores and 8 GiB
//! cargo bench --bench scale -- sockets     # 100,000 connections over loopback
//! cargo bench --bench scale -- in-memory   # 1,000,000 streams without sockets
//! cargo bench --bench scale -- --quick     # both, too small for figures
//! ```
//!
//! A run fails if a live peer is evicted or a dead one is not. Times are printed and not judged,
//! since they depend on the machine and its other load. Linux only, since the figures come from
//! `/proc`.

use std::error::Error;
use std::process::{Command, ExitCode};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::process::Process;

mod client;
mod holder;
mod in_memory;
mod network;
mod percentiles;
mod ping_spread;
mod server;
mod sockets;
#[allow(dead_code, reason = "each bench uses what it needs of it")]
#[path = "../support/mod.rs"]
mod support;

/// Counts the allocations.
#[global_allocator]
static HEAP: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The extent of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Shows only that the bench works: about ten seconds for everything.
    Quick,
    /// Long enough for figures.
    Full,
}

type Measure = fn(Size) -> Result<()>;

const MEASURES: [(&str, Measure); 2] = [("sockets", sockets::run), ("in-memory", in_memory::run)];

/// Entry point of a child process, with its arguments.
type Role = fn(&[String]) -> Result<()>;

const ROLES: [(&str, Role); 3] = [
    (server::ROLE, server::run),
    (client::ROLE, client::run),
    (holder::ROLE, holder::run),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let role = args
        .first()
        .and_then(|first| ROLES.iter().find(|(role, _)| role == first));
    let done = match role {
        Some((_, run)) => run(&args[1..]),
        None => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
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

/// Returns a command that runs this binary in another role.
pub(crate) fn command<'a>(
    role: &str,
    args: impl IntoIterator<Item = &'a String>,
) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).args(args);
    Ok(command)
}

/// Sends `command` to `process` and returns the numbers in its reply.
pub(crate) fn request_figures(process: &mut Process, command: &str) -> Result<Vec<u64>> {
    process.send_line(command)?;
    read_figures(process)
}

/// Reads the next line of `process` and returns its numbers.
pub(crate) fn read_figures(process: &mut Process) -> Result<Vec<u64>> {
    let line = process.read_line()?;
    let figures = line.split_whitespace().map(str::parse);
    figures
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| format!("unexpected reply: {line}").into())
}

/// Joins numbers into a line, separated by spaces.
pub(crate) fn join_figures(figures: impl IntoIterator<Item = u64>) -> String {
    let figures: Vec<_> = figures
        .into_iter()
        .map(|figure| figure.to_string())
        .collect();
    figures.join(" ")
}

/// Returns the allocated bytes of heap.
pub(crate) fn heap() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}
