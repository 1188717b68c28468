//! An echo server on plain sockets and tokio-tungstenite, without an HTTP framework.
//!
//! Each user name has one session, with a heartbeat below the WebSocket library.
//!
//! ```text
//! cargo run --example raw_tungstenite -- --addr 127.0.0.1:9002
//!
//! websocat ws://127.0.0.1:9002/alice     # the path is the user name; echoes lines
//! ```
//!
//! The server prints a line for each session that begins or ends, with the reason of the end. A
//! user who reconnects takes the seat of the older connection. On Ctrl-C every client gets a Close
//! frame (1001), and the process ends when all connections are closed, after `DRAIN_DEADLINE` at
//! the latest.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use pico_args::Arguments;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite;
use tower_ws_liveness::{Drain, HeartbeatLayer, Seat};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};

const USAGE: &str = "usage: raw_tungstenite [--addr 127.0.0.1:9002]";

/// The time for an opening handshake. Nothing else bounds it here.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for all closing handshakes after Ctrl-C.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The address of each user. The layer removes an entry when the connection that it belongs to
/// ends.
type Sessions = Arc<Mutex<HashMap<String, Seat<SocketAddr>>>>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raw_tungstenite: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until Ctrl-C. `args` are the command-line flags without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    if args.contains("--help") {
        return Ok(print_line(USAGE)?);
    }
    let addr = args
        .opt_value_from_str("--addr")
        .map_err(|error| format!("--addr: {error}"))?
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9002)));
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let heartbeat = HeartbeatLayer::new(Duration::from_secs(2), Duration::from_secs(2));
    let sessions = Sessions::default();
    let listener = TcpListener::bind(addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;

    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            stopped = &mut stop => break stopped?,
            accepted = listener.accept() => match accepted {
                Ok((io, peer)) => {
                    tokio::spawn(serve(io, peer, heartbeat.clone(), sessions.clone()));
                }
                // Most likely out of file descriptors: some are released when connections end.
                Err(error) => {
                    eprintln!("raw_tungstenite: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let drain = Drain::default().deadline(DRAIN_DEADLINE);
    let report = heartbeat.registry().drain(drain).await;
    print_line(&format!("drained: {} sessions", report.total()))?;
    Ok(())
}

/// Serves one connection, from the opening handshake to its end.
async fn serve(io: TcpStream, peer: SocketAddr, heartbeat: HeartbeatLayer, sessions: Sessions) {
    // Sends small messages without waiting for the acknowledgement of earlier ones.
    let _ = io.set_nodelay(true);
    // By default the kernel retransmits data to a dead peer for about 15 minutes. These options
    // make it give up after a time that follows from the heartbeat's.
    let _ = heartbeat.tcp_options().apply(&io);

    // Wrapped before the opening handshake, which passes through unchanged.
    let (io, live) = heartbeat.wrap_server_handshake(io);
    let mut user = String::new();
    // tungstenite's callback trait prescribes this large error type.
    #[allow(clippy::result_large_err)]
    let name = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        user = request.uri().path().trim_matches('/').to_owned();
        match user.as_str() {
            "" => {
                let mut refusal = ErrorResponse::new(Some("say who you are: /name\n".to_owned()));
                *refusal.status_mut() = tungstenite::http::StatusCode::NOT_FOUND;
                Err(refusal)
            }
            _ => Ok(response),
        }
    };
    let Ok(Ok(mut socket)) = timeout(HANDSHAKE_TIMEOUT, accept_hdr_async(io, name)).await else {
        return; // no session has begun
    };

    print_event(&format!("{user} is here"));
    let name = user.clone();
    live.on_evict(move |ev| print_event(&format!("{name} is gone: {}", ev.reason().as_str())));
    // The layer removes the entry when the connection ends, on every path.
    if live.register(&sessions, user, peer).is_err() {
        return; // the connection has ended already
    }
    while let Some(Ok(message)) = socket.next().await {
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

fn print_event(line: &str) {
    // Fails if stdout is a closed pipe.
    let _ = print_line(line);
}

/// Prints a line and flushes it: stdout is block-buffered when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
