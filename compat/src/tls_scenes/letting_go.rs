//! Ends that the handler brings about are what they are without the layers, on every floor.

use std::panic::resume_unwind;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use futures_util::FutureExt;
use tower_ws_liveness::Reason;

use super::client::{End, end, open};
use super::{Scene, Server};
use crate::rig::{Rig, patient, quiet};
use crate::site::Site;
use crate::stack::{Dialect, Stack};
use crate::support::raw::Frame;

pub(super) const SCENES: &[Scene] = &[
    Scene::on_axum("a handler returns", |server| {
        lets_go(server, "return", Reason::HandlerDropped).boxed()
    }),
    Scene::on_axum("a handler panics", |server| {
        lets_go(server, "panic", Reason::HandlerDropped).boxed()
    }),
    Scene::on_axum("a handler says goodbye", |server| {
        lets_go(server, "close", Reason::ServerClosed { code: Some(4001) }).boxed()
    }),
];

/// A handler that does as the client says.
const OBEY: Stack = Stack {
    name: "a handler that obeys",
    library: "axum",
    serve: |site| serve(site).boxed(),
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

async fn lets_go(server: Server, how: &str, reason: Reason) {
    let server = server.serving(OBEY);
    let alone = Rig::bare(server.stack, server.protocol()).await;
    let alone = end_of(&alone, how).await;
    let rig = server.start(quiet(), patient()).await;
    assert_eq!(end_of(&rig, how).await, alone);
    assert_eq!(rig.ended().await, reason);
}

async fn end_of(rig: &Rig, how: &str) -> End {
    let mut client = open(rig.addr).await;
    client.send(&Frame::text(how)).await.expect("it listens");
    end(&mut client).await
}

async fn serve(site: Site) {
    let route = any(async |ws: WebSocketUpgrade| ws.on_upgrade(obey));
    site.serve_router(Router::new().route("/ws", route)).await;
}

async fn obey(mut socket: WebSocket) {
    match socket.recv().await {
        // A panic of which nobody writes a backtrace.
        Some(Ok(Message::Text(how))) if how == "panic" => resume_unwind(Box::new(how)),
        Some(Ok(Message::Text(how))) if how == "close" => {
            let close = CloseFrame {
                code: 4001,
                reason: "enough".into(),
            };
            let _ = socket.send(Message::Close(Some(close))).await;
            while let Some(Ok(_)) = socket.recv().await {}
        }
        _ => {}
    }
}
