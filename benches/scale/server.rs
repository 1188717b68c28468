//! A server with both layers, in a process of its own, that knows who has left it and why.
//!
//! It prints `listening on ADDRESS` and then answers what it is asked on its standard input, a line
//! for a line, until that is closed:
//!
//! | asked | answered |
//! |---|---|
//! | `open` | connections that are open now |
//! | `heap` | bytes of heap that are allocated now |
//! | `vanished` | for each that ended with an EOF or an error since it was last asked: when, in microseconds of the Unix era |
//! | `dead` | for each that its heartbeat evicted since it was last asked: for how many microseconds it was silent |
//! | `others` | how many ended for any other reason |
//! | `drain` | closes all; how many were clean, cut and already gone, and after how many microseconds |

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
use super::{Result, heap, line};

/// The first argument of such a process. The others are interval and timeout in milliseconds.
pub(crate) const ROLE: &str = "serve";

/// What matters more than any layer: the WebSocket library's own buffer of 128 KiB.
const READ_BUFFER: usize = 4096;

pub(crate) fn run(args: &[String]) -> Result<()> {
    let [interval, timeout] = args else {
        return Err("a server takes interval and timeout".into());
    };
    raise_file_limit()?;
    let ends = Ends::default();
    let heartbeat = HeartbeatLayer::builder()
        .interval(Duration::from_millis(interval.parse()?))
        .timeout(Duration::from_millis(timeout.parse()?))
        .on_evict(ends.clone())
        .build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // All of loopback, since the ports of one address may not suffice.
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        println!("listening on 127.0.0.1:{}", listener.local_addr()?.port());
        let registry = heartbeat.registry();
        tokio::spawn(serve(listener, heartbeat));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(asked) = lines.next_line().await? {
            println!("{}", answer(&asked, &registry, &ends).await);
        }
        Ok(())
    })
}

async fn answer(asked: &str, registry: &Registry, ends: &Ends) -> String {
    match asked {
        "open" => registry.len().to_string(),
        "heap" => heap().to_string(),
        "vanished" => line(std::mem::take(&mut ends.lock().vanished)),
        "dead" => line(std::mem::take(&mut ends.lock().dead)),
        "others" => ends.lock().others.to_string(),
        "drain" => {
            let begun = Instant::now();
            let report = registry.drain(Drain::default()).await;
            let counts = [report.clean(), report.cut(), report.already_gone()];
            let took = begun.elapsed().as_micros() as u64;
            line(counts.map(|count| count as u64).into_iter().chain([took]))
        }
        _ => format!("nobody knows {asked}"),
    }
}

async fn serve(listener: TcpListener, heartbeat: HeartbeatLayer) {
    let app = Router::new()
        .route("/ws", any(upgrade))
        .layer(IdleTimeoutLayer::new(Duration::from_secs(3600)))
        .layer(heartbeat);
    let listener = listener.tap_io(|socket| {
        // A socket that has gone meanwhile cannot be set, and is found out by whoever reads it.
        let _ = socket.set_nodelay(true);
    });
    let served = axum::serve(listener, app).await;
    served.expect("axum serves until its process ends");
}

async fn upgrade(upgrade: WebSocketUpgrade) -> axum::response::Response {
    upgrade.read_buffer_size(READ_BUFFER).on_upgrade(echo)
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

/// How connections have ended.
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
            Reason::PeerVanished | Reason::Transport(_) => self.lock().vanished.push(now()),
            Reason::HeartbeatTimeout { .. } => {
                let silence = eviction.last_seen().elapsed();
                self.lock().dead.push(silence.as_micros() as u64);
            }
            _ => self.lock().others += 1,
        }
    }
}

/// A time that processes of one machine have in common: microseconds of the Unix era.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_micros() as u64
}
