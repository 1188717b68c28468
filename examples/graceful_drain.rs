//! A server that loses no message when it is told to stop.
//!
//! ```text
//! cargo run --example graceful_drain -- --addr 127.0.0.1:3000
//!
//! websocat ws://127.0.0.1:3000/ws                      # in some windows: whoever says a line
//! curl --data 'hello' http://127.0.0.1:3000/publish    # or posts one, says it to all of them
//! kill -TERM <pid>                                     # or Ctrl-C
//! ```
//!
//! A message is accepted when its number is answered: with 202 over HTTP, with `accepted <number>`
//! over the WebSocket. Every client that is there by then and reads on gets it, and on SIGTERM a
//! Close frame (1001) after the last one. A client that does not read, or has not read all of it after
//! `GRACE` and `LAST_WORDS`, holds nobody up: it is cut, and the process ends with status 0.
//!
//! All clients are told at once here. Where there are very many, have each handler wait a random part
//! of `GRACE` first, or they will all come back at once.

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
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower_ws_liveness::{ConnectionId, Drain, HeartbeatLayer, Liveness};

const USAGE: &str = "usage: graceful_drain [--addr 127.0.0.1:3000]";

/// The handlers' time to write out what was accepted, and to say goodbye. Whatever stops the process
/// in production must wait longer than this and `LAST_WORDS` before it uses SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// The time for those who are left then.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Lines that may wait for one client. Who falls behind further is not waited for.
const INBOX: usize = 1024;
const LONGEST_LINE: usize = 64 * 1024;

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

/// Serves until a signal comes. `args` are the flags, without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let addr = match args.as_slice() {
        [] => SocketAddr::from(([127, 0, 0, 1], 3000)),
        [flag, addr] if flag == "--addr" => {
            addr.parse().map_err(|e| format!("--addr {addr}: {e}"))?
        }
        [flag] if flag == "--help" => return Ok(print_line(USAGE)?),
        _ => return Err(USAGE.into()),
    };
    // Before anybody can know that there is somebody to stop.
    let signal = stop_signal()?;
    let heartbeat = HeartbeatLayer::default();
    let registry = heartbeat.registry();
    let room = Room::default();
    let app = Router::new()
        .route("/ws", any(upgrade))
        .route("/publish", post(publish))
        .with_state(room.clone())
        .layer(heartbeat);
    let listener = TcpListener::bind(addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;

    let (stop, stopped) = oneshot::channel::<()>();
    let serve = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let mut serving = tokio::spawn(serve.into_future());
    tokio::select! {
        served = &mut serving => return Ok(served??),
        () = signal => {}
    }

    // In this order. First no message is accepted any more: what was is in all queues by now. Then
    // the handlers hear of it, and upgrades are refused. Then the port is closed.
    room.close();
    let sessions = registry.len();
    registry.begin_drain();
    let _ = stop.send(());

    // axum's graceful shutdown waits for requests, not for sockets that were upgraded (axum#3003).
    // This waits for those, as long as their handlers may take.
    let _ = timeout(GRACE, registry.wait_idle()).await;

    // Whoever is left did not read: is told, and cut at the deadline.
    let drain = Drain {
        deadline: LAST_WORDS,
        ..Drain::default()
    };
    let report = registry.drain(drain).await;
    print_line(&format!(
        "drained: {sessions} sessions, {} left by the handlers: {} clean, {} cut, {} already gone",
        report.total(),
        report.clean(),
        report.cut(),
        report.already_gone(),
    ))?;

    // A client that never finishes its request is not waited for either.
    if let Ok(served) = timeout(LAST_WORDS, serving).await {
        served??;
    }
    Ok(())
}

/// Completes at SIGTERM, which is how a process is stopped in production, or at Ctrl-C.
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
    if line.len() > LONGEST_LINE {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    match room.publish(&line, None) {
        Some(number) => (StatusCode::ACCEPTED, format!("{number}\n")).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "going away\n").into_response(),
    }
}

async fn upgrade(ws: WebSocketUpgrade, live: Liveness, State(room): State<Room>) -> Response {
    ws.max_message_size(LONGEST_LINE)
        .on_upgrade(move |socket| talk(socket, live, room))
}

async fn talk(mut socket: WebSocket, live: Liveness, room: Room) {
    let mut inbox = room.join(&live);
    // Made once: each of these waits in a list that all connections share.
    let mut draining = pin!(live.draining());
    loop {
        tokio::select! {
            () = &mut draining => break,
            line = inbox.recv() => {
                let Some(line) = line else { return };
                if socket.send(Message::Text(line)).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(line))) => {
                    // Refused only when the room is closed. Nobody has been told that it was accepted.
                    let _ = room.publish(&line, Some(live.id()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
    // The room was closed before the drain began, so what is in the inbox now is all there will be.
    inbox.close();
    while let Some(line) = inbox.recv().await {
        if socket.send(Message::Text(line)).await.is_err() {
            return;
        }
    }
    let goodbye = CloseFrame {
        code: 1001,
        reason: "server is going away".into(),
    };
    // Reading on completes the closing handshake; lines that come now were not accepted.
    if socket.send(Message::Close(Some(goodbye))).await.is_ok() {
        while let Some(Ok(_)) = socket.recv().await {}
    }
}

// The room.

/// Everybody's queue, behind one lock: a message goes into all of them or, once the room is closed,
/// into none.
#[derive(Clone, Default)]
struct Room(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    closed: bool,
    accepted: u64,
    sessions: HashMap<ConnectionId, Session>,
}

struct Session {
    live: Liveness,
    inbox: mpsc::Sender<Utf8Bytes>,
}

impl Room {
    /// A queue for this connection, until its end. Its first line is `welcome <number>`: the client
    /// gets every message with a higher one.
    fn join(&self, live: &Liveness) -> mpsc::Receiver<Utf8Bytes> {
        let (inbox, lines) = mpsc::channel(INBOX);
        let session = Session {
            live: live.clone(),
            inbox,
        };
        let mut room = self.lock();
        session.put(&format!("welcome {}", room.accepted).into());
        room.sessions.insert(live.id(), session);
        drop(room);
        // Called at once if the connection has ended by now.
        let this = self.clone();
        live.on_evict(move |ev| {
            let gone = this.lock().sessions.remove(&ev.id());
            drop(gone); // with the lock given back
        });
        lines
    }

    /// Puts a message into every queue, and says `accepted` to its author. Its number, or `None` if
    /// nothing is accepted any more.
    fn publish(&self, line: &str, author: Option<ConnectionId>) -> Option<u64> {
        let mut room = self.lock();
        if room.closed {
            return None;
        }
        room.accepted += 1;
        let number = room.accepted;
        if let Some(author) = author.and_then(|id| room.sessions.get(&id)) {
            author.put(&format!("accepted {number}").into());
        }
        let line = Utf8Bytes::from(format!("{number} {line}"));
        let mut slow = Vec::new();
        for session in room.sessions.values() {
            if !session.put(&line) {
                slow.push(session.live.clone());
            }
        }
        drop(room);
        // Not under the lock, which the eviction hook takes.
        for live in slow {
            live.evict(1008, "you read too slowly");
        }
        Some(number)
    }

    /// Accepts nothing any more. What was accepted before is in every queue when this returns.
    fn close(&self) {
        self.lock().closed = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics half-way through a change, so a poisoned room is still a sound one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// False if the queue is full, or the handler gone.
    fn put(&self, line: &Utf8Bytes) -> bool {
        self.inbox.try_send(line.clone()).is_ok()
    }
}

/// Prints one line at once: stdout buffers whole blocks when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
