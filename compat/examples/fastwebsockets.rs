//! An echo server on hyper and fastwebsockets, without axum, behind both layers.
//!
//! ```text
//! cargo run --manifest-path compat/Cargo.toml --example fastwebsockets -- --interval-ms 1000
//! ```
//!
//! The first line on stdout is `listening on <address>`. One line with the reason follows for every
//! connection that ends. `--help` lists the flags.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use fastwebsockets::{FragmentCollector, OpCode, WebSocketError};
use futures_util::StreamExt;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use pico_args::Arguments;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_ws_liveness::{Evictions, HeartbeatLayer, IdleTimeoutLayer};

const USAGE: &str = "\
Usage: fastwebsockets [FLAGS]

Echoes text and binary messages, at any path.

  --addr ADDR       address to listen on [127.0.0.1:9001]; port 0 picks a free one
  --interval-ms N   silence after which a ping is sent [30000]
  --timeout-ms N    time for which a ping may stay unanswered [15000]
  --idle-ms N       evict after this time without a message [300000]
  --help            print this text";

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fastwebsockets: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the process ends. `args` are the flags, without the program's name.
pub async fn run(args: Vec<String>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(options) = Options::parse(args)? else {
        println!("{USAGE}");
        return Ok(());
    };
    let heartbeat = HeartbeatLayer::builder()
        .interval(options.interval)
        .timeout(options.timeout)
        .build()?;
    let idle = IdleTimeoutLayer::builder().timeout(options.idle).build()?;
    tokio::spawn(print(heartbeat.registry().evictions()));
    let service = ServiceBuilder::new()
        .layer(heartbeat)
        .layer(idle)
        .service(service_fn(respond));

    let listener = TcpListener::bind(options.addr).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // TCP_NODELAY: with Nagle's algorithm a small message would wait until the peer has
                // acknowledged earlier ones.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY");
                }
                let service = TowerToHyperService::new(service.clone());
                let connection = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
            // Probably out of file descriptors, which are freed when connections end.
            Err(error) => {
                eprintln!("fastwebsockets: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Prints one line for every connection that ends.
async fn print(mut evictions: Evictions) {
    while let Some(eviction) = evictions.next().await {
        match eviction {
            Ok(ev) => println!("connection {}: {}", ev.id(), ev.reason()),
            Err(overrun) => println!("{overrun}"),
        }
    }
}

// The application, which is independent of the layers.

async fn respond(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let is_upgrade = is_upgrade_request(&request);
    let Some((response, upgraded)) = is_upgrade.then(|| upgrade(&mut request).ok()).flatten()
    else {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    tokio::spawn(async move {
        if let Err(error) = echo(upgraded).await {
            tracing::debug!(%error, "WebSocket ended");
        }
    });
    Ok(response)
}

async fn echo(upgraded: UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

// The command line.

/// The parsed flags.
#[derive(Clone, Debug)]
struct Options {
    addr: SocketAddr,
    interval: Duration,
    timeout: Duration,
    idle: Duration,
}

impl Options {
    /// Parses the flags. Returns `None` for `--help`.
    fn parse(args: Vec<String>) -> Result<Option<Self>, Box<dyn Error + Send + Sync>> {
        let mut args = Arguments::from_vec(args.into_iter().map(Into::into).collect());
        if args.contains(["-h", "--help"]) {
            return Ok(None);
        }
        let mut millis_or = |flag, default_secs| {
            let given = millis(&mut args, flag)?;
            Ok::<_, String>(given.unwrap_or(Duration::from_secs(default_secs)))
        };
        let options = Self {
            interval: millis_or("--interval-ms", 30)?,
            timeout: millis_or("--timeout-ms", 15)?,
            idle: millis_or("--idle-ms", 300)?,
            addr: args
                .opt_value_from_str("--addr")
                .map_err(|error| format!("--addr: {error}"))?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9001))),
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
