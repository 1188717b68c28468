//! axum 0.7's extractor, on its `axum::serve` where that can be used.

use axum07::Router;
use axum07::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum07::routing::any;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::http_version::HttpVersion;
use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "axum 0.7",
    library: "axum07",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::HTTP1_ONLY, Limit::TUNGSTENITE],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let route =
        any(move |ws: WebSocketUpgrade| async move { ws.on_upgrade(|socket| echo(socket, pongs)) });
    serve_router(site, Router::new().route("/ws", route)).boxed()
}

pub(crate) async fn serve_router(site: Site, router: Router) {
    let router = match site.layers.clone() {
        Some(layers) => router.layer(layers.idle).layer(layers.heartbeat),
        None => router,
    };
    // `axum::serve` of this version accepts only a `TcpListener`, and does not offer extended
    // CONNECT.
    if site.tls.is_none() && site.http == HttpVersion::One {
        let result = axum07::serve(site.listener, router).await;
        result.expect("axum::serve does not return");
    } else {
        site.serve_auto(router).await;
    }
}

async fn echo(mut socket: WebSocket, pongs: Pongs) {
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Text(_) | Message::Binary(_) => {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            Message::Pong(_) => pongs.add(),
            Message::Ping(_) | Message::Close(_) => {}
        }
    }
}
