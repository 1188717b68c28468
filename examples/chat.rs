//! A chat room whose user list contains only open connections.
//!
//! ```text
//! cargo run --example chat
//! ```
//!
//! Then open the printed address in two windows. Every user name has one seat: a user who connects
//! again under the same name takes over the seat, and the older connection is closed. The layer
//! removes the seat from the map when its connection ends, on every path; the handler has no timer,
//! sends no ping and has no clean-up code.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use pico_args::Arguments;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower_ws_liveness::{
    ConfigError, Eviction, HeartbeatLayer, IdleTimeoutLayer, Liveness, RegisterError,
    ReplacePolicy, Seat,
};

const USAGE: &str = "usage: chat [--addr 127.0.0.1:3000]";

/// Short for a demonstration: a silent peer is evicted after ten seconds.
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection without a message in either direction is evicted after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Lines that can be queued for one user. A user who is further behind loses the seat.
const INBOX_CAPACITY: usize = 64;
/// The number of evictions that the dashboard shows.
const SHOWN_EVICTIONS: usize = 12;
const MAX_NAME_CHARS: usize = 24;
/// The Close code for a lost seat, from the range for private use (RFC 6455 section 7.4.2).
const CLOSE_SEAT_LOST: u16 = 4000;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
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
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let app = app(INTERVAL, TIMEOUT, IDLE_TIMEOUT)?;
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;

    let mut stdout = io::stdout();
    let detection_secs = (INTERVAL + TIMEOUT).as_secs();
    writeln!(stdout, "open http://{addr}/ in two windows")?;
    writeln!(
        stdout,
        "add a client outside the browser, say `websocat ws://{addr}/ws/bob`, and watch:\n  \
         kill -9 it     its seat is free at once: the connection ended without a Close\n  \
         kill -STOP it  only the heartbeat detects this: its seat is free within {detection_secs} s"
    )?;
    stdout.flush()?;

    Ok(axum::serve(listener, app).await?)
}

/// The chat as a router, with both layers around it.
pub fn app(
    interval: Duration,
    timeout: Duration,
    idle: Duration,
) -> Result<Router, Box<dyn Error + Send + Sync>> {
    let room = Room::new()?;
    let heartbeat = HeartbeatLayer::builder()
        .interval(interval)
        .timeout(timeout)
        .on_evict({
            let room = room.clone();
            move |ev: &Eviction| room.on_evict(ev)
        })
        .build()?;

    Ok(Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/sessions", get(sessions))
        .route("/ws/{user}", any(upgrade))
        .with_state(room)
        .layer(IdleTimeoutLayer::builder().timeout(idle).build()?)
        .layer(heartbeat))
}

// The handlers.

async fn upgrade(
    ws: WebSocketUpgrade,
    live: Liveness,
    Path(user): Path<String>,
    State(room): State<Room>,
) -> Response {
    let user = user.trim().to_owned();
    if user.is_empty() || user.chars().count() > MAX_NAME_CHARS || user.contains(char::is_control) {
        let rule = format!("a name has 1 to {MAX_NAME_CHARS} printable characters\n");
        return (StatusCode::BAD_REQUEST, rule).into_response();
    }
    // Registered before the 101 is sent: every connected user has a seat. If the upgrade fails, the
    // layer removes the seat.
    match room.join(&user, &live) {
        Ok(inbox) => ws.on_upgrade(move |socket| serve_user(socket, inbox, user, room)),
        Err(error) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
    }
}

