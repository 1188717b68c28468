//! A server with more commands than the echo example, and a detailed log.
//!
//! A text message is a command: after `push` the handler writes every 100 ms and reads no more, after
//! `deaf` it only reads no more, `send LENGTH COUNT` requests binary messages, any other text is
//! echoed. A binary message is answered by its length and whether it arrived unchanged.
//!
//! The log on stdout has the opens and evictions of the echo example, with the reason's text and what
//! the peer's kernel did, and: `push` for each write that succeeded, `failed` when a write of the
//! handler fails at the end, `ping` for each ping handed to the transport, `pong` with the round-trip
//! time for each pong.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::any;
use axum::serve::ListenerExt;
use axum::{Error, Router};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::net::TcpListener;
use tower_ws_liveness::{Evicted, Eviction, HeartbeatLayer, Liveness};

use crate::roles;

pub(crate) const ROLE: &str = "role-fault-server";

/// Does not tune the sockets (`tune_tcp(false)`).
pub(crate) const UNTUNED: &str = "--untuned";

/// Sets the congestion control of the sockets. A new namespace permits only some as its default.
pub(crate) const CONGESTION: &str = "--congestion";

const PUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Resolution of the times of pings and pongs in the log.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub(crate) fn main(args: Vec<String>) -> ExitCode {
    roles::end_with_stdin();
    roles::runtime().block_on(async {
        serve(&args).await;
        ExitCode::SUCCESS
    })
}

async fn serve(args: &[String]) {
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        Some(args[at + 1].as_str())
    };
    let millis = |flag: &str| Some(Duration::from_millis(value(flag)?.parse().unwrap()));
    let mut heartbeat = HeartbeatLayer::builder().on_evict(|ev: &Eviction| {
        print_entry(&json!({
            "id": ev.id().as_u64(),
            "reason": ev.reason().as_str(),
            "lifetime_ms": ev.lifetime().as_millis() as u64,
            "text": ev.reason().to_string(),
            "peer_kernel": ev.peer_kernel().as_str(),
        }));
    });
    if let Some(interval) = millis("--interval-ms") {
        heartbeat = heartbeat.interval(interval);
    }
    if let Some(timeout) = millis("--timeout-ms") {
        heartbeat = heartbeat.timeout(timeout);
    }
    if let Some(write_timeout) = millis("--write-timeout-ms") {
        heartbeat = heartbeat.write_timeout(write_timeout);
    }
    if args.iter().any(|arg| arg == UNTUNED) {
        heartbeat = heartbeat.tune_tcp(false);
    }
    let mut app = Router::new().route("/ws", any(upgrade));
    if !args.iter().any(|arg| arg == "--bare") {
        app = app.layer(heartbeat.build().unwrap());
    }
    let addr: SocketAddr = value("--addr").unwrap().parse().unwrap();
    let listener = TcpListener::bind(addr).await.unwrap();
    roles::print_line(&format!("listening on {}", listener.local_addr().unwrap()));
    let congestion = value(CONGESTION).map(str::to_owned);
    let listener = listener.tap_io(move |stream| {
        stream.set_nodelay(true).unwrap();
        if let Some(algorithm) = &congestion {
            let socket = SockRef::from(&*stream);
            socket.set_tcp_congestion(algorithm.as_bytes()).unwrap();
        }
    });
    axum::serve(listener, app).await.unwrap();
}

async fn upgrade(ws: WebSocketUpgrade, live: Option<Liveness>) -> Response {
    // A server without the layer has no ids, and serves one connection only.
    let mut id = 0;
    if let Some(live) = live {
        id = live.id().as_u64();
        print_entry(&json!({ "id": id, "event": "open" }));
        tokio::spawn(log_pings(live, id));
    }
    ws.on_upgrade(async move |socket| {
        if let Err(error) = handle(socket, id).await {
            let reason = Evicted::from_error(&error).map(|evicted| evicted.reason().as_str());
            print_entry(&json!({ "id": id, "event": "failed", "reason": reason }));
        }
    })
}

/// Returns `Ok` at the peer's end, and an error if a write fails.
async fn handle(mut socket: WebSocket, id: u64) -> Result<(), Error> {
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Text(text) => match text.split(' ').collect::<Vec<_>>()[..] {
                ["push"] => loop {
                    tokio::time::sleep(PUSH_INTERVAL).await;
                    socket.send(Message::text("tick")).await?;
                    print_entry(&json!({ "id": id, "event": "push" }));
                },
                ["deaf"] => std::future::pending().await,
                ["send", length, count] => {
                    for _ in 0..count.parse::<u32>().unwrap() {
                        let payload = roles::payload(length.parse().unwrap());
                        socket.send(Message::binary(payload)).await?;
                    }
                }
                _ => socket.send(Message::Text(text)).await?,
            },
            Message::Binary(payload) => {
                let answer = roles::describe(&payload);
                socket.send(Message::text(answer)).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Logs pings and pongs until the eviction.
async fn log_pings(live: Liveness, id: u64) {
    let (mut pings, mut pongs) = (0, 0);
    loop {
        tokio::select! {
            _ = live.evicted() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let stats = live.stats();
        while pings < stats.pings_sent() {
            pings += 1;
            print_entry(&json!({ "id": id, "event": "ping" }));
        }
        while pongs < stats.pongs_received() {
            pongs += 1;
            let rtt = live.rtt().map(|rtt| rtt.last().as_micros() as u64);
            print_entry(&json!({ "id": id, "event": "pong", "rtt_us": rtt }));
        }
    }
}

fn print_entry(entry: &Value) {
    roles::print_line(&entry.to_string());
}
