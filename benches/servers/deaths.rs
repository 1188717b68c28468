//! Thousands of peers that die at the same time: eviction delay, and latency of the live peers.
//!
//! The peers die like a stopped process: their sockets stay open and the kernel acknowledges
//! segments, but no process reads or answers. All of them send an unsolicited pong just before, so
//! that their deadlines are as close together as possible. The baseline is the same server before
//! the deaths. The hand-written heartbeat and the rivals are measured in the same way, in
//! alternating rounds.

use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::support::comparison::Better;
use super::support::options::{Kind, Options};
use super::support::peer::Peer;
use super::support::peers;
use super::support::plot::{self, Labels, Line};
use super::support::process::{Server, require_files};
use super::support::spread::Spread;
use super::{Result, Size};

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum p99 of the live peers in the sweep, as a multiple of that before.
const MAX_DISTURBANCE: f64 = 1.5;
/// Upper bound of a tick: a 32nd of the shortest configured duration.
const TICK: Duration = Duration::from_millis(TIMEOUT.as_millis() as u64 / 32);

/// The rivals are last, in the order of [`Kind::RIVALS`].
const SERVERS: [Kind; 4] = [
    Kind::HandWritten,
    Kind::Layered,
    Kind::Sockudo,
    Kind::RawTungstenite,
];

const LIVE: usize = 100;

/// Time between two echoes of a live peer.
const ECHO_INTERVAL: Duration = Duration::from_millis(20);

/// How long the live peers are measured before the others die.
const MEASURED_BEFORE: Duration = Duration::from_secs(5);

/// How long the server is watched after the last expected eviction.
const WATCHED_AFTER: Duration = Duration::from_secs(1);

/// Time between two requests for evictions, and resolution of the plot.
const BUCKET: Duration = Duration::from_millis(50);

/// The sweep is compared with the median of windows of about its own length, so that a moment in
/// which the machine was busy with other work does not loosen the bar.
const WINDOW: Duration = Duration::from_millis(250);

/// An unsolicited pong (RFC 6455 section 5.5.3), masked.
const LAST_PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

/// One echo of a live peer.
struct Echo {
    begun: Instant,
    done: Instant,
}

/// The observations of one server in one round.
struct Round {
    /// When the first peer sent its last pong.
    died: Instant,
    /// When the last peer had sent its last pong.
    silent: Instant,
    echoes: Vec<Echo>,
    /// Time of each request to the server, and for every peer found dead since the request before:
    /// the delay after its deadline in milliseconds.
    found: Vec<(Instant, Vec<f64>)>,
}

