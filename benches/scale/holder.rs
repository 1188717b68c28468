//! A process that holds streams in memory, with or without the layer, each read by its own task.
//!
//! It replies to each command on standard input with one line, until standard input is closed.
//! Times are in microseconds; percentiles are count, minimum, median, 99th percentile and maximum.
//!
//! | command | reply |
//! |---|---|
//! | `open` | opens all streams; the time that takes |
//! | `live` | number of open streams behind the layer; 0 without it |
//! | `heap` | allocated bytes of heap |
//! | `pings` | number of pings sent |
//! | `reads` | number of reads, including those that returned `Pending` |
//! | `lateness` | percentiles of the pings' delay since the last `lateness` |
//! | `probe` and milliseconds | opens and drops one more stream per millisecond for that long; percentiles of the time each takes |
//! | `silence` and a number | silences that many peers; the time that takes |
//! | `late` | percentiles of the delay of eviction hooks for dead peers |
//! | `early` | number of dead peers evicted before interval + timeout, which `late` leaves out |
//! | `others` | number of ends for an unexpected reason |
//! | `close` | closes all peers; the time until all tasks have ended |

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, duplex};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tower_ws_liveness::{Eviction, HeartbeatLayer, OnEvict, Reason};

use super::network::Network;
use super::percentiles::{self, Percentiles};
use super::{Result, heap, join_figures};

/// First argument of such a process. The others are [`LAYERED`] or [`BARE`], the number of streams,
/// and interval and timeout in milliseconds.
pub(crate) const ROLE: &str = "hold";

pub(crate) const LAYERED: &str = "layered";
pub(crate) const BARE: &str = "bare";

/// Streams to open before the task yields.
const YIELD_AFTER: usize = 64;

pub(crate) fn run(args: &[String]) -> Result<()> {
    let [kind, count, interval, timeout] = args else {
        return Err("a holder takes kind, count, interval and timeout".into());
    };
    let interval = Duration::from_millis(interval.parse()?);
    let timeout = Duration::from_millis(timeout.parse()?);
    let ends = Arc::new(Ends::new(interval, timeout));
    let layer = HeartbeatLayer::builder()
        .interval(interval)
        .timeout(timeout)
        .on_evict_hook(EndRecorder(Arc::clone(&ends)))
        .build()?;
    let network = Network::new(count.parse()?, interval);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::spawn(Arc::clone(&network).run());
        let mut holder = Holder {
            layer: (kind == LAYERED).then_some(layer),
            network,
            ends,
            tasks: JoinSet::new(),
        };
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(command) = lines.next_line().await? {
            println!("{}", holder.reply(&command).await?);
        }
        Ok(())
    })
}

struct Holder {
    layer: Option<HeartbeatLayer>,
    network: Arc<Network>,
    ends: Arc<Ends>,
    tasks: JoinSet<()>,
}

impl Holder {
    async fn reply(&mut self, command: &str) -> Result<String> {
        let (command, argument) = command.split_once(' ').unwrap_or((command, "0"));
        let begun = Instant::now();
        let took = |begun: Instant| begun.elapsed().as_micros().to_string();
        Ok(match command {
            "open" => {
                self.open().await;
                took(begun)
            }
            "live" => {
                let registry = self.layer.as_ref().map(HeartbeatLayer::registry);
                registry.map_or(0, |registry| registry.len()).to_string()
            }
            "heap" => heap().to_string(),
            "pings" => self.network.pings().to_string(),
            "reads" => self.network.reads().to_string(),
            "lateness" => join_figures(self.network.take_lateness().figures()),
            "probe" => {
                let span = Duration::from_millis(argument.parse()?);
                join_figures(self.probe(span).await?.figures())
            }
            "silence" => {
                self.network.silence(argument.parse()?).await;
                took(begun)
            }
            "late" => join_figures(self.ends.late().figures()),
            "early" => self.ends.early.load(Ordering::Relaxed).to_string(),
            "others" => self.ends.others.load(Ordering::Relaxed).to_string(),
            "close" => {
                self.network.close_peers().await;
                while self.tasks.join_next().await.is_some() {}
                took(begun)
            }
            _ => format!("unknown command: {command}"),
        })
    }

    /// Opens all streams, and returns once every one of them is being read.
    async fn open(&mut self) {
        for (count, stream) in self.network.server_streams().enumerate() {
            match &self.layer {
                Some(layer) => self.tasks.spawn(read(layer.wrap_server(stream).0)),
                None => self.tasks.spawn(read(stream)),
            };
            if count % YIELD_AFTER == YIELD_AFTER - 1 {
                yield_now().await;
            }
        }
        while !self.network.has_readers() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Times the opening and dropping of one more stream, once per millisecond during `span`.
    async fn probe(&self, span: Duration) -> Result<Percentiles> {
        let layer = self.layer.clone().ok_or("there is no layer to probe")?;
        // Runs on a worker, like the driver, and not on the thread that waits for standard input.
        let probing = tokio::spawn(async move {
            let mut times = percentiles::histogram();
            let mut ticks = interval(Duration::from_millis(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let begun = Instant::now();
            while begun.elapsed() < span {
                ticks.tick().await;
                let (io, _peer) = duplex(64);
                let begun = Instant::now();
                drop(layer.wrap_server(io));
                times.saturating_record(begun.elapsed().as_micros() as u64);
            }
            Percentiles::from(&times)
        });
        Ok(probing.await?)
    }
}

/// A handler that only reads.
async fn read(mut io: impl AsyncRead + Unpin) {
    let mut buffer = [0; 16];
    while let Ok(1..) = io.read(&mut buffer).await {}
}

/// Counts the ends of connections by reason.
struct Ends {
    interval: Duration,
    timeout: Duration,
    late: Mutex<Histogram<u64>>,
    /// Evictions before interval + timeout. The driver may read a byte before the handler that was
    /// woken for it. That byte may have arrived at any time since the driver's previous visit, so
    /// the next ping is scheduled from that visit. A peer that leaves this ping unanswered is dead
    /// as well.
    early: AtomicU64,
    others: AtomicU64,
}

struct EndRecorder(Arc<Ends>);

impl Ends {
    fn new(interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            late: Mutex::new(percentiles::histogram()),
            early: AtomicU64::new(0),
            others: AtomicU64::new(0),
        }
    }

    fn late(&self) -> Percentiles {
        Percentiles::from(&*self.late.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OnEvict for EndRecorder {
    fn on_evict(&self, eviction: &Eviction) {
        let ends = &self.0;
        let silence = eviction.last_seen().elapsed();
        let late = silence.checked_sub(ends.interval + ends.timeout);
        match (eviction.reason(), late) {
            (Reason::HeartbeatTimeout { .. }, Some(late)) => {
                let mut times = ends.late.lock().unwrap_or_else(PoisonError::into_inner);
                times.saturating_record(late.as_micros() as u64);
            }
            (Reason::HeartbeatTimeout { .. }, None) if silence >= ends.timeout => {
                ends.early.fetch_add(1, Ordering::Relaxed);
            }
            // The peers that were closed, and the streams of the probe.
            (Reason::PeerVanished | Reason::HandlerDropped, _) => {}
            _ => {
                ends.others.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
