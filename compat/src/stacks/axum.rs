//! axum's own extractor, on `axum::serve`.

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "axum",
    library: "axum",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::TUNGSTENITE],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let router = routes(site.pongs.clone());
    site.serve_router(router).boxed()
}

pub(super) fn routes(pongs: Pongs) -> Router {
    let route = any(async move |ws: WebSocketUpgrade| ws.on_upgrade(|socket| echo(socket, pongs)));
    Router::new().route("/ws", route)
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
