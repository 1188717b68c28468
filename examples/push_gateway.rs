//! A push gateway: bots connect over WebSocket and get every event that is posted over HTTP.
//!
//! A bot may be killed, stopped or disconnected at any time: no event is pushed to a session that
//! has ended, and a slow session delays no other.
//!
//! ```text
//! cargo run --example push_gateway -- --interval-ms 1000 --timeout-ms 1000
//! websocat ws://127.0.0.1:3000/ws/alice
//! curl --data 'hello' http://127.0.0.1:3000/events
//! curl http://127.0.0.1:3000/sessions
//! ```
//!
//! Then `kill -9` or `kill -STOP` the bot. The first line on stdout is `listening on <address>`;
//! one JSON line follows for every session that ends. Events are numbered without gaps, so a bot
//! that reconnects knows which events it missed. This example does not authenticate bots: add that
//! before you copy it.
//!
//! Why nothing leaks, however a connection ends:
//!
//! - Map entries: the layer removes a seat when its connection ends, before any hook is called. The
//!   example has no clean-up code that could be forgotten, be skipped by a panic, or remove the
//!   seat of a bot that has reconnected.
//! - Queues: each is bounded, and the handler owns its receiver. The end of a connection fails the
//!   read or write that the handler waits in, so the handler returns and drops the queue.
//! - Sockets: that of a dead peer is dropped at once, any other within the layer's `close_timeout`.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

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
use tower_ws_liveness::{Eviction, HeartbeatLayer, Liveness, RegisterError, Seat};

