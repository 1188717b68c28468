//! Echoed messages: rate, latency and CPU time of the server.
//!
//! The peers share the machine's cores with the server. CPU time per message therefore says more
//! than messages per second: it excludes the peers and, for the most part, other load on the
//! machine.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::support::comparison::{Bar, Better, Comparison};
use super::support::options::{BUFFERS, Kind, Options, buffer_name};
use super::support::peer::{Frame, Peer};
use super::support::process::{Server, require_files};
use super::{Result, Size};

/// The size and the concurrency of a load.
#[derive(Clone, Copy)]
struct Case {
    payload: usize,
    peers: usize,
    /// Messages in flight per peer.
    in_flight: usize,
}

const CASES: [Case; 5] = [
    Case::new(125, 8, 1),
    Case::new(125, 8, 16),
    Case::new(64 * 1024, 8, 1),
    Case::new(64 * 1024, 8, 4),
    Case::new(125, 1000, 1),
];

const COLUMNS: [&str; 5] = [
    "messages/s",
    "server's CPU/message (µs)",
    "p50 (µs)",
    "p99 (µs)",
    "p99.9 (µs)",
];
const RATE: usize = 0;
const CPU: usize = 1;

/// Minimum throughput behind both layers, as a multiple of the bare server's.
const MIN_THROUGHPUT_RATIO: f64 = 0.99;

pub(crate) fn run(size: Size) -> Result<()> {
    let (rounds, time) = match size {
        Size::Quick => (1, Duration::from_millis(100)),
        Size::Full => (9, Duration::from_secs(1)),
    };
    let max_peers = CASES.map(|case| case.peers).into_iter().max();
    // The peers of all servers, and 100 for the processes themselves.
    let servers = Kind::ECHOING.len();
    require_files((servers * max_peers.unwrap_or_default() + 100) as u64)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for buffer in BUFFERS {
        for case in CASES {
            let mut loads = Vec::new();
            for kind in Kind::ECHOING {
                let mut load = Load::connect(&runtime, kind, buffer, case)?;
                load.round(time / 10)?;
                loads.push(load);
            }
            let comparison = Comparison::take(COLUMNS, &Kind::ECHOING, rounds, |server| {
                loads[server].round(time)
            })?;
            report(case, buffer, &comparison);
        }
    }
    Ok(())
}

fn report(case: Case, buffer: Option<usize>, comparison: &Comparison<5>) {
    let Case {
        payload,
        peers,
        in_flight,
    } = case;
    let buffer = buffer_name(buffer);
    println!("### {payload} bytes, {peers} connections, {in_flight} in flight on each, {buffer}\n");
    comparison.print(&[
        (Kind::HandWritten, Kind::Bare),
        (Kind::Layered, Kind::Bare),
        (Kind::Layered, Kind::HandWritten),
        (Kind::Layered, Kind::Sockudo),
        (Kind::Layered, Kind::RawTungstenite),
        (Kind::Bare, Kind::Sockudo),
        (Kind::Bare, Kind::RawTungstenite),
    ]);
    let rate = comparison.ratio(RATE, Kind::Layered, Kind::Bare);
    Bar::AtLeast(MIN_THROUGHPUT_RATIO).judge("messages per second, layered / bare", rate);
    let cpu = comparison.ratio(CPU, Kind::Bare, Kind::Layered);
    Bar::AtLeast(MIN_THROUGHPUT_RATIO).judge("messages per CPU second, layered / bare", cpu);
    comparison.print_against_rivals("messages per second", RATE, Better::More);
    comparison.print_against_rivals("CPU per message", CPU, Better::Less);
    println!();
}

impl Case {
    const fn new(payload: usize, peers: usize, in_flight: usize) -> Self {
        Self {
            payload,
            peers,
            in_flight,
        }
    }
}

/// A server with its peers, idle outside of its rounds.
struct Load<'a> {
    runtime: &'a Runtime,
    server: Server,
    peers: Vec<Peer>,
    messages: Arc<Messages>,
}

