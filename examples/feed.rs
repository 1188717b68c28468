//! A trading feed that evicts slow consumers, and whose users an administrator can kick.
//!
//! ```text
//! cargo run --example feed -- --addr 127.0.0.1:3000 --queue 256
//!
//! websocat ws://127.0.0.1:3000/ws/alice                           # in several windows
//! curl --data 'EUR/USD 1.0712' http://127.0.0.1:3000/prices       # {"price":1,"queued":1}
//! curl --request POST http://127.0.0.1:3000/kick/alice            # {"kicked":1}
//! curl http://127.0.0.1:3000/metrics
//! ```
//!
//! Prices are numbered without gaps. Each connection has a queue of `--queue` prices. If it is full,
//! the connection is evicted (Close 4008), so what a trader receives has no gap before its end, and no
//! trader delays another. A kick ends all connections of a user (Close 4001) and refuses later ones
//! with 403, as long as the process runs: bans are not stored, and a restart ends them. `kicked` counts
//! the connections that were ended, also those that were being opened. In the metrics `slow_consumer`,
//! `admin` and the reasons of the layer are counted apart.
//!
//! This example does not authenticate users or administrators: add that before you copy it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use pico_args::Arguments;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, error::TrySendError};
use tower_ws_liveness::{ConnectionId, Eviction, HeartbeatLayer, Liveness, Registry, Seat};

const USAGE: &str = "usage: feed [--addr 127.0.0.1:3000] [--queue 256]";

