//! Thousands of peers that die at once: how late each is found out, and what the peers that live
//! notice of it.
//!
//! The peers die in silence, like a process that was stopped: their sockets stay open, and their
//! kernel acknowledges what comes, but nobody reads or answers. All of them give a last sign of life
//! just before, so that their deadlines are as close together as can be. The baseline is the same
//! server before the deaths; the hand-written heartbeat goes through the same in alternating rounds.

use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::support::crowd;
use super::support::options::{Kind, Options};
use super::support::peer::Peer;
use super::support::plot::{self, Labels, Line};
use super::support::process::{Server, need_files};
use super::support::spread::Spread;
use super::{Result, Size};

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is promised of a tick: at most a 32nd of the shortest configured duration.
const TICK: Duration = Duration::from_millis(TIMEOUT.as_millis() as u64 / 32);

const LIVE: usize = 100;

/// From echo to echo of a live peer.
const PACE: Duration = Duration::from_millis(20);

/// How long the live peers are measured before the deaths.
const BEFORE: Duration = Duration::from_secs(5);

/// How long the server is watched after it should be through.
const AFTER: Duration = Duration::from_secs(1);

const BUCKET: Duration = Duration::from_millis(50);

/// What the sweep is compared with are windows of about its own length, and of those the one in the
/// middle: a moment in which the machine was busy elsewhere must not raise the bar.
const WINDOW: Duration = Duration::from_millis(250);

/// An unsolicited pong (RFC 6455 section 5.5.3), masked.
const LAST_SIGN: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

/// One echo of a live peer.
struct Echo {
    begun: Instant,
    done: Instant,
}

/// What was seen of one server.
struct Round {
    /// When the first of the peers gave its last sign of life.
    died: Instant,
    /// When the last of them had given its own.
    silent: Instant,
    echoes: Vec<Echo>,
    /// When the server was asked, and who was found dead since it was asked before: how late, in
    /// milliseconds.
    found: Vec<(Instant, Vec<f64>)>,
}

pub(crate) fn run(size: Size) -> Result<()> {
    let (rounds, dying) = match size {
        Size::Quick => (1, 200),
        Size::Full => (3, 10_000),
    };
    need_files((dying + LIVE + 100) as u64)?;
    let runtime = Runtime::new()?;
    let kinds = [Kind::HandWritten, Kind::Layered];
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (rounds, kind) in measured.iter_mut().zip(kinds) {
            rounds.push(round(&runtime, kind, dying)?);
        }
    }

    println!("{dying} peers die, {LIVE} live. Medians of {rounds} rounds, and their extremes:\n");
    println!("| | {} | {} |", kinds[0].name(), kinds[1].name());
    println!("|---|---|---|");
    type Figure = fn(&Round) -> f64;
    let figures: [(&str, Figure); 14] = [
        ("the peers die within, ms", |round| {
            millis(round.silent - round.died)
        }),
        ("found dead sooner than due", Round::sooner),
        ("verdict too late, p50, ms", |round| round.late(0.5)),
        ("verdict too late, p99, ms", |round| round.late(0.99)),
        ("verdict too late, max, ms", |round| round.late(1.0)),
        ("all due verdicts come within, ms", |round| {
            millis(round.sweep().1 - round.sweep().0)
        }),
        ("echo before, p50, ms", |round| round.before(0.5)),
        ("echo before, p99, ms", |round| round.before(0.99)),
        ("echo before, max, ms", |round| round.before(1.0)),
        ("echo between deaths and sweep, p99, ms", |round| {
            round.between(0.99)
        }),
        ("echo in the sweep, p50, ms", |round| round.swept(0.5)),
        ("echo in the sweep, p99, ms", |round| round.swept(0.99)),
        ("echo in the sweep, max, ms", |round| round.swept(1.0)),
        ("echo p99, sweep / before", Round::disturbance),
    ];
    for (name, figure) in figures {
        let [by_hand, layered] = &measured;
        let spread = |rounds: &[Round]| Spread::of(rounds.iter().map(figure));
        println!("| {name} | {} | {} |", spread(by_hand), spread(layered));
    }

    let [by_hand, layered] = &measured;
    let latest = Spread::of(layered.iter().map(|round| round.late(1.0))).max;
    let disturbance = Spread::of(layered.iter().map(Round::disturbance)).median;
    println!(
        "\nBar, every hook within timeout + 2 ticks of {} ms: the latest came {latest} ms after the \
         timeout, {}.",
        TICK.as_millis(),
        met(latest <= millis(2 * TICK)),
    );
    println!(
        "Bar, p99 of live peers in the sweep at most twice that before: {disturbance:.2} times, {}.",
        met(disturbance <= 2.0),
    );
    println!("Each was evicted once, and nobody else.");
    let path = draw(&[(kinds[0], &by_hand[0]), (kinds[1], &layered[0])])?;
    println!("Plot: {}", path.display());
    Ok(())
}

