//! Lower bound for the cost of pings: bare sockets without a WebSocket library.
//!
//! One task writes all pings, and one task per socket reads the pongs and discards them. No peer is
//! ever evicted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};

use super::connection_stats::ConnectionStats;
use super::options::Options;

/// An unmasked ping without a payload (RFC 6455 section 5.5.2).
const PING: [u8; 2] = [0x89, 0];

/// Lacks `sec-websocket-accept`, which the peers of the benches do not check.
const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
    connection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// Number of slices of an interval. Each slice pings its share of the sockets.
const SLICES: u32 = 100;

/// The sockets that are pinged in the same slice of the interval.
type Slice = Arc<Mutex<Slab<OwnedWriteHalf>>>;

pub(crate) async fn serve(options: Options, listener: TcpListener, stats: ConnectionStats) {
    let slices: Vec<_> = (0..SLICES).map(|_| Slice::default()).collect();
    tokio::spawn(sweep(options, slices.clone()));
    for slice in slices.iter().cycle() {
        let socket = accept(&listener).await;
        tokio::spawn(session(socket, Arc::clone(slice), stats.clone()));
    }
}

/// Accepts the next socket. Retries after an error, as axum's listener does: the peer may have
/// reset the connection, or the process may be out of file descriptors.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Pings every socket once per interval, spread evenly over the interval.
async fn sweep(options: Options, slices: Vec<Slice>) {
    let mut ticks = tokio::time::interval(options.interval / SLICES);
    for slice in slices.iter().cycle() {
        ticks.tick().await;
        for (_, socket) in lock(slice).iter() {
            // Two bytes always fit while the connection is open. tokio has known the socket to be
            // writable since the response, so this costs only the system call.
            let _ = socket.try_write(&PING);
        }
    }
}

async fn session(mut socket: TcpStream, slice: Slice, stats: ConnectionStats) {
    let mut buffer = vec![0; 1024];
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
    drop(request);
    if socket.set_nodelay(true).is_err() || socket.write_all(RESPONSE).await.is_err() {
        return;
    }
    let (mut reader, writer) = socket.into_split();
    let key = lock(&slice).insert(writer);
    let open = stats.connection_opened();
    while let Ok(1..) = reader.read(&mut buffer).await {}
    lock(&slice).remove(key);
    drop(open);
}

fn lock(slice: &Slice) -> MutexGuard<'_, Slab<OwnedWriteHalf>> {
    slice.lock().unwrap_or_else(PoisonError::into_inner)
}
