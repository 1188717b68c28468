//! The servers that are compared. All of them echo at `/ws`, on axum, but for the floor.
//!
//! A server runs in a process of its own. It prints `listening on ADDRESS` and then answers what it
//! is asked on its standard input, a line for a line, until that is closed:
//!
//! | asked | answered |
//! |---|---|
//! | `open` | connections that are open now |
//! | `silences` | for how many milliseconds each peer was silent that was found dead since it was last asked |
//! | `heap` | bytes of heap that are allocated now, if the bench counts them |

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

use super::account::{Account, Entry};
use super::options::{Kind, Options, answer};
use super::{floor, hand_written};

/// The whole life of a server's process: `args` are those of [`Options::to_args`], `heap` counts the
/// bytes that are allocated.
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
        // All of loopback, since the ports of one address do not suffice for everything.
        let listener = TcpListener::bind("0.0.0.0:0").await?;
        println!("listening on 127.0.0.1:{}", listener.local_addr()?.port());
        let account = Account::default();
        tokio::spawn(serve(options, listener, account.clone()));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(asked) = lines.next_line().await? {
            println!("{}", account.answer(&asked, heap));
        }
        Ok(())
    })
}

async fn serve(options: Options, listener: TcpListener, account: Account) {
    let app = match options.kind {
        Kind::Floor => return floor::serve(options, listener, account).await,
        Kind::HandWritten => hand_written::app(options, account),
        Kind::Bare => echo_app(options, account),
        Kind::Layered => {
            let dead = account.clone();
            let heartbeat = HeartbeatLayer::builder()
                .interval(options.interval)
                .timeout(options.timeout)
                .on_evict(move |eviction: &Eviction| {
                    if let Reason::HeartbeatTimeout { .. } = eviction.reason() {
                        dead.found_dead(eviction.last_seen().elapsed());
                    }
                })
                .build()
                .expect("the times of a bench are not zero");
            echo_app(options, account)
                .layer(IdleTimeoutLayer::new(Duration::from_secs(3600)))
                .layer(heartbeat)
        }
    };
    let listener = listener.tap_io(|socket| {
        // A socket that has gone meanwhile cannot be set, and is found out by whoever reads it.
        let _ = socket.set_nodelay(true);
    });
    let served = axum::serve(listener, app).await;
    served.expect("axum serves until its process ends");
}

/// An ordinary application.
fn echo_app(options: Options, account: Account) -> Router {
    let handler = move |State(account): State<Account>, upgrade: WebSocketUpgrade| async move {
        answer(options, upgrade).on_upgrade(move |socket| echo(socket, account.enter()))
    };
    Router::new().route("/ws", any(handler)).with_state(account)
}

async fn echo(mut socket: WebSocket, _entry: Entry) {
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