pub(crate) fn run(size: Size) -> Result<()> {
    let (rounds, dying) = match size {
        Size::Quick => (1, 200),
        Size::Full => (3, 10_000),
    };
    require_files((dying + LIVE + 100) as u64)?;
    let runtime = Runtime::new()?;
    let mut measured = SERVERS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (rounds, kind) in measured.iter_mut().zip(SERVERS) {
            rounds.push(round(&runtime, kind, dying)?);
        }
    }

    println!("{dying} peers die, {LIVE} live. Medians of {rounds} rounds, and their extremes:\n");
    println!("| | {} |", SERVERS.map(Kind::name).join(" | "));
    println!("|---|{}", "---|".repeat(SERVERS.len()));
    type Figure = fn(&Round) -> f64;
    let figures: [(&str, Figure); 14] = [
        ("the peers die within, ms", |round| {
            millis(round.silent - round.died)
        }),
        ("evicted before the deadline", Round::evicted_early),
        ("eviction after the deadline, p50, ms", |round| {
            round.late(0.5)
        }),
        ("eviction after the deadline, p99, ms", |round| {
            round.late(0.99)
        }),
        ("eviction after the deadline, max, ms", |round| {
            round.late(1.0)
        }),
        ("all due evictions within, ms", |round| {
            millis(round.sweep().1 - round.sweep().0)
        }),
        ("echo before, p50, ms", |round| round.before(0.5)),
        ("echo before, p99, ms", |round| round.before(0.99)),
        ("echo before, max, ms", |round| round.before(1.0)),
        ("echo between deaths and sweep, p99, ms", |round| {
            round.between(0.99)
        }),
        ("echo in the sweep, p50, ms", |round| {
            round.during_sweep(0.5)
        }),
        ("echo in the sweep, p99, ms", |round| {
            round.during_sweep(0.99)
        }),
        ("echo in the sweep, max, ms", |round| {
            round.during_sweep(1.0)
        }),
        ("echo p99, sweep / before", Round::disturbance),
    ];
    for (name, figure) in figures {
        let spread = |rounds: &Vec<Round>| Spread::of(rounds.iter().map(figure)).to_string();
        println!(
            "| {name} | {} |",
            measured.each_ref().map(spread).join(" | ")
        );
    }

    let [hand_written, layered, rivals @ ..] = &measured;
    let latest = Spread::of(layered.iter().map(|round| round.late(1.0))).max;
    let disturbance = Spread::of(layered.iter().map(Round::disturbance)).median;
    println!(
        "\nBar, every hook within timeout + 2 ticks of {} ms: the latest was called {latest} ms after the \
         timeout, {}.",
        TICK.as_millis(),
        met(latest <= millis(2 * TICK)),
    );
    println!(
        "Bar, p99 of live peers in the sweep at most {MAX_DISTURBANCE} times that before: {disturbance:.2} times, {}.",
        met(disturbance <= MAX_DISTURBANCE),
    );
    for (rounds, rival) in rivals.iter().zip(Kind::RIVALS) {
        let late = |round: &Round| round.late(1.0);
        let latest: Vec<_> = layered.iter().map(late).collect();
        let rivals_latest: Vec<_> = rounds.iter().map(late).collect();
        let ratios = Spread::of_ratios(&latest, &rivals_latest);
        Better::Less.judge("latest eviction after the deadline", rival, ratios);
        let disturbance: Vec<_> = layered.iter().map(Round::disturbance).collect();
        let rivals_disturbance: Vec<_> = rounds.iter().map(Round::disturbance).collect();
        let ratios = Spread::of_ratios(&disturbance, &rivals_disturbance);
        Better::Less.judge("echo p99, sweep / before", rival, ratios);
    }
    println!("Each dead peer was evicted once, and no live peer was evicted.");
    let path = draw(&[
        (Kind::HandWritten, &hand_written[0]),
        (Kind::Layered, &layered[0]),
    ])?;
    println!("Plot: {}", path.display());
    Ok(())
}

