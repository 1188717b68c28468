//! Instructions per echo, ping and upgrade, counted by valgrind's callgrind.
//!
//! Unlike times, they hardly depend on the machine's load. Pings are sent in real time, so the
//! number of pings that share a wake depends on the load a little.
//!
//! ```text
//! cargo bench --bench instructions            # needs valgrind
//! cargo bench --bench instructions -- echo    # one of them: echo, ping, upgrade
//! cargo bench --bench instructions -- --keep  # keeps callgrind's profiles in target/callgrind
//! ```
//!
//! Each server runs twice under callgrind on one thread, with fewer and with more messages. The
//! difference is the cost of the messages, without start, handshake and end. Instructions in the
//! kernel are not counted. The run fails if a bar is missed.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::try_join_all;
use support::callgrind::Profiles;
use support::options::{Kind, Options};
use support::peer::{Frame, Peer};
use support::process::SERVE;
use support::server;
use tokio::sync::Notify;

#[allow(dead_code, reason = "each bench uses what it needs of it")]
#[path = "../support/mod.rs"]
mod support;

/// Messages sent in the shorter and in the longer run.
const ECHOES: [u32; 2] = [1_000, 6_000];
/// Pings answered in the shorter and in the longer run, by [`PINGED_PEERS`] peers together.
const PINGS: [u32; 2] = [500, 5_500];
const PINGED_PEERS: usize = 100;
/// Connections opened and reset in the shorter and in the longer run.
const UPGRADES: [u32; 2] = [200, 1_200];
const PAYLOAD_BYTES: usize = 125;

/// Instructions that the layers may add to an echo, to a ping (all of it is theirs) and to an
/// upgrade with its end, to catch regressions.
///
/// An echo was 795; a hand-written heartbeat adds 990. A ping was 6,500 to 9,400: the number of
/// pings per turn of the driver depends on timing. An upgrade was 33,300 to 34,400: the cost of
/// malloc depends on the layout of the heap.
const MAX_ADDED: [f64; 3] = [850.0, 9_800.0, 35_500.0];
/// Maximum cost of an echo behind both layers, as a multiple of the bare server's with axum's
/// default buffers, which tungstenite zeroes at every read. With small buffers little but system
/// calls is left.
const MAX_ECHO_RATIO: f64 = 1.03;

/// Read buffers of the WebSocket library.
const BUFFERS: [(&str, Option<usize>); 2] = [("axum's buffers", None), ("4 KiB", Some(4096))];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((role, args)) if role == SERVE => server::run(args, || 0).map(|()| true),
        // `cargo test --benches` passes no `--bench` and needs no figures.
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

/// Prints all figures. Returns false if one of them misses its bar.
fn measure(args: &[String]) -> Result<bool> {
    const NAMES: [&str; 3] = ["echo", "ping", "upgrade"];
    let names: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    if let Some(unknown) = names.iter().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(format!("unknown measurement: {unknown}").into());
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    let profiles = Profiles::create()?;
    let echoes = |kind, buffer| {
        let options = Options {
            kind,
            buffer,
            workers: 0,
            ..Options::default()
        };
        instructions_per_unit(&profiles, "echo", options, ECHOES, 1)
    };
    let pings = |kind, buffer| {
        let options = Options {
            kind,
            buffer,
            workers: 0,
            interval: Duration::from_millis(200),
            timeout: Duration::from_secs(60),
        };
        instructions_per_unit(&profiles, "ping", options, PINGS, PINGED_PEERS)
    };
    let upgrades = |kind, buffer| {
        let options = Options {
            kind,
            buffer,
            workers: 0,
            ..Options::default()
        };
        instructions_per_unit(&profiles, "upgrade", options, UPGRADES, 1)
    };
    println!("| instructions in user mode | bare | hand-written | layered | ratio |");
    println!("|---|---|---|---|---|");
    let mut all_met = true;
    for (name, buffer) in BUFFERS.into_iter().filter(|_| wanted("echo")) {
        let [bare, hand, layered] = [
            echoes(Kind::Bare, buffer)?,
            echoes(Kind::HandWritten, buffer)?,
            echoes(Kind::Layered, buffer)?,
        ];
        let (ratio, added) = (layered / bare, layered - bare);
        println!(
            "| echo of {PAYLOAD_BYTES} B, {name} | {bare:.0} | {hand:.0} | {layered:.0} | {ratio:.3} of bare |"
        );
        all_met &= check("an echo", added, MAX_ADDED[0]);
        if buffer.is_none() && ratio > MAX_ECHO_RATIO {
            eprintln!(
                "an echo costs {ratio:.3} times as much as the bare server's, not {MAX_ECHO_RATIO}"
            );
            all_met = false;
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
        all_met &= check("a ping", layered, MAX_ADDED[1]);
    }
    for (name, buffer) in BUFFERS.into_iter().filter(|_| wanted("upgrade")) {
        let (bare, hand) = (
            upgrades(Kind::Bare, buffer)?,
            upgrades(Kind::HandWritten, buffer)?,
        );
        // The median of three: how often the driver is woken depends on timing, and the cost of
        // malloc on the layout of the heap.
        let mut layered = [0.0; 3];
        for run in &mut layered {
            *run = upgrades(Kind::Layered, buffer)?;
        }
        layered.sort_by(f64::total_cmp);
        let layered = layered[1];
        let added = layered - bare;
        println!(
            "| upgrade and end, {name} | {bare:.0} | {hand:.0} | {layered:.0} | {added:.0} more than bare |"
        );
        all_met &= check("an upgrade", added, MAX_ADDED[2]);
    }
    if !args.iter().any(|arg| arg == "--keep") {
        profiles.remove()?;
    }
    Ok(all_met)
}

fn check(what: &str, added: f64, bar: f64) -> bool {
    let met = added <= bar;
    if !met {
        eprintln!("{what} costs {added:.0} instructions more; the bar is {bar}");
    }
    met
}

/// Returns the instructions of one more echo, ping or upgrade.
fn instructions_per_unit(
    profiles: &Profiles,
    name: &str,
    options: Options,
    counts: [u32; 2],
    peers: usize,
) -> Result<f64> {
    let mut totals = [0.0; 2];
    for (total, count) in totals.iter_mut().zip(counts) {
        let work = async |addr| {
            let any_local = ([0, 0, 0, 0], 0).into();
            let peers = (0..peers).map(|_| Peer::connect(addr, any_local));
            let mut peers = try_join_all(peers).await?;
            match name {
                "echo" => echo(&mut peers[0], count).await,
                "upgrade" => upgrade(addr, count).await,
                _ => pong(peers, count).await,
            }
        };
        *total = profiles.instructions(&format!("{name}-{count}"), options, work)?;
    }
    Ok((totals[1] - totals[0]) / f64::from(counts[1] - counts[0]))
}

async fn echo(peer: &mut Peer, count: u32) -> io::Result<()> {
    let message = Peer::message(PAYLOAD_BYTES);
    for _ in 0..count {
        peer.echo(&message).await?;
    }
    Ok(())
}

/// Opens and resets `count` connections.
async fn upgrade(addr: SocketAddr, count: u32) -> io::Result<()> {
    for _ in 0..count {
        let peer = Peer::connect(addr, ([0, 0, 0, 0], 0).into()).await?;
        peer.reset_on_drop()?;
    }
    Ok(())
}

/// Has all peers answer pings until they have answered `count` in total.
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
