//! The echo handler on sockudo-ws's extractor for axum, with the library's own heartbeat.
//!
//! The library pings and checks deadlines while the handler reads. Its read buffer has a fixed size
//! of 64 KiB. It has no session map, and its heartbeat does not bound writes.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use sockudo_ws::axum_integration::{WebSocket, WebSocketUpgrade};
use sockudo_ws::{Config, Error, Message};
use tokio::time::Instant;

use super::connection_stats::ConnectionStats;
use super::options::Options;

pub(crate) fn app(options: Options, stats: ConnectionStats) -> Router {
    // Calibrates the library's clock, for up to 200 ms, before the first connection does.
    sockudo_ws::init_clock();
    let config = Config::builder()
        .ping_interval(whole_seconds(options.interval))
        .pong_timeout(whole_seconds(options.timeout))
        // Beyond every interval of the benches, as the layers' idle timeout.
        .idle_timeout(3600)
        .build();
    let handler = |State((config, stats)): State<(Config, ConnectionStats)>,
                   upgrade: WebSocketUpgrade| async move {
        upgrade
            .config(config)
            .on_upgrade(|socket| echo(socket, stats))
    };
    Router::new()
        .route("/ws", any(handler))
        .with_state((config, stats))
}

async fn echo(mut socket: WebSocket, stats: ConnectionStats) {
    let _open = stats.connection_opened();
    let mut last_seen = Instant::now();
    while let Some(received) = socket.recv().await {
        let message = match received {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => message,
            Ok(Message::Ping(_) | Message::Pong(_)) => {
                last_seen = Instant::now();
                continue;
            }
            Err(Error::HeartbeatTimeout) => {
                stats.peer_found_dead(last_seen.elapsed());
                return;
            }
            Ok(Message::Close(_)) | Err(_) => return,
        };
        last_seen = Instant::now();
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

/// # Panics
///
/// If `duration` has a fraction of a second, which would change the heartbeat or disable it.
fn whole_seconds(duration: Duration) -> u32 {
    assert_eq!(duration.subsec_nanos(), 0, "sockudo-ws takes seconds");
    u32::try_from(duration.as_secs()).expect("the durations of a bench are hours at most")
}
