//! One upgrade over HTTP/1.1, from the client's request until the handler has its WebSocket: hyper's
//! server, axum's router and handler, and a pipe in memory for a network.
//!
//! The baseline is `bare`, and `added by both layers` is the figure to read: what they add to an
//! upgrade, for which the bar is 3 µs. Bare and layered upgrades take turns there, and a sample is
//! the median of their differences, so that a machine with other work hardly matters. A part of it is
//! axum's, which boxes a service for every layer: `added by two empty layers` says how much.
//!
//! `upgrade with its end` goes on until the server has dropped the connection. `request` is one that
//! asks for no upgrade, until it has reached its handler.
//!
//! Each connection is gone before the next one begins. One more stays open all the time, so that the
//! driver's task is there already, as in any server in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::routing::{any, get};
use criterion::Criterion;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, join, simplex, sink};
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::time::timeout;
use tower_layer::Identity;
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer};

/// What a browser sends, without what only humans read.
const UPGRADE: &str = "GET /ws HTTP/1.1\r\n\
    Host: localhost\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A request like any other.
const REQUEST: &str = "GET /plain HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Not axum's default of 128 KiB: what the allocator makes of such a buffer, which comes and goes with
/// every connection, is an order of magnitude more than what is looked for, or nothing at all, as the
/// heap happens to lie.
const READ_BUFFER: usize = 4 * 1024;

/// How long a connection may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The least that is called a difference.
const LEAST: Duration = Duration::from_nanos(1);

pub(crate) fn run(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let served = Arc::new(Notify::new());
    let bare = app(&served);
    let heartbeat = HeartbeatLayer::default();
    let idle = IdleTimeoutLayer::new(Duration::from_secs(300));
    let empty = bare.clone().layer(Identity::new()).layer(Identity::new());
    let both = bare.clone().layer(idle).layer(heartbeat.clone());
    let (silence, _peer) = simplex(64);
    let _open = runtime.block_on(async { busy().wrap_server(join(silence, sink())) });

    let mut group = criterion.benchmark_group("upgrade");
    let works: [(&str, &str, Part); 3] = [
        ("upgrade", UPGRADE, |times| times.served),
        ("upgrade with its end", UPGRADE, |times| times.ended),
        ("request", REQUEST, |times| times.served),
    ];
    for (work, request, time) in works {
        let serve = async |app: &Router| time(serve(app.clone(), request, &served).await);
        for (name, app) in [("bare", &bare), ("both layers", &both)] {
            group.bench_function(format!("{work}, {name}"), |bencher| {
                bencher.iter_custom(|iters| {
                    runtime.block_on(async {
                        let mut took = Duration::ZERO;
                        for _ in 0..iters {
                            took += serve(app).await;
                        }
                        took
                    })
                });
            });
        }
        for (name, app) in [("two empty layers", &empty), ("both layers", &both)] {
            group.bench_function(format!("{work}, added by {name}"), |bencher| {
                bencher.iter_custom(|iters| {
                    let mut added = Vec::new();
                    runtime.block_on(async {
                        for _ in 0..iters {
                            let [base, layered] = [serve(&bare).await, serve(app).await];
                            added.push(layered.as_secs_f64() - base.as_secs_f64());
                        }
                    });
                    // Criterion takes a sum, and nothing that is not positive.
                    let median = Duration::try_from_secs_f64(median(added)).unwrap_or_default();
                    median.max(LEAST).mul_f64(iters as f64)
                });
            });
        }
    }
    group.finish();
    let left = heartbeat.registry().len();
    assert_eq!(left, 0, "no connection outlives its iteration");
}

/// The layer of the connection that stays. It keeps the driver looking twice a second, as many
/// connections would: one that is new then has no earlier deadline for which to wake it.
fn busy() -> HeartbeatLayer {
    let beat = Duration::from_millis(500);
    let layer = HeartbeatLayer::builder().interval(beat).timeout(beat);
    // Its peer never answers, and is waited for until all is measured.
    let layer = layer.missed_pings(255).build();
    layer.expect("a configuration that is allowed")
}

fn median(mut figures: Vec<f64>) -> f64 {
    let middle = figures.len() / 2;
    let (_, median, _) = figures.select_nth_unstable_by(middle, f64::total_cmp);
    *median
}

/// Says when a handler was reached, and for a WebSocket when it was there.
fn app(served: &Arc<Notify>) -> Router {
    let (upgraded, plain) = (Arc::clone(served), Arc::clone(served));
    Router::new()
        .route(
            "/ws",
            any(async move |upgrade: WebSocketUpgrade| {
                upgrade
                    .read_buffer_size(READ_BUFFER)
                    .on_upgrade(async move |socket| session(socket, &upgraded).await)
            }),
        )
        .route("/plain", get(async move || plain.notify_one()))
}

/// Until the peer goes.
async fn session(mut socket: WebSocket, served: &Notify) {
    served.notify_one();
    while let Some(Ok(_)) = socket.recv().await {}
}

/// How long a connection took from its request on.
struct Times {
    /// Until its handler said so.
    served: Duration,
    /// Until the server had dropped its end of the pipe.
    ended: Duration,
}

/// Which of them is meant.
type Part = fn(Times) -> Duration;

/// The whole life of a connection.
async fn serve(app: Router, request: &str, served: &Notify) -> Times {
    let (mut client, server) = duplex(4096);
    let connection = http1::Builder::new()
        .serve_connection(TokioIo::new(server), TowerToHyperService::new(app))
        .with_upgrades();
    let start = Instant::now();
    let connection = tokio::spawn(connection);
    let request = client.write_all(request.as_bytes()).await;
    request.expect("room for a request");
    served.notified().await;
    let served = start.elapsed();

    let end = async {
        client.shutdown().await.expect("a pipe ends");
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer).await;
        end.expect("no error at the end of a pipe");
        assert!(answer.starts_with(b"HTTP/1.1 "), "an answer");
    };
    let end = timeout(PATIENCE, end).await;
    end.expect("connections end");
    let ended = start.elapsed();
    let connection = connection.await.expect("no panic");
    connection.expect("no error");
    Times { served, ended }
}
