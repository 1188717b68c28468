//! What each part costs by itself, next to something whose cost everybody knows. Every group names
//! its baseline.
//!
//! ```text
//! cargo bench --bench micro            # everything: about two minutes
//! cargo bench --bench micro -- wheel   # some of it: scanner, stream, upgrade, wheel
//! cargo bench --bench micro -- --test  # each of them once, to see that it works
//! ```
//!
//! Read ratios within a group. What is measured takes nanoseconds, the figures come one after the
//! other, and a shared machine is faster in one second than in the next: run it twice before a small
//! difference is believed. What criterion says of a change since the last run is the machine's mood,
//! unless only the code has changed; `--discard-baseline` keeps it from saying so. For whole servers
//! there is `servers`, in alternating rounds.

use std::time::Duration;

use criterion::Criterion;
use tungstenite::Bytes;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

mod scanner;
mod stream;
mod upgrade;
mod wheel;

/// The crate's own module, which it does not show to others. It depends on nothing above it.
#[allow(
    dead_code,
    unused_imports,
    reason = "a bench uses a part, and Cargo has it compile the helpers of the unit tests"
)]
#[path = "../../src/wire/mod.rs"]
mod wire;

/// Likewise, for the wheel alone. An inline module, so that the wheel finds its own tests.
#[allow(
    dead_code,
    unused_imports,
    reason = "a bench uses a part, and Cargo has it compile the helpers of the unit tests"
)]
#[path = "../../src/driver"]
mod driver {
    pub(crate) mod wheel;
}

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    scanner::run(&mut criterion);
    stream::run(&mut criterion);
    upgrade::run(&mut criterion);
    // The last one, since it pauses tokio's clock: from then on every look at the time costs more,
    // in the whole process and for good.
    wheel::run(&mut criterion);
    criterion.final_summary();
}

/// A binary frame on the wire: as clients send it, or as servers do.
fn frame(payload: usize, masked: bool) -> Vec<u8> {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Binary),
        mask: masked.then_some([0x37, 0xfa, 0x21, 0x3d]),
        ..FrameHeader::default()
    };
    let mut out = Vec::new();
    Frame::from_payload(header, Bytes::from(vec![0x5a; payload]))
        .format(&mut out)
        .expect("a vector takes everything");
    out
}

/// `125 B`, `64 KiB`.
fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => format!("{} KiB", bytes / 1024),
    }
}
