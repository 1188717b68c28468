//! What a hostile peer costs a server: instructions per frame, and heap per connection.
//!
//! ```text
//! cargo bench --bench hostile              # needs valgrind; 5 minutes
//! cargo bench --bench hostile -- frames    # one of them: frames, heap
//! ```
//!
//! Instructions are counted by callgrind, in user mode. Heap is what the allocator has given out. The
//! baseline of both is the same handler without the layers. There are no bars: `SECURITY.md` has the
//! figures. All servers count their allocations, which costs each of them a little.

use std::error::Error;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::process::SERVE;
use support::server;

mod frames;
mod heap;
#[allow(dead_code, reason = "each bench uses what it needs of it")]
#[path = "../support/mod.rs"]
mod support;

/// Counts the allocations, in all servers alike.
#[global_allocator]
static HEAP: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

type Measure = fn() -> Result<()>;

const MEASURES: [(&str, Measure); 2] = [("frames", frames::run), ("heap", heap::run)];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((role, args)) if role == SERVE => server::run(args, heap_bytes),
        // `cargo test --benches` passes no `--bench` and needs no figures.
        _ if !args.iter().any(|arg| arg == "--bench") => Ok(()),
        _ => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &[String]) -> Result<()> {
    let names: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let known = |name: &str| MEASURES.iter().any(|(known, _)| *known == name);
    if let Some(unknown) = names.iter().find(|name| !known(name.as_str())) {
        return Err(format!("unknown measurement: {unknown}").into());
    }
    for (name, run) in MEASURES {
        if names.is_empty() || names.iter().any(|wanted| *wanted == name) {
            println!("\n## {name}\n");
            run()?;
        }
    }
    Ok(())
}

/// Returns the allocated bytes of heap.
fn heap_bytes() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}
