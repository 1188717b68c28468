//! A hand-written heartbeat on tokio-tungstenite alone, without axum and hyper.
//!
//! Each connection has one task with one `select!`, an interval, the time of the last received
//! message and bounded writes, as in [`hand_written`](super::hand_written). It has no session map.

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::accept_async_with_config;
use tungstenite::Message;
use tungstenite::protocol::WebSocketConfig;

use super::connection_stats::ConnectionStats;
use super::floor::accept;
use super::options::Options;

pub(crate) async fn serve(options: Options, listener: TcpListener, stats: ConnectionStats) {
    loop {
        let socket = accept(&listener).await;
        tokio::spawn(session(socket, options, stats.clone()));
    }
}

async fn session(socket: TcpStream, options: Options, stats: ConnectionStats) {
    let Options {
        buffer,
        interval,
        timeout: ping_timeout,
        ..
    } = options;
    let mut config = WebSocketConfig::default();
    if let Some(size) = buffer {
        config = config.read_buffer_size(size);
    }
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let Ok(mut socket) = accept_async_with_config(socket, Some(config)).await else {
        return;
    };
    let _open = stats.connection_opened();
    let mut last_seen = Instant::now();
    // Draws the first ping from the second half of the interval, so that connections opened
    // together are not pinged together.
    let first = Instant::now() + interval.mul_f64(1.0 - fastrand::f64() / 2.0);
    let mut ticks = interval_at(first, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outgoing = tokio::select! {
            message = socket.next() => {
                let Some(Ok(message)) = message else {
                    return;
                };
                last_seen = Instant::now();
                match message {
                    Message::Text(_) | Message::Binary(_) => message,
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                    Message::Close(_) => return,
                }
            }
            _ = ticks.tick() => {
                let silence = last_seen.elapsed();
                if silence >= interval + ping_timeout {
                    stats.peer_found_dead(silence);
                    return;
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        let sent = timeout(ping_timeout, socket.send(outgoing)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
