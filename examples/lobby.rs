//! A game lobby whose players keep their score while they reconnect.
//!
//! ```text
//! cargo run --example lobby -- --addr 127.0.0.1:3000 --grace-ms 10000
//! ```
//!
//! Connect with any WebSocket client to `/ws?user=NAME`. The text `+5` adds 5 to the score. The first
//! message of every connection is the score, also after `kill -9` and a reconnect within the grace
//! period. `GET /players` shows who is connected, who is missing, and whose sessions have ended. The
//! handler has no timer and no clean-up code.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use percent_encoding::percent_decode_str;
use pico_args::Arguments;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_ws_liveness::{HeartbeatLayer, Linger, Liveness, Seat, SeatState};

const USAGE: &str = "usage: lobby [--addr 127.0.0.1:3000] [--grace-ms 10000]";

/// A player whose client is silent is evicted after ten seconds, and then has the grace period.
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lobby: {error}");
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
    let grace = args
        .opt_value_from_str("--grace-ms")
        .map_err(|error| format!("--grace-ms: {error}"))?
        .map_or(Duration::from_secs(10), Duration::from_millis);
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let app = app(grace)?;
    let listener = TcpListener::bind(addr).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(axum::serve(listener, app).await?)
}

struct Player {
    score: AtomicI64,
}

#[derive(Clone)]
struct Lobby {
    players: Arc<Mutex<HashMap<String, Seat<Player>>>>,
    /// How often the session of each player has ended.
    left: Arc<Mutex<BTreeMap<String, u64>>>,
    linger: Linger<String, Player>,
}

fn app(grace: Duration) -> Result<Router, Box<dyn Error + Send + Sync>> {
    let left = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let linger = Linger::<String, Player>::builder(grace).on_session_end({
        let left = Arc::clone(&left);
        move |end| *lock(&left).entry(end.key().clone()).or_default() += 1
    });
    let lobby = Lobby {
        players: Arc::default(),
        left,
        linger: linger.build()?,
    };
    let heartbeat = HeartbeatLayer::builder()
        .interval(INTERVAL)
        .timeout(TIMEOUT);
    Ok(Router::new()
        .route("/ws", any(upgrade))
        .route("/players", get(players))
        .with_state(lobby)
        .layer(heartbeat.build()?))
}

async fn upgrade(
    ws: WebSocketUpgrade,
    live: Liveness,
    RawQuery(query): RawQuery,
    State(lobby): State<Lobby>,
) -> Response {
    let Some(user) = user(query.as_deref().unwrap_or_default()) else {
        return (StatusCode::BAD_REQUEST, "the query must be user=NAME\n").into_response();
    };
    // Registered once the socket is there: an upgrade that fails must not take over a session.
    ws.on_upgrade(async move |socket| {
        let score = AtomicI64::new(0);
        let registered =
            live.register_lingering(&lobby.players, user, Player { score }, &lobby.linger);
        if let Ok(registered) = registered {
            play(socket, registered.seat()).await;
        }
    })
}

/// The user's name in a query.
fn user(query: &str) -> Option<String> {
    let mut pairs = query.split('&');
    let name = pairs.find_map(|pair| pair.strip_prefix("user="))?;
    let name = percent_decode_str(name).decode_utf8().ok()?;
    (!name.is_empty()).then(|| name.into_owned())
}

async fn play(mut socket: WebSocket, player: &Player) {
    loop {
        let score = player.score.load(Ordering::Relaxed);
        if socket.send(format!("score {score}").into()).await.is_err() {
            return;
        }
        let points = loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => {
                    let points = text
                        .strip_prefix('+')
                        .and_then(|points| points.parse().ok());
                    if let Some(points) = points {
                        break points;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        };
        player.score.fetch_add(points, Ordering::Relaxed);
    }
}

async fn players(State(lobby): State<Lobby>) -> Json<Value> {
    let mut seats: Vec<_> = lock(&lobby.players).clone().into_iter().collect();
    seats.sort_by(|(one, _), (other, _)| one.cmp(other));
    let players = seats.iter().filter_map(|(user, seat)| {
        let state = match seat.state() {
            SeatState::Connected => "connected",
            SeatState::Lingering { .. } => "lingering",
            // It is leaving the map, or a newer connection is taking it over.
            _ => return None,
        };
        let score = seat.score.load(Ordering::Relaxed);
        Some(json!({ "user": user, "state": state, "score": score }))
    });
    let players: Vec<_> = players.collect();
    let left = lock(&lobby.left).clone();
    Json(json!({ "players": players, "left": left }))
}

/// A panic under these locks leaves nothing inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