fn round(runtime: &Runtime, kind: Kind, count: usize) -> Result<Round> {
    const WAIT_LIMIT: Duration = Duration::from_secs(30);
    let mut server = Server::start(Options {
        kind,
        buffer: Some(4096),
        interval: INTERVAL,
        timeout: TIMEOUT,
        ..Options::default()
    })?;
    let (stop, stopped) = watch::channel(false);
    let mut dying = JoinSet::new();
    // Connected peers must answer pings while the others still connect.
    while dying.len() < count {
        let more = 500.min(count - dying.len());
        for peer in runtime.block_on(peers::connect_all(server.addr, more))? {
            dying.spawn_on(
                answer_until_stopped(peer, stopped.clone()),
                runtime.handle(),
            );
        }
    }
    let (end, ended) = watch::channel(false);
    let mut living = JoinSet::new();
    for (index, peer) in (0..).zip(runtime.block_on(peers::connect_all(server.addr, LIVE))?) {
        let first = Instant::now() + ECHO_INTERVAL * index / LIVE as u32;
        living.spawn_on(
            echo_until_ended(peer, first, ended.clone()),
            runtime.handle(),
        );
    }
    server.wait_for_open(count + LIVE, WAIT_LIMIT)?;

    // After this time every peer has been pinged.
    thread::sleep(INTERVAL + MEASURED_BEFORE);
    server.wait_for_open(count + LIVE, Duration::ZERO)?;
    let stopped = Instant::now();
    stop.send(true)?;
    let dying_peers = runtime.block_on(async {
        let mut peers = Vec::with_capacity(count);
        while let Some(peer) = dying.join_next().await {
            peers.push(peer??);
        }
        Ok::<_, Box<dyn std::error::Error>>(peers)
    })?;
    let died = Instant::now();
    for peer in &dying_peers {
        // A few bytes always fit.
        peer.socket().try_write(&LAST_PONG)?;
    }
    let silent = Instant::now();
    // Peers pinged before their last pong and after they stopped answering are due earlier if that
    // pong does not count. A ping may have been under way for up to a bucket.
    let pinged_earlier = if kind.accepts_unsolicited_pong() {
        Duration::ZERO
    } else {
        silent - stopped + BUCKET
    };
    let dead = dying_peers.into_iter().map(Peer::fall_silent);
    let dead = dead.collect::<std::io::Result<Vec<_>>>()?;

    // A heartbeat that checks once per interval is late by up to one interval, and by more on a
    // busy machine.
    let mut deadline = silent + 3 * (INTERVAL + TIMEOUT);
    let mut found = Vec::new();
    let mut evicted = 0;
    let mut requested = died;
    while requested < deadline {
        requested += BUCKET;
        thread::sleep(requested.saturating_duration_since(Instant::now()));
        let late = lateness(&server.request("silences")?)?;
        // Any earlier, no ping can have been unanswered for the whole timeout.
        if late
            .iter()
            .any(|late| *late < -millis(INTERVAL + pinged_earlier))
        {
            return Err(format!("{}: a peer was found dead too soon", kind.name()).into());
        }
        if !late.is_empty() {
            evicted += late.len();
            if evicted == count {
                deadline = requested + WATCHED_AFTER;
            }
        }
        found.push((Instant::now(), late));
    }
    let open = server.request("open")?;
    if evicted != count || open.parse() != Ok(LIVE) {
        let kind = kind.name();
        return Err(format!("{kind}: {evicted} of {count} evicted, {open} open").into());
    }

    let evicted_early = found.iter().flat_map(|(_, late)| late);
    let evicted_early = evicted_early.filter(|late| **late < 0.0).count();
    if evicted_early > count / 20 && kind.accepts_unsolicited_pong() {
        let kind = kind.name();
        return Err(format!(
            "{kind}: {evicted_early} of {count} were evicted before their deadline"
        )
        .into());
    }

    end.send(true)?;
    let mut echoes = Vec::new();
    while let Some(peer) = runtime.block_on(living.join_next()) {
        echoes.extend(peer?.map_err(|error| format!("a live peer was lost: {error}"))?);
    }
    drop(dead);
    server.end()?;
    Ok(Round {
        died,
        silent,
        echoes,
        found,
    })
}

/// Converts silences from the server into delays after the deadline, in milliseconds.
fn lateness(silences: &str) -> Result<Vec<f64>> {
    let late = silences.split_whitespace().map(|silence| {
        let silence = silence.parse::<f64>()?;
        Ok(silence - millis(INTERVAL + TIMEOUT))
    });
    late.collect()
}

