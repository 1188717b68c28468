//! Memory of idle connections: live heap, as the allocator counts it, and resident memory.
//!
//! The baseline is bare axum; the hand-written heartbeat and the rivals are measured too. Each server
//! is measured with axum's default read buffer, with one of 4 KiB and with one of 512 B, and again
//! after every connection has been pinged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::support::comparison::Better;
use super::support::options::{Kind, Options};
use super::support::peer::{Frame, Peer};
use super::support::peers;
use super::support::plot::{self, Labels, Line};
use super::support::process::{Server, require_files};
use super::support::spread::Spread;
use super::{Result, Size};

/// Memory of a server with `connections` connections, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    connections: usize,
    heap: f64,
    resident: f64,
}

/// The name of a server in tables, and its samples.
type NamedSamples = (String, Vec<Memory>);

const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of heap that both layers may add to a connection.
const MAX_ADDED_HEAP_BYTES: f64 = 448.0;

/// The servers with a heartbeat.
const PINGED: [Kind; 4] = [
    Kind::HandWritten,
    Kind::Layered,
    Kind::Sockudo,
    Kind::RawTungstenite,
];

/// Longer than the bench, so that an idle connection is never pinged.
const NEVER_PINGED_INTERVAL: Duration = Duration::from_secs(3600);

pub(crate) fn run(size: Size) -> Result<()> {
    // The largest number is just above a power of two where possible: a collection that doubles its
    // capacity has the most unused room there.
    let (small, default): (&[_], &[_]) = match size {
        Size::Quick => (&[0, 100, 200, 300], &[0, 100, 200]),
        Size::Full => (
            &[0, 1000, 2000, 4000, 8000, 12_000, 17_000],
            &[0, 1000, 2000, 3000, 4500],
        ),
    };
    let max_connections = small
        .iter()
        .chain(default)
        .max()
        .copied()
        .unwrap_or_default();
    require_files(max_connections as u64 + 100)?;
    let runtime = Runtime::new()?;
    for (buffer, counts, file) in [
        (Some(4096), small, "memory"),
        (Some(512), small, "memory-small-buffer"),
        (None, default, "memory-default-buffer"),
    ] {
        measure(&runtime, size, buffer, counts, file)?;
    }
    Ok(())
}

fn measure(
    runtime: &Runtime,
    size: Size,
    buffer: Option<usize>,
    counts: &[usize],
    file: &str,
) -> Result<()> {
    let mut idle: Vec<NamedSamples> = Vec::new();
    for kind in Kind::ECHOING {
        idle.push((
            kind.name().to_owned(),
            never_pinged(runtime, kind, buffer, counts)?,
        ));
    }
    let mut pinged: Vec<NamedSamples> = Vec::new();
    // Enough for a slope, and few enough to be pinged every four seconds.
    let few = *counts.iter().rfind(|&&count| count <= 4500).unwrap_or(&0);
    for kind in PINGED {
        let samples = once_pinged(runtime, size, kind, buffer, few)?;
        pinged.push((format!("{}, pinged", kind.name()), samples));
    }

    let buffer = buffer.map_or("axum's default".to_owned(), |size| format!("{size} B"));
    println!("Read buffer: {buffer}. Bytes per connection:\n");
    println!("| server | connections | heap | over bare | heap, by slope | resident | over bare |");
    println!("|---|---|---|---|---|---|---|");
    let bare = per_connection_of_last(&idle[0].1);
    for (name, samples) in idle.iter().chain(&pinged) {
        print_row(name, samples, bare);
    }
    // Connections in production have been pinged, so the first ping's share belongs to the bar.
    let first_ping = added_by_first_ping(&idle[2].1, &pinged[1].1);
    let added = per_connection_of_last(&idle[2].1).heap - bare.heap + first_ping;
    println!(
        "\nBar, heap that both layers add: {MAX_ADDED_HEAP_BYTES} B at most. {added:.1} B, {} (hand-written, before its \
         first ping: {:.1} B).",
        if added <= MAX_ADDED_HEAP_BYTES {
            "met"
        } else {
            "NOT met"
        },
        per_connection_of_last(&idle[1].1).heap - bare.heap,
    );
    println!(
        "Of {few} connections, the first ping makes each heavier by {:+.1} B (hand-written: {:+.1} B).\n",
        first_ping,
        added_by_first_ping(&idle[1].1, &pinged[0].1),
    );
    let layered = per_connection_of_last(&idle[2].1);
    for rival in Kind::RIVALS {
        let measured = idle.iter().find(|(name, _)| name == rival.name());
        let (_, samples) = measured.expect("rivals echo, so they were measured");
        let samples = per_connection_of_last(samples);
        let ratio = |of: fn(&Memory) -> f64| Spread::of([of(&layered) / of(&samples)]);
        Better::Less.judge("heap", rival, ratio(|memory| memory.heap));
        Better::Less.judge("resident memory", rival, ratio(|memory| memory.resident));
    }
    println!();

    let path = draw(file, &buffer, &idle)?;
    println!("Plot: {}\n", path.display());
    Ok(())
}

