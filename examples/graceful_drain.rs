//! A server that loses no accepted message at SIGTERM.
//!
//! ```text
//! cargo run --example graceful_drain -- --addr 127.0.0.1:3000
//!
//! websocat ws://127.0.0.1:3000/ws                      # in several windows: sends typed lines
//! curl --data 'hello' http://127.0.0.1:3000/publish    # posts a line
//! curl -i http://127.0.0.1:3000/ready                  # what a load balancer asks
//! kill -TERM <pid>                                     # or Ctrl-C
//! ```
//!
//! Every line is a message to all clients. A message is accepted when the server has responded with
//! its number: with 202 over HTTP, with `accepted <number>` over the WebSocket. Every client that
//! has its `welcome` by then and keeps reading gets it, and on SIGTERM a Close frame (1001) after
//! the last message. A client that does not read, or has not read everything after `HANDLER_GRACE`
//! and `DRAIN_DEADLINE`, does not delay the others: its connection is cut, and the process ends
//! with status 0.
//!
//! Behind a load balancer, start it with `--delay-ms`: for that time after SIGTERM `/ready` answers
//! 503, and clients and messages are still accepted. The port stays open until the end, so clients
//! that come later are answered 503.
//!
//! All clients get their Close frame at the same time here. If there are very many, let each
//! handler wait a random part of `HANDLER_GRACE` first, or they all reconnect at once.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use pico_args::Arguments;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower_ws_liveness::{
    ConnectionId, HeartbeatLayer, Liveness, RegisterError, Registry, Seat, ShutdownPlan,
};

const USAGE: &str = "usage: graceful_drain [--addr 127.0.0.1:3000] [--delay-ms 0]";

/// The time for handlers to send the accepted messages and their Close frame. In production,
/// SIGKILL must not follow SIGTERM before the delay, this, twice `DRAIN_DEADLINE` and some margin
/// have passed.
const HANDLER_GRACE: Duration = Duration::from_secs(3);
/// The time for the connections that remain after `HANDLER_GRACE`.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Lines that can be queued for one client. A client that is further behind is evicted.
const QUEUE_CAPACITY: usize = 1024;
const MAX_LINE_BYTES: usize = 64 * 1024;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("graceful_drain: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal arrives. `args` are the command-line flags without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    if args.contains("--help") {
        return Ok(print_line(USAGE)?);
    }
    let addr = args
        .opt_value_from_str("--addr")
        .map_err(|error| format!("--addr: {error}"))?
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000)));
    let delay_ms = args
        .opt_value_from_str("--delay-ms")
        .map_err(|error| format!("--delay-ms: {error}"))?
        .unwrap_or(0);
    let delay = Duration::from_millis(delay_ms);
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    // Installed before the server listens, so that no signal after the first line is missed.
    let signal = stop_signal()?;
    let heartbeat = HeartbeatLayer::default();
    let registry = heartbeat.registry();
    let app = Router::new()
        .route("/ws", any(upgrade))
        .route("/publish", post(publish))
        .route_service("/ready", registry.readiness())
        .with_state(Room::new(registry.clone()))
        .layer(heartbeat);
    let listener = TcpListener::bind(addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;

    let (stop, stopped) = oneshot::channel::<()>();
    let serve = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut serving = tokio::spawn(serve.into_future());
    // Clients that do not read are evicted after `HANDLER_GRACE`, and are cut at the deadline.
    let plan = ShutdownPlan::new()
        .delay(delay)
        .handler_grace(HANDLER_GRACE)
        .spread(Duration::ZERO)
        .deadline(delay.saturating_add(HANDLER_GRACE + DRAIN_DEADLINE));
    let report = tokio::select! {
        served = &mut serving => return Ok(served??),
        report = registry.shutdown(signal, plan) => report,
    };
    let drained = report.drained();
    print_line(&format!(
        "drained: {} sessions, {} left by the handlers: {} clean, {} cut, {} already gone",
        report.open(),
        drained.total(),
        drained.clean(),
        drained.cut(),
        drained.already_gone(),
    ))?;

    // axum's graceful shutdown closes the port and waits for requests, not for upgraded sockets
    // (axum#3003). A client that never completes its request must not delay the end.
    let _ = stop.send(());
    if let Ok(served) = timeout(DRAIN_DEADLINE, serving).await {
        served??;
    }
    Ok(())
}

