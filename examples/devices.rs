//! Presence: users with several devices, of which the oldest goes if there are too many.
//!
//! ```text
//! cargo run --example devices -- --addr 127.0.0.1:3000 --max 2
//!
//! curl --no-buffer http://127.0.0.1:3000/events                 # `first alice`, `last alice`
//! websocat 'ws://127.0.0.1:3000/ws?user=alice&device=phone'     # in several windows
//! curl http://127.0.0.1:3000/users                              # {"alice":["phone"]}
//! ```
//!
//! With `--max 2` the third device of a user closes the one that connected first (Close 4000). A
//! device that reconnects takes its own place, even if its old connection has not ended yet.
//! `/events` has one line for each user who comes with a first device or goes with the last one.
//!
//! `Groups` decides which device goes in the same step in which the new one comes. A program that looks
//! first and evicts afterwards may evict a device that has come in between.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use futures_util::stream;
use pico_args::Arguments;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tower_ws_liveness::{GroupEvent, Groups, HeartbeatLayer, Liveness, ReplacePolicy};

const USAGE: &str = "usage: devices [--addr 127.0.0.1:3000] [--max 3]";

/// Short for a demonstration: a silent peer is evicted after ten seconds.
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);

const MAX_NAME_CHARS: usize = 64;
/// A reader of `/events` that is further behind is cut off.
const MAX_QUEUED_EVENTS: usize = 1024;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devices: {error}");
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
    let max: Option<NonZeroUsize> = args
        .opt_value_from_str("--max")
        .map_err(|error| format!("--max: {error}"))?;
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let heartbeat = HeartbeatLayer::builder()
        .interval(INTERVAL)
        .timeout(TIMEOUT)
        .build()?;
    let app = Router::new()
        .route("/ws", any(connect))
        .route("/users", get(users))
        .route("/events", get(events))
        .with_state(Presence::new(max.map_or(3, NonZeroUsize::get)))
        .layer(heartbeat);
    let listener = TcpListener::bind(addr).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(axum::serve(listener, app).await?)
}

/// Who is online, with which devices.
#[derive(Clone)]
struct Presence {
    users: Groups<String, Device>,
    events: broadcast::Sender<String>,
    max: usize,
}

#[derive(PartialEq)]
struct Device(String);

impl Presence {
    fn new(max: usize) -> Self {
        let events = broadcast::Sender::new(MAX_QUEUED_EVENTS);
        let lines = events.clone();
        let users = Groups::builder()
            .same_member(|one, other| one == other)
            .on_event(move |event| {
                // Fails if there is no reader of `/events`.
                let _ = lines.send(match event {
                    GroupEvent::FirstIn(user) => format!("first {user}\n"),
                    GroupEvent::LastOut(user) => format!("last {user}\n"),
                });
            })
            .build();
        Self { users, events, max }
    }
}

async fn connect(
    ws: WebSocketUpgrade,
    live: Liveness,
    RawQuery(query): RawQuery,
    State(presence): State<Presence>,
) -> Response {
    let query = query.unwrap_or_default();
    let (Some(user), Some(device)) = (parameter(&query, "user"), parameter(&query, "device"))
    else {
        let rule = format!(
            "`user` and `device` are names of 1 to {MAX_NAME_CHARS} printable characters\n"
        );
        return (StatusCode::BAD_REQUEST, rule).into_response();
    };
    let (max, policy) = (presence.max, ReplacePolicy::newest_wins());
    match live.register_in(&presence.users, user, Device(device), max, &policy) {
        Ok(_) => ws.on_upgrade(read_until_the_end),
        Err(error) => error.into_response(),
    }
}

/// Only a read notices the end, and answers the peer's Close frame.
async fn read_until_the_end(mut socket: WebSocket) {
    while let Some(Ok(_)) = socket.recv().await {}
}

async fn users(State(presence): State<Presence>) -> Json<BTreeMap<String, Vec<String>>> {
    let users = presence.users.snapshot().into_iter();
    Json(
        users
            .map(|(user, seats)| (user, seats.iter().map(|seat| seat.0.clone()).collect()))
            .collect(),
    )
}

async fn events(State(presence): State<Presence>) -> Body {
    // Subscribed before the response begins, so that its reader misses no later event.
    let lines = presence.events.subscribe();
    Body::from_stream(stream::unfold(lines, async |mut lines| {
        let line = lines.recv().await.ok()?;
        Some((Ok::<_, io::Error>(line), lines))
    }))
}

/// A name in the query of a URL, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
    let value = percent_decoded(value)?;
    let is_name = !value.is_empty()
        && value.chars().count() <= MAX_NAME_CHARS
        && !value.contains(char::is_control);
    is_name.then_some(value)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}
