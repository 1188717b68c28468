//! Memory of connections that do nothing: live heap (counted by the allocator) and resident memory of
//! the server's process, as the number of connections grows.
//!
//! The baseline is bare axum; the hand-written heartbeat stands beside it. Everything is measured with
//! axum's default read buffer and with one of 4 KiB, and again after every connection has been pinged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::support::crowd;
use super::support::options::{Kind, Options};
use super::support::peer::{Frame, Peer};
use super::support::plot::{self, Labels, Line};
use super::support::process::{Server, need_files};
use super::support::spread::Spread;
use super::{Result, Size};

/// What a server weighs with so many connections.
#[derive(Clone, Copy)]
struct Weight {
    connections: usize,
    heap: f64,
    resident: f64,
}

/// What a table calls a server, and its weights.
type Measured = (String, Vec<Weight>);

const PATIENCE: Duration = Duration::from_secs(30);

/// DESIGN section 7: bytes of heap that both layers may add.
const BAR: f64 = 512.0;

/// Long enough that nothing is pinged that is to be idle.
const NEVER: Duration = Duration::from_secs(3600);

pub(crate) fn run(size: Size) -> Result<()> {
    // The greatest number is just above a power of two where it can be: what doubles its capacity is
    // at its emptiest there.
    let (small, default): (&[_], &[_]) = match size {
        Size::Quick => (&[0, 100, 200, 300], &[0, 100, 200]),
        Size::Full => (
            &[0, 1000, 2000, 4000, 8000, 12_000, 17_000],
            &[0, 1000, 2000, 3000, 4500],
        ),
    };
    let most = small
        .iter()
        .chain(default)
        .max()
        .copied()
        .unwrap_or_default();
    need_files(most as u64 + 100)?;
    let runtime = Runtime::new()?;
    for (buffer, counts, file) in [
        (Some(4096), small, "memory"),
        (None, default, "memory-default-buffer"),
    ] {
        measure(&runtime, buffer, counts, file)?;
    }
    Ok(())
}

fn measure(runtime: &Runtime, buffer: Option<usize>, counts: &[usize], file: &str) -> Result<()> {
    let mut idle: Vec<Measured> = Vec::new();
    for kind in Kind::ECHOING {
        idle.push((
            kind.name().to_owned(),
            never_pinged(runtime, kind, buffer, counts)?,
        ));
    }
    let mut pinged: Vec<Measured> = Vec::new();
    // Enough for a slope, and few enough to be pinged every few seconds.
    let few = *counts.iter().rfind(|&&count| count <= 4500).unwrap_or(&0);
    for kind in [Kind::HandWritten, Kind::Layered] {
        let weights = once_pinged(runtime, kind, buffer, few)?;
        pinged.push((format!("{}, pinged", kind.name()), weights));
    }

    let buffer = buffer.map_or("axum's default".to_owned(), |size| format!("{size} B"));
    println!("Read buffer: {buffer}. Bytes per connection:\n");
    println!("| server | connections | heap | over bare | heap, by slope | resident | over bare |");
    println!("|---|---|---|---|---|---|---|");
    let bare = of_the_last(&idle[0].1);
    for (name, weights) in idle.iter().chain(&pinged) {
        row(name, weights, bare);
    }
    // A connection that is never pinged is not what people have.
    let first_ping = gained(&idle[2].1, &pinged[1].1);
    let added = of_the_last(&idle[2].1).heap - bare.heap + first_ping;
    println!(
        "\nBar, heap that both layers add: {BAR} B at most. {added:.1} B, {} (hand-written, before its \
         first ping: {:.1} B).",
        if added <= BAR { "met" } else { "NOT met" },
        of_the_last(&idle[1].1).heap - bare.heap,
    );
    println!(
        "Of {few} connections, the first ping makes each heavier by {:+.1} B (hand-written: {:+.1} B).\n",
        first_ping,
        gained(&idle[1].1, &pinged[0].1),
    );

    let path = draw(file, &buffer, &idle)?;
    println!("Plot: {}\n", path.display());
    Ok(())
}

