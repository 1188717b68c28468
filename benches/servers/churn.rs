//! A million short connections through one server: what it keeps of them.
//!
//! Each connection is upgraded; every other one has a message echoed; then it ends with a closing
//! handshake, with FIN alone, or with RST. The baseline is the layered server itself after its first
//! connections; bare axum goes first, with fewer.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::support::crowd::{self, ANYWHERE};
use super::support::options::{Kind, Options};
use super::support::peer::Peer;
use super::support::plot::{self, Labels, Line};
use super::support::process::{Server, need_files};
use super::{Result, Size};

/// How many connections are made.
struct Plan {
    bare: usize,
    layered: usize,
    /// From which on nothing may grow.
    warm: usize,
    /// From sample to sample.
    step: usize,
}

/// What the server keeps, of `connections` so far, when none is open.
#[derive(Clone, Copy)]
struct Sample {
    connections: usize,
    heap: usize,
    resident: u64,
}

/// The whole measure of one server ends after this long, with as many connections as it has made.
const LIMIT: Duration = Duration::from_secs(400);

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(size: Size) -> Result<()> {
    let plan = match size {
        Size::Quick => Plan {
            bare: 1000,
            layered: 2000,
            warm: 500,
            step: 250,
        },
        Size::Full => Plan {
            bare: 200_000,
            layered: 1_000_000,
            warm: 100_000,
            step: 50_000,
        },
    };
    need_files(1000)?;
    let runtime = Runtime::new()?;
    let bare = churn(&runtime, Kind::Bare, plan.bare, plan.step)?;
    let layered = churn(&runtime, Kind::Layered, plan.layered, plan.step)?;

    println!("| connections so far | live heap, B | resident, KiB |");
    println!("|---|---|---|");
    for sample in &layered {
        let resident = sample.resident / 1024;
        println!("| {} | {} | {resident} |", sample.connections, sample.heap);
    }
    let done = layered.last().map_or(0, |sample| sample.connections);
    if done < plan.layered {
        let (limit, wanted) = (LIMIT.as_secs(), plan.layered);
        println!("\nAfter {limit} s only {done} connections of {wanted} had been made.");
    }
    if let [first, .., last] = &bare[..] {
        println!(
            "\nThe bare server's heap went from {} B to {} B in {} connections.",
            first.heap, last.heap, last.connections
        );
    }
    if done < plan.layered {
        println!("Too few for a verdict.");
    } else {
        judge(&layered, plan.warm);
    }
    println!("Plot: {}", draw(&layered)?.display());
    Ok(())
}

fn churn(runtime: &Runtime, kind: Kind, connections: usize, step: usize) -> Result<Vec<Sample>> {
    let mut server = Server::start(Options {
        kind,
        buffer: Some(4096),
        ..Options::default()
    })?;
    let begun = Instant::now();
    let mut samples = vec![sample(&mut server, 0)?];
    let mut done = 0;
    while done < connections && begun.elapsed() < LIMIT {
        let next = connections.min(done + step);
        runtime.block_on(visits(server.addr, done..next))?;
        done = next;
        samples.push(sample(&mut server, done)?);
    }
    server.end()?;
    Ok(samples)
}

fn sample(server: &mut Server, connections: usize) -> Result<Sample> {
    server.wait_for_open(0, PATIENCE)?;
    Ok(Sample {
        connections,
        heap: server.settled_heap(PATIENCE)?,
        resident: server.resident()?,
    })
}

/// Makes the connections of these numbers, many at a time.
async fn visits(server: SocketAddr, numbers: std::ops::Range<usize>) -> io::Result<()> {
    const AT_ONCE: usize = 64;
    stream::iter(numbers)
        .map(|number| async move { timeout(PATIENCE, visit(server, number)).await? })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// One short connection.
async fn visit(server: SocketAddr, number: usize) -> io::Result<()> {
    /// Masked, with code 1000.
    const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
    let server = crowd::address(server, number);
    let mut peer = Peer::connect(server, ANYWHERE).await?;
    if number % 2 == 0 {
        peer.echo(&Peer::message(125)).await?;
    }
    match number % 8 {
        0 | 1 => {
            peer.send(&CLOSE).await?;
            // A handler that returns at a Close frame may not answer it: then this is its FIN.
            let _ = peer.receive().await;
        }
        // Nothing was left unread, so what dropping sends is a FIN.
        2 | 3 => {}
        // Most of them, since they leave no port in TIME-WAIT.
        _ => peer.socket().set_zero_linger()?,
    }
    Ok(())
}

/// What capacities may still gain that follow the most connections that were ever open together: less
/// than one connection weighs, and less than a byte in a hundred connections comes to.
const SLACK: usize = 4096;

/// Compares what is kept after the first connections with the most that is kept in the second half.
fn judge(samples: &[Sample], warm: usize) {
    let Some(first) = samples.iter().find(|sample| sample.connections >= warm) else {
        println!("Too few connections for a verdict.");
        return;
    };
    let done = samples.last().map_or(0, |sample| sample.connections);
    let late = samples
        .iter()
        .filter(|sample| 2 * sample.connections >= done);
    let heap = late
        .clone()
        .map(|sample| sample.heap)
        .max()
        .unwrap_or_default();
    let resident = late.map(|sample| sample.resident).max().unwrap_or_default();
    let grown = heap as f64 - first.heap as f64;
    let slope = grown / done as f64;
    println!(
        "Bar, no growth after {warm}: the most heap in the second half is {grown:+} B against that \
         at {warm} ({slope:+.4} B per connection), {}; resident {:+} KiB.",
        if heap <= first.heap + SLACK {
            "met"
        } else {
            "NOT met"
        },
        (resident as f64 - first.resident as f64) / 1024.0,
    );
}

fn draw(samples: &[Sample]) -> Result<std::path::PathBuf> {
    let line = |name: &str, of: fn(&Sample) -> f64| -> Line {
        let points = samples.iter();
        let points = points.map(|sample| (sample.connections as f64, of(sample)));
        (name.to_owned(), points.collect())
    };
    let heap = Labels {
        file: "churn",
        title: "What the layered server keeps of connections that are gone: live heap",
        x: "connections so far",
        y: "KiB",
    };
    let resident = Labels {
        title: "Resident memory",
        y: "MiB",
        ..heap
    };
    plot::stacked(&[
        (
            &heap,
            &[line("live heap", |sample| sample.heap as f64 / 1024.0)],
        ),
        (
            &resident,
            &[line("resident", |sample| {
                sample.resident as f64 / (1024.0 * 1024.0)
            })],
        ),
    ])
}
