//! poem's endpoints on hyper-util's server: poem's own accepts no layers on HTTP requests.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use http::Request;
use http::uri::Scheme;
use hyper::body::Incoming;
use poem::web::websocket::{Message, WebSocket, WebSocketStream};
use poem::web::{Data, LocalAddr, RemoteAddr};
use poem::{Endpoint, EndpointExt, IntoResponse, Response, Route, handler};

use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Stack};

pub(crate) const STACK: Stack = Stack {
    name: "poem",
    library: "poem",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::HTTP1_ONLY, Limit::TUNGSTENITE],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let app = Route::new().at("/ws", connect).data(site.pongs.clone());
    serve_app(site, app).boxed()
}

pub(crate) async fn serve_app(site: Site, app: impl Endpoint + 'static) {
    let app = Arc::new(app.map_to_response());
    // Converts each request as `poem::Server` does.
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let app = Arc::clone(&app);
        async move {
            let (local, remote) = (LocalAddr::default(), RemoteAddr::default());
            let request = (request, local, remote, Scheme::HTTP).into();
            let response: Response = app.get_response(request).await;
            Ok::<_, poem::Error>(http::Response::from(response))
        }
    });
    site.serve_service(service).await;
}

#[handler]
fn connect(ws: WebSocket, pongs: Data<&Pongs>) -> impl IntoResponse {
    let pongs = pongs.clone();
    ws.on_upgrade(|socket| echo(socket, pongs))
}

async fn echo(mut socket: WebSocketStream, pongs: Pongs) {
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
