//! A server process with both layers that records the end of every connection.
//!
//! It prints `listening on ADDRESS`, then replies to each command on standard input with one line,
//! until standard input is closed:
//!
//! | command | reply |
//! |---|---|
//! | `open` | number of open connections |
//! | `heap` | allocated bytes of heap |
//! | `vanished` | times of ends by EOF or error since the last `vanished`, in microseconds since the Unix epoch |
//! | `dead` | silence in microseconds of each peer that the heartbeat evicted since the last `dead` |
//! | `others` | number of ends for any other reason |
//! | `drain` | drains the registry; the counts `clean`, `cut` and `already_gone`, and the time in microseconds |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum::serve::ListenerExt;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tower_ws_liveness::{
    Drain, Eviction, HeartbeatLayer, IdleTimeoutLayer, OnEvict, Reason, Registry,
};

use super::support::process::raise_file_limit;
use super::{Result, heap, join_figures};

/// First argument of such a process. The others are interval and timeout in milliseconds.
pub(crate) const ROLE: &str = "serve";

/// The library's default of 128 KiB would outweigh everything that the layers allocate.
const READ_BUFFER_BYTES: usize = 4096;

pub(crate) fn run(args: &[String]) -> Result<()> {
    let [interval, timeout] = args else {
        return Err("a server takes interval and timeout".into());
    };
    raise_file_limit()?;
    let ends = Ends::default();
    let heartbeat = HeartbeatLayer::builder()
        .interval(Duration::from_millis(interval.parse()?))
        .timeout(Duration::from_millis(timeout.parse()?))
        .on_evict_hook(ends.clone())
        .build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Listens on all loopback addresses: the client ports of one may not suffice.
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        println!("listening on 127.0.0.1:{}", listener.local_addr()?.port());
        let registry = heartbeat.registry();
        tokio::spawn(serve(listener, heartbeat));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(command) = lines.next_line().await? {
            println!("{}", reply(&command, &registry, &ends).await);
        }
        Ok(())
    })
}

async fn reply(command: &str, registry: &Registry, ends: &Ends) -> String {
    match command {
        "open" => registry.len().to_string(),
        "heap" => heap().to_string(),
        "vanished" => join_figures(std::mem::take(&mut ends.lock().vanished)),
        "dead" => join_figures(std::mem::take(&mut ends.lock().dead)),
        "others" => ends.lock().others.to_string(),
        "drain" => {
            let begun = Instant::now();
            let report = registry.drain(Drain::default()).await;
            let counts = [report.clean(), report.cut(), report.already_gone()];
            let took = begun.elapsed().as_micros() as u64;
            join_figures(counts.map(|count| count as u64).into_iter().chain([took]))
        }
        _ => format!("unknown command: {command}"),
    }
}

async fn serve(listener: TcpListener, heartbeat: HeartbeatLayer) {
    let app = Router::new()
        .route("/ws", any(upgrade))
        .layer(IdleTimeoutLayer::new(Duration::from_secs(3600)))
        .layer(heartbeat);
    let listener = listener.tap_io(|socket| {
        // Fails if the peer has reset the connection, which the next read reports.
        let _ = socket.set_nodelay(true);
    });
    let result = axum::serve(listener, app).await;
    result.expect("axum serves until its process ends");
}

async fn upgrade(upgrade: WebSocketUpgrade) -> axum::response::Response {
    upgrade.read_buffer_size(READ_BUFFER_BYTES).on_upgrade(echo)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Text(_) | Message::Binary(_) = message {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// The ends of connections, by reason.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Lists>>);

#[derive(Default)]
struct Lists {
    vanished: Vec<u64>,
    dead: Vec<u64>,
    others: u64,
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnEvict for Ends {
    fn on_evict(&self, eviction: &Eviction) {
        match eviction.reason() {
            Reason::PeerVanished | Reason::Transport(_) => self.lock().vanished.push(unix_micros()),
            Reason::HeartbeatTimeout { .. } => {
                let silence = eviction.last_seen().elapsed();
                self.lock().dead.push(silence.as_micros() as u64);
            }
            _ => self.lock().others += 1,
        }
    }
}

/// Microseconds since the Unix epoch, comparable between processes of one machine.
pub(crate) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_micros() as u64
}
