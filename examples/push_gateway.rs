//! A push gateway: bots connect over WebSocket, events come in over HTTP, and every bot gets every
//! event. A bot may be killed, stopped or cut off in the middle of it: nothing is pushed into a dead
//! session, and nobody waits for a slow one.
//!
//! ```text
//! cargo run --example push_gateway -- --interval-ms 1000 --timeout-ms 1000
//! websocat ws://127.0.0.1:3000/ws/alice
//! curl --data 'hello' http://127.0.0.1:3000/events
//! curl http://127.0.0.1:3000/sessions
//! ```
//!
//! Then `kill -9` or `kill -STOP` the bot. The first line on stdout is `listening on <address>`, and
//! one JSON line follows for every session that ended. Events are numbered without gaps, so a bot that
//! comes back knows what it missed. Nobody is asked who they are: do that before you copy this.
//!
//! Why nothing leaks, however a bot ends:
//!
//! - The map: the layer takes a seat out when its connection ends, before anybody is told of it. No code
//!   here does, so none can be forgotten, be skipped by a panic, or hit the seat of a bot that is back.
//! - The queues: each is bounded, and its reading half is the handler's. The end of a connection fails
//!   whatever the handler is blocked in, so it returns, and what is left in the queue goes with it.
//! - The sockets: a dead peer's is dropped at once, any other within the layer's `close_timeout`.

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
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, error::TrySendError};
use tower_ws_liveness::{Eviction, HeartbeatLayer, Liveness, RegisterError, Seat};

