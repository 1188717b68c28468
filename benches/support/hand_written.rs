//! The heartbeat that people write into their handlers, written well: one `select!`, an interval, the
//! last sign of life, a map of the sessions, bounded writes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::account::Account;
use super::options::{Options, answer};

#[derive(Clone)]
struct Sessions {
    options: Options,
    account: Account,
    map: Arc<Mutex<HashMap<u64, Instant>>>,
    next: Arc<AtomicU64>,
}

pub(crate) fn app(options: Options, account: Account) -> Router {
    let sessions = Sessions {
        options,
        account,
        map: Arc::default(),
        next: Arc::default(),
    };
    let handler = |State(sessions): State<Sessions>, upgrade: WebSocketUpgrade| async move {
        answer(sessions.options, upgrade).on_upgrade(|socket| session(socket, sessions))
    };
    Router::new()
        .route("/ws", any(handler))
        .with_state(sessions)
}

async fn session(socket: WebSocket, sessions: Sessions) {
    let entry = sessions.account.enter();
    let id = sessions.next.fetch_add(1, Ordering::Relaxed);
    let map = &sessions.map;
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(id, Instant::now());
    echo(socket, &sessions).await;
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&id);
    drop(entry);
}

async fn echo(mut socket: WebSocket, sessions: &Sessions) {
    let Options {
        interval,
        timeout: patience,
        ..
    } = sessions.options;
    let mut last_seen = Instant::now();
    // The first ping at a random point of the interval, so that connections that came together are
    // not pinged together.
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
                if silence >= interval + patience {
                    sessions.account.found_dead(silence);
                    return;
                }
                Message::Ping(Bytes::new())
            }
        };
        let sent = timeout(patience, socket.send(outgoing)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