/// The messages that every peer sends.
struct Messages {
    /// As many encoded messages as may be in flight.
    bytes: Vec<u8>,
    count: usize,
    /// Payload of one message in bytes.
    payload: usize,
}

impl Messages {
    /// The bytes of the first `count` messages.
    fn first(&self, count: usize) -> &[u8] {
        &self.bytes[..self.bytes.len() / self.count * count]
    }
}

impl<'a> Load<'a> {
    fn connect(
        runtime: &'a Runtime,
        kind: Kind,
        buffer: Option<usize>,
        case: Case,
    ) -> Result<Self> {
        let server = Server::start(Options {
            kind,
            buffer,
            ..Options::default()
        })?;
        let messages = Messages {
            bytes: Peer::message(case.payload).repeat(case.in_flight),
            count: case.in_flight,
            payload: case.payload,
        };
        let mut peers = runtime
            .block_on(Peer::connect_many(server.addr, case.peers).try_collect::<Vec<_>>())?;
        for peer in &mut peers {
            peer.reserve(messages.bytes.len());
        }
        Ok(Self {
            runtime,
            server,
            peers,
            messages: Arc::new(messages),
        })
    }

    /// Has all peers send for `time`, and returns the figures of [`COLUMNS`].
    fn round(&mut self, time: Duration) -> Result<[f64; 5]> {
        /// How long the last echo may take after the end of the round.
        const ECHO_LIMIT: Duration = Duration::from_secs(30);
        let latencies = Arc::new(Mutex::new(Histogram::new_with_bounds(
            1_000,
            60_000_000_000,
            3,
        )?));
        let mut drives = JoinSet::new();
        let cpu = self.server.cpu()?;
        let begun = Instant::now();
        for peer in self.peers.drain(..) {
            let messages = Arc::clone(&self.messages);
            let latencies = Arc::clone(&latencies);
            let driven = drive(peer, messages, begun + time, latencies);
            drives.spawn_on(driven, self.runtime.handle());
        }
        let all = async {
            while let Some(done) = drives.join_next().await {
                self.peers.push(done??);
            }
            Result::Ok(())
        };
        self.runtime
            .block_on(async { tokio::time::timeout(time + ECHO_LIMIT, all).await })??;
        let took = begun.elapsed();
        let cpu = self.server.cpu()? - cpu;

        let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let messages = latencies.len() as f64;
        let latency_us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Ok([
            messages / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / messages,
            latency_us(0.5),
            latency_us(0.99),
            latency_us(0.999),
        ])
    }
}

/// Keeps all of `messages` in flight until `end`, and then waits for the remaining echoes.
async fn drive(
    mut peer: Peer,
    messages: Arc<Messages>,
    end: Instant,
    latencies: Arc<Mutex<Histogram<u64>>>,
) -> io::Result<Peer> {
    // The time at which each message was sent.
    let mut in_flight = VecDeque::with_capacity(messages.count);
    loop {
        let now = Instant::now();
        if now < end {
            let due = messages.count - in_flight.len();
            in_flight.resize(messages.count, now);
            // This task reads nothing while it writes. The socket buffers hold all messages in
            // flight; otherwise the round would run into its timeout.
            peer.send(messages.first(due)).await?;
        } else if in_flight.is_empty() {
            return Ok(peer);
        }
        // One write replaces all messages whose echoes are already in the buffer.
        loop {
            match peer.receive().await? {
                Frame::Data(len) if len == messages.payload => {
                    let sent = in_flight.pop_front();
                    let sent = sent.ok_or(io::ErrorKind::InvalidData)?;
                    let latency = sent.elapsed().as_nanos() as u64;
                    let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                    latencies.saturating_record(latency);
                }
                Frame::Data(_) => return Err(io::ErrorKind::InvalidData.into()),
                Frame::Ping => {}
                Frame::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
            if !peer.has_frame() {
                break;
            }
        }
    }
}
