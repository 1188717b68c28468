//! Presence: every client sees who is online, and each user who comes or goes.
//!
//! ```text
//! cargo run --example presence -- --addr 127.0.0.1:3000
//! websocat ws://127.0.0.1:3000/ws/alice     # in several windows, also for the same user
//! ```
//!
//! The first text message has a line `first NAME` for each user who is online. Each later one is a
//! single line: `first NAME` for a user who comes with a first connection, `last NAME` for one whose
//! last connection has ended: closed, killed, or silent for `--interval-ms` and `--timeout-ms`. So a
//! client's list of users is right if it applies all lines in order, and it needs no other request.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use pico_args::Arguments;
use tokio::net::TcpListener;
use tokio::sync::broadcast::{self, error::RecvError};
use tower_ws_liveness::{GroupEvent, Groups, HeartbeatLayer, Liveness, ReplacePolicy};

const USAGE: &str =
    "usage: presence [--addr 127.0.0.1:3000] [--interval-ms 30000] [--timeout-ms 15000]";

const MAX_NAME_BYTES: usize = 64;
/// A user who opens more loses the oldest one.
const MAX_CONNECTIONS_PER_USER: usize = 10;
/// A client that is further behind is evicted.
const MAX_QUEUED_CHANGES: usize = 1024;
/// The Close code for it, from the range for private use (RFC 6455 section 7.4.2).
const CLOSE_TOO_SLOW: u16 = 4008;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("presence: {error}");
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
    let mut millis = |flag: &'static str, default| match args.opt_value_from_str(flag) {
        Ok(given) => Ok(Duration::from_millis(given.unwrap_or(default))),
        Err(error) => Err(format!("{flag}: {error}")),
    };
    let heartbeat = HeartbeatLayer::builder()
        .interval(millis("--interval-ms", 30_000)?)
        .timeout(millis("--timeout-ms", 15_000)?);
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let app = Router::new()
        .route("/ws/{user}", any(connect))
        .with_state(Presence::new())
        .layer(heartbeat.build()?);
    let listener = TcpListener::bind(addr).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(axum::serve(listener, app).await?)
}

#[derive(Clone)]
struct Presence {
    users: Groups<String, ()>,
    roster: Arc<Mutex<Roster>>,
}

/// The users who are online. It changes together with the queue, so that a client which reads both
/// under one lock misses no change and gets none twice.
struct Roster {
    online: BTreeSet<String>,
    changes: broadcast::Sender<String>,
}

impl Presence {
    fn new() -> Self {
        let roster = Arc::new(Mutex::new(Roster {
            online: BTreeSet::new(),
            changes: broadcast::Sender::new(MAX_QUEUED_CHANGES),
        }));
        let users = Groups::builder().on_event({
            let roster = Arc::clone(&roster);
            move |event| lock(&roster).apply(event)
        });
        Self {
            users: users.build(),
            roster,
        }
    }
}

impl Roster {
    fn apply(&mut self, event: GroupEvent<String>) {
        let line = match &event {
            GroupEvent::FirstIn(user) => format!("first {user}"),
            GroupEvent::LastOut(user) => format!("last {user}"),
        };
        match event {
            GroupEvent::FirstIn(user) => self.online.insert(user),
            GroupEvent::LastOut(user) => self.online.remove(&user),
        };
        // Fails if no client is connected.
        let _ = self.changes.send(line);
    }

    /// A line for each user who is online, and all later changes.
    fn subscribe(&self) -> (String, broadcast::Receiver<String>) {
        let online = self.online.iter().map(|user| format!("first {user}"));
        let online: Vec<_> = online.collect();
        (online.join("\n"), self.changes.subscribe())
    }
}

async fn connect(
    ws: WebSocketUpgrade,
    live: Liveness,
    Path(user): Path<String>,
    State(presence): State<Presence>,
) -> Response {
    if user.is_empty() || user.len() > MAX_NAME_BYTES || user.contains(char::is_control) {
        let rule = format!("a name has 1 to {MAX_NAME_BYTES} printable bytes\n");
        return (StatusCode::BAD_REQUEST, rule).into_response();
    }
    // Registered once the socket is there: a user whose upgrade fails was not online.
    ws.on_upgrade(async move |socket| {
        let (max, policy) = (MAX_CONNECTIONS_PER_USER, ReplacePolicy::newest_wins());
        let registered = live.register_in(&presence.users, user, (), max, &policy);
        if registered.is_ok() {
            send_changes(socket, &live, &presence).await;
        }
    })
}

async fn send_changes(mut socket: WebSocket, live: &Liveness, presence: &Presence) {
    let (online, mut changes) = lock(&presence.roster).subscribe();
    // One message, so that changes queue for one write and not for one per user.
    if socket.send(online.into()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(line) => {
                    if socket.send(line.into()).await.is_err() {
                        return;
                    }
                }
                // The client reconnects, and gets the whole list.
                Err(RecvError::Lagged(_)) => {
                    live.evict_as("slow_consumer", CLOSE_TOO_SLOW, "you read too slowly");
                    return;
                }
                Err(RecvError::Closed) => return,
            },
            // Only a read notices the client's Close frame.
            message = socket.recv() => match message {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// A panic under this lock leaves nothing inconsistent.
fn lock(roster: &Mutex<Roster>) -> MutexGuard<'_, Roster> {
    roster.lock().unwrap_or_else(PoisonError::into_inner)
}
