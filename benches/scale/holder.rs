//! A process that holds streams in memory, each read by a task of its own: behind a layer, or as they
//! are.
//!
//! Asked on its standard input, it answers a line for a line, until that is closed. Times are
//! microseconds; percentiles are their count, least, median, 99th and greatest.
//!
//! | asked | answered |
//! |---|---|
//! | `open` | opens all; the time that took |
//! | `live` | how many are open, if they are behind a layer |
//! | `heap` | bytes of heap that are allocated now |
//! | `pings` | how many were sent |
//! | `reads` | how often streams were read, also in vain |
//! | `lateness` | percentiles of how late pings were since this was last asked |
//! | `probe` and milliseconds | opens and drops one more stream every millisecond for so long; percentiles of the time that each took |
//! | `silence` and a number | so many peers fall silent at once |
//! | `late` | percentiles of how late hooks were called for peers that died |
//! | `sooner` | how many died that are not among those, since their last word was not known to be fresh |
//! | `others` | how many ended for a reason that nobody gave them |
//! | `hang-up` | all peers hang up; the time until all tasks have ended |

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
use super::{Result, heap, line};

/// The first argument of such a process. The others are [`LAYERED`] or [`BARE`], the number of
/// streams, and interval and timeout in milliseconds.
pub(crate) const ROLE: &str = "hold";

pub(crate) const LAYERED: &str = "layered";
pub(crate) const BARE: &str = "bare";

/// After so many streams others get their turn.
const BATCH: usize = 64;

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
        .on_evict(Listener(Arc::clone(&ends)))
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
        while let Some(asked) = lines.next_line().await? {
            println!("{}", holder.answer(&asked).await?);
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
    async fn answer(&mut self, asked: &str) -> Result<String> {
        let (asked, argument) = asked.split_once(' ').unwrap_or((asked, "0"));
        let begun = Instant::now();
        let took = |begun: Instant| begun.elapsed().as_micros().to_string();
        Ok(match asked {
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
            "lateness" => line(self.network.take_lateness().figures()),
            "probe" => {
                let span = Duration::from_millis(argument.parse()?);
                line(self.probe(span).await?.figures())
            }
            "silence" => {
                self.network.silence(argument.parse()?).await;
                took(begun)
            }
            "late" => line(self.ends.late().figures()),
            "sooner" => self.ends.sooner.load(Ordering::Relaxed).to_string(),
            "others" => self.ends.others.load(Ordering::Relaxed).to_string(),
            "hang-up" => {
                self.network.hang_up().await;
                while self.tasks.join_next().await.is_some() {}
                took(begun)
            }
            _ => format!("nobody knows {asked}"),
        })
    }

    /// Returns when all are being read.
    async fn open(&mut self) {
        for (count, wire) in self.network.wires().enumerate() {
            match &self.layer {
                Some(layer) => self.tasks.spawn(read(layer.wrap_server(wire).0)),
                None => self.tasks.spawn(read(wire)),
            };
            if count % BATCH == BATCH - 1 {
                yield_now().await;
            }
        }
        while !self.network.is_read() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What somebody notices who comes and goes meanwhile.
    async fn probe(&self, span: Duration) -> Result<Percentiles> {
        let layer = self.layer.clone().ok_or("there is no layer to be probed")?;
        // On a worker, like the driver, not on the thread that waits for this process's input.
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

/// What a handler does whose peer says nothing.
async fn read(mut io: impl AsyncRead + Unpin) {
    let mut buffer = [0; 16];
    while let Ok(1..) = io.read(&mut buffer).await {}
}

/// How connections have ended.
struct Ends {
    interval: Duration,
    timeout: Duration,
    late: Mutex<Histogram<u64>>,
    /// A byte that the driver finds on a visit of its own, before the handler that was woken for it,
    /// may have lain there since the one before, as far as anybody knows. The next ping is counted
    /// from that one then. The peer is dead all the same if it leaves it unanswered.
    sooner: AtomicU64,
    others: AtomicU64,
}

struct Listener(Arc<Ends>);

impl Ends {
    fn new(interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            late: Mutex::new(percentiles::histogram()),
            sooner: AtomicU64::new(0),
            others: AtomicU64::new(0),
        }
    }

    fn late(&self) -> Percentiles {
        Percentiles::from(&*self.late.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OnEvict for Listener {
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
                ends.sooner.fetch_add(1, Ordering::Relaxed);
            }
            // Those that hung up, and the probe's.
            (Reason::PeerVanished | Reason::HandlerDropped, _) => {}
            _ => {
                ends.others.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