fn round(runtime: &Runtime, kind: Kind, count: usize) -> Result<Round> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut server = Server::start(Options {
        kind,
        buffer: Some(4096),
        interval: INTERVAL,
        timeout: TIMEOUT,
        ..Options::default()
    })?;
    let (stop, stopped) = watch::channel(false);
    let mut dying = JoinSet::new();
    // They have to answer pings while the rest of them still connects.
    while dying.len() < count {
        let more = 500.min(count - dying.len());
        for peer in runtime.block_on(crowd::connect(server.addr, more))? {
            dying.spawn_on(die(peer, stopped.clone()), runtime.handle());
        }
    }
    let (end, ended) = watch::channel(false);
    let mut living = JoinSet::new();
    for (index, peer) in (0..).zip(runtime.block_on(crowd::connect(server.addr, LIVE))?) {
        let first = Instant::now() + PACE * index / LIVE as u32;
        living.spawn_on(live(peer, first, ended.clone()), runtime.handle());
    }
    server.wait_for_open(count + LIVE, PATIENCE)?;

    // Every peer has been pinged by then.
    thread::sleep(INTERVAL + BEFORE);
    server.wait_for_open(count + LIVE, Duration::ZERO)?;
    stop.send(true)?;
    let peers = runtime.block_on(async {
        let mut peers = Vec::with_capacity(count);
        while let Some(peer) = dying.join_next().await {
            peers.push(peer??);
        }
        Ok::<_, Box<dyn std::error::Error>>(peers)
    })?;
    let died = Instant::now();
    for peer in &peers {
        // A few bytes always fit.
        peer.socket().try_write(&LAST_SIGN)?;
    }
    let silent = Instant::now();
    let dead = peers.into_iter().map(Peer::fall_silent);
    let dead = dead.collect::<std::io::Result<Vec<_>>>()?;

    // A heartbeat that looks once in an interval is late by up to one, and a busy machine by more.
    let mut deadline = silent + 3 * (INTERVAL + TIMEOUT);
    let mut found = Vec::new();
    let mut evicted = 0;
    let mut asked = died;
    while asked < deadline {
        asked += BUCKET;
        thread::sleep(asked.saturating_duration_since(Instant::now()));
        let late = lateness(&server.ask("silences")?)?;
        // Sooner than that a ping cannot have been unanswered for the timeout.
        if late.iter().any(|late| *late < -millis(INTERVAL)) {
            return Err("a peer was found dead too soon".into());
        }
        if !late.is_empty() {
            evicted += late.len();
            if evicted == count {
                deadline = asked + AFTER;
            }
        }
        found.push((Instant::now(), late));
    }
    let open = server.ask("open")?;
    if evicted != count || open.parse() != Ok(LIVE) {
        let kind = kind.name();
        return Err(format!("{kind}: {evicted} of {count} evicted, {open} open").into());
    }

    let sooner = found.iter().flat_map(|(_, late)| late);
    let sooner = sooner.filter(|late| **late < 0.0).count();
    if sooner > count / 20 {
        return Err(format!("{sooner} of {count} were found dead before they were due").into());
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

/// In milliseconds, from the server's account of how long each peer was silent.
fn lateness(silences: &str) -> Result<Vec<f64>> {
    let late = silences.split_whitespace().map(|silence| {
        let silence = silence.parse::<f64>()?;
        Ok(silence - millis(INTERVAL + TIMEOUT))
    });
    late.collect()
}

/// A peer that answers until it is to stop. It still is connected then.
async fn die(mut peer: Peer, mut stop: watch::Receiver<bool>) -> std::io::Result<Peer> {
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

/// A peer that has a message echoed once in a while, and times it.
async fn live(
    mut peer: Peer,
    first: Instant,
    end: watch::Receiver<bool>,
) -> std::io::Result<Vec<Echo>> {
    let message = Peer::message(125);
    let mut echoes = Vec::new();
    let mut due = first;
    while !*end.borrow() {
        // What had to wait for the echo before it has waited since it was due. A timer's own
        // lateness is not the server's.
        let begun = if due < Instant::now() {
            due
        } else {
            tokio::time::sleep_until(due.into()).await;
            Instant::now()
        };
        peer.echo(&message).await?;
        let done = Instant::now();
        echoes.push(Echo { begun, done });
        due += PACE;
    }
    Ok(echoes)
}

impl Round {
    /// In milliseconds, of the peers that were found dead.
    fn late(&self, quantile: f64) -> f64 {
        let mut late: Vec<_> = self.found.iter().flat_map(|(_, late)| late).collect();
        late.sort_by(|one, other| one.total_cmp(other));
        let rank = (quantile * late.len() as f64).ceil() as usize;
        *late[rank.max(1) - 1]
    }

    /// How many were found dead before the interval and the timeout had passed. A peer whose last sign
    /// met the driver at its door may have been pinged at once, since nobody knew how long that had lain
    /// there: such a ping was as unanswered as any.
    fn sooner(&self) -> f64 {
        let late = self.found.iter().flat_map(|(_, late)| late);
        late.filter(|late| **late < 0.0).count() as f64
    }

    /// From before the first verdict that was due to after the last.
    fn sweep(&self) -> (Instant, Instant) {
        let due = |late: &[f64]| late.iter().any(|late| *late >= 0.0);
        let mut found = self.found.iter().filter(|(_, late)| due(late));
        let first = found.next().map_or(self.died, |(asked, _)| *asked - BUCKET);
        let last = found
            .next_back()
            .map_or(first + BUCKET, |(asked, _)| *asked);
        (first, last)
    }

    fn before(&self, quantile: f64) -> f64 {
        self.typical(self.died - BEFORE, self.died, quantile)
    }

    /// When the dead have not been found out, and do not answer.
    fn between(&self, quantile: f64) -> f64 {
        self.typical(self.silent, self.sweep().0, quantile)
    }

    /// Of the windows between the two, the one in the middle.
    fn typical(&self, from: Instant, to: Instant, quantile: f64) -> f64 {
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

    fn swept(&self, quantile: f64) -> f64 {
        let (first, last) = self.sweep();
        self.latency(first, last, quantile)
    }

    fn disturbance(&self) -> f64 {
        self.swept(0.99) / self.before(0.99)
    }

    /// Of the echoes that were under way between the two.
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

/// Draws a round of each, over the seconds since the deaths.
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
            let mut from = round.died - BEFORE;
            while round.found.last().is_some_and(|(asked, _)| from < *asked) {
                let latency = round.latency(from, from + BUCKET, quantile);
                points.push((seconds(round, from), latency));
                from += BUCKET;
            }
            latencies.push((format!("{} {name}", kind.name()), points));
        }
        let points = round.found.iter();
        let points = points.map(|(asked, late)| (seconds(round, *asked), late.len() as f64));
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
