//! sockudo-ws with compression and its default heartbeat, on `axum::serve`.

use axum::Router;
use axum::routing::any;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use sockudo_ws::axum_integration::{WebSocket, WebSocketUpgrade};
use sockudo_ws::{Compression, Config, Message};

use crate::http_version::HttpVersion;
use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "sockudo-ws",
    library: "sockudo-ws",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit {
        of: Of::Http(HttpVersion::Two),
        why: "sockudo-ws's extractor for axum accepts nothing but `GET`",
    }],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let route = any(async move |ws: WebSocketUpgrade| {
        let config = Config::builder()
            .compression(Compression::Dedicated)
            .build();
        ws.config(config).on_upgrade(|socket| echo(socket, pongs))
    });
    site.serve_router(Router::new().route("/ws", route)).boxed()
}

async fn echo(mut socket: WebSocket, pongs: Pongs) {
    while let Some(Ok(message)) = socket.next().await {
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
