//! The lobby example without the crate, to compare their lines.
//!
//! It has a heartbeat, a grace period, and a newer connection that takes the session over. It does not
//! do what else the crate does: no clean-up after a panic of the handler, no bound on the sessions that
//! linger, no pong timeout while the handler is busy, no shutdown.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use percent_encoding::percent_decode_str;
use pico_args::Arguments;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep, timeout};

const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_REPLACED: u16 = 4000;

pub(crate) async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    let addr: String = args.value_from_str("--addr")?;
    let lobby = Lobby {
        players: Arc::default(),
        connections: Arc::default(),
        left: Arc::default(),
        grace: Duration::from_millis(args.value_from_str("--grace-ms")?),
    };
    let app = Router::new()
        .route("/ws", any(upgrade))
        .route("/players", get(players))
        .with_state(lobby);
    let listener = TcpListener::bind(addr).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

struct Player {
    score: AtomicI64,
}

/// The player, and the connection that has the session.
struct Session {
    player: Arc<Player>,
    connection: u64,
    is_connected: bool,
    replaced: Arc<Notify>,
}

#[derive(Clone)]
struct Lobby {
    players: Arc<Mutex<HashMap<String, Session>>>,
    connections: Arc<AtomicU64>,
    left: Arc<Mutex<BTreeMap<String, u64>>>,
    grace: Duration,
}

impl Lobby {
    fn enter(&self, user: String) -> (u64, Arc<Player>, Arc<Notify>) {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut players = lock(&self.players);
        let session = players.entry(user).or_insert_with(|| Session {
            player: Arc::new(Player {
                score: AtomicI64::new(0),
            }),
            connection,
            is_connected: true,
            replaced: Arc::default(),
        });
        session.replaced.notify_one();
        session.replaced = Arc::default();
        session.connection = connection;
        session.is_connected = true;
        (
            connection,
            Arc::clone(&session.player),
            Arc::clone(&session.replaced),
        )
    }

    fn exit(&self, user: String, connection: u64) {
        let mut players = lock(&self.players);
        let session = players.get_mut(&user);
        let Some(session) = session.filter(|session| session.connection == connection) else {
            return;
        };
        session.is_connected = false;
        let lobby = self.clone();
        tokio::spawn(async move {
            sleep(lobby.grace).await;
            let mut players = lock(&lobby.players);
            let session = players.get(&user);
            if session.is_some_and(|session| session.connection == connection) {
                players.remove(&user);
                *lock(&lobby.left).entry(user).or_default() += 1;
            }
        });
    }
}

async fn upgrade(
    ws: WebSocketUpgrade,
    RawQuery(query): RawQuery,
    State(lobby): State<Lobby>,
) -> Response {
    let Some(user) = user(query.as_deref().unwrap_or_default()) else {
        return (StatusCode::BAD_REQUEST, "the query must be user=NAME\n").into_response();
    };
    ws.on_upgrade(async move |socket| {
        let (connection, player, replaced) = lobby.enter(user.clone());
        play(socket, &player, &replaced).await;
        lobby.exit(user, connection);
    })
}

fn user(query: &str) -> Option<String> {
    let mut pairs = query.split('&');
    let name = pairs.find_map(|pair| pair.strip_prefix("user="))?;
    let name = percent_decode_str(name).decode_utf8().ok()?;
    (!name.is_empty()).then(|| name.into_owned())
}

async fn play(mut socket: WebSocket, player: &Player, replaced: &Notify) {
    let mut pings = interval(INTERVAL);
    let mut heard = Instant::now();
    loop {
        let score = player.score.load(Ordering::Relaxed);
        let sending = socket.send(format!("score {score}").into());
        let Ok(Ok(())) = timeout(TIMEOUT, sending).await else {
            return;
        };
        let points = loop {
            let message = tokio::select! {
                message = socket.recv() => message,
                () = replaced.notified() => {
                    let close_frame = CloseFrame {
                        code: CLOSE_REPLACED,
                        reason: "replaced".into(),
                    };
                    let closing = socket.send(Message::Close(Some(close_frame)));
                    let _ = timeout(TIMEOUT, closing).await;
                    return;
                }
                _ = pings.tick() => {
                    if heard.elapsed() > INTERVAL + TIMEOUT {
                        return;
                    }
                    let pinging = socket.send(Message::Ping(Bytes::new()));
                    let Ok(Ok(())) = timeout(TIMEOUT, pinging).await else {
                        return;
                    };
                    continue;
                }
            };
            heard = Instant::now();
            match message {
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
    let players = lock(&lobby.players);
    let players: BTreeMap<_, _> = players.iter().collect();
    let players: Vec<_> = players
        .into_iter()
        .map(|(user, session)| {
            let state = match session.is_connected {
                true => "connected",
                false => "lingering",
            };
            let score = session.player.score.load(Ordering::Relaxed);
            json!({ "user": user, "state": state, "score": score })
        })
        .collect();
    let left = lock(&lobby.left).clone();
    Json(json!({ "players": players, "left": left }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
