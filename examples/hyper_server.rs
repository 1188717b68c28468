//! An echo server at `/ws` on hyper and tokio-tungstenite, without axum.
//!
//! The layers of this crate wrap an ordinary tower service.
//!
//! ```text
//! cargo run --example hyper_server -- --addr 127.0.0.1:9003
//!
//! websocat ws://127.0.0.1:9003/ws        # echoes lines
//! curl http://127.0.0.1:9003/            # prints the number of connections
//! ```
//!
//! The server prints a line for each connection that opens or ends, with the reason of the end.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use pico_args::Arguments;
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tower::{ServiceBuilder, service_fn};
use tower_ws_liveness::{Eviction, HeartbeatLayer, IdleTimeoutLayer, Liveness, Registry};

const USAGE: &str = "usage: hyper_server [--addr 127.0.0.1:9003]";

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyper_server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process ends. `args` are the command-line flags without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
    if args.contains("--help") {
        return Ok(print_line(USAGE)?);
    }
    let addr = args
        .opt_value_from_str("--addr")
        .map_err(|error| format!("--addr: {error}"))?
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9003)));
    if !args.finish().is_empty() {
        return Err(USAGE.into());
    }
    let heartbeat = HeartbeatLayer::builder()
        .interval(Duration::from_secs(2))
        .timeout(Duration::from_secs(2))
        .on_evict(print_end)
        .build()?;
    let registry = heartbeat.registry();
    let service = ServiceBuilder::new()
        .layer(heartbeat)
        .layer(IdleTimeoutLayer::new(Duration::from_secs(300)))
        .service(service_fn(move |request| handle(request, registry.clone())));
    let listener = TcpListener::bind(addr).await?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;

    loop {
        let io = match listener.accept().await {
            Ok((io, _)) => io,
            // Most likely out of file descriptors: some are released when connections end.
            Err(error) => {
                eprintln!("hyper_server: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Sends small messages without waiting for the acknowledgement of earlier ones.
        let _ = io.set_nodelay(true);
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            // With a timer, hyper closes a connection whose request head is incomplete after 30 s.
            builder.http1().timer(TokioTimer::new());
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
            if let Err(error) = connection.await {
                eprintln!("hyper_server: {error}");
            }
        });
    }
}

/// The application. All that it uses of the layers is the `Liveness` extension.
async fn handle(
    mut request: Request<Incoming>,
    registry: Registry,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/ws") => {
            let Some(accept_key) = accept_key(request.headers()) else {
                return Ok(status(StatusCode::BAD_REQUEST));
            };
            let live = request.extensions().get::<Liveness>().cloned();
            // Moved out of the request, so that the request is dropped while the connection is
            // open.
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                // This is the stream that the layers have wrapped.
                if let Ok(upgraded) = upgraded.await {
                    echo(TokioIo::new(upgraded), live).await;
                }
            });
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(CONNECTION, "upgrade")
                .header(UPGRADE, "websocket")
                .header(SEC_WEBSOCKET_ACCEPT, accept_key);
            response.body(Full::default()).unwrap_or_else(|_| {
                // Unreachable: the headers above are valid.
                status(StatusCode::INTERNAL_SERVER_ERROR)
            })
        }
        (&Method::GET, "/") => Response::new(format!("{} connected\n", registry.len()).into()),
        _ => status(StatusCode::NOT_FOUND),
    };
    Ok(response)
}

/// The `Sec-WebSocket-Accept` value for an opening handshake (RFC 6455 section 4.2.1), or `None` if
/// the headers are not one.
fn accept_key(headers: &HeaderMap) -> Option<String> {
    let is_handshake = has_token(headers, CONNECTION, "upgrade")
        && has_token(headers, UPGRADE, "websocket")
        && has_token(headers, SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?;
    Some(derive_accept_key(key.as_bytes()))
}

/// Whether a header with a comma-separated list contains `token`.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter();
    let tokens = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tokens
        .map(str::trim)
        .any(|item| item.eq_ignore_ascii_case(token))
}

async fn echo<T>(io: T, live: Option<Liveness>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    if let Some(live) = live {
        let _ = print_line(&format!("{} is here", live.id()));
    }
    while let Some(Ok(message)) = socket.next().await {
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// The eviction hook, called once for each connection.
fn print_end(ev: &Eviction) {
    // Fails if stdout is a closed pipe.
    let _ = print_line(&format!("{} is gone: {}", ev.id(), ev.reason().as_str()));
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

/// Prints a line and flushes it: stdout is block-buffered when it is a pipe.
fn print_line(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
