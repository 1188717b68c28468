//! The servers under comparison. All but the floor echo, and all but it and [`raw_tungstenite`] are
//! axum applications with a route `/ws`.
//!
//! A server runs in a process of its own. It prints `listening on ADDRESS`, then replies to each
//! command on standard input with one line, until standard input is closed:
//!
//! | command | reply |
//! |---|---|
//! | `open` | number of open connections |
//! | `silences` | silence in milliseconds of each peer found dead since the last `silences` |
//! | `heap` | allocated bytes of heap, if the bench counts them |

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum::serve::ListenerExt;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tower_ws_liveness::{Eviction, HeartbeatLayer, IdleTimeoutLayer, Reason};

use super::connection_stats::{ConnectionStats, OpenConnection};
use super::options::{Kind, Options, configure};
use super::{floor, hand_written, raw_tungstenite, sockudo};

/// Runs a server process. `args` are those of [`Options::to_args`]; `heap` returns the allocated
/// bytes.
pub(crate) fn run(args: &[String], heap: fn() -> usize) -> Result<(), Box<dyn Error>> {
    let options = Options::parse(args)?;
    super::process::raise_file_limit()?;
    let mut runtime = match options.workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if options.workers > 0 {
        runtime.worker_threads(options.workers);
    }
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async {
        // Listens on all loopback addresses: the client ports of one do not suffice for every
        // bench.
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        println!("listening on 127.0.0.1:{}", listener.local_addr()?.port());
        let stats = ConnectionStats::default();
        tokio::spawn(serve(options, listener, stats.clone()));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(command) = lines.next_line().await? {
            println!("{}", stats.reply(&command, heap));
        }
        Ok(())
    })
}

async fn serve(options: Options, listener: TcpListener, stats: ConnectionStats) {
    let app = match options.kind {
        Kind::Floor => return floor::serve(options, listener, stats).await,
        Kind::RawTungstenite => return raw_tungstenite::serve(options, listener, stats).await,
        Kind::HandWritten => hand_written::app(options, stats),
        Kind::Sockudo => sockudo::app(options, stats),
        Kind::Bare => echo_app(options, stats),
        Kind::Layered => {
            let dead_peers = stats.clone();
            let heartbeat = HeartbeatLayer::builder()
                .interval(options.interval)
                .timeout(options.timeout)
                .on_evict(move |eviction: &Eviction| {
                    if let Reason::HeartbeatTimeout { .. } = eviction.reason() {
                        dead_peers.peer_found_dead(eviction.last_seen().elapsed());
                    }
                })
                .build()
                .expect("the durations of a bench are not zero");
            echo_app(options, stats)
                .layer(IdleTimeoutLayer::new(Duration::from_secs(3600)))
                .layer(heartbeat)
        }
    };
    let listener = listener.tap_io(|socket| {
        // Fails if the peer has reset the connection, which the next read reports.
        let _ = socket.set_nodelay(true);
    });
    let result = axum::serve(listener, app).await;
    result.expect("axum serves until its process ends");
}

/// An echo application without a heartbeat.
fn echo_app(options: Options, stats: ConnectionStats) -> Router {
    let handler = move |State(stats): State<ConnectionStats>, upgrade: WebSocketUpgrade| async move {
        configure(options, upgrade)
            .on_upgrade(move |socket| echo(socket, stats.connection_opened()))
    };
    Router::new().route("/ws", any(handler)).with_state(stats)
}

async fn echo(mut socket: WebSocket, _entry: OpenConnection) {
    while let Some(Ok(message)) = socket.recv().await {
        let sent = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
