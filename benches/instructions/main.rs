//! Instructions for one echoed message and for one ping with its pong, counted by valgrind's
//! callgrind: figures that do not depend on the machine's mood. (Pings come in real time, and how many
//! of them share a wake-up depends on the load a little.)
//!
//! ```text
//! cargo bench --bench instructions            # needs valgrind
//! cargo bench --bench instructions -- echo    # some of it: echo, ping, upgrade
//! cargo bench --bench instructions -- --keep  # leaves callgrind's profiles in target/callgrind
//! ```
//!
//! Each server runs twice under callgrind, on one thread, for fewer and for more messages: the
//! difference is what a message costs, without the start, the handshake and the end. The kernel's
//! instructions are not counted. The run fails if a bar is missed.

use std::cell::Cell;
use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{fs, io};

use futures_util::future::try_join_all;
use support::options::{Kind, Options};
use support::peer::{Frame, Peer};
use support::process::{SERVE, Server};
use support::server;
use tokio::sync::Notify;
use tokio::time::timeout;

#[allow(dead_code, reason = "each bench uses what it needs of it")]
#[path = "../support/mod.rs"]
mod support;

/// How many messages are sent in the shorter and in the longer run.
const ECHOES: [u32; 2] = [1_000, 6_000];
/// How many pings are answered in the shorter and in the longer run, by so many peers.
const PINGS: [u32; 2] = [500, 5_500];
const PINGED: usize = 100;
/// How many connections come and go in the shorter and in the longer run.
const UPGRADES: [u32; 2] = [200, 1_200];
const PAYLOAD: usize = 125;

/// What the layers may add to an echo, to a ping (all of it is theirs) and to an upgrade with its end.
/// These are what was measured, with a tenth to spare, to catch what makes it more. (A ping was 7,740 and
/// 8,684 in two runs: how many share a visit of the driver depends on time.)
const ADDED: [f64; 3] = [2_350.0, 9_500.0, 39_000.0];
/// What an echo behind both layers should cost at most, as a multiple of the bare server's with its
/// default buffers, which it zeroes at every read. With small ones little but system calls is left.
const GOAL: f64 = 1.03;

/// Everything is some fifty times slower under callgrind.
const PATIENCE: Duration = Duration::from_secs(180);

