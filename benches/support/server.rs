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
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use axum::serve::ListenerExt;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tower_ws_liveness::{Eviction, HeartbeatLayer, IdleTimeoutLayer, Reason};

use super::{floor, hand_written};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The handler alone.
    Bare,
    /// The handler with a heartbeat written into it, as people do.
    HandWritten,
    /// The handler of `Bare`, behind both layers.
    Layered,
    /// No WebSocket library, and no more than pings: what the sockets themselves cost.
    Floor,
}

impl Kind {
    /// Every server that echoes.
    pub(crate) const ECHOING: [Self; 3] = [Self::Bare, Self::HandWritten, Self::Layered];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::HandWritten => "hand-written",
            Self::Layered => "layered",
            Self::Floor => "floor",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Bare, Self::HandWritten, Self::Layered, Self::Floor]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("no server is called {name}"))
    }
}

/// The read buffers with which servers are compared: axum's default, and one that suits small messages.
pub(crate) const BUFFERS: [Option<usize>; 2] = [None, Some(4096)];

/// The name of a read buffer in headlines.
pub(crate) fn buffer_name(buffer: Option<usize>) -> String {
    match buffer {
        None => "axum's default read buffer".to_owned(),
        Some(size) => format!("read buffer of {size} bytes"),
    }
}

/// What a server is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Which server.
    pub(crate) kind: Kind,
    /// Size of the WebSocket library's read buffer; axum's default (128 KiB) if `None`.
    pub(crate) buffer: Option<usize>,
    /// Silence before a ping.
    pub(crate) interval: Duration,
    /// Time a ping may stay unanswered.
    pub(crate) timeout: Duration,
    /// Worker threads; 0 for a runtime of one thread.
    pub(crate) workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Bare,
            buffer: None,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            workers: 2,
        }
    }
}

impl Options {
    /// The arguments from which [`parse`](Self::parse) makes the same options.
    pub(crate) fn to_args(self) -> Vec<String> {
        [
            self.kind.name().to_owned(),
            self.buffer.unwrap_or(0).to_string(),
            self.interval.as_millis().to_string(),
            self.timeout.as_millis().to_string(),
            self.workers.to_string(),
        ]
        .into()
    }

    /// Reads the arguments of a server's process.
    pub(crate) fn parse(args: &[String]) -> Result<Self, Box<dyn Error>> {
        let [kind, buffer, interval, timeout, workers] = args else {
            return Err("a server takes kind, buffer, interval, timeout and workers".into());
        };
        Ok(Self {
            kind: kind.parse()?,
            buffer: Some(buffer.parse()?).filter(|&buffer| buffer > 0),
            interval: Duration::from_millis(interval.parse()?),
            timeout: Duration::from_millis(timeout.parse()?),
            workers: workers.parse()?,
        })
    }
}

/// What a server knows of its connections.
#[derive(Clone, Default)]
pub(crate) struct Account(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    silences: Mutex<Vec<Duration>>,
}

/// One connection of an account, as long as it is open.
pub(crate) struct Entry(Account);

impl Account {
    /// One more connection is open.
    pub(crate) fn enter(&self) -> Entry {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Entry(self.clone())
    }

    /// A peer was found dead, which was silent for so long.
    pub(crate) fn found_dead(&self, silence: Duration) {
        self.silences().push(silence);
    }

    fn silences(&self) -> MutexGuard<'_, Vec<Duration>> {
        let silences = &self.0.silences;
        silences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, asked: &str, heap: fn() -> usize) -> String {
        match asked {
            "open" => self.0.open.load(Ordering::Relaxed).to_string(),
            "heap" => heap().to_string(),
            "silences" => {
                let silences = std::mem::take(&mut *self.silences());
                let millis = silences
                    .iter()
                    .map(|silence| silence.as_millis().to_string());
                millis.collect::<Vec<_>>().join(" ")
            }
            _ => format!("nobody knows {asked}"),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

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

/// The same settings of the WebSocket library for every server.
pub(crate) fn answer(options: Options, upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    match options.buffer {
        Some(size) => upgrade.read_buffer_size(size),
        None => upgrade,
    }
}
