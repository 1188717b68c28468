//! hyper's services without axum, and tokio-tungstenite over the upgraded connection.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;
use tower::{ServiceBuilder, service_fn};

use super::tokio_tungstenite::echo;
use crate::http_version::HttpVersion;
use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Stack};

/// On hyper's own servers, one for each HTTP version.
pub(crate) const ALONE: Stack = Stack {
    name: "hyper alone, tokio-tungstenite",
    library: "tokio-tungstenite",
    serve: serve_alone,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::TUNGSTENITE],
};

/// On hyper-util's server for both HTTP versions.
pub(crate) const AUTO: Stack = Stack {
    name: "hyper-util, tokio-tungstenite",
    serve: serve_auto,
    ..ALONE
};

fn serve_auto(site: Site) -> BoxFuture<'static, ()> {
    let pongs = site.pongs.clone();
    let service = service_fn(move |request| respond(request, pongs.clone()));
    site.serve_service(service).boxed()
}

fn serve_alone(site: Site) -> BoxFuture<'static, ()> {
    let (pongs, http) = (site.pongs.clone(), site.http);
    let (heartbeat, idle) = site.layers().unzip();
    let service = ServiceBuilder::new()
        .option_layer(heartbeat)
        .option_layer(idle)
        .service(service_fn(move |request| respond(request, pongs.clone())));
    site.accept(move |io| {
        let (io, service) = (TokioIo::new(io), TowerToHyperService::new(service.clone()));
        async move {
            let result = match http {
                HttpVersion::One => {
                    let connection = http1::Builder::new().serve_connection(io, service);
                    connection.with_upgrades().await
                }
                HttpVersion::Two => {
                    http2::Builder::new(TokioExecutor::new())
                        // Without this setting clients must not use extended CONNECT (RFC 8441
                        // section 3).
                        .enable_connect_protocol()
                        .serve_connection(io, service)
                        .await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "the end of a connection");
            }
        }
    })
    .boxed()
}

async fn respond(
    mut request: Request<Incoming>,
    pongs: Pongs,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let response = if request.version() == Version::HTTP_2 {
        // RFC 8441 section 5: the response has no `sec-websocket-accept`.
        Response::default()
    } else {
        match create_response_with_body(&request, Empty::default) {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%error, "not an opening handshake");
                let mut response = Response::default();
                *response.status_mut() = StatusCode::BAD_REQUEST;
                return Ok(response);
            }
        }
    };
    tokio::spawn(open(hyper::upgrade::on(&mut request), pongs));
    Ok(response)
}

async fn open(upgrade: OnUpgrade, pongs: Pongs) {
    if let Ok(upgraded) = upgrade.await {
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        echo(socket, pongs).await;
    }
}
