//! warp's filters as a service, on hyper-util's server.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use warp::Filter;
use warp::ws::{WebSocket, Ws};

use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "warp",
    library: "warp",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::HTTP1_ONLY, Limit::TUNGSTENITE],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let routes = warp::path("ws").and(warp::ws()).map(move |ws: Ws| {
        let pongs = pongs.clone();
        ws.on_upgrade(|socket| echo(socket, pongs))
    });
    site.serve_service(warp::service(routes)).boxed()
}

async fn echo(mut socket: WebSocket, pongs: Pongs) {
    while let Some(Ok(message)) = socket.next().await {
        if message.is_pong() {
            pongs.add();
            continue;
        }
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}
