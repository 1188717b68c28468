//! Minimal servers of the clients' protocols: as much as each needs to connect.

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
use crate::programs::patience::impatient;
use crate::rig::quiet;
use crate::support::recorder::Recorder;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No protocol: a client is connected when its WebSocket is open.
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

/// Ends SignalR's messages.
const RECORD_SEPARATOR: char = '\u{1e}';

impl Dialect {
    /// The server's answer to this message of the client's.
    fn answer(self, message: &str) -> Option<String> {
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

/// One server for all endings, each at a path and behind a layer of its own.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    ends: Vec<(Ending, Recorder)>,
    drop_connections: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(dialect: Dialect) -> Self {
        let drop_connections = Arc::new(Notify::new());
        let mut ends = Vec::new();
        let mut app = Router::new();
        for ending in Ending::ALL {
            let recorder = Recorder::new();
            // The connections of other endings are not dropped by the server.
            let until = match ending {
                Ending::NoFrame => Arc::clone(&drop_connections),
                _ => Arc::default(),
            };
            let layer = layer(ending, &recorder);
            app = app.nest(
                &format!("/{}", ending.word()),
                routes(dialect, until, layer),
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

    /// Waits until the first connection of every ending has ended as it should, while the client is
    /// stopped.
    pub(super) async fn ended(&self) {
        self.drop_connections.notify_waiters();
        for (ending, recorder) in &self.ends {
            let reason = match ending {
                Ending::NoFrame => Reason::HandlerDropped,
                _ => Reason::HeartbeatTimeout { missed: 1 },
            };
            assert_eq!(recorder.nth(1).await.reason, reason, "{ending:?}");
        }
    }

    /// Asserts that no connection but the first of each ending has ended.
    pub(super) fn assert_ended_once(&self) {
        for (ending, recorder) in &self.ends {
            assert_eq!(recorder.total(), 1, "{ending:?}: {:?}", recorder.all());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn layer(ending: Ending, recorder: &Recorder) -> HeartbeatLayer {
    let builder = match ending {
        Ending::Default => impatient(),
        Ending::Close(code, reason) => impatient().close_frame(code, reason),
        Ending::NoFrame => quiet(),
    };
    let layer = builder.on_evict(recorder.hook()).build();
    layer.expect("settings of a scene")
}

/// Phoenix' client adds `/websocket` to the address that it is given, SignalR's `/negotiate` for the
/// request that comes first.
fn routes(dialect: Dialect, until: Arc<Notify>, layer: HeartbeatLayer) -> Router {
    let connect = any(async move |ws: WebSocketUpgrade| {
        ws.protocols(["graphql-transport-ws"])
            .on_upgrade(move |socket| talk(socket, dialect, until))
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

async fn talk(mut socket: WebSocket, dialect: Dialect, until: Arc<Notify>) {
    let dropped = until.notified();
    tokio::pin!(dropped);
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            () = &mut dropped => return,
        };
        match message {
            Some(Ok(Message::Text(text))) => {
                if let Some(answer) = dialect.answer(&text)
                    && socket.send(answer.into()).await.is_err()
                {
                    return;
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}
