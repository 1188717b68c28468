//! Rate and CPU time of upgrades, one after the other and 64 at a time.
//!
//! Each one is a whole connection: accept, opening handshake, handler and the peer's reset. What
//! the layers add to the end of a connection is therefore included.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::support::comparison::{Bar, Better, Comparison};
use super::support::options::{BUFFERS, Kind, Options, buffer_name};
use super::support::peer::Peer;
use super::support::process::Server;
use super::{Result, Size};

#[derive(Clone, Copy)]
struct Case {
    /// Number of peers that upgrade at the same time.
    at_once: usize,
    /// Connections that stay open. With none, the server creates and drops its shared state with
    /// each connection.
    standing: usize,
}

const CASES: [Case; 3] = [
    Case {
        at_once: 1,
        standing: 0,
    },
    Case {
        at_once: 1,
        standing: 100,
    },
    Case {
        at_once: 64,
        standing: 100,
    },
];

const COLUMNS: [&str; 2] = ["upgrades/s", "server's CPU/upgrade (µs)"];
const CPU: usize = 1;

/// CPU time that both layers may add to an upgrade, in microseconds: one at a time, and several at
/// once.
const MAX_ADDED_US: [f64; 2] = [10.0, 3.0];

pub(crate) fn run(size: Size) -> Result<()> {
    let (rounds, time) = match size {
        Size::Quick => (1, Duration::from_millis(100)),
        Size::Full => (9, Duration::from_secs(1)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for buffer in BUFFERS {
        for case in CASES {
            let mut loads = Vec::new();
            for kind in Kind::ECHOING {
                let mut load = Load::start(&runtime, kind, buffer, case)?;
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

fn report(case: Case, buffer: Option<usize>, comparison: &Comparison<2>) {
    let Case { at_once, standing } = case;
    let buffer = buffer_name(buffer);
    println!("### {at_once} at a time beside {standing} connections, {buffer}\n");
    comparison.print(&[
        (Kind::HandWritten, Kind::Bare),
        (Kind::Layered, Kind::Bare),
        (Kind::Layered, Kind::Sockudo),
        (Kind::Layered, Kind::RawTungstenite),
        (Kind::Bare, Kind::Sockudo),
        (Kind::Bare, Kind::RawTungstenite),
    ]);
    let added = comparison.difference(CPU, Kind::HandWritten, Kind::Bare);
    println!("- µs of CPU per upgrade, hand-written − bare: {added:.3}");
    let added = comparison.difference(CPU, Kind::Layered, Kind::Bare);
    Bar::AtMost(MAX_ADDED_US[usize::from(at_once > 1)])
        .judge("µs of CPU per upgrade, layered − bare", added);
    comparison.print_against_rivals("CPU per upgrade", CPU, Better::Less);
    println!();
}

/// A server with its standing connections, idle outside of its rounds.
struct Load<'a> {
    runtime: &'a Runtime,
    server: Server,
    case: Case,
    /// Kept open, not used.
    _standing: Vec<Peer>,
}

impl<'a> Load<'a> {
    fn start(runtime: &'a Runtime, kind: Kind, buffer: Option<usize>, case: Case) -> Result<Self> {
        let server = Server::start(Options {
            kind,
            buffer,
            // The standing peers do not answer pings.
            interval: Duration::from_secs(3600),
            ..Options::default()
        })?;
        let standing = Peer::connect_many(server.addr, case.standing).try_collect();
        let standing = runtime.block_on(standing)?;
        Ok(Self {
            runtime,
            server,
            case,
            _standing: standing,
        })
    }

    /// Has peers upgrade repeatedly for `time`, and returns the figures of [`COLUMNS`].
    fn round(&mut self, time: Duration) -> Result<[f64; 2]> {
        /// How long the last handshake and the last end may take after the round.
        const WAIT_LIMIT: Duration = Duration::from_secs(30);
        let mut upgrading = JoinSet::new();
        let cpu = self.server.cpu()?;
        let begun = Instant::now();
        for _ in 0..self.case.at_once {
            let upgrades = upgrade(self.server.addr, begun + time);
            upgrading.spawn_on(upgrades, self.runtime.handle());
        }
        let all = async {
            let mut upgrades = 0;
            while let Some(done) = upgrading.join_next().await {
                upgrades += done??;
            }
            Result::Ok(upgrades)
        };
        let upgrades = self
            .runtime
            .block_on(async { tokio::time::timeout(time + WAIT_LIMIT, all).await })??;
        let took = begun.elapsed();
        // The server's remaining work belongs to these upgrades, not to a later round.
        self.server.wait_for_open(self.case.standing, WAIT_LIMIT)?;
        let cpu = self.server.cpu()? - cpu;
        let upgrades = f64::from(upgrades);
        Ok([
            upgrades / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / upgrades,
        ])
    }
}

/// Opens, upgrades and resets connections one after the other until `end`. Returns their number.
async fn upgrade(addr: SocketAddr, end: Instant) -> io::Result<u32> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut upgrades = 0;
    while Instant::now() < end {
        // A reset leaves no port in TIME-WAIT; otherwise the ports would run out.
        Peer::connect(addr, any).await?.reset_on_drop()?;
        upgrades += 1;
    }
    Ok(upgrades)
}
