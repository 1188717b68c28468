//! Heap per hostile connection.
//!
//! The server runs in this process, and the peers are blocking sockets without heap of their own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, Registry};

use super::support::peer::Peer;
use super::support::process::require_files;
use super::{Result, heap_bytes};

/// Connections of each attack.
const CONNECTIONS: usize = 100;

/// What the driver reads ahead for a handler that does not read.
const MAX_READ_AHEAD_BYTES: usize = 16 * 1024;

/// Payload of the messages that the server pushes to a peer that never reads: more than the
/// kernel's buffers take.
const PUSHED_BYTES: usize = 8 << 20;

/// One attack: its name, the path of its handler, and what the peer sends, in pieces. The peer
/// answers no ping.
struct Attack {
    name: &'static str,
    path: &'static str,
    pieces: Vec<Vec<u8>>,
}

fn attacks() -> [Attack; 8] {
    let unread = |name, pieces: &[usize]| Attack {
        name,
        path: "/unread",
        pieces: pieces.iter().map(|len| vec![0; *len]).collect(),
    };
    let sent = |name, bytes: &[u8]| Attack {
        name,
        path: "/ws",
        pieces: vec![bytes.to_vec()],
    };
    [
        sent("sends nothing", b""),
        // A pong of 8 bytes, without its last byte.
        sent(
            "stops in a pong",
            &[0x8a, 0x88, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7],
        ),
        sent(
            "stops after 1 byte of a frame of 1,000",
            &Peer::message(1_000)[..9],
        ),
        sent(
            "stops after 1 byte of a frame of 16 MiB",
            &Peer::message(16 << 20)[..15],
        ),
        unread("sends nothing to a handler that does not read", &[]),
        unread(
            "sends 16 KiB to a handler that does not read",
            &[MAX_READ_AHEAD_BYTES],
        ),
        unread(
            "the same, in the worst pieces",
            &[MAX_READ_AHEAD_BYTES - 1, 1],
        ),
        Attack {
            name: "does not read a message of 8 MiB",
            path: "/push",
            pieces: Vec::new(),
        },
    ]
}

/// The application, with its read buffers of 4 KiB.
fn app(registry: Option<&Registry>) -> Router {
    async fn read(mut socket: WebSocket) {
        while let Some(Ok(_)) = socket.recv().await {}
    }
    async fn leave_unread(socket: WebSocket) {
        std::future::pending::<()>().await;
        drop(socket);
    }
    let message = Bytes::from(vec![0; PUSHED_BYTES]);
    let push = async move |mut socket: WebSocket| {
        while socket.send(Message::Binary(message.clone())).await.is_ok() {}
    };
    let small = |ws: WebSocketUpgrade| ws.read_buffer_size(4096);
    let app = Router::new()
        .route("/ws", any(async move |ws| small(ws).on_upgrade(read)))
        .route(
            "/unread",
            any(async move |ws| small(ws).on_upgrade(leave_unread)),
        )
        .route("/push", any(async move |ws| small(ws).on_upgrade(push)));
    let Some(registry) = registry else {
        return app;
    };
    let heartbeat = HeartbeatLayer::builder()
        // Soon, since the driver reads ahead when a ping is due.
        .interval(Duration::from_millis(500))
        .timeout(Duration::from_secs(180))
        .write_timeout(Duration::from_secs(180))
        .registry(registry.clone())
        .build()
        .expect("the durations are valid");
    app.layer(IdleTimeoutLayer::new(Duration::from_secs(3600)))
        .layer(heartbeat)
}

/// Opens a WebSocket at `path`.
fn connect(addr: SocketAddr, path: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_nodelay(true)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let (mut end, mut byte) = ([0; 4], [0]);
    while end != *b"\r\n\r\n" {
        socket.read_exact(&mut byte)?;
        end = [end[1], end[2], end[3], byte[0]];
    }
    Ok(socket)
}

/// Waits until the heap is stable, and returns its size in bytes.
fn settled_heap() -> Result<usize> {
    /// Longer than the interval of the pings.
    const STABLE_FOR: Duration = Duration::from_millis(1_500);
    const WAIT_LIMIT: Duration = Duration::from_secs(60);
    let (begun, mut since, mut heap) = (Instant::now(), Instant::now(), heap_bytes());
    while since.elapsed() < STABLE_FOR {
        if begun.elapsed() > WAIT_LIMIT {
            return Err(format!("the heap is not stable at {heap} bytes").into());
        }
        sleep(Duration::from_millis(20));
        let now = heap_bytes();
        if now != heap {
            (heap, since) = (now, Instant::now());
        }
    }
    Ok(heap)
}

/// Heap per connection under this attack, in bytes.
fn measure(runtime: &Runtime, attack: &Attack, layered: bool) -> Result<f64> {
    let registry = Registry::new();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let addr = listener.local_addr()?;
    let app = app(layered.then_some(&registry));
    let server = runtime.spawn(async move { axum::serve(listener, app).await });
    // For what is allocated once.
    drop(connect(addr, attack.path)?);
    let before = settled_heap()?;
    let sockets = (0..CONNECTIONS).map(|_| connect(addr, attack.path));
    let mut sockets: Vec<_> = sockets.collect::<Result<_>>()?;
    let mut heap = settled_heap()?;
    for piece in &attack.pieces {
        for socket in &mut sockets {
            socket.write_all(piece)?;
        }
        heap = settled_heap()?;
    }
    if layered && registry.len() != CONNECTIONS {
        return Err(format!("{} connections are open", registry.len()).into());
    }
    // That of the peers.
    let vec = sockets.capacity() * size_of::<TcpStream>();
    drop(sockets);
    server.abort();
    settled_heap()?;
    Ok((heap as f64 - before as f64 - vec as f64) / CONNECTIONS as f64)
}

pub(crate) fn run() -> Result<()> {
    require_files(2 * CONNECTIONS as u64 + 100)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    println!("| the peer | bare, bytes | layered, bytes | added |");
    println!("|---|---|---|---|");
    for attack in attacks() {
        let bare = measure(&runtime, &attack, false)?;
        let layered = measure(&runtime, &attack, true)?;
        let added = layered - bare;
        println!(
            "| {} | {bare:.0} | {layered:.0} | {added:+.0} |",
            attack.name
        );
    }
    Ok(())
}