/// Forwards messages until the connection ends. If the user loses the seat, the connection is
/// evicted and the reads and writes here fail.
async fn serve_user(
    mut socket: WebSocket,
    mut inbox: mpsc::Receiver<Utf8Bytes>,
    user: String,
    room: Room,
) {
    loop {
        tokio::select! {
            line = inbox.recv() => {
                let Some(line) = line else { return };
                if socket.send(Message::Text(line)).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => room.say(&user, &text),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

async fn sessions(State(room): State<Room>) -> Json<Value> {
    Json(room.dashboard())
}

// The room.

type Inbox = mpsc::Sender<Utf8Bytes>;

#[derive(Clone)]
struct Room {
    sessions: Arc<Mutex<HashMap<String, Seat<Inbox>>>>,
    evictions: Arc<Mutex<VecDeque<EvictionRecord>>>,
    policy: ReplacePolicy,
}

/// The session value of a connection, which the eviction hook gets.
struct User(String);

/// An eviction on the dashboard.
struct EvictionRecord {
    at: Instant,
    user: String,
    id: u64,
    reason: &'static str,
    lifetime: Duration,
}

impl Room {
    fn new() -> Result<Self, ConfigError> {
        Ok(Self {
            sessions: Arc::default(),
            evictions: Arc::default(),
            policy: ReplacePolicy::newest_wins_with(CLOSE_SEAT_LOST, "your seat was taken over")?,
        })
    }

    /// Registers the user. An older connection of the same user loses the seat.
    fn join(
        &self,
        user: &str,
        live: &Liveness,
    ) -> Result<mpsc::Receiver<Utf8Bytes>, RegisterError<Inbox>> {
        live.set_session(User(user.to_owned()));
        let (tx, inbox) = mpsc::channel(INBOX_CAPACITY);
        let previous = live.register_with(&self.sessions, user.to_owned(), tx, &self.policy)?;
        let notice = match previous {
            None => format!("{user} is here"),
            Some(_) => format!("{user} is here again, on a new connection"),
        };
        self.broadcast(&json!({ "notice": notice }));
        Ok(inbox)
    }

    fn say(&self, user: &str, text: &str) {
        self.broadcast(&json!({ "from": user, "text": text }));
    }

    /// Sends a line to all users without waiting. A user whose inbox is full is evicted.
    fn broadcast(&self, line: &Value) {
        // The map's lock is released here, because an eviction takes it to remove the seat.
        for seat in self.try_broadcast(line) {
            seat.live().evict(CLOSE_SEAT_LOST, "you read too slowly");
        }
    }

    /// Sends a line to all users without waiting. Returns the seats whose inbox is full.
    fn try_broadcast(&self, line: &Value) -> Vec<Seat<Inbox>> {
        let line = Utf8Bytes::from(line.to_string());
        let mut slow = Vec::new();
        for seat in lock(&self.sessions).values() {
            if seat.try_send(line.clone()).is_err() {
                slow.push(seat.clone());
            }
        }
        slow
    }

    /// The eviction hook, called once for every connection.
    fn on_evict(&self, ev: &Eviction) {
        if let Some(user) = ev.session::<User>() {
            self.record_eviction(&user.0, ev);
        }
        // The seats that the connection held when it ended, without those that were taken over.
        for (user, _) in ev.seats::<String, Inbox>() {
            // The user may have reconnected by now.
            if !lock(&self.sessions).contains_key(user) {
                // Evicts no user whose inbox is full: that would call this hook inside this call,
                // once more for each full inbox. The next line that is broadcast evicts them.
                self.try_broadcast(
                    &json!({ "notice": format!("{user} is gone: {}", ev.reason()) }),
                );
            }
        }
    }

    fn record_eviction(&self, user: &str, ev: &Eviction) {
        let mut evictions = lock(&self.evictions);
        evictions.truncate(SHOWN_EVICTIONS - 1);
        evictions.push_front(EvictionRecord {
            at: Instant::now(),
            user: user.to_owned(),
            id: ev.id().as_u64(),
            reason: ev.reason().as_str(),
            lifetime: ev.lifetime(),
        });
    }

    fn dashboard(&self) -> Value {
        let mut seats: Vec<(String, Liveness)> = lock(&self.sessions)
            .iter()
            .map(|(user, seat)| (user.clone(), seat.live().clone()))
            .collect();
        seats.sort_by(|a, b| a.0.cmp(&b.0));
        let sessions: Vec<Value> = seats
            .iter()
            .map(|(user, live)| {
                json!({
                    "user": user,
                    "id": live.id().as_u64(),
                    "health": live.health().to_string(),
                    "rtt_ms": live.rtt().map(|rtt| rtt.smoothed().as_secs_f64() * 1e3),
                    "idle_s": live.idle_for().as_secs(),
                })
            })
            .collect();
        let evictions: Vec<Value> = lock(&self.evictions)
            .iter()
            .map(|record| {
                json!({
                    "user": record.user,
                    "id": record.id,
                    "reason": record.reason,
                    "lifetime_s": record.lifetime.as_secs(),
                    "ago_s": record.at.elapsed().as_secs(),
                })
            })
            .collect();
        json!({ "sessions": sessions, "evictions": evictions })
    }
}

/// No change of these maps can panic half-way, so the map behind a poisoned lock is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const PAGE: &str = r##"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>chat</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --bg: light-dark(#f4f5f7, #14171c); --card: light-dark(#fff, #1d2128);
    --line: light-dark(#e2e5ea, #2d333d); --dim: light-dark(#6a7280, #8c95a4); --me: light-dark(#0b63d6, #6fb0ff) }
  * { box-sizing: border-box }
  body { margin: 0; height: 100vh; padding: 1rem; display: grid; gap: 1rem; grid-template-columns: 3fr 2fr;
    font: 15px/1.5 system-ui, sans-serif; background: var(--bg) }
  section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
    display: flex; flex-direction: column; min-height: 0; overflow: auto }
  h2 { margin: 0 0 .5rem; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--dim) }
  h2:not(:first-child) { margin-top: 1.5rem } #status { text-transform: none }
  #log { flex: 1; overflow-y: auto; overflow-wrap: anywhere }
  #log b { margin-right: .5em } #log .me { color: var(--me) } #log .notice { color: var(--dim); font-style: italic }
  form { display: flex; gap: .5rem; margin-top: .75rem }
  input { flex: 1; min-width: 0 }
  input, button { font: inherit; padding: .45rem .7rem; border-radius: 7px; border: 1px solid var(--line);
    background: var(--bg); color: inherit }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
  th { text-align: left; font-weight: normal; color: var(--dim) }
  th, td { padding: .2rem .5rem .2rem 0; border-bottom: 1px solid var(--line) }
  #gone td { opacity: .65 }
  #here td:nth-child(2)::before { content: "● "; color: #e8890c }
  #here tr:is([data-health="live"], [data-health="idle"]) td:nth-child(2)::before { color: #2ba84a }
  @media (max-width: 700px) { body { grid-template-columns: 1fr; grid-template-rows: 1fr 1fr } }
</style>
<section>
  <h2 id="status">Who are you?</h2>
  <div id="log"></div>
  <form><input id="line" maxlength="2000" placeholder="Your name" autocomplete="off" autofocus><button>Enter</button></form>
</section>
<section>
  <h2>Here now</h2>
  <table><thead><tr><th>name<th>health<th>round trip<th>idle<th>id</thead><tbody id="here"></tbody></table>
  <h2>Last evictions</h2>
  <table><thead><tr><th>name<th>reason<th>stayed<th>ago<th>id</thead><tbody id="gone"></tbody></table>
</section>
<script>
  const $ = id => document.getElementById(id);
  let user, socket, retry = 500;

  function show(from, text) {
    const row = document.createElement("div"), log = $("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    if (from) {
      const name = document.createElement("b");
      name.textContent = from;
      name.className = from === user ? "me" : "";
      row.append(name);
    } else row.className = "notice";
    row.append(document.createTextNode(text));
    log.append(row);
    if (log.childElementCount > 500) log.firstChild.remove();
    if (atEnd) row.scrollIntoView();
  }

  function connect() {
    const scheme = location.protocol === "https:" ? "wss://" : "ws://";
    let opened = false;
    socket = new WebSocket(scheme + location.host + "/ws/" + encodeURIComponent(user));
    socket.onopen = () => {
      opened = true;
      retry = 500;
      $("status").textContent = "You are " + user;
      $("line").placeholder = "Say something";
      document.querySelector("button").textContent = "Send";
    };
    socket.onmessage = event => {
      const line = JSON.parse(event.data);
      show(line.from, line.text ?? line.notice);
    };
    socket.onclose = event => {
      $("status").textContent = "Not connected";
      show(null, opened ? `connection closed: ${event.code} ${event.reason}` : "no connection");
      if (event.code === 4000) return; // another connection has the seat: reload to take it back
      setTimeout(connect, retry * (0.5 + Math.random() / 2));
      retry = Math.min(retry * 2, 10000);
    };
  }

  document.querySelector("form").onsubmit = event => {
    event.preventDefault();
    const text = $("line").value.trim();
    if (!text) return;
    if (!user) {
      user = [...text].slice(0, 24).join("");
      connect();
    } else if (socket.readyState === WebSocket.OPEN) {
      socket.send(text);
    } else return;
    $("line").value = "";
  };

  function fill(body, rows) {
    body.replaceChildren(...rows.map(cells => {
      const row = document.createElement("tr");
      row.dataset.health = cells[1];
      row.append(...cells.map(cell => {
        const td = document.createElement("td");
        td.textContent = cell;
        return td;
      }));
      return row;
    }));
  }

  async function refresh() {
    try {
      const room = await (await fetch("/sessions")).json();
      fill($("here"), room.sessions.map(s =>
        [s.user, s.health, s.rtt_ms === null ? "–" : s.rtt_ms.toFixed(1) + " ms", s.idle_s + " s", s.id]));
      fill($("gone"), room.evictions.map(e =>
        [e.user, e.reason.replaceAll("_", " "), e.lifetime_s + " s", e.ago_s + " s", e.id]));
    } catch { /* the server does not respond: retried below */ }
    setTimeout(refresh, 1000);
  }
  refresh();
</script>
</html>
"##;