/// Completes at SIGTERM, which service managers use to stop a process, or at Ctrl-C.
#[cfg(unix)]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

// The handlers.

async fn publish(State(room): State<Room>, line: String) -> Response {
    if line.len() > MAX_LINE_BYTES {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    match room.publish(&line, None) {
        Some(number) => (StatusCode::ACCEPTED, format!("{number}\n")).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "going away\n").into_response(),
    }
}

async fn upgrade(ws: WebSocketUpgrade, live: Liveness, State(room): State<Room>) -> Response {
    ws.max_message_size(MAX_LINE_BYTES)
        .on_upgrade(move |socket| serve_client(socket, live, room))
}

async fn serve_client(mut socket: WebSocket, live: Liveness, room: Room) {
    let Ok(mut inbox) = room.join(&live) else {
        return; // the connection has ended
    };
    // Created once: each such future is an entry in a list that all connections share.
    let mut draining = pin!(live.draining());
    loop {
        tokio::select! {
            () = &mut draining, if !inbox.is_closed() => {
                // Waits until all accepted messages are in the inbox: one that was accepted before
                // the drain is queued under the lock, and no other is accepted under a later one.
                drop(lock(&room.accepted));
                inbox.close();
            }
            line = inbox.recv() => {
                let Some(line) = line else { break };
                if socket.send(Message::Text(line)).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(line))) => {
                    // Refused only during a drain. The client gets no `accepted` line then.
                    let _ = room.publish(&line, Some(live.id()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
    // Everything is sent. The layer closes the connection, and `shutdown` waits for it. An earlier
    // eviction, which empties the inbox too, remains the only one.
    live.evict_as("deploy", 1001, "server is going away");
}

// The room.

type Inbox = mpsc::Sender<Utf8Bytes>;
type Sessions = HashMap<ConnectionId, Seat<Inbox>>;

/// The queues of all clients. A message is put into all of them or, once a drain has begun, into
/// none.
#[derive(Clone)]
struct Room {
    registry: Registry,
    /// The number of accepted messages. Locked while a message is put into the queues.
    accepted: Arc<Mutex<u64>>,
    sessions: Arc<Mutex<Sessions>>,
}

impl Room {
    fn new(registry: Registry) -> Self {
        Self {
            registry,
            accepted: Arc::default(),
            sessions: Arc::default(),
        }
    }

    /// Adds a queue for this connection, which is removed at its end. The first line is `welcome
    /// <number>`: the client gets every message with a higher number.
    fn join(&self, live: &Liveness) -> Result<mpsc::Receiver<Utf8Bytes>, RegisterError<Inbox>> {
        let (inbox, lines) = mpsc::channel(QUEUE_CAPACITY);
        // Locked until the queue is registered. No hook takes this lock.
        let accepted = lock(&self.accepted);
        // Cannot fail: the queue is empty.
        let _ = inbox.try_send(format!("welcome {accepted}").into());
        live.register(&self.sessions, live.id(), inbox)?;
        Ok(lines)
    }

    /// Puts a message into every queue, and an `accepted` line into that of its author. Returns the
    /// message's number, or `None` if a drain has begun.
    fn publish(&self, line: &str, author: Option<ConnectionId>) -> Option<u64> {
        // Locked until the slow clients are evicted, so that none of them gets a later message.
        let mut accepted = lock(&self.accepted);
        // Under the lock, on which the handlers rely when they drain.
        if self.registry.is_draining() {
            return None;
        }
        *accepted += 1;
        let line = Utf8Bytes::from(format!("{accepted} {line}"));
        // Copied, because an eviction removes its seat and needs the lock.
        let seats: Vec<_> = lock(&self.sessions).values().cloned().collect();
        for seat in seats {
            if author == Some(seat.id()) {
                // If this queue is full, the message does not fit either.
                let _ = seat.try_send(format!("accepted {accepted}").into());
            }
            // If the queue is closed instead, the handler has returned, and the seat is about to
            // leave.
            if let Err(TrySendError::Full(_)) = seat.try_send(line.clone()) {
                let live = seat.live();
                live.evict_as("slow_consumer", 1008, "you read too slowly");
            }
        }
        Some(*accepted)
    }
}

/// A panic under these locks leaves nothing inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line and flushes it: stdout is block-buffered when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
