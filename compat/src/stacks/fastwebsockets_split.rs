//! fastwebsockets on hyper, its socket split between a reading and a writing task.

use std::convert::Infallible;

use bytes::Bytes;
use fastwebsockets::upgrade::{self, UpgradeFut};
use fastwebsockets::{FragmentCollectorRead, Frame, OpCode, WebSocketError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tower::service_fn;

use super::fastwebsockets::LIMITS;
use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "split fastwebsockets",
    library: "fastwebsockets",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: LIMITS,
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let service = service_fn(move |request| respond(request, pongs.clone()));
    site.serve_service(service).boxed()
}

async fn respond(
    request: Request<Incoming>,
    pongs: Pongs,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    match upgrade::upgrade(request) {
        Ok((response, upgrade)) => {
            tokio::spawn(async move {
                if let Err(error) = echo(upgrade, pongs).await {
                    tracing::debug!(%error, "the end of a WebSocket");
                }
            });
            Ok(response)
        }
        Err(error) => {
            tracing::debug!(%error, "not an opening handshake");
            let mut response = Response::default();
            *response.status_mut() = StatusCode::BAD_REQUEST;
            Ok(response)
        }
    }
}

async fn echo(upgrade: UpgradeFut, pongs: Pongs) -> Result<(), WebSocketError> {
    let (reader, mut writer) = upgrade.await?.split(tokio::io::split);
    let (frames, mut queue) = mpsc::channel::<Frame<'static>>(16);
    tokio::spawn(async move {
        while let Some(frame) = queue.recv().await {
            writer.write_frame(frame).await?;
        }
        Ok::<_, WebSocketError>(())
    });

    let mut reader = FragmentCollectorRead::new(reader);
    // Sends replies to pings and Close frames.
    let mut respond = |frame| {
        let frames = frames.clone();
        async move { frames.send(frame).await }
    };
    loop {
        let frame = reader.read_frame(&mut respond).await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => {
                if frames.send(frame).await.is_err() {
                    return Ok(());
                }
            }
            OpCode::Pong => pongs.add(),
            OpCode::Ping | OpCode::Continuation => {}
        }
    }
}
