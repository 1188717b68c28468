//! Many clients in one process, each of which answers pings and Close frames and does nothing else.
//!
//! Asked on its standard input, the process answers a line for a line, until that is closed:
//!
//! | asked | answered |
//! |---|---|
//! | `connect` | connects all; how many it became, and what stopped the others |
//! | `firsts` | for each that was pinged: microseconds from its opening to its first ping |
//! | `rounds` | how many were pinged once at least, and how many twice |
//! | `pings` | how many pings were answered |
//! | `ends` | connections that ended with a Close 1001, which was answered, before EOF; and those that ended otherwise |

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::support::peer::{Frame, Peer};
use super::support::process::raise_file_limit;
use super::{Result, line};

/// The first argument of such a process. The others are how many clients it is, and the addresses of
/// the servers among which they are divided.
pub(crate) const ROLE: &str = "clients";

/// How many connect at the same time.
const AT_ONCE: usize = 64;

/// The port range of one address need not suffice for all.
const ADDRESSES: usize = 8;

pub(crate) fn run(args: &[String]) -> Result<()> {
    // One that is stopped does not see its input close, and would outlive the bench.
    set_pdeathsig(Signal::SIGKILL)?;
    let (count, servers) = args.split_first().ok_or("clients take a count")?;
    let count = count.parse()?;
    let servers: Vec<SocketAddr> = servers
        .iter()
        .map(|server| server.parse())
        .collect::<std::result::Result<_, _>>()?;
    raise_file_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let seen = Seen::default();
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(asked) = lines.next_line().await? {
            let answer = match asked.as_str() {
                "connect" => connect_all(count, &servers, &seen).await,
                "firsts" => line(seen.lock().firsts.iter().copied()),
                "rounds" => {
                    let counts = seen.lock();
                    line([counts.firsts.len() as u64, counts.seconds])
                }
                "pings" => seen.lock().pings.to_string(),
                "ends" => {
                    let counts = seen.lock();
                    line([counts.goodbyes, counts.lost])
                }
                _ => format!("nobody knows {asked}"),
            };
            println!("{answer}");
        }
        Ok(())
    })
}

/// Stops at the first that cannot connect: those after it could not either.
async fn connect_all(count: usize, servers: &[SocketAddr], seen: &Seen) -> String {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut connecting = JoinSet::new();
    let mut stopped = None;
    for index in 0..count {
        let permit = Arc::clone(&permits).acquire_owned().await;
        while let Some(done) = connecting.try_join_next() {
            stopped = stopped.or_else(|| failure(done));
        }
        if stopped.is_some() {
            break;
        }
        let mut server = servers[index % servers.len()];
        server.set_ip(address(index / servers.len()));
        let seen = seen.clone();
        connecting.spawn(async move {
            let _permit = permit;
            let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let peer = Peer::connect(server, local).await?;
            seen.lock().opened += 1;
            tokio::spawn(live(peer, seen));
            Ok(())
        });
    }
    while let Some(done) = connecting.join_next().await {
        stopped = stopped.or_else(|| failure(done));
    }
    let opened = seen.lock().opened;
    match stopped {
        Some(error) => format!("{opened} {error}"),
        None => opened.to_string(),
    }
}

type Connected = std::result::Result<io::Result<()>, tokio::task::JoinError>;

fn failure(done: Connected) -> Option<String> {
    match done {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// The server is reached at all addresses of loopback, each of which has its own ports.
fn address(index: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 1 + (index % ADDRESSES) as u8).into()
}

async fn live(mut peer: Peer, seen: Seen) {
    let opened = Instant::now();
    let mut pings = 0u64;
    let ended = loop {
        match peer.receive().await {
            Ok(Frame::Ping) => {
                let mut seen = seen.lock();
                seen.pings += 1;
                pings += 1;
                match pings {
                    1 => seen.firsts.push(opened.elapsed().as_micros() as u64),
                    2 => seen.seconds += 1,
                    _ => {}
                }
            }
            Ok(Frame::Close) => break say_goodbye(&mut peer).await,
            Ok(Frame::Data(_)) => {}
            Err(_) => break false,
        }
    };
    let mut seen = seen.lock();
    if ended {
        seen.goodbyes += 1;
    } else {
        seen.lost += 1;
    }
}

/// Whether it was 1001, could be answered, and was followed by the end of the stream.
async fn say_goodbye(peer: &mut Peer) -> bool {
    if peer.close_code() != Some(1001) || peer.answer_close().await.is_err() {
        return false;
    }
    let end = peer.receive().await;
    end.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// What the clients of a process have seen.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    opened: u64,
    firsts: Vec<u64>,
    seconds: u64,
    pings: u64,
    goodbyes: u64,
    lost: u64,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
