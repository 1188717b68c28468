//! A library with its own heartbeat behind the layer: each receives its own pongs.

#[path = "../src/support.rs"]
mod support;

use axum::Router;
use axum::routing::any;
use futures_util::StreamExt;
use sockudo_ws::axum_integration::{WebSocket, WebSocketUpgrade};
use sockudo_ws::{Config, Message};
use support::raw::{CLOSE, Frame, PING, PONG, RawClient};
use support::recorder::Recorder;
use support::{ms, within};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, Liveness, Reason};

/// Ping interval and pong timeout of the library, in seconds. The timeout tolerates a busy machine.
const LIBRARY_INTERVAL_SECS: u32 = 1;
const LIBRARY_TIMEOUT_SECS: u32 = 3;

#[tokio::test]
async fn library_and_layer_each_receive_their_own_pongs() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(50))
        .timeout(ms(60_000))
        .on_evict(recorder.hook())
        .build()
        .expect("valid settings");
    let registry = heartbeat.registry();
    let (library_pongs, mut pongs) = unbounded_channel();
    let route = any(async move |ws: WebSocketUpgrade| {
        let config = Config::builder()
            .ping_interval(LIBRARY_INTERVAL_SECS)
            .pong_timeout(LIBRARY_TIMEOUT_SECS)
            .pong_timeout_close(4201, "the library's own timeout")
            .build();
        ws.config(config)
            .on_upgrade(|socket| listen(socket, library_pongs))
    });
    let app = Router::new()
        .route("/", route)
        .layer(IdleTimeoutLayer::new(ms(60_000)))
        .layer(heartbeat);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = listener.local_addr().expect("a bound listener");
    tokio::spawn(async move { axum::serve(listener, app).await });

    let mut client = RawClient::connect(addr, "/").await;
    // The payloads of pongs that the library passes on identify the library's own pings.
    let mut answered = Vec::new();
    let mut received_by_library = Vec::new();
    let three_rounds = async {
        while received_by_library.len() < 3 {
            tokio::select! {
                frame = client.read_frame() => {
                    let ping = frame.expect("no error").expect("no end");
                    assert_eq!(ping.opcode, PING, "{ping:?}");
                    answered.push(ping.payload.clone());
                    let pong = Frame::new(PONG, ping.payload);
                    client.send(&pong).await.expect("an open connection");
                }
                pong = pongs.recv() => received_by_library.push(pong.expect("the handler runs")),
            }
        }
    };
    within("three pings of the library's", three_rounds).await;
    assert!(
        received_by_library
            .iter()
            .all(|pong| answered.contains(pong))
    );
    let id = registry.snapshot()[0].id();
    let live: Liveness = registry.get(id).expect("an open connection");
    let stats = live.stats();
    assert!(stats.pongs_received() > 10, "{stats:?}");
    let all = stats.pongs_received() as usize + received_by_library.len();
    assert!(all <= answered.len(), "a pong reached both: {stats:?}");

    // Without pongs for its own pings, the library closes the connection.
    let library_close = async {
        loop {
            let frame = client.read_frame().await;
            let frame = frame.expect("no error").expect("a Close frame");
            if frame.opcode == CLOSE {
                return frame;
            }
        }
    };
    let close = within("the library's Close frame", library_close).await;
    assert_eq!(close, Frame::close(4201, "the library's own timeout"));
    client.send(&close).await.expect("an open connection");
    let reason = recorder.nth(1).await.reason;
    assert_eq!(reason, Reason::ServerClosed { code: Some(4201) });
}

async fn listen(mut socket: WebSocket, library_pongs: UnboundedSender<Vec<u8>>) {
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Pong(payload) = message {
            // Fails once the test has ended.
            let _ = library_pongs.send(payload.to_vec());
        }
    }
}