const USAGE: &str = "\
Usage: push_gateway [FLAGS]

  --addr ADDR           address to listen on [127.0.0.1:3000]; port 0 selects a free port
  --interval-ms N       silence before a bot is pinged [the layer's default]
  --timeout-ms N        time a ping may stay unanswered [the layer's default]
  --write-timeout-ms N  time a write may make no progress [the layer's default]
  --help                print this text";

/// Events that can be queued for one bot. A bot that is further behind is evicted as too slow, so
/// this is also the largest burst that is safe.
const QUEUE_CAPACITY: usize = 256;
/// With [`QUEUE_CAPACITY`], bounds the memory for the queue of one bot to 16 MiB.
const MAX_EVENT_BYTES: usize = 64 * 1024;
const MAX_NAME_BYTES: usize = 64;
/// Small, because bots send no messages that the gateway uses.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Log lines that can be queued for stdout. Further lines are dropped.
const LOG_CAPACITY: usize = 64 * 1024;
/// The Close code for slow bots, from the range for private use (RFC 6455 section 7.4.2).
const CLOSE_TOO_SLOW: u16 = 4008;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("push_gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process ends. `args` are the command-line flags without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    if args.contains(["-h", "--help"]) {
        return Ok(print_line(USAGE)?);
    }
    let addr = args
        .opt_value_from_str("--addr")
        .map_err(|error| format!("--addr: {error}"))?
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000)));
    let mut heartbeat = HeartbeatLayer::builder();
    if let Some(interval) = millis(&mut args, "--interval-ms")? {
        heartbeat = heartbeat.interval(interval);
    }
    if let Some(timeout) = millis(&mut args, "--timeout-ms")? {
        heartbeat = heartbeat.timeout(timeout);
    }
    if let Some(timeout) = millis(&mut args, "--write-timeout-ms")? {
        heartbeat = heartbeat.write_timeout(timeout);
    }
    if let Some(unknown) = args.finish().first() {
        return Err(format!("unknown flag {unknown:?}\n\n{USAGE}").into());
    }
    let log = start_log();
    let heartbeat = heartbeat.on_evict(move |ev: &Eviction| {
        // A hook must not wait. Fails if the reader of stdout is far behind, or has closed the
        // pipe.
        let _ = log.try_send(log_line(ev));
    });

    let app = Router::new()
        .route("/ws/{bot}", any(upgrade))
        .route("/events", post(inject))
        .route("/sessions", get(sessions))
        .with_state(Gateway::default())
        .layer(DefaultBodyLimit::max(MAX_EVENT_BYTES))
        .layer(heartbeat.build()?);
    let listener = TcpListener::bind(addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;
    let listener = listener.tap_io(|stream| {
        // Sends an event without waiting for the acknowledgement of earlier ones. If this fails,
        // events are only sent later.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, app).await?)
}

// The handlers.

async fn upgrade(
    ws: WebSocketUpgrade,
    live: Liveness,
    Path(bot): Path<String>,
    State(gateway): State<Gateway>,
) -> Response {
    if bot.is_empty() || bot.len() > MAX_NAME_BYTES || bot.contains(char::is_control) {
        let rule = format!("a bot's name has 1 to {MAX_NAME_BYTES} printable bytes\n");
        return (StatusCode::BAD_REQUEST, rule).into_response();
    }
    // Registered before the 101 is sent: a bot that is connected misses no event from then on. If
    // the upgrade fails, the layer removes the seat.
    match gateway.join(bot, &live) {
        Ok(events) => ws
            // axum's default is 128 KiB per connection, which bots that send nothing do not need.
            .read_buffer_size(MAX_MESSAGE_BYTES)
            .max_message_size(MAX_MESSAGE_BYTES)
            .on_upgrade(move |socket| deliver(socket, events)),
        Err(error) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
    }
}

/// Sends queued events until the connection ends.
async fn deliver(mut socket: WebSocket, mut events: mpsc::Receiver<Utf8Bytes>) {
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                // Waits while the bot does not read, which blocks only this task. The heartbeat,
                // the write timeout or the full queue bounds the wait: each evicts the connection,
                // and the send fails.
                if socket.send(Message::Text(event)).await.is_err() {
                    return;
                }
            }
            // Must be polled to receive the bot's Close frame. Other messages are ignored.
            message = socket.recv() => match message {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// Queues the body as an event for all sessions. Responds with 202 and the number of sessions.
async fn inject(State(gateway): State<Gateway>, text: String) -> (StatusCode, Json<Value>) {
    let (event, sessions) = gateway.push(&text);
    let body = json!({ "event": event, "sessions": sessions });
    (StatusCode::ACCEPTED, Json(body))
}

async fn sessions(State(gateway): State<Gateway>) -> Json<Value> {
    let session = |(bot, seat): (String, Seat<Queue>)| {
        json!({
            "bot": bot,
            "id": seat.id().as_u64(),
            "health": seat.live().health().to_string(),
            "rtt_ms": seat.live().rtt().map(|rtt| rtt.smoothed().as_secs_f64() * 1e3),
            "queued": seat.events.max_capacity() - seat.events.capacity(),
            "pushed": seat.pushed.load(Ordering::Relaxed),
        })
    };
    Json(json!({ "sessions": gateway.seats().into_iter().map(session).collect::<Vec<_>>() }))
}

// The sessions.

/// The value of a bot's seat in the map.
struct Queue {
    events: mpsc::Sender<Utf8Bytes>,
    /// The number of events that were queued so far.
    pushed: AtomicU64,
}

/// The session value of a connection. It gives the hook the bot's name, even if a newer connection
/// has taken the seat.
struct Bot(String);

#[derive(Clone, Default)]
struct Gateway {
    sessions: Arc<RwLock<HashMap<String, Seat<Queue>>>>,
    /// The number of the newest event.
    last: Arc<Mutex<u64>>,
}

impl Gateway {
    /// Registers the bot. An older connection of the same bot loses the seat and is evicted.
    fn join(
        &self,
        bot: String,
        live: &Liveness,
    ) -> Result<mpsc::Receiver<Utf8Bytes>, RegisterError<Queue>> {
        live.set_session(Bot(bot.clone()));
        let (events, inbox) = mpsc::channel(QUEUE_CAPACITY);
        let pushed = AtomicU64::new(0);
        live.register(&self.sessions, bot, Queue { events, pushed })?;
        Ok(inbox)
    }

    /// Queues an event for all sessions, without waiting for a bot. Returns the event's number and
    /// the number of sessions.
    ///
    /// Connections that register or end wait for the map's lock meanwhile. A sharded map shortens
    /// that wait.
    fn push(&self, text: &str) -> (u64, usize) {
        let mut slow: Vec<Seat<Queue>> = Vec::new();
        let mut count = 0;
        // Held until the event is in all queues, so that every bot gets the events in order.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let number = *last;
        // Encoded once: a clone shares the bytes.
        let event = Utf8Bytes::from(json!({ "event": number, "data": text }).to_string());
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        for seat in sessions.values() {
            match seat.events.try_send(event.clone()) {
                Ok(()) => {
                    seat.pushed.fetch_add(1, Ordering::Relaxed);
                    count += 1;
                }
                Err(TrySendError::Full(_)) => slow.push(seat.clone()),
                // The handler has returned, and the seat is about to be removed.
                Err(TrySendError::Closed(_)) => {}
            }
        }
        // Released before the evictions: each takes the map's lock to remove the seat, and calls
        // hooks.
        drop(sessions);
        drop(last);
        for seat in slow {
            seat.live().evict(CLOSE_TOO_SLOW, "too slow");
        }
        (number, count)
    }

    /// All seats, sorted by name. They are cloned, which is cheap, so that the lock is released at
    /// once.
    fn seats(&self) -> BTreeMap<String, Seat<Queue>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.clone().into_iter().collect()
    }
}

// The log.

fn log_line(ev: &Eviction) -> String {
    json!({
        "bot": ev.session::<Bot>().map(|bot| bot.0.clone()),
        "id": ev.id().as_u64(),
        "reason": ev.reason().as_str(),
        "lifetime_ms": u64::try_from(ev.lifetime().as_millis()).unwrap_or(u64::MAX),
    })
    .to_string()
}

/// Starts a thread that prints lines, because a hook must not wait for the reader of stdout.
fn start_log() -> mpsc::Sender<String> {
    let (lines, mut queue) = mpsc::channel::<String>(LOG_CAPACITY);
    std::thread::spawn(move || {
        while let Some(line) = queue.blocking_recv() {
            if print_line(&line).is_err() {
                return; // stdout is a closed pipe
            }
        }
    });
    lines
}

/// Prints a line and flushes it: stdout is block-buffered when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Takes a flag with a number of milliseconds.
fn millis(args: &mut Arguments, flag: &'static str) -> Result<Option<Duration>, String> {
    let given = args.opt_value_from_str(flag);
    let given: Option<u64> = given.map_err(|error| format!("{flag}: {error}"))?;
    Ok(given.map(Duration::from_millis))
}
