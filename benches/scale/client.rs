//! A process of many clients that only answer pings and Close frames.
//!
//! The process replies to each command on standard input with one line, until standard input is
//! closed:
//!
//! | command | reply |
//! |---|---|
//! | `connect` | connects all; how many connected, and the error that stopped the others |
//! | `firsts` | microseconds from opening to first ping, for each pinged client |
//! | `rounds` | number of clients pinged at least once, and at least twice |
//! | `pings` | number of answered pings |
//! | `ends` | number of connections that ended cleanly (Close 1001, its reply, EOF), and otherwise |

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
use super::{Result, join_figures};

/// First argument of such a process. The others are the number of clients and the addresses of the
/// servers over which they are spread.
pub(crate) const ROLE: &str = "clients";

/// Number of clients that connect at the same time.
const MAX_CONNECTING: usize = 64;

/// Loopback addresses of the servers. One would limit the clients to its range of ephemeral ports.
const ADDRESSES: usize = 8;

pub(crate) fn run(args: &[String]) -> Result<()> {
    // A stopped process does not notice that its input is closed, and would outlive the bench.
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
        let observations = Observations::default();
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(command) = lines.next_line().await? {
            let reply = match command.as_str() {
                "connect" => connect_all(count, &servers, &observations).await,
                "firsts" => join_figures(observations.lock().firsts.iter().copied()),
                "rounds" => {
                    let counters = observations.lock();
                    join_figures([counters.firsts.len() as u64, counters.second_pings])
                }
                "pings" => observations.lock().pings.to_string(),
                "ends" => {
                    let counters = observations.lock();
                    join_figures([counters.clean_ends, counters.other_ends])
                }
                _ => format!("unknown command: {command}"),
            };
            println!("{reply}");
        }
        Ok(())
    })
}

/// Connects the clients and stops at the first error, which the remaining ones would meet too.
async fn connect_all(count: usize, servers: &[SocketAddr], observations: &Observations) -> String {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTING));
    let mut connecting = JoinSet::new();
    let mut first_error = None;
    for index in 0..count {
        let permit = Arc::clone(&permits).acquire_owned().await;
        while let Some(done) = connecting.try_join_next() {
            first_error = first_error.or_else(|| failure(done));
        }
        if first_error.is_some() {
            break;
        }
        let mut server = servers[index % servers.len()];
        server.set_ip(loopback_address(index / servers.len()));
        let observations = observations.clone();
        connecting.spawn(async move {
            let _permit = permit;
            let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let peer = Peer::connect(server, local).await?;
            observations.lock().opened += 1;
            tokio::spawn(answer_until_end(peer, observations));
            Ok(())
        });
    }
    while let Some(done) = connecting.join_next().await {
        first_error = first_error.or_else(|| failure(done));
    }
    let opened = observations.lock().opened;
    match first_error {
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

/// The servers listen on all loopback addresses, each of which has its own range of client ports.
fn loopback_address(index: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 1 + (index % ADDRESSES) as u8).into()
}

async fn answer_until_end(mut peer: Peer, observations: Observations) {
    let opened = Instant::now();
    let mut pings = 0u64;
    let clean = loop {
        match peer.receive().await {
            Ok(Frame::Ping) => {
                let mut observations = observations.lock();
                observations.pings += 1;
                pings += 1;
                match pings {
                    1 => observations
                        .firsts
                        .push(opened.elapsed().as_micros() as u64),
                    2 => observations.second_pings += 1,
                    _ => {}
                }
            }
            Ok(Frame::Close) => break close_cleanly(&mut peer).await,
            Ok(Frame::Data(_)) => {}
            Err(_) => break false,
        }
    };
    let mut observations = observations.lock();
    if clean {
        observations.clean_ends += 1;
    } else {
        observations.other_ends += 1;
    }
}

/// Replies to a Close frame. Returns whether its code was 1001, the reply was sent and EOF
/// followed.
async fn close_cleanly(peer: &mut Peer) -> bool {
    if peer.close_code() != Some(1001) || peer.answer_close().await.is_err() {
        return false;
    }
    let end = peer.receive().await;
    end.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Observations of all clients in a process.
#[derive(Clone, Default)]
struct Observations(Arc<Mutex<Counters>>);

#[derive(Default)]
struct Counters {
    opened: u64,
    firsts: Vec<u64>,
    second_pings: u64,
    pings: u64,
    clean_ends: u64,
    other_ends: u64,
}

impl Observations {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