/// Weighs a server as idle connections are added that are never pinged.
fn never_pinged(
    runtime: &Runtime,
    kind: Kind,
    buffer: Option<usize>,
    counts: &[usize],
) -> Result<Vec<Weight>> {
    let mut server = Server::start(Options {
        kind,
        buffer,
        interval: NEVER,
        timeout: NEVER,
        ..Options::default()
    })?;
    let mut peers = Vec::new();
    let mut weights = Vec::new();
    for &connections in counts {
        let more = crowd::connect(server.addr, connections - peers.len());
        peers.extend(runtime.block_on(more)?);
        server.wait_for_open(connections, PATIENCE)?;
        weights.push(Weight {
            connections,
            heap: server.settled_heap(PATIENCE)? as f64,
            resident: server.resident()? as f64,
        });
    }
    drop(peers);
    server.end()?;
    Ok(weights)
}

/// Weighs a server without connections, and with connections of which each has answered a ping.
fn once_pinged(
    runtime: &Runtime,
    kind: Kind,
    buffer: Option<usize>,
    connections: usize,
) -> Result<Vec<Weight>> {
    let mut server = Server::start(Options {
        kind,
        buffer,
        interval: Duration::from_secs(4),
        ..Options::default()
    })?;
    let empty = Weight {
        connections: 0,
        heap: server.settled_heap(PATIENCE)? as f64,
        resident: server.resident()? as f64,
    };
    let peers = runtime.block_on(crowd::connect(server.addr, connections))?;
    let answered = Arc::new(AtomicUsize::new(0));
    let mut answering = JoinSet::new();
    for peer in peers {
        answering.spawn_on(answer(peer, Arc::clone(&answered)), runtime.handle());
    }
    let begun = Instant::now();
    while answered.load(Ordering::Relaxed) < connections {
        if begun.elapsed() > PATIENCE {
            return Err("not every connection was pinged".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    // The pings go on, so the heap never settles: some of them are always under way.
    let mut heaps = Vec::new();
    for _ in 0..41 {
        thread::sleep(Duration::from_millis(50));
        heaps.push(server.heap()? as f64);
    }
    let pinged = Weight {
        connections,
        heap: Spread::of(heaps).median,
        resident: server.resident()? as f64,
    };
    server.wait_for_open(connections, Duration::ZERO)?;
    runtime.block_on(answering.shutdown());
    server.end()?;
    Ok([empty, pinged].into())
}

/// Answers pings, and counts itself once it has answered its first.
async fn answer(mut peer: Peer, answered: Arc<AtomicUsize>) {
    let mut counted = false;
    while let Ok(frame) = peer.receive().await {
        if frame == Frame::Ping && !counted {
            counted = true;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What each connection adds, by the greatest number of them.
fn of_the_last(weights: &[Weight]) -> Weight {
    per_connection(weights[0], weights[weights.len() - 1])
}

/// What each connection adds that came between the two.
fn per_connection(from: Weight, to: Weight) -> Weight {
    let connections = to.connections - from.connections;
    Weight {
        connections,
        heap: (to.heap - from.heap) / connections as f64,
        resident: (to.resident - from.resident) / connections as f64,
    }
}

fn row(name: &str, weights: &[Weight], bare: Weight) {
    let Weight {
        connections,
        heap,
        resident,
    } = of_the_last(weights);
    // Without what the first connection of all brings into being.
    let slope = match weights {
        [_, second, .., last] => format!("{:.1}", per_connection(*second, *last).heap),
        _ => "-".to_owned(),
    };
    let (more_heap, more_resident) = (heap - bare.heap, resident - bare.resident);
    println!(
        "| {name} | {connections} | {heap:.1} | {more_heap:.1} | {slope} | {resident:.0} | \
         {more_resident:.0} |"
    );
}

/// Heap that each connection gains by its first ping, from as many connections before and after.
fn gained(idle: &[Weight], pinged: &[Weight]) -> f64 {
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

fn draw(file: &str, buffer: &str, measured: &[Measured]) -> Result<std::path::PathBuf> {
    const MIB: f64 = 1024.0 * 1024.0;
    let lines = |of: fn(&Weight) -> f64| -> Vec<Line> {
        let lines = measured.iter().map(|(name, weights)| {
            let points = weights
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
