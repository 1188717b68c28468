//! yawc with its extractor and compression, on `axum::serve`.

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::any;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use yawc::{IncomingUpgrade, OpCode, Options, UpgradeFut};

use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "yawc",
    library: "yawc",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let route = any(async move |ws: IncomingUpgrade| upgrade(ws, pongs));
    site.serve_router(Router::new().route("/ws", route)).boxed()
}

fn upgrade(ws: IncomingUpgrade, pongs: Pongs) -> impl IntoResponse {
    let options = Options::default().with_balanced_compression();
    let (response, upgrade) = ws.upgrade(options).expect("the options are valid");
    tokio::spawn(echo(upgrade, pongs));
    response
}

async fn echo(upgrade: UpgradeFut, pongs: Pongs) {
    let Ok(mut socket) = upgrade.await else {
        return;
    };
    while let Some(frame) = socket.next().await {
        match frame.opcode() {
            OpCode::Text | OpCode::Binary => {
                if socket.send(frame).await.is_err() {
                    return;
                }
            }
            OpCode::Pong => pongs.add(),
            OpCode::Ping | OpCode::Close | OpCode::Continuation => {}
        }
    }
}
