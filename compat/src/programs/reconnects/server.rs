//! Minimal servers for the protocols of the reconnecting clients.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::{any, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tower_ws_liveness::{HeartbeatLayer, Reason};

use super::Ending;
use crate::programs::timing::short_heartbeat;
use crate::rig::long_heartbeat;
use crate::support::recorder::Recorder;

/// The protocol that a client needs to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientProtocol {
    /// No protocol: a client is connected once its WebSocket is open.
    Bare,
    /// `graphql-transport-ws`.
    GraphQl,
    /// Phoenix' channels, serializer version 2.
    Phoenix,
    /// SignalR's hub protocol in JSON, after its negotiation over HTTP.
    SignalR,
    /// Centrifugo's protocol in JSON.
    Centrifuge,
}

/// Terminates SignalR's messages.
const RECORD_SEPARATOR: char = '\u{1e}';

impl ClientProtocol {
    /// Returns the reply to a message of the client.
    fn reply(self, message: &str) -> Option<String> {
        let message = message.trim_end_matches(RECORD_SEPARATOR);
        let message: Value = serde_json::from_str(message).expect("JSON");
        match self {
            Self::Bare => None,
            Self::GraphQl => {
                let begins = message["type"] == "connection_init";
                begins.then(|| json!({ "type": "connection_ack" }).to_string())
            }
            Self::Phoenix => {
                let [join, number, topic] = [&message[0], &message[1], &message[2]];
                let reply = json!({ "status": "ok", "response": {} });
                Some(json!([join, number, topic, "phx_reply", reply]).to_string())
            }
            Self::SignalR => {
                let begins = message.get("protocol").is_some();
                begins.then(|| format!("{{}}{RECORD_SEPARATOR}"))
            }
            Self::Centrifuge => {
                message.get("connect")?;
                let reply = json!({ "client": "1", "version": "1" });
                Some(json!({ "id": message["id"], "connect": reply }).to_string())
            }
        }
    }
}

/// A server with one path for each ending, each behind a layer of its own.
#[derive(Debug)]
pub(super) struct EndingServer {
    pub(super) addr: SocketAddr,
    ends: Vec<(Ending, Recorder)>,
    drop_connections: Arc<Notify>,
    task: JoinHandle<()>,
}

impl EndingServer {
    pub(super) async fn start(protocol: ClientProtocol) -> Self {
        let drop_connections = Arc::new(Notify::new());
        let mut ends = Vec::new();
        let mut app = Router::new();
        for ending in Ending::ALL {
            let recorder = Recorder::new();
            // The server does not drop the connections of other endings.
            let drop_signal = match ending {
                Ending::NoFrame => Arc::clone(&drop_connections),
                _ => Arc::default(),
            };
            let layer = layer(ending, &recorder);
            app = app.nest(
                &format!("/{}", ending.name()),
                routes(protocol, drop_signal, layer),
            );
            ends.push((ending, recorder));
        }
        let bound = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = bound.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let task = tokio::spawn(async move {
            let served = axum::serve(listener, app).await;
            served.expect("axum::serve does not return");
        });
        Self {
            addr,
            ends,
            drop_connections,
            task,
        }
    }

    /// Waits until the first connection of every ending has ended with the expected reason.
    pub(super) async fn expect_ends(&self) {
        self.drop_connections.notify_waiters();
        for (ending, recorder) in &self.ends {
            let reason = match ending {
                Ending::NoFrame => Reason::HandlerDropped,
                _ => Reason::HeartbeatTimeout { missed: 1 },
            };
            assert_eq!(recorder.nth(1).await.reason, reason, "{ending:?}");
        }
    }

    /// Asserts that only the first connection of each ending has ended.
    pub(super) fn assert_ended_once(&self) {
        for (ending, recorder) in &self.ends {
            assert_eq!(recorder.total(), 1, "{ending:?}: {:?}", recorder.all());
        }
    }
}

impl Drop for EndingServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn layer(ending: Ending, recorder: &Recorder) -> HeartbeatLayer {
    let builder = match ending {
        Ending::Default => short_heartbeat(),
        Ending::Close(code, reason) => short_heartbeat().close_frame(code, reason),
        Ending::NoFrame => long_heartbeat(),
    };
    let layer = builder.on_evict(recorder.hook()).build();
    layer.expect("valid settings")
}

/// Routes for all clients: Phoenix' client appends `/websocket` to its address, and SignalR's
/// `/negotiate` for its first request.
fn routes(protocol: ClientProtocol, drop_signal: Arc<Notify>, layer: HeartbeatLayer) -> Router {
    let connect = any(async move |ws: WebSocketUpgrade| {
        ws.protocols(["graphql-transport-ws"])
            .on_upgrade(move |socket| serve(socket, protocol, drop_signal))
    });
    let negotiate = post(async || {
        let transport = json!({ "transport": "WebSockets", "transferFormats": ["Text"] });
        let answer = json!({
            "negotiateVersion": 1,
            "connectionId": "1",
            "connectionToken": "1",
            "availableTransports": [transport],
        });
        answer.to_string()
    });
    Router::new()
        .route("/", connect.clone())
        .route("/websocket", connect)
        .route("/negotiate", negotiate)
        .layer(layer)
}

async fn serve(mut socket: WebSocket, protocol: ClientProtocol, drop_signal: Arc<Notify>) {
    let dropped = drop_signal.notified();
    tokio::pin!(dropped);
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            () = &mut dropped => return,
        };
        match message {
            Some(Ok(Message::Text(text))) => {
                if let Some(reply) = protocol.reply(&text)
                    && socket.send(reply.into()).await.is_err()
                {
                    return;
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}
