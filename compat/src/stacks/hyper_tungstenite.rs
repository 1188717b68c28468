//! hyper-tungstenite, on hyper-util's server for both HTTP versions.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_tungstenite::HyperWebsocket;
use tower::service_fn;

use super::tokio_tungstenite::echo;
use crate::http_version::HttpVersion;
use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Of, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "hyper-util, hyper-tungstenite",
    library: "hyper-tungstenite",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[
        Limit {
            of: Of::Http(HttpVersion::Two),
            why: "`upgrade` of hyper-tungstenite wants a `Sec-WebSocket-Key`, which HTTP/2 does not have",
        },
        Limit::TUNGSTENITE,
    ],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let service = service_fn(move |request| respond(request, pongs.clone()));
    site.serve_service(service).boxed()
}

async fn respond(
    request: Request<Incoming>,
    pongs: Pongs,
) -> Result<Response<Full<Bytes>>, Infallible> {
    match hyper_tungstenite::upgrade(request, None) {
        Ok((response, socket)) => {
            tokio::spawn(open(socket, pongs));
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

async fn open(socket: HyperWebsocket, pongs: Pongs) {
    if let Ok(socket) = socket.await {
        echo(socket, pongs).await;
    }
}
