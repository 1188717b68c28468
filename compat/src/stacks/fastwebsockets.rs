//! fastwebsockets with its extractor, on `axum::serve`.

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::any;
use fastwebsockets::upgrade::{IncomingUpgrade, UpgradeFut};
use fastwebsockets::{FragmentCollector, OpCode, WebSocketError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::http_version::HttpVersion;
use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Feature, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "fastwebsockets",
    library: "fastwebsockets",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: LIMITS,
};

pub(super) const LIMITS: &[Limit] = &[
    Limit {
        of: Of::Http(HttpVersion::Two),
        why: "`upgrade` of fastwebsockets wants a `Sec-WebSocket-Key`, which HTTP/2 does not have",
    },
    Limit {
        of: Of::Feature(Feature::Deflate),
        why: "fastwebsockets knows no extensions",
    },
];

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let route = any(async move |ws: IncomingUpgrade| upgrade(ws, pongs));
    site.serve_router(Router::new().route("/ws", route)).boxed()
}

fn upgrade(ws: IncomingUpgrade, pongs: Pongs) -> impl IntoResponse {
    let (response, upgrade) = ws.upgrade().expect("`upgrade` never fails");
    tokio::spawn(async move {
        if let Err(error) = echo(upgrade, pongs).await {
            tracing::debug!(%error, "the end of a WebSocket");
        }
    });
    response
}

async fn echo(upgrade: UpgradeFut, pongs: Pongs) -> Result<(), WebSocketError> {
    let mut socket = FragmentCollector::new(upgrade.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            OpCode::Pong => pongs.add(),
            OpCode::Ping | OpCode::Continuation => {}
        }
    }
}