/// Samples a server while idle connections are added, none of which is ever pinged.
fn never_pinged(
    runtime: &Runtime,
    kind: Kind,
    buffer: Option<usize>,
    counts: &[usize],
) -> Result<Vec<Memory>> {
    let mut server = Server::start(Options {
        kind,
        buffer,
        interval: NEVER_PINGED_INTERVAL,
        timeout: NEVER_PINGED_INTERVAL,
        ..Options::default()
    })?;
    let mut peers = Vec::new();
    let mut samples = Vec::new();
    for &connections in counts {
        let more = peers::connect_all(server.addr, connections - peers.len());
        peers.extend(runtime.block_on(more)?);
        server.wait_for_open(connections, WAIT_LIMIT)?;
        samples.push(Memory {
            connections,
            heap: server.settled_heap(WAIT_LIMIT)? as f64,
            resident: server.resident()? as f64,
        });
    }
    drop(peers);
    server.end()?;
    Ok(samples)
}

/// Samples a server without connections, and with connections that have each answered a ping.
fn once_pinged(
    runtime: &Runtime,
    size: Size,
    kind: Kind,
    buffer: Option<usize>,
    connections: usize,
) -> Result<Vec<Memory>> {
    let (interval, heap_samples) = match size {
        Size::Quick => (Duration::from_secs(1), 5),
        Size::Full => (Duration::from_secs(4), 41),
    };
    let mut server = Server::start(Options {
        kind,
        buffer,
        interval,
        ..Options::default()
    })?;
    let empty = Memory {
        connections: 0,
        heap: server.settled_heap(WAIT_LIMIT)? as f64,
        resident: server.resident()? as f64,
    };
    let peers = runtime.block_on(peers::connect_all(server.addr, connections))?;
    let answered = Arc::new(AtomicUsize::new(0));
    let mut answering = JoinSet::new();
    for peer in peers {
        answering.spawn_on(answer(peer, Arc::clone(&answered)), runtime.handle());
    }
    let begun = Instant::now();
    while answered.load(Ordering::Relaxed) < connections {
        if begun.elapsed() > WAIT_LIMIT {
            return Err("not every connection was pinged".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    // Pings go on, so the heap never settles: some are always in flight. Takes the median.
    let mut heaps = Vec::new();
    for _ in 0..heap_samples {
        thread::sleep(Duration::from_millis(50));
        heaps.push(server.heap()? as f64);
    }
    let pinged = Memory {
        connections,
        heap: Spread::of(heaps).median,
        resident: server.resident()? as f64,
    };
    server.wait_for_open(connections, Duration::ZERO)?;
    runtime.block_on(answering.shutdown());
    server.end()?;
    Ok([empty, pinged].into())
}

/// Answers pings, and counts the peer in `answered` after the first one.
async fn answer(mut peer: Peer, answered: Arc<AtomicUsize>) {
    let mut counted = false;
    while let Ok(frame) = peer.receive().await {
        if frame == Frame::Ping && !counted {
            counted = true;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Memory per connection, from the largest number of connections.
fn per_connection_of_last(samples: &[Memory]) -> Memory {
    per_connection(samples[0], samples[samples.len() - 1])
}

/// Memory per connection that was added between two samples.
fn per_connection(from: Memory, to: Memory) -> Memory {
    let connections = to.connections - from.connections;
    Memory {
        connections,
        heap: (to.heap - from.heap) / connections as f64,
        resident: (to.resident - from.resident) / connections as f64,
    }
}

fn print_row(name: &str, samples: &[Memory], bare: Memory) {
    let Memory {
        connections,
        heap,
        resident,
    } = per_connection_of_last(samples);
    // The slope excludes what the very first connection allocates once.
    let slope = match samples {
        [_, second, .., last] => format!("{:.1}", per_connection(*second, *last).heap),
        _ => "-".to_owned(),
    };
    let (more_heap, more_resident) = (heap - bare.heap, resident - bare.resident);
    println!(
        "| {name} | {connections} | {heap:.1} | {more_heap:.1} | {slope} | {resident:.0} | \
         {more_resident:.0} |"
    );
}

/// Heap that the first ping adds to a connection, for the same number of connections.
fn added_by_first_ping(idle: &[Memory], pinged: &[Memory]) -> f64 {
    let [empty, .., pinged] = pinged else {
        return f64::NAN;
    };
    let same = idle
        .iter()
        .find(|idle| idle.connections == pinged.connections);
    same.map_or(f64::NAN, |same| {
        per_connection(*empty, *pinged).heap - per_connection(idle[0], *same).heap
    })
}

fn draw(file: &str, buffer: &str, measured: &[NamedSamples]) -> Result<std::path::PathBuf> {
    const MIB: f64 = 1024.0 * 1024.0;
    let lines = |of: fn(&Memory) -> f64| -> Vec<Line> {
        let lines = measured.iter().map(|(name, samples)| {
            let points = samples
                .iter()
                .map(|weight| (weight.connections as f64, of(weight) / MIB));
            (name.clone(), points.collect())
        });
        lines.collect()
    };
    let heap = Labels {
        file,
        title: &format!("Live heap of idle connections (read buffer: {buffer})"),
        x: "connections",
        y: "MiB",
    };
    let resident = Labels {
        title: &format!("Resident memory of idle connections (read buffer: {buffer})"),
        ..heap
    };
    plot::stacked(&[
        (&heap, &lines(|weight| weight.heap)),
        (&resident, &lines(|weight| weight.resident)),
    ])
}
