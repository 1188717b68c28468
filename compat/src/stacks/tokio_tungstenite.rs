//! tokio-tungstenite on a byte stream without an HTTP server, over the wrapped transport.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

use crate::http_version::HttpVersion;
use crate::site::{Io, Pongs, Site};
use crate::stack::{Dialect, Feature, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "below HTTP, tokio-tungstenite",
    library: "tokio-tungstenite",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[
        Limit {
            of: Of::Http(HttpVersion::Two),
            why: "`accept_async` of tokio-tungstenite speaks HTTP/1.1 alone",
        },
        Limit {
            of: Of::Feature(Feature::Idle),
            why: "below HTTP there is `HeartbeatLayer`, but no `IdleTimeoutLayer`",
        },
        Limit::TUNGSTENITE,
    ],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let heartbeat = site.layers().map(|(heartbeat, _)| heartbeat);
    site.accept(move |io| {
        let io: Box<dyn Io> = match &heartbeat {
            Some(heartbeat) => Box::new(heartbeat.wrap_server_handshake(io).0),
            None => io,
        };
        accept(io, pongs.clone())
    })
    .boxed()
}

async fn accept(io: Box<dyn Io>, pongs: Pongs) {
    if let Ok(socket) = accept_async(io).await {
        echo(socket, pongs).await;
    }
}

pub(super) async fn echo<T>(mut socket: WebSocketStream<T>, pongs: Pongs)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(_) | Message::Binary(_) => {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            Message::Pong(_) => pongs.add(),
            Message::Ping(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
}
