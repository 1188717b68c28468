//! An echo server of plain sockets and tokio-tungstenite, without any HTTP framework. One session
//! for each name, with a heartbeat under it.
//!
//! ```text
//! cargo run --example raw_tungstenite -- --addr 127.0.0.1:9002
//!
//! websocat ws://127.0.0.1:9002/alice     # the path is the name; lines come back
//! ```
//!
//! A line on stdout tells of each session that comes, and of each that goes, with the reason. Who comes
//! back takes the seat of his older connection. On Ctrl-C everybody is sent a Close frame (1001),
//! and the process ends when they have gone, after `GRACE` at the latest.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite;
use tower_ws_liveness::{Drain, HeartbeatLayer, Seat};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};

const USAGE: &str = "usage: raw_tungstenite [--addr 127.0.0.1:9002]";

/// How long an opening handshake may take. Nothing else bounds it here.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the closing handshakes may take when the process is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Who is here, and from where. An entry leaves with the connection it belongs to, and no other.
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

/// Serves until Ctrl-C. `args` are the flags, without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let addr = match args.as_slice() {
        [] => SocketAddr::from(([127, 0, 0, 1], 9002)),
        [flag, addr] if flag == "--addr" => {
            addr.parse().map_err(|e| format!("--addr {addr}: {e}"))?
        }
        [flag] if flag == "--help" => return Ok(print_line(USAGE)?),
        _ => return Err(USAGE.into()),
    };
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
                // Out of file descriptors, most likely: some come back when connections end.
                Err(error) => {
                    eprintln!("raw_tungstenite: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let drain = Drain {
        deadline: GRACE,
        ..Drain::default()
    };
    let report = heartbeat.registry().drain(drain).await;
    print_line(&format!("drained: {} sessions", report.total()))?;
    Ok(())
}

/// One connection, from its first byte to its end.
async fn serve(io: TcpStream, peer: SocketAddr, heartbeat: HeartbeatLayer, sessions: Sessions) {
    // Small messages leave at once; and a socket of a dead peer does not keep its data for a quarter
    // of an hour.
    let _ = io.set_nodelay(true);
    let _ = heartbeat.tcp_options().apply(&io);

    // Wrapped before the handshake, which passes through.
    let (io, live) = heartbeat.wrap_server_handshake(io);
    let mut user = String::new();
    // The size of the error is the library's choice.
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
    let Ok(Ok(mut socket)) = timeout(HANDSHAKE, accept_hdr_async(io, name)).await else {
        return; // nobody that anybody was told of
    };

    tell(&format!("{user} is here"));
    let name = user.clone();
    live.on_evict(move |ev| tell(&format!("{name} is gone: {}", ev.reason().as_str())));
    // From now on the map has it until the connection ends, in whatever way. There is nothing to be
    // removed by hand.
    if live.register(&sessions, user, peer).is_err() {
        return; // it has ended already
    }
    while let Some(Ok(message)) = socket.next().await {
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

fn tell(line: &str) {
    // Nobody may be reading any more.
    let _ = print_line(line);
}

/// Prints one line at once: stdout buffers whole blocks when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
