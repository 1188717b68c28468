//! Memory that a server retains after a million short connections.
//!
//! Every connection is upgraded, and every other one has a message echoed. Then it ends with a
//! closing handshake, with a FIN alone or with an RST. The baseline is the layered server itself
//! after its first connections. Bare axum runs first, with fewer connections.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::support::options::{Kind, Options};
use super::support::peer::Peer;
use super::support::peers::{self, ANY_LOCAL};
use super::support::plot::{self, Labels, Line};
use super::support::process::{Server, require_files};
use super::{Result, Size};

/// The number of connections per server.
struct Plan {
    bare: usize,
    layered: usize,
    /// Connections after which memory must not grow any more.
    warm_up: usize,
    /// Connections between two samples.
    step: usize,
}

/// Memory of the server after `connections` connections, none of them open.
#[derive(Clone, Copy)]
struct Sample {
    connections: usize,
    heap: usize,
    resident: u64,
}

/// The measurement of one server stops after this time, whatever the number of connections.
const MEASURE_LIMIT: Duration = Duration::from_secs(400);

const WAIT_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn run(size: Size) -> Result<()> {
    let plan = match size {
        Size::Quick => Plan {
            bare: 1000,
            layered: 2000,
            warm_up: 500,
            step: 250,
        },
        Size::Full => Plan {
            bare: 200_000,
            layered: 1_000_000,
            warm_up: 100_000,
            step: 50_000,
        },
    };
    require_files(1000)?;
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
        let (limit, wanted) = (MEASURE_LIMIT.as_secs(), plan.layered);
        println!("\nOnly {done} of {wanted} connections were made within {limit} s.");
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
        judge(&layered, plan.warm_up);
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
    while done < connections && begun.elapsed() < MEASURE_LIMIT {
        let next = connections.min(done + step);
        runtime.block_on(run_connections(server.addr, done..next))?;
        done = next;
        samples.push(sample(&mut server, done)?);
    }
    server.end()?;
    Ok(samples)
}

fn sample(server: &mut Server, connections: usize) -> Result<Sample> {
    server.wait_for_open(0, WAIT_LIMIT)?;
    Ok(Sample {
        connections,
        heap: server.settled_heap(WAIT_LIMIT)?,
        resident: server.resident()?,
    })
}

/// Runs the connections with these numbers, at most 64 at a time.
async fn run_connections(server: SocketAddr, numbers: std::ops::Range<usize>) -> io::Result<()> {
    const MAX_OPEN: usize = 64;
    stream::iter(numbers)
        .map(|number| async move { timeout(WAIT_LIMIT, run_connection(server, number)).await? })
        .buffer_unordered(MAX_OPEN)
        .try_collect()
        .await
}

/// Opens and ends one connection, in a way that `number` selects.
async fn run_connection(server: SocketAddr, number: usize) -> io::Result<()> {
    /// Masked, with code 1000.
    const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
    let server = peers::loopback_address(server, number);
    let mut peer = Peer::connect(server, ANY_LOCAL).await?;
    if number % 2 == 0 {
        peer.echo(&Peer::message(125)).await?;
    }
    match number % 8 {
        0 | 1 => {
            peer.send(&CLOSE).await?;
            // A handler that returns on a Close frame may not reply: then this reads its FIN.
            let _ = peer.receive().await;
        }
        // With nothing left unread, dropping the socket sends a FIN.
        2 | 3 => {}
        // The most frequent case, since a reset leaves no port in TIME-WAIT.
        _ => peer.socket().set_zero_linger()?,
    }
    Ok(())
}

/// Growth in bytes that capacities may show when the number of simultaneously open connections
/// peaks again. It is less than the heap of one connection, and far less than one byte per
/// connection.
const SLACK_BYTES: usize = 4096;

/// Compares the memory after the warm-up with the maximum in the second half.
fn judge(samples: &[Sample], warm_up: usize) {
    let Some(first) = samples.iter().find(|sample| sample.connections >= warm_up) else {
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
        "Bar, no growth after {warm_up}: the most heap in the second half is {grown:+} B against that \
         at {warm_up} ({slope:+.4} B per connection), {}; resident {:+} KiB.",
        if heap <= first.heap + SLACK_BYTES {
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
        title: "Memory of the layered server after its connections have ended: live heap",
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
