//! An echo server at `/ws`: the layers of this crate around an ordinary axum handler.
//!
//! ```text
//! cargo run --example echo -- --interval-ms 1000 --timeout-ms 1000 --log-evictions
//! ```
//!
//! The first line on stdout is `listening on <address>`. With `--log-evictions` the server also
//! prints one JSON line for every connection that opens and one for every connection that ends.
//! `--help` lists the flags.
//!
//! A client that sends a `session-id` header takes the seat of that session, and an older
//! connection that holds the seat is evicted: so `reconnecting_client.rs` can reconnect before the
//! server has detected that the old connection is dead. Any client that knows an id can take its
//! seat, so ids must not be guessable, and must not be in the URL, which is logged in many places.
//! The `session-attempt` header is a number that increases with each connection of a client: a
//! server that was paused may accept several of them at once, and process the newest first.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::serve::ListenerExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use pico_args::Arguments;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tower_ws_liveness::{Eviction, HeartbeatLayer, IdleTimeoutLayer, Liveness, Seat};

const USAGE: &str = "\
Usage: echo [FLAGS]

Echoes text and binary messages at /ws.

  --addr ADDR       address to listen on [127.0.0.1:9001]; port 0 selects a free port
  --interval-ms N   silence before a ping is sent [the layer's default]
  --timeout-ms N    time a ping may stay unanswered [the layer's default]
  --missed N        unanswered pings before eviction [the layer's default]
  --idle-ms N       time without a message before eviction [never]
  --bare            no layers, for comparison
  --http2-only      HTTP/2 with prior knowledge and extended CONNECT, no HTTP/1.1
  --log-evictions   one JSON line per opened and per evicted connection
  --help            print this text";

const MAX_SESSION_ID_BYTES: usize = 64;

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

/// Serves until the process ends. `args` are the command-line flags without the program's name.
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

/// The application: one handler, and the layers that the options configure.
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
    let log = options.log_evictions.then(Log::start);
    // Layers that are added later are further out and run earlier, so this middleware finds the
    // `Liveness` that the heartbeat has put into the request.
    let sessions = Sessions {
        log: log.clone(),
        ..Sessions::default()
    };
    app = app.layer(middleware::from_fn_with_state(sessions, register));
    if let Some(log) = log {
        heartbeat = heartbeat.on_evict(move |ev: &Eviction| log.evicted(ev));
    }
    if let Some(idle) = options.idle {
        app = app.layer(IdleTimeoutLayer::builder().timeout(idle).build()?);
    }
    Ok(app.layer(heartbeat.build()?))
}

// The handler, which does not depend on the layers.

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

// The sessions.

/// The state of the middleware.
#[derive(Clone, Default)]
struct Sessions {
    /// The attempt that holds the seat of each session id.
    seats: Arc<Mutex<HashMap<String, Seat<u64>>>>,
    /// Held between the check of a seat and its registration. No hook takes this lock.
    registering: Arc<Mutex<()>>,
    log: Option<Log>,
}

impl Sessions {
    /// Returns false if a newer attempt holds the seat.
    fn register(&self, live: &Liveness, session: Session) -> bool {
        let Session { id, attempt } = session.clone();
        live.set_session(session);
        let _guard = self
            .registering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let is_outdated = seats.get(&id).is_some_and(|seat| **seat > attempt);
        // `register` takes this lock itself.
        drop(seats);
        if !is_outdated {
            // Fails only if the connection has ended already, and then needs no seat.
            let _ = live.register(&self.seats, id, attempt);
        }
        !is_outdated
    }
}

/// The session of a connection, also available to the eviction hook.
#[derive(Clone)]
struct Session {
    id: String,
    attempt: u64,
}

impl Session {
    /// Returns `None` if the request names no session, and an error if a header is invalid.
    fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, String> {
        let Some(id) = headers.get("session-id") else {
            return Ok(None);
        };
        let id = id.to_str().unwrap_or_default().to_owned();
        if id.is_empty() || id.len() > MAX_SESSION_ID_BYTES {
            let rule = format!("a session-id has 1 to {MAX_SESSION_ID_BYTES} printable bytes\n");
            return Err(rule);
        }
        let attempt = match headers.get("session-attempt") {
            None => 0,
            Some(attempt) => attempt
                .to_str()
                .unwrap_or_default()
                .parse()
                .map_err(|error| format!("session-attempt: {error}\n"))?,
        };
        Ok(Some(Self { id, attempt }))
    }
}

/// Registers and logs an upgrade that the handler accepts: 101 over HTTP/1.1, 2xx to an extended
/// CONNECT.
async fn register(
    State(sessions): State<Sessions>,
    live: Option<Liveness>,
    request: Request,
    next: Next,
) -> Response {
    let session = match Session::from_headers(request.headers()) {
        Ok(session) => session,
        Err(rule) => return (StatusCode::BAD_REQUEST, rule).into_response(),
    };
    let response = next.run(request).await;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() {
        if let Some(live) = live {
            if let Some(session) = session.clone() {
                if !sessions.register(&live, session) {
                    return StatusCode::CONFLICT.into_response();
                }
            }
            if let Some(log) = &sessions.log {
                log.opened(&live, session.as_ref());
            }
        }
    }
    response
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
            // Most likely out of file descriptors: some are released when connections end.
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

/// Sends small messages without waiting for the acknowledgement of earlier ones.
fn set_nodelay(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
}

// The log of `--log-evictions`.

/// Sends lines to a thread that prints them, because a hook must not wait for the reader of stdout.
#[derive(Clone)]
struct Log(mpsc::Sender<String>);

impl Log {
    fn start() -> Self {
        let (lines, queue) = mpsc::channel::<String>();
        std::thread::spawn(move || {
            for line in queue {
                if print_line(&line).is_err() {
                    return; // stdout is a closed pipe
                }
            }
        });
        Self(lines)
    }

    fn opened(&self, live: &Liveness, session: Option<&Session>) {
        let session = session_member(session);
        self.send(format!(r#"{{"id":{},"event":"open"{session}}}"#, live.id()));
    }

    fn evicted(&self, ev: &Eviction) {
        let session = ev.session::<Session>();
        let session = session_member(session.as_deref());
        self.send(format!(
            r#"{{"id":{},"reason":"{}","lifetime_ms":{}{session}}}"#,
            ev.id(),
            ev.reason().as_str(),
            ev.lifetime().as_millis(),
        ));
    }

    fn send(&self, line: String) {
        // Fails only if the printing thread has ended, see above.
        let _ = self.0.send(line);
    }
}

/// A further member of a JSON object, or an empty string without a session.
fn session_member(session: Option<&Session>) -> String {
    session.map_or_else(String::new, |session| {
        // `Value` escapes the id.
        format!(r#","session":{}"#, Value::from(session.id.as_str()))
    })
}

/// Prints a line and flushes it: stdout is block-buffered when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

// The command line.

/// The parsed flags.
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
    /// Parses the flags. Returns `None` for `--help`.
    fn parse(args: Vec<String>) -> Result<Option<Self>, Box<dyn Error + Send + Sync>> {
        let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
        if args.contains(["-h", "--help"]) {
            return Ok(None);
        }
        let options = Self {
            addr: args
                .opt_value_from_str("--addr")
                .map_err(|error| format!("--addr: {error}"))?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9001))),
            interval: millis(&mut args, "--interval-ms")?,
            timeout: millis(&mut args, "--timeout-ms")?,
            missed: args
                .opt_value_from_str("--missed")
                .map_err(|error| format!("--missed: {error}"))?,
            idle: millis(&mut args, "--idle-ms")?,
            bare: args.contains("--bare"),
            http2_only: args.contains("--http2-only"),
            log_evictions: args.contains("--log-evictions"),
        };
        if let Some(unknown) = args.finish().first() {
            return Err(format!("unknown flag {unknown:?}\n\n{USAGE}").into());
        }
        Ok(Some(options))
    }
}

/// Takes a flag with a number of milliseconds.
fn millis(args: &mut Arguments, flag: &'static str) -> Result<Option<Duration>, String> {
    let given = args.opt_value_from_str(flag);
    let given: Option<u64> = given.map_err(|error| format!("{flag}: {error}"))?;
    Ok(given.map(Duration::from_millis))
}