const USAGE: &str = "\
Usage: push_gateway [FLAGS]

  --addr ADDR           address to listen on [127.0.0.1:3000]; port 0 picks a free one
  --interval-ms N       silence before a bot is pinged [the layer's default]
  --timeout-ms N        time a ping may stay unanswered [the layer's default]
  --write-timeout-ms N  time a bot may accept no byte that is sent to it [the layer's default]
  --help                print this text";

/// Events that may wait for one bot. A bot that is further behind is evicted as too slow, so this is
/// also the largest burst that is safe.
const QUEUE: usize = 256;
/// With [`QUEUE`], the most memory that one bot can hold back: 16 MiB.
const LONGEST_EVENT: usize = 64 * 1024;
const LONGEST_NAME: usize = 64;
/// Bots have nothing to say, so they need no room to say it.
const LONGEST_MESSAGE: usize = 4096;
/// Lines that may wait for the reader of our stdout, which loses what comes on top.
const LOG: usize = 64 * 1024;
/// From the range that RFC 6455, section 7.4.2, leaves to applications.
const TOO_SLOW: u16 = 4008;

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

/// Serves until the process ends. `args` are the flags, without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut addr = SocketAddr::from(([127, 0, 0, 1], 3000));
    let mut heartbeat = HeartbeatLayer::builder();
    let mut args = args.into_iter();
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--addr" => addr = value(&flag, args.next())?,
            "--interval-ms" => heartbeat = heartbeat.interval(millis(&flag, args.next())?),
            "--timeout-ms" => heartbeat = heartbeat.timeout(millis(&flag, args.next())?),
            "--write-timeout-ms" => {
                heartbeat = heartbeat.write_timeout(millis(&flag, args.next())?);
            }
            "--help" | "-h" => return Ok(print_line(USAGE)?),
            _ => return Err(format!("unknown flag {flag}\n\n{USAGE}").into()),
        }
    }
    let log = log();
    let heartbeat = heartbeat.on_evict(move |ev: &Eviction| {
        // A hook must not wait. Fails if the reader of our stdout is far behind, or gone.
        let _ = log.try_send(describe(ev));
    });

    let app = Router::new()
        .route("/ws/{bot}", any(upgrade))
        .route("/events", post(inject))
        .route("/sessions", get(sessions))
        .with_state(Gateway::default())
        .layer(DefaultBodyLimit::max(LONGEST_EVENT))
        .layer(heartbeat.build()?);
    let listener = TcpListener::bind(addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;
    let listener = listener.tap_io(|stream| {
        // An event leaves at once, before the bot has acknowledged earlier ones. If not: no harm.
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
    if bot.is_empty() || bot.len() > LONGEST_NAME || bot.contains(char::is_control) {
        let rule = format!("a bot's name has 1 to {LONGEST_NAME} printable bytes\n");
        return (StatusCode::BAD_REQUEST, rule).into_response();
    }
    // Before the 101 goes out: a bot that finds itself connected misses no event from then on.
    // Should the upgrade fail after all, the seat goes as well.
    match gateway.join(bot, &live) {
        Ok(events) => ws
            // axum's default is 128 KiB for each session: a lot for one that only listens.
            .read_buffer_size(LONGEST_MESSAGE)
            .max_message_size(LONGEST_MESSAGE)
            .on_upgrade(move |socket| deliver(socket, events)),
        Err(error) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
    }
}

/// Sends what is queued, until either end is gone.
async fn deliver(mut socket: WebSocket, mut events: mpsc::Receiver<Utf8Bytes>) {
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                // Waits for a bot that does not read, and only this task does. It is not for ever: the
                // heartbeat, the write timeout or the full queue ends the connection, and this fails.
                if socket.send(Message::Text(event)).await.is_err() {
                    return;
                }
            }
            // Read for the Close of a bot that leaves. Whatever else bots say is not listened to.
            message = socket.recv() => match message {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// Queues the body as an event for all sessions: 202 and for how many that was.
async fn inject(State(gateway): State<Gateway>, text: String) -> (StatusCode, Json<Value>) {
    let (event, sessions) = gateway.push(&text);
    let told = json!({ "event": event, "sessions": sessions });
    (StatusCode::ACCEPTED, Json(told))
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

/// What stands in the map for a bot.
struct Queue {
    events: mpsc::Sender<Utf8Bytes>,
    /// How many events were queued so far.
    pushed: AtomicU64,
}

/// Whose connection it is: for the hook, also when the seat is somebody else's by then.
struct Bot(String);

#[derive(Clone, Default)]
struct Gateway {
    sessions: Arc<RwLock<HashMap<String, Seat<Queue>>>>,
    /// The number of the newest event.
    last: Arc<Mutex<u64>>,
}

impl Gateway {
    /// Seats the bot. An older connection of the same bot loses the seat, and is closed.
    fn join(
        &self,
        bot: String,
        live: &Liveness,
    ) -> Result<mpsc::Receiver<Utf8Bytes>, RegisterError<Queue>> {
        live.set_session(Bot(bot.clone()));
        let (events, inbox) = mpsc::channel(QUEUE);
        let pushed = AtomicU64::new(0);
        live.register(&self.sessions, bot, Queue { events, pushed })?;
        Ok(inbox)
    }

    /// Never waits for a bot. (Whoever joins or ends waits for the map's lock: a map with several holds
    /// them up for less.) Returns the event's number, and for how many sessions it was queued.
    fn push(&self, text: &str) -> (u64, usize) {
        let mut slow: Vec<Seat<Queue>> = Vec::new();
        let mut count = 0;
        // Held until the event is queued everywhere: so every bot gets events in their order.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let number = *last;
        // Made once; a clone for a session is a reference.
        let event = Utf8Bytes::from(json!({ "event": number, "data": text }).to_string());
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        for seat in sessions.values() {
            match seat.events.try_send(event.clone()) {
                Ok(()) => {
                    seat.pushed.fetch_add(1, Ordering::Relaxed);
                    count += 1;
                }
                Err(TrySendError::Full(_)) => slow.push(seat.clone()),
                // Its handler has just returned, so the seat is about to go.
                Err(TrySendError::Closed(_)) => {}
            }
        }
        // Both locks are given back first: an eviction takes the seat out of the map, and tells hooks.
        drop(sessions);
        drop(last);
        for seat in slow {
            seat.live().evict(TOO_SLOW, "too slow");
        }
        (number, count)
    }

    /// Who is there. Seats are cheap to clone, and so no push waits for whoever looks at them.
    fn seats(&self) -> BTreeMap<String, Seat<Queue>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.clone().into_iter().collect()
    }
}

// The log.

fn describe(ev: &Eviction) -> String {
    json!({
        "bot": ev.session::<Bot>().map(|bot| bot.0.clone()),
        "id": ev.id().as_u64(),
        "reason": ev.reason().as_str(),
        "lifetime_ms": u64::try_from(ev.lifetime().as_millis()).unwrap_or(u64::MAX),
    })
    .to_string()
}

/// A thread of its own prints the lines, so that no hook waits for the reader of our stdout.
fn log() -> mpsc::Sender<String> {
    let (lines, mut queue) = mpsc::channel::<String>(LOG);
    std::thread::spawn(move || {
        while let Some(line) = queue.blocking_recv() {
            if print_line(&line).is_err() {
                return; // nobody reads any more
            }
        }
    });
    lines
}

/// Prints one line at once: stdout buffers whole blocks when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

// The command line.

fn millis(flag: &str, text: Option<String>) -> Result<Duration, String> {
    value(flag, text).map(Duration::from_millis)
}

fn value<T>(flag: &str, text: Option<String>) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = text.ok_or_else(|| format!("{flag} needs a value\n\n{USAGE}"))?;
    text.parse()
        .map_err(|error| format!("{flag} {text}: {error}\n\n{USAGE}"))
}