const MAX_NAME_BYTES: usize = 64;
const MAX_PRICE_BYTES: usize = 64 * 1024;
/// Small, because traders send no messages that the feed uses.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Close codes from the range for private use (RFC 6455 section 7.4.2).
const CLOSE_KICKED: u16 = 4001;
const CLOSE_TOO_SLOW: u16 = 4008;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("feed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process ends. `args` are the command-line flags without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    if args.contains("--help") {
        writeln!(io::stdout(), "{USAGE}")?;
        return Ok(());
    }
    let addr = args
        .opt_value_from_str("--addr")
        .map_err(|error| format!("--addr: {error}"))?
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000)));
    let queue: Option<NonZeroU16> = args
        .opt_value_from_str("--queue")
        .map_err(|error| format!("--queue: {error}"))?;
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let feed = Feed::new(queue.map_or(256, NonZeroU16::get));
    let ended = Arc::clone(&feed.ended);
    let heartbeat = HeartbeatLayer::builder()
        .registry(feed.registry.clone())
        .on_evict(move |ev: &Eviction| *lock(&ended).entry(ev.label()).or_default() += 1)
        .build()?;
    let app = Router::new()
        .route("/ws/{user}", any(connect))
        .route("/prices", post(publish))
        .route("/kick/{user}", post(kick))
        .route("/metrics", get(metrics))
        .with_state(feed)
        .layer(DefaultBodyLimit::max(MAX_PRICE_BYTES))
        .layer(heartbeat);
    let listener = TcpListener::bind(addr).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    let listener = listener.tap_io(|stream| {
        // Sends a price without waiting for the acknowledgement of earlier ones. If this fails,
        // prices are only sent later.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, app).await?)
}

// The handlers.

async fn connect(
    ws: WebSocketUpgrade,
    live: Liveness,
    Path(user): Path<String>,
    State(feed): State<Feed>,
) -> Response {
    if let Err(refusal) = check_name(&user) {
        return refusal.into_response();
    }
    let (queue, prices) = mpsc::channel(feed.queue.into());
    // Registered before the 101 is sent: a trader who is connected misses no later price.
    if let Err(error) = live.register(&feed.traders, (user.clone(), live.id()), queue) {
        return error.into_response();
    }
    // After the registration: either the kick finds the seat, or this request finds the kick. Without
    // a 101 the layer removes the seat.
    if lock(&feed.kicked).contains(&user) {
        return (StatusCode::FORBIDDEN, "kicked by an administrator\n").into_response();
    }
    ws.read_buffer_size(MAX_MESSAGE_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES)
        .on_upgrade(|socket| deliver(socket, prices))
}

/// Sends queued prices until the connection ends, which fails the send or the read.
async fn deliver(mut socket: WebSocket, mut prices: mpsc::Receiver<Utf8Bytes>) {
    loop {
        tokio::select! {
            price = prices.recv() => {
                let Some(price) = price else { return };
                if socket.send(Message::Text(price)).await.is_err() {
                    return;
                }
            }
            // Only a read notices the trader's Close frame.
            message = socket.recv() => match message {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

async fn publish(State(feed): State<Feed>, price: String) -> Json<Value> {
    let (number, queued) = feed.push(&price);
    Json(json!({ "price": number, "queued": queued }))
}

async fn kick(
    Path(user): Path<String>,
    State(feed): State<Feed>,
) -> Result<Json<Value>, (StatusCode, String)> {
    check_name(&user)?;
    Ok(Json(json!({ "kicked": feed.kick(&user) })))
}

/// The same rule for connections and kicks: a name that cannot connect is not stored as kicked.
fn check_name(user: &str) -> Result<(), (StatusCode, String)> {
    if user.is_empty() || user.len() > MAX_NAME_BYTES || user.contains(char::is_control) {
        let rule = format!("a name has 1 to {MAX_NAME_BYTES} printable bytes\n");
        return Err((StatusCode::BAD_REQUEST, rule));
    }
    Ok(())
}

/// In the text format of Prometheus.
async fn metrics(State(feed): State<Feed>) -> String {
    let mut text = format!(
        "websocket_server_active_connections {}\n",
        feed.registry.len()
    );
    for (label, count) in lock(&feed.ended).iter() {
        let name = "websocket_server_evictions_total";
        // Cannot fail: the target is a `String`.
        let _ = writeln!(text, "{name}{{reason=\"{label}\"}} {count}");
    }
    text
}

// The feed.

type Queue = mpsc::Sender<Utf8Bytes>;
/// A user may have several connections.
type Traders = HashMap<String, HashMap<ConnectionId, Seat<Queue>>>;

#[derive(Clone)]
struct Feed {
    traders: Arc<Mutex<Traders>>,
    /// The number of the newest price.
    newest: Arc<Mutex<u64>>,
    kicked: Arc<Mutex<HashSet<String>>>,
    /// How many connections have ended, for each label.
    ended: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    registry: Registry,
    /// The prices that can be queued for one connection.
    queue: u16,
}

impl Feed {
    fn new(queue: u16) -> Self {
        Self {
            traders: Arc::default(),
            newest: Arc::default(),
            kicked: Arc::default(),
            ended: Arc::default(),
            registry: Registry::new(),
            queue,
        }
    }

    /// Queues a price for all connections. Returns its number and the number of connections.
    fn push(&self, price: &str) -> (u64, usize) {
        // Locked until the slow ones are evicted: a queue that was full gets no later price, which
        // would leave a gap. No hook takes this lock.
        let mut newest = lock(&self.newest);
        *newest += 1;
        let price = Utf8Bytes::from(format!("{newest} {price}"));
        let (mut queued, mut slow) = (0, Vec::new());
        let traders = lock(&self.traders);
        for seat in traders.values().flat_map(HashMap::values) {
            match seat.try_send(price.clone()) {
                Ok(()) => queued += 1,
                Err(TrySendError::Full(_)) => slow.push(seat.clone()),
                // The handler has returned, and the seat is about to be removed.
                Err(TrySendError::Closed(_)) => {}
            }
        }
        // Released before the evictions, which remove seats.
        drop(traders);
        for seat in slow {
            let live = seat.live();
            live.evict_as("slow_consumer", CLOSE_TOO_SLOW, "you read too slowly");
        }
        (*newest, queued)
    }

    /// Ends all connections of a user and refuses later ones. Returns the number of connections.
    fn kick(&self, user: &str) -> usize {
        lock(&self.kicked).insert(user.to_owned());
        let seats = lock(&self.traders).get(user).cloned();
        // The lock is released, because the evictions remove the seats.
        let kicked = seats.into_iter().flatten().filter(|(_, seat)| {
            let live = seat.live();
            live.evict_as("admin", CLOSE_KICKED, "kicked by an administrator")
        });
        kicked.count()
    }
}

/// A panic under these locks leaves nothing inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
