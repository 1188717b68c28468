//! Cost that both layers add to an HTTP/1.1 upgrade.
//!
//! An upgrade takes from the client's request until the handler has its WebSocket. It runs hyper's
//! server, axum's router and a handler over an in-memory pipe.
//!
//! The baseline is `bare`. The figure to read is `added by both layers`, with a bar of 3 µs. It
//! alternates bare and layered upgrades and takes the median of their differences, which makes it
//! robust against other load on the machine. Part of it is axum's, which boxes a service for every
//! layer: `added by two empty layers` measures that part.
//!
//! `upgrade with its end` continues until the server has dropped the connection. `request` is a
//! request without an upgrade, measured until it reaches its handler.
//!
//! Each connection ends before the next one opens. One more connection stays open, so that the
//! driver's task already runs, as in a server in use.

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

/// A browser's upgrade request, without optional headers.
const UPGRADE: &str = "GET /ws HTTP/1.1\r\n\
    Host: localhost\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A request without an upgrade.
const REQUEST: &str = "GET /plain HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Far below axum's default of 128 KiB. Depending on the state of the heap, allocating and freeing
/// such a buffer per connection costs nothing, or ten times the figure that the bench measures.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// How long a connection may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The smallest difference to report: criterion accepts only positive times.
const MIN_DIFFERENCE: Duration = Duration::from_nanos(1);

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
    let _open = runtime.block_on(async { busy_layer().wrap_server(join(silence, sink())) });

    let mut group = criterion.benchmark_group("upgrade");
    let works: [(&str, &str, SelectTime); 3] = [
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
                    // Criterion expects the sum over all iterations, and a positive one.
                    let median = Duration::try_from_secs_f64(median(added)).unwrap_or_default();
                    median.max(MIN_DIFFERENCE).mul_f64(iters as f64)
                });
            });
        }
    }
    group.finish();
    let left = heartbeat.registry().len();
    assert_eq!(left, 0, "no connection outlives its iteration");
}

/// The layer of the connection that stays open. Its short interval wakes the driver twice a second,
/// as many connections would, so that the deadline of a new connection is never the earliest.
fn busy_layer() -> HeartbeatLayer {
    let interval = Duration::from_millis(500);
    let layer = HeartbeatLayer::builder()
        .interval(interval)
        .timeout(interval);
    // The peer never answers. It must not be evicted before the bench ends.
    let layer = layer.missed_pings(255).build();
    layer.expect("a valid configuration")
}

fn median(mut figures: Vec<f64>) -> f64 {
    let middle = figures.len() / 2;
    let (_, median, _) = figures.select_nth_unstable_by(middle, f64::total_cmp);
    *median
}

/// An application that notifies `served` once a handler runs, or has its WebSocket.
fn app(served: &Arc<Notify>) -> Router {
    let (upgraded, plain) = (Arc::clone(served), Arc::clone(served));
    Router::new()
        .route(
            "/ws",
            any(async move |upgrade: WebSocketUpgrade| {
                upgrade
                    .read_buffer_size(READ_BUFFER_BYTES)
                    .on_upgrade(async move |socket| session(socket, &upgraded).await)
            }),
        )
        .route("/plain", get(async move || plain.notify_one()))
}

/// Reads until the peer closes the connection.
async fn session(mut socket: WebSocket, served: &Notify) {
    served.notify_one();
    while let Some(Ok(_)) = socket.recv().await {}
}

/// Times of a connection, measured from its request.
struct Times {
    /// Until its handler notified `served`.
    served: Duration,
    /// Until the server had dropped its end of the pipe.
    ended: Duration,
}

/// Selects one of the times.
type SelectTime = fn(Times) -> Duration;

/// Opens a connection, sends `request` and waits until the connection has ended.
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
    let end = timeout(END_LIMIT, end).await;
    end.expect("connections end");
    let ended = start.elapsed();
    let connection = connection.await.expect("no panic");
    connection.expect("no error");
    Times { served, ended }
}
