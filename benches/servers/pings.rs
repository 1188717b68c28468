//! CPU time of the server per ping and pong, with many otherwise idle connections.
//!
//! Compares the hand-written heartbeat, both layers, the rivals and the floor. The bench counts whole
//! round trips, since a server may ping at a fixed rate or after some silence. Nothing is subtracted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::support::comparison::{Bar, Better, Comparison};
use super::support::options::{BUFFERS, Kind, Options, buffer_name};
use super::support::peer::{Frame, Peer};
use super::support::process::{Server, require_files};
use super::{Result, Size};

/// The extent of the measurement.
struct Plan {
    peers: usize,
    interval: Duration,
    /// Measured intervals per round.
    intervals: u32,
    rounds: usize,
}

const SERVERS: [Kind; 5] = [
    Kind::HandWritten,
    Kind::Layered,
    Kind::Sockudo,
    Kind::RawTungstenite,
    Kind::Floor,
];

const COLUMNS: [&str; 2] = ["server's CPU/round trip (µs)", "round trips/s"];
const CPU: usize = 0;

/// Maximum CPU time of a round trip behind both layers, as a multiple of the hand-written
/// heartbeat's, for each of [`BUFFERS`].
const MAX_RATIOS_TO_HAND_WRITTEN: [f64; 2] = [0.4, 0.5];
/// Maximum CPU time of a round trip behind both layers, as a multiple of the floor's.
const MAX_RATIO_TO_FLOOR: f64 = 1.2;

pub(crate) fn run(size: Size) -> Result<()> {
    let plan = match size {
        Size::Quick => Plan {
            peers: 200,
            interval: Duration::from_millis(200),
            intervals: 2,
            rounds: 1,
        },
        Size::Full => Plan {
            peers: 10_000,
            interval: Duration::from_secs(1),
            intervals: 4,
            rounds: 5,
        },
    };
    require_files(plan.peers as u64 + 100)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for (buffer, bar) in BUFFERS.into_iter().zip(MAX_RATIOS_TO_HAND_WRITTEN) {
        let comparison = Comparison::take(COLUMNS, &SERVERS, plan.rounds, |server| {
            round(&runtime, &plan, SERVERS[server], buffer)
        })?;
        println!(
            "### {} connections, pinged every {:?}, {}\n",
            plan.peers,
            plan.interval,
            buffer_name(buffer)
        );
        comparison.print(&[
            (Kind::Layered, Kind::HandWritten),
            (Kind::Layered, Kind::Floor),
            (Kind::HandWritten, Kind::Floor),
            (Kind::Layered, Kind::Sockudo),
            (Kind::Layered, Kind::RawTungstenite),
        ]);
        let ratio = comparison.ratio(CPU, Kind::Layered, Kind::HandWritten);
        Bar::AtMost(bar).judge("CPU per round trip, layered / hand-written", ratio);
        let ratio = comparison.ratio(CPU, Kind::Layered, Kind::Floor);
        Bar::AtMost(MAX_RATIO_TO_FLOOR).judge("CPU per round trip, layered / floor", ratio);
        comparison.print_against_rivals("CPU per round trip", CPU, Better::Less);
        println!();
    }
    Ok(())
}

/// Starts a server, connects all peers and returns the figures of [`COLUMNS`].
///
/// Servers run one at a time: the bench may open only enough files for the peers of one, and 10,000
/// read buffers of axum's default size take 1.3 GB.
fn round(runtime: &Runtime, plan: &Plan, kind: Kind, buffer: Option<usize>) -> Result<[f64; 2]> {
    const WAIT_LIMIT: Duration = Duration::from_secs(30);
    let interval = plan.interval.max(kind.min_interval());
    let mut server = Server::start(Options {
        kind,
        buffer,
        interval,
        // Long enough that no peer is found dead on a slow machine.
        timeout: WAIT_LIMIT,
        ..Options::default()
    })?;
    runtime.block_on(async {
        let round_trips = Arc::new(AtomicU64::new(0));
        let mut answering = JoinSet::new();
        let mut peers = Peer::connect_many(server.addr, plan.peers);
        // Each peer answers from the start: pongs sent together would cause pings sent together.
        while let Some(peer) = peers.try_next().await? {
            peer.reset_on_drop()?;
            answering.spawn(answer(peer, Arc::clone(&round_trips)));
        }
        server.wait_for_open(plan.peers, WAIT_LIMIT)?;
        // Leaves out the first ping of every connection, which may cost more than later ones.
        tokio::time::sleep(interval).await;

        let before = round_trips.load(Ordering::Relaxed);
        let cpu = server.cpu()?;
        let begun = Instant::now();
        tokio::time::sleep(interval * plan.intervals).await;
        let cpu = server.cpu()? - cpu;
        let took = begun.elapsed();
        let counted = round_trips.load(Ordering::Relaxed) - before;

        if let Some(ended) = answering.try_join_next() {
            return Err(format!("a connection did not last: {:?}", ended?).into());
        }
        if counted < plan.peers as u64 {
            return Err(format!("{} connections had only {counted} pings", plan.peers).into());
        }
        Ok([
            cpu.as_secs_f64() * 1e6 / counted as f64,
            counted as f64 / took.as_secs_f64(),
        ])
    })
}

/// Answers and counts pings until the connection ends.
async fn answer(mut peer: Peer, round_trips: Arc<AtomicU64>) -> io::Result<()> {
    loop {
        if peer.receive().await? == Frame::Ping {
            round_trips.fetch_add(1, Ordering::Relaxed);
        }
    }
}
