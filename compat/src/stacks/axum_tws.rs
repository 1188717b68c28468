//! axum-tws, tokio-websockets behind an axum extractor, on `axum::serve`.

use axum::Router;
use axum::routing::any;
use axum_tws::{WebSocket, WebSocketUpgrade};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Feature, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "axum-tws",
    library: "axum-tws",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit {
        of: Of::Feature(Feature::Deflate),
        why: "tokio-websockets knows no extensions",
    }],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let route = any(async move |ws: WebSocketUpgrade| ws.on_upgrade(|socket| echo(socket, pongs)));
    site.serve_router(Router::new().route("/ws", route)).boxed()
}

async fn echo(mut socket: WebSocket, pongs: Pongs) {
    while let Some(Ok(message)) = socket.recv().await {
        if message.is_text() || message.is_binary() {
            if socket.send(message).await.is_err() {
                return;
            }
        } else if message.is_pong() {
            pongs.add();
        }
    }
}