/// Read buffers of the WebSocket library.
const BUFFERS: [(&str, Option<usize>); 2] = [("axum's buffers", None), ("4 KiB", Some(4096))];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((role, args)) if role == SERVE => server::run(args, || 0).map(|()| true),
        // `cargo test --benches` does not ask for figures.
        _ if !args.iter().any(|arg| arg == "--bench") => Ok(true),
        _ => measure(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints all figures. False if one of them misses its bar.
fn measure(args: &[String]) -> Result<bool> {
    const NAMES: [&str; 3] = ["echo", "ping", "upgrade"];
    let names: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    if let Some(unknown) = names.iter().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(format!("nothing is called {unknown}").into());
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    let found = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    found.map_err(|error| format!("valgrind is needed, and did not start: {error}"))?;
    let directory = profiles();
    fs::create_dir_all(&directory)?;
    let echoes = |kind, buffer| {
        let options = Options {
            kind,
            buffer,
            workers: 0,
            ..Options::default()
        };
        per_unit("echo", options, ECHOES, 1)
    };
    let pings = |kind, buffer| {
        let options = Options {
            kind,
            buffer,
            workers: 0,
            interval: Duration::from_millis(200),
            timeout: Duration::from_secs(60),
        };
        per_unit("ping", options, PINGS, PINGED)
    };
    let upgrades = |kind, buffer| {
        let options = Options {
            kind,
            buffer,
            workers: 0,
            ..Options::default()
        };
        per_unit("upgrade", options, UPGRADES, 1)
    };
    println!("| instructions in user mode | bare | hand-written | layered | ratio |");
    println!("|---|---|---|---|---|");
    let mut good = true;
    for (name, buffer) in BUFFERS.into_iter().filter(|_| wanted("echo")) {
        let [bare, hand, layered] = [
            echoes(Kind::Bare, buffer)?,
            echoes(Kind::HandWritten, buffer)?,
            echoes(Kind::Layered, buffer)?,
        ];
        let (ratio, added) = (layered / bare, layered - bare);
        println!(
            "| echo of {PAYLOAD} B, {name} | {bare:.0} | {hand:.0} | {layered:.0} | {ratio:.3} of bare |"
        );
        good &= check("an echo", added, ADDED[0]);
        if buffer.is_none() && ratio > GOAL {
            eprintln!("an echo costs {ratio:.3} times as much as the bare server's, not {GOAL}");
            good = false;
        }
    }
    for (name, buffer) in BUFFERS.into_iter().filter(|_| wanted("ping")) {
        let [hand, layered] = [
            pings(Kind::HandWritten, buffer)?,
            pings(Kind::Layered, buffer)?,
        ];
        let ratio = layered / hand;
        println!(
            "| ping and pong, {name} | | {hand:.0} | {layered:.0} | {ratio:.3} of hand-written |"
        );
        good &= check("a ping", layered, ADDED[1]);
    }
    for (name, buffer) in BUFFERS.into_iter().filter(|_| wanted("upgrade")) {
        let [bare, hand, layered] = [
            upgrades(Kind::Bare, buffer)?,
            upgrades(Kind::HandWritten, buffer)?,
            upgrades(Kind::Layered, buffer)?,
        ];
        let added = layered - bare;
        println!(
            "| upgrade and end, {name} | {bare:.0} | {hand:.0} | {layered:.0} | {added:.0} more than bare |"
        );
        good &= check("an upgrade", added, ADDED[2]);
    }
    if !args.iter().any(|arg| arg == "--keep") {
        fs::remove_dir_all(directory)?;
    }
    Ok(good)
}

fn check(what: &str, added: f64, bar: f64) -> bool {
    let good = added <= bar;
    if !good {
        eprintln!("{what} costs {added:.0} instructions more; the bar is {bar}");
    }
    good
}

/// The instructions of one more echo, or of one more ping, with so many peers.
fn per_unit(name: &str, options: Options, counts: [u32; 2], peers: usize) -> Result<f64> {
    let mut totals = [0.0; 2];
    for (total, count) in totals.iter_mut().zip(counts) {
        let buffer = options.buffer.unwrap_or(0);
        let profile = profiles().join(format!("{name}-{}-{buffer}-{count}", options.kind.name()));
        let mut command = Command::new("valgrind");
        command
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg(format!("--log-file={}.log", profile.display()))
            .arg(std::env::current_exe()?)
            .arg(SERVE)
            .args(options.to_args());
        let server = Server::spawn(command)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let anywhere = ([0, 0, 0, 0], 0).into();
            let peers = (0..peers).map(|_| Peer::connect(server.addr, anywhere));
            let mut peers = try_join_all(peers).await?;
            let work = async {
                match name {
                    "echo" => echo(&mut peers[0], count).await,
                    "upgrade" => upgrade(server.addr, count).await,
                    _ => pong(peers, count).await,
                }
            };
            timeout(PATIENCE, work).await?
        })?;
        server.end()?;
        *total = total_of(&profile)?;
    }
    Ok((totals[1] - totals[0]) / f64::from(counts[1] - counts[0]))
}

async fn echo(peer: &mut Peer, count: u32) -> io::Result<()> {
    let message = Peer::message(PAYLOAD);
    for _ in 0..count {
        peer.echo(&message).await?;
    }
    Ok(())
}

/// Connections that come, and go with a reset.
async fn upgrade(addr: SocketAddr, count: u32) -> io::Result<()> {
    for _ in 0..count {
        let peer = Peer::connect(addr, ([0, 0, 0, 0], 0).into()).await?;
        peer.reset_on_drop()?;
    }
    Ok(())
}

/// Has all peers answer, until so many pings were answered by all of them together.
async fn pong(peers: Vec<Peer>, count: u32) -> io::Result<()> {
    let answered = &Cell::new(0);
    let enough = &Notify::new();
    let peers = peers.into_iter().map(|mut peer| async move {
        while answered.get() < count {
            if peer.receive().await? == Frame::Ping {
                answered.set(answered.get() + 1);
            }
        }
        enough.notify_one();
        Ok(())
    });
    tokio::select! {
        failed = try_join_all(peers) => failed.map(|_| ()),
        () = enough.notified() => Ok(()),
    }
}

/// The sum at the end of a profile.
fn total_of(profile: &Path) -> Result<f64> {
    let text = fs::read_to_string(profile)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.ok_or("a profile without a total")?.trim().parse()?)
}

fn profiles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/callgrind")
}
