//! Cost of each part in isolation, next to a baseline that every group names.
//!
//! ```text
//! cargo bench --bench micro -F paused-clock            # everything: about two minutes
//! cargo bench --bench micro -F paused-clock -- wheel   # one group: scanner, stream, upgrade, wheel
//! cargo test --bench micro -F paused-clock             # runs each bench once, without figures
//! ```
//!
//! Compare ratios within a group. The benches take nanoseconds and run one after the other, and a
//! shared machine is not equally fast all the time: run them twice before you trust a small
//! difference. The change that criterion reports against the last run is noise unless only the code
//! has changed; `--discard-baseline` suppresses it. `servers` measures whole servers in alternating
//! rounds.

use std::time::Duration;

use criterion::Criterion;
use tungstenite::Bytes;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

mod scanner;
mod stream;
mod upgrade;
mod wheel;

/// The crate's private module, compiled into the bench. It depends on no other module of the crate.
#[allow(
    dead_code,
    unused_imports,
    reason = "the bench uses a part of it, and compiles the helpers of its unit tests"
)]
#[path = "../../src/wire/mod.rs"]
mod wire;

/// The crate's private timer wheel. The inline module makes the path of the wheel's own tests
/// resolve.
#[allow(
    dead_code,
    unused_imports,
    reason = "the bench uses a part of it, and compiles the helpers of its unit tests"
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
    // Last, since it pauses tokio's clock: from then on every `Instant::now` of tokio is slower in
    // the whole process.
    wheel::run(&mut criterion);
    criterion.final_summary();
}

/// Encodes a binary frame: masked as clients send it, or unmasked as servers do.
fn frame(payload: usize, masked: bool) -> Vec<u8> {
    let header = FrameHeader {
        opcode: OpCode::Data(Data::Binary),
        mask: masked.then_some([0x37, 0xfa, 0x21, 0x3d]),
        ..FrameHeader::default()
    };
    let mut out = Vec::new();
    Frame::from_payload(header, Bytes::from(vec![0x5a; payload]))
        .format(&mut out)
        .expect("a write to a vector cannot fail");
    out
}

/// Formats a size as `125 B` or `64 KiB`.
fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => format!("{} KiB", bytes / 1024),
    }
}
