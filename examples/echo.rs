//! An echo server at `/ws`, with the layers of this crate around an ordinary axum handler.
//!
//! ```text
//! cargo run --example echo -- --interval-ms 1000 --timeout-ms 1000 --log-evictions
//! ```
//!
//! The first line on stdout is `listening on <address>`. With `--log-evictions` one JSON line
//! follows for every connection that opens and one for every connection that ends. `--help` lists
//! the flags.

use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;
use axum::serve::ListenerExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower_ws_liveness::{Eviction, HeartbeatLayer, IdleTimeoutLayer, Liveness};

const USAGE: &str = "\
Usage: echo [FLAGS]

Echoes text and binary messages at /ws.

  --addr ADDR       address to listen on [127.0.0.1:9001]; port 0 picks a free one
  --interval-ms N   silence before a ping is sent [the layer's default]
  --timeout-ms N    time a ping may stay unanswered [the layer's default]
  --missed N        unanswered pings before eviction [the layer's default]
  --idle-ms N       evict after so long without a message [never]
  --bare            no layers at all, for comparison
  --http2-only      HTTP/2 with prior knowledge and extended CONNECT, no HTTP/1.1
  --log-evictions   one JSON line per opened and per evicted connection
  --help            print this text";

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process ends. `args` are the flags, without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(options) = Options::parse(args)? else {
        print_line(USAGE)?;
        return Ok(());
    };
    let app = app(&options)?;
    let listener = TcpListener::bind(options.addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;

    if options.http2_only {
        serve_http2(listener, app).await
    } else {
        Ok(axum::serve(listener.tap_io(set_nodelay), app).await?)
    }
}

/// The application: one handler, and around it whatever the options ask for.
fn app(options: &Options) -> Result<Router, Box<dyn Error + Send + Sync>> {
    let mut app = Router::new().route("/ws", any(upgrade));
    if options.bare {
        return Ok(app);
    }

    let mut heartbeat = HeartbeatLayer::builder();
    if let Some(interval) = options.interval {
        heartbeat = heartbeat.interval(interval);
    }
    if let Some(timeout) = options.timeout {
        heartbeat = heartbeat.timeout(timeout);
    }
    if let Some(missed) = options.missed {
        heartbeat = heartbeat.missed_pings(missed);
    }
    if options.log_evictions {
        let log = Log::start();
        // A layer that is added later is further out and runs earlier, so this middleware already
        // finds the `Liveness` of the request.
        app = app.layer(middleware::from_fn_with_state(log.clone(), log_open));
        heartbeat = heartbeat.on_evict(move |ev: &Eviction| log.evicted(ev));
    }
    if let Some(idle) = options.idle {
        app = app.layer(IdleTimeoutLayer::builder().timeout(idle).build()?);
    }
    Ok(app.layer(heartbeat.build()?))
}

// The handler: nothing in it knows of the layers.

async fn upgrade(ws: WebSocketUpgrade) -> Response {
    ws.on_upgrade(echo)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_data = matches!(message, Message::Text(_) | Message::Binary(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

// Serving.

async fn serve_http2(
    listener: TcpListener,
    app: Router,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                set_nodelay(&mut stream);
                tokio::spawn(serve_http2_connection(stream, app.clone()));
            }
            // Out of file descriptors, most likely: some come back when connections end.
            Err(error) => {
                eprintln!("echo: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_http2_connection(stream: TcpStream, app: Router) {
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// Small messages leave at once, instead of waiting until the peer has acknowledged earlier ones.
fn set_nodelay(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
}

// The log of `--log-evictions`.

/// Hands lines to a thread that prints them: a hook must not wait for the reader of our stdout.
#[derive(Clone)]
struct Log(mpsc::Sender<String>);

impl Log {
    fn start() -> Self {
        let (lines, queue) = mpsc::channel::<String>();
        std::thread::spawn(move || {
            for line in queue {
                if print_line(&line).is_err() {
                    return; // nobody reads any more
                }
            }
        });
        Self(lines)
    }

    fn opened(&self, live: &Liveness) {
        self.line(format!(r#"{{"id":{},"event":"open"}}"#, live.id()));
    }

    fn evicted(&self, ev: &Eviction) {
        self.line(format!(
            r#"{{"id":{},"reason":"{}","lifetime_ms":{}}}"#,
            ev.id(),
            ev.reason().as_str(),
            ev.lifetime().as_millis(),
        ));
    }

    fn line(&self, line: String) {
        // Fails only when the printing thread has ended, see above.
        let _ = self.0.send(line);
    }
}

/// Logs an upgrade that the handler accepted: 101 over HTTP/1.1, 2xx to an extended CONNECT.
async fn log_open(
    State(log): State<Log>,
    live: Option<Liveness>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() {
        if let Some(live) = live {
            log.opened(&live);
        }
    }
    response
}

/// Prints one line at once: stdout buffers whole blocks when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

// The command line.

/// What the flags say.
#[derive(Debug, Clone)]
struct Options {
    addr: SocketAddr,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    missed: Option<u32>,
    idle: Option<Duration>,
    bare: bool,
    http2_only: bool,
    log_evictions: bool,
}

impl Options {
    /// Reads the flags; `None` when they ask for help.
    fn parse(args: Vec<String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 9001)),
            interval: None,
            timeout: None,
            missed: None,
            idle: None,
            bare: false,
            http2_only: false,
            log_evictions: false,
        };
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            match flag.as_str() {
                "--addr" => options.addr = value(&flag, args.next())?,
                "--interval-ms" => options.interval = Some(millis(&flag, args.next())?),
                "--timeout-ms" => options.timeout = Some(millis(&flag, args.next())?),
                "--missed" => options.missed = Some(value(&flag, args.next())?),
                "--idle-ms" => options.idle = Some(millis(&flag, args.next())?),
                "--bare" => options.bare = true,
                "--http2-only" => options.http2_only = true,
                "--log-evictions" => options.log_evictions = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown flag {flag}\n\n{USAGE}")),
            }
        }
        Ok(Some(options))
    }
}

fn millis(flag: &str, text: Option<String>) -> Result<Duration, String> {
    value(flag, text).map(Duration::from_millis)
}

fn value<T>(flag: &str, text: Option<String>) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = text.ok_or_else(|| format!("{flag} needs a value\n\n{USAGE}"))?;
    text.parse()
        .map_err(|error| format!("{flag} {text}: {error}\n\n{USAGE}"))
}
