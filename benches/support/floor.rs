//! The least that pinging sockets can cost: one task writes all pings, and one task for each socket
//! reads what comes back. No WebSocket library, no verdicts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};

use super::account::Account;
use super::options::Options;

/// An unmasked ping without a payload (RFC 6455 section 5.5.2).
const PING: [u8; 2] = [0x89, 0];

/// What the peers of the benches need not check.
const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
    connection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// Parts of an interval, in each of which its part of the sockets is pinged.
const PARTS: u32 = 100;

/// The sockets that are pinged together.
type Part = Arc<Mutex<Slab<OwnedWriteHalf>>>;

pub(crate) async fn serve(options: Options, listener: TcpListener, account: Account) {
    let parts: Vec<_> = (0..PARTS).map(|_| Part::default()).collect();
    tokio::spawn(sweep(options, parts.clone()));
    for part in parts.iter().cycle() {
        let socket = accept(&listener).await;
        tokio::spawn(session(socket, Arc::clone(part), account.clone()));
    }
}

/// The next socket. As in axum's listener, what fails is tried again: the peer may have gone, or a
/// file may be free soon.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Writes a ping to every socket within each interval, evenly spread.
async fn sweep(options: Options, parts: Vec<Part>) {
    let mut ticks = tokio::time::interval(options.interval / PARTS);
    for part in parts.iter().cycle() {
        ticks.tick().await;
        for (_, socket) in lock(part).iter() {
            // Two bytes always fit, unless the peer is gone. That the socket can be written is known
            // since the response, so this is no more than the system call.
            let _ = socket.try_write(&PING);
        }
    }
}

async fn session(mut socket: TcpStream, part: Part, account: Account) {
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
    let key = lock(&part).insert(writer);
    let entry = account.enter();
    while let Ok(1..) = reader.read(&mut buffer).await {}
    lock(&part).remove(key);
    drop(entry);
}

fn lock(part: &Part) -> MutexGuard<'_, Slab<OwnedWriteHalf>> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}
