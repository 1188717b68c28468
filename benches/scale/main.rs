//! How many connections there can be, and what happens to all of them at once: as many real sockets as
//! several processes can open, and a million streams in memory in a single process.
//!
//! ```text
//! cargo bench --bench scale                # both: some six minutes, 2 cores and 8 GiB
//! cargo bench --bench scale -- sockets     # 100,000 connections over loopback
//! cargo bench --bench scale -- in-memory   # 1,000,000 streams without sockets
//! cargo bench --bench scale -- --quick     # both, too small for figures
//! ```
//!
//! A run fails if anybody is evicted who should not be, or the other way round. How fast is printed,
//! not judged: it depends on the machine, and on what else it has to do. Linux only, since the figures
//! come from `/proc`.

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

/// Counts what is allocated.
#[global_allocator]
static HEAP: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How much is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Enough to see that it works: some ten seconds for all.
    Quick,
    /// Enough for figures.
    Full,
}

type Measure = fn(Size) -> Result<()>;

const MEASURES: [(&str, Measure); 2] = [("sockets", sockets::run), ("in-memory", in_memory::run)];

/// What a process can be instead of the bench itself, with its arguments.
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
    // `cargo bench` says so; `cargo test --benches` does not, and wants to see that it works.
    let measured = args.iter().any(|arg| arg == "--bench");
    let mut size = if measured { Size::Full } else { Size::Quick };
    let mut wanted = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--quick" => size = Size::Quick,
            "--bench" => {}
            name => {
                let known = MEASURES.iter().find(|(known, _)| *known == name);
                wanted.push(known.ok_or_else(|| format!("nothing is called {name}"))?);
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(&MEASURES);
    }
    // One that lacks files, say, does not keep the others from running.
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

/// This very program, in another role.
pub(crate) fn command<'a>(
    role: &str,
    args: impl IntoIterator<Item = &'a String>,
) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).args(args);
    Ok(command)
}

/// The numbers in the answer of `process` to `asked`.
pub(crate) fn figures(process: &mut Process, asked: &str) -> Result<Vec<u64>> {
    process.tell(asked)?;
    heard(process)
}

/// The numbers in the next line of `process`.
pub(crate) fn heard(process: &mut Process) -> Result<Vec<u64>> {
    let line = process.hear()?;
    let figures = line.split_whitespace().map(str::parse);
    figures
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| format!("a process says: {line}").into())
}

/// Numbers as a line.
pub(crate) fn line(figures: impl IntoIterator<Item = u64>) -> String {
    let figures: Vec<_> = figures
        .into_iter()
        .map(|figure| figure.to_string())
        .collect();
    figures.join(" ")
}

/// Bytes of heap that are allocated now.
pub(crate) fn heap() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}