/// Answers pings until `stop` is set, and returns the peer with its connection still open.
async fn answer_until_stopped(
    mut peer: Peer,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<Peer> {
    let answer = async {
        loop {
            if let Err(error) = peer.receive().await {
                return error;
            }
        }
    };
    tokio::select! {
        _ = stop.wait_for(|&stop| stop) => {}
        error = answer => return Err(error),
    }
    Ok(peer)
}

/// Has a message echoed every 20 ms until `end` is set, and returns the times of all echoes.
async fn echo_until_ended(
    mut peer: Peer,
    first: Instant,
    end: watch::Receiver<bool>,
) -> std::io::Result<Vec<Echo>> {
    let message = Peer::message(125);
    let mut echoes = Vec::new();
    let mut due = first;
    while !*end.borrow() {
        // An echo that is due while the one before is still open counts from when it was due. The
        // delay of the peer's own timer does not count against the server.
        let begun = if due < Instant::now() {
            due
        } else {
            tokio::time::sleep_until(due.into()).await;
            Instant::now()
        };
        peer.echo(&message).await?;
        let done = Instant::now();
        echoes.push(Echo { begun, done });
        due += ECHO_INTERVAL;
    }
    Ok(echoes)
}

impl Round {
    /// A quantile of the evictions' delay after the deadline, in milliseconds.
    fn late(&self, quantile: f64) -> f64 {
        let mut late: Vec<_> = self.found.iter().flat_map(|(_, late)| late).collect();
        late.sort_by(|one, other| one.total_cmp(other));
        let rank = (quantile * late.len() as f64).ceil() as usize;
        *late[rank.max(1) - 1]
    }

    /// Number of peers evicted before interval + timeout had passed. The driver may read the last
    /// pong before the handler does; since the pong may have been in the socket's buffer for some
    /// time, the driver may send a ping right away. The peer left that ping unanswered like any
    /// other.
    fn evicted_early(&self) -> f64 {
        let late = self.found.iter().flat_map(|(_, late)| late);
        late.filter(|late| **late < 0.0).count() as f64
    }

    /// The time from just before the first due eviction to just after the last.
    fn sweep(&self) -> (Instant, Instant) {
        let due = |late: &[f64]| late.iter().any(|late| *late >= 0.0);
        let mut found = self.found.iter().filter(|(_, late)| due(late));
        let first = found
            .next()
            .map_or(self.died, |(requested, _)| *requested - BUCKET);
        let last = found
            .next_back()
            .map_or(first + BUCKET, |(requested, _)| *requested);
        (first, last)
    }

    fn before(&self, quantile: f64) -> f64 {
        self.window_median(self.died - MEASURED_BEFORE, self.died, quantile)
    }

    /// Latency after the deaths and before the first eviction.
    fn between(&self, quantile: f64) -> f64 {
        self.window_median(self.silent, self.sweep().0, quantile)
    }

    /// The median of the latencies in all windows between `from` and `to`.
    fn window_median(&self, from: Instant, to: Instant, quantile: f64) -> f64 {
        let windows = (0..)
            .map(|index| from + WINDOW * index)
            .take_while(|&begin| begin + WINDOW <= to);
        let figures: Vec<_> = windows
            .map(|begin| self.latency(begin, begin + WINDOW, quantile))
            .collect();
        if figures.is_empty() {
            return self.latency(from, to, quantile);
        }
        Spread::of(figures).median
    }

    fn during_sweep(&self, quantile: f64) -> f64 {
        let (first, last) = self.sweep();
        self.latency(first, last, quantile)
    }

    fn disturbance(&self) -> f64 {
        self.during_sweep(0.99) / self.before(0.99)
    }

    /// A quantile of the latency of echoes in flight between `from` and `to`, in milliseconds.
    fn latency(&self, from: Instant, to: Instant, quantile: f64) -> f64 {
        let mut latencies = Histogram::<u64>::new(3).expect("three digits can be kept");
        for echo in &self.echoes {
            if echo.done >= from && echo.begun < to {
                latencies += (echo.done - echo.begun).as_micros() as u64;
            }
        }
        latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "NOT met" }
}

/// Draws one round of each server over the seconds since the deaths.
fn draw(rounds: &[(Kind, &Round)]) -> Result<std::path::PathBuf> {
    let seconds = |round: &Round, at: Instant| {
        let after = at.saturating_duration_since(round.died).as_secs_f64();
        after - round.died.saturating_duration_since(at).as_secs_f64()
    };
    let mut latencies: Vec<Line> = Vec::new();
    let mut evictions: Vec<Line> = Vec::new();
    for &(kind, round) in rounds {
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let mut points = Vec::new();
            let mut from = round.died - MEASURED_BEFORE;
            while round
                .found
                .last()
                .is_some_and(|(requested, _)| from < *requested)
            {
                let latency = round.latency(from, from + BUCKET, quantile);
                points.push((seconds(round, from), latency));
                from += BUCKET;
            }
            latencies.push((format!("{} {name}", kind.name()), points));
        }
        let points = round.found.iter();
        let points =
            points.map(|(requested, late)| (seconds(round, *requested), late.len() as f64));
        evictions.push((kind.name().to_owned(), points.collect()));
    }
    let latency = Labels {
        file: "deaths",
        title: "Echo latency of live peers while others die (at 0) and are found dead",
        x: "seconds since the deaths",
        y: "ms",
    };
    let evicted = Labels {
        title: "Peers found dead",
        y: "per 50 ms",
        ..latency
    };
    plot::stacked(&[(&latency, &latencies), (&evicted, &evictions)])
}
