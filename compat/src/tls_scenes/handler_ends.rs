//! Ends caused by the handler look the same to the client with and without the layers.

use std::panic::resume_unwind;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use futures_util::FutureExt;
use tower_ws_liveness::Reason;

use super::client::{ConnectionEnd, open, read_to_end};
use super::{Scene, TlsServer};
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::support::raw::Frame;

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum("a handler returns", |server| {
        end_by_handler(server, "return", Reason::HandlerDropped).boxed()
    }),
    Scene::on_axum("a handler panics", |server| {
        end_by_handler(server, "panic", Reason::HandlerDropped).boxed()
    }),
    Scene::on_axum("a handler sends a Close frame", |server| {
        end_by_handler(server, "close", Reason::ServerClosed { code: Some(4001) }).boxed()
    }),
];

/// A stack whose handler ends in the way that the client requests.
const ENDS_ON_REQUEST: Stack = Stack {
    name: "a handler that ends on request",
    library: "axum",
    serve: |site| serve(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

async fn end_by_handler(server: TlsServer, request: &str, reason: Reason) {
    let server = server.serving(ENDS_ON_REQUEST);
    let bare = Rig::bare(server.stack, server.protocol()).await;
    let expected = end_of(&bare, request).await;
    let rig = server.start(long_heartbeat(), long_idle()).await;
    assert_eq!(end_of(&rig, request).await, expected);
    assert_eq!(rig.end_reason().await, reason);
}

async fn end_of(rig: &Rig, request: &str) -> ConnectionEnd {
    let mut client = open(rig.addr).await;
    client
        .send(&Frame::text(request))
        .await
        .expect("an open connection");
    read_to_end(&mut client).await
}

async fn serve(site: Site) {
    let route = any(async |ws: WebSocketUpgrade| ws.on_upgrade(end_on_request));
    site.serve_router(Router::new().route("/ws", route)).await;
}

async fn end_on_request(mut socket: WebSocket) {
    match socket.recv().await {
        // `resume_unwind` panics without calling the panic hook, which would print a backtrace.
        Some(Ok(Message::Text(request))) if request == "panic" => resume_unwind(Box::new(request)),
        Some(Ok(Message::Text(request))) if request == "close" => {
            let close = CloseFrame {
                code: 4001,
                reason: "done".into(),
            };
            let _ = socket.send(Message::Close(Some(close))).await;
            while let Some(Ok(_)) = socket.recv().await {}
        }
        _ => {}
    }
}
