//! salvo on its own server, with the layers behind its tower adapter.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use salvo::conn::rustls::{Keycert, RustlsConfig, RustlsListener};
use salvo::conn::tcp::TcpAcceptor;
use salvo::conn::{Acceptor, Listener};
use salvo::http::{ReqBody, StatusError};
use salvo::prelude::TowerLayerCompat;
use salvo::websocket::{WebSocket, WebSocketUpgrade};
use salvo::{Handler, Request, Response, Router, Server, handler};
use tokio::net::TcpListener;

use crate::site::{Pongs, Site};
use crate::stack::{Dialect, Limit, Stack};
use crate::tls;

pub(crate) const STACK: Stack = Stack {
    name: "salvo",
    library: "salvo",
    serve,
    dialect: Dialect::Plain,
    shows_pongs: true,
    limits: &[Limit::HTTP1_ONLY, Limit::TUNGSTENITE],
};

fn serve(site: Site) -> BoxFuture<'static, ()> {
    let connect = Connect(site.pongs.clone());
    serve_goal(site, connect).boxed()
}

pub(crate) async fn serve_goal(site: Site, goal: impl Handler) {
    let mut router = Router::with_path("ws");
    if let Some(layers) = site.layers {
        router = router
            .hoop(layers.heartbeat.compat::<ReqBody>())
            .hoop(layers.idle.compat::<ReqBody>());
    }
    let router = router.goal(goal);
    let listener = Bound(site.listener);
    if site.tls.is_none() {
        return run(listener.bind().await, router).await;
    }
    let (cert, key) = tls::pem();
    let config = RustlsConfig::new(Keycert::new().cert(cert).key(key));
    run(RustlsListener::new(config, listener).bind().await, router).await;
}

async fn run(acceptor: impl Acceptor + 'static, router: Router) {
    let mut server = Server::new(acceptor);
    // RFC 8441 section 3: the request must reach the library, which refuses it.
    server.http2_mut().enable_connect_protocol();
    server.serve(router).await;
}

/// A listener that is already bound.
struct Bound(TcpListener);

impl Listener for Bound {
    type Acceptor = TcpAcceptor;

    async fn try_bind(self) -> salvo::Result<TcpAcceptor> {
        Ok(self.0.try_into()?)
    }
}

struct Connect(Pongs);

#[handler]
impl Connect {
    async fn handle(&self, req: &mut Request, res: &mut Response) -> Result<(), StatusError> {
        let pongs = self.0.clone();
        WebSocketUpgrade::new()
            .upgrade(req, res, |socket| echo(socket, pongs))
            .await
    }
}

async fn echo(mut socket: WebSocket, pongs: Pongs) {
    while let Some(Ok(message)) = socket.recv().await {
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
