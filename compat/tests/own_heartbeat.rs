//! A library that pings by itself, behind a layer that does so too: each gets the pongs for its own
//! pings, and for no others.

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

/// The library's times, in seconds. The latter is not to be missed by a client on a busy machine.
const INTERVAL: u32 = 1;
const TIMEOUT: u32 = 3;

#[tokio::test]
async fn each_gets_its_own_pongs() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(50))
        .timeout(ms(60_000))
        .on_evict(recorder.hook())
        .build()
        .expect("settings of a test");
    let registry = heartbeat.registry();
    let (tell, mut pongs) = unbounded_channel();
    let route = any(async move |ws: WebSocketUpgrade| {
        let config = Config::builder()
            .ping_interval(INTERVAL)
            .pong_timeout(TIMEOUT)
            .pong_timeout_close(4201, "the library's own verdict")
            .build();
        ws.config(config).on_upgrade(|socket| listen(socket, tell))
    });
    let app = Router::new()
        .route("/", route)
        .layer(IdleTimeoutLayer::new(ms(60_000)))
        .layer(heartbeat);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = listener.local_addr().expect("a bound listener");
    tokio::spawn(async move { axum::serve(listener, app).await });

    let mut client = RawClient::connect(addr, "/").await;
    // The library's pings are told from ours by the pongs that it is shown.
    let mut answered = Vec::new();
    let mut shown = Vec::new();
    let three_rounds = async {
        while shown.len() < 3 {
            tokio::select! {
                frame = client.read_frame() => {
                    let ping = frame.expect("no error").expect("no end");
                    assert_eq!(ping.opcode, PING, "{ping:?}");
                    answered.push(ping.payload.clone());
                    let pong = Frame::new(PONG, ping.payload);
                    client.send(&pong).await.expect("an open connection");
                }
                pong = pongs.recv() => shown.push(pong.expect("the handler lives")),
            }
        }
    };
    within("three pings of the library's", three_rounds).await;
    assert!(shown.iter().all(|pong| answered.contains(pong)));
    let id = registry.snapshot()[0].id();
    let live: Liveness = registry.get(id).expect("an open connection");
    let stats = live.stats();
    assert!(stats.pongs_received() > 10, "{stats:?}");
    let all = stats.pongs_received() as usize + shown.len();
    assert!(all <= answered.len(), "a pong was given to both: {stats:?}");

    // Where nobody answers the library, it is the library that ends it.
    let verdict = async {
        loop {
            let frame = client.read_frame().await;
            let frame = frame.expect("no error").expect("a Close frame");
            if frame.opcode == CLOSE {
                return frame;
            }
        }
    };
    let close = within("the library's verdict", verdict).await;
    assert_eq!(close, Frame::close(4201, "the library's own verdict"));
    client.send(&close).await.expect("an open connection");
    let reason = recorder.nth(1).await.reason;
    assert_eq!(reason, Reason::ServerClosed { code: Some(4201) });
}

async fn listen(mut socket: WebSocket, tell: UnboundedSender<Vec<u8>>) {
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Pong(payload) = message {
            // Fails at the end of the test.
            let _ = tell.send(payload.to_vec());
        }
    }
}
