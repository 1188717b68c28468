//! A well-written heartbeat inside the handler, as applications have it without the layers.
//!
//! It has one `select!`, an interval, the time of the last received message, a session map and
//! bounded writes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::connection_stats::ConnectionStats;
use super::options::{Options, configure};

#[derive(Clone)]
struct Sessions {
    options: Options,
    stats: ConnectionStats,
    map: Arc<Mutex<HashMap<u64, Instant>>>,
    next: Arc<AtomicU64>,
}

pub(crate) fn app(options: Options, stats: ConnectionStats) -> Router {
    let sessions = Sessions {
        options,
        stats,
        map: Arc::default(),
        next: Arc::default(),
    };
    let handler = |State(sessions): State<Sessions>, upgrade: WebSocketUpgrade| async move {
        configure(sessions.options, upgrade).on_upgrade(|socket| session(socket, sessions))
    };
    Router::new()
        .route("/ws", any(handler))
        .with_state(sessions)
}

async fn session(socket: WebSocket, sessions: Sessions) {
    let open = sessions.stats.connection_opened();
    let id = sessions.next.fetch_add(1, Ordering::Relaxed);
    let map = &sessions.map;
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(id, Instant::now());
    echo(socket, &sessions).await;
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&id);
    drop(open);
}

async fn echo(mut socket: WebSocket, sessions: &Sessions) {
    let Options {
        interval,
        timeout: ping_timeout,
        ..
    } = sessions.options;
    let mut last_seen = Instant::now();
    // Draws the first ping from the second half of the interval, so that connections opened
    // together are not pinged together.
    let first = Instant::now() + interval.mul_f64(1.0 - fastrand::f64() / 2.0);
    let mut ticks = interval_at(first, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outgoing = tokio::select! {
            message = socket.recv() => {
                let Some(Ok(message)) = message else {
                    return;
                };
                last_seen = Instant::now();
                match message {
                    Message::Text(_) | Message::Binary(_) => message,
                    Message::Ping(_) | Message::Pong(_) => continue,
                    Message::Close(_) => return,
                }
            }
            _ = ticks.tick() => {
                let silence = last_seen.elapsed();
                if silence >= interval + ping_timeout {
                    sessions.stats.peer_found_dead(silence);
                    return;
                }
                Message::Ping(Bytes::new())
            }
        };
        let sent = timeout(ping_timeout, socket.send(outgoing)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
