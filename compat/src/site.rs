//! The listener, TLS and layers that a stack is served with.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::serve::Listener;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tower::{BoxError, Service, ServiceBuilder};
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer};

use crate::http_version::HttpVersion;
use crate::tls::{Acceptor, TlsStream};

/// The listener, TLS and layers for a stack.
pub(crate) struct Site {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Acceptor>,
    /// The clients' HTTP version, for a server that supports only one.
    pub(crate) http: HttpVersion,
    /// `None` to serve the library alone.
    pub(crate) layers: Option<Layers>,
    /// Counts the pongs that reach the handler.
    pub(crate) pongs: Pongs,
}

/// The layers under test.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    pub(crate) heartbeat: HeartbeatLayer,
    pub(crate) idle: IdleTimeoutLayer,
}

/// A counter of pongs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pongs(Arc<AtomicUsize>);

impl Pongs {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Site {
    /// Serves a router behind the layers with `axum::serve`.
    pub(crate) async fn serve_router(self, router: Router) {
        let router = self.behind_layers(router);
        let result = match self.tls {
            None => axum::serve(self.listener, router).await,
            Some(tls) => {
                let listener = TlsListener(self.listener, tls);
                axum::serve(listener, router).await
            }
        };
        result.expect("axum::serve does not return");
    }

    pub(crate) fn behind_layers(&self, router: Router) -> Router {
        match self.layers.clone() {
            Some(layers) => router.layer(layers.idle).layer(layers.heartbeat),
            None => router,
        }
    }

    /// Serves a service behind the layers with hyper-util's server for both HTTP versions.
    pub(crate) async fn serve_service<S, B>(self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Default + Send + 'static,
    {
        let (heartbeat, idle) = self.layers().unzip();
        let service = ServiceBuilder::new()
            .option_layer(heartbeat)
            .option_layer(idle)
            .service(service);
        self.serve_auto(service).await;
    }

    /// Returns the layers, the outer one first.
    pub(crate) fn layers(&self) -> Option<(HeartbeatLayer, IdleTimeoutLayer)> {
        let layers = self.layers.clone()?;
        Some((layers.heartbeat, layers.idle))
    }

    /// Serves a service without adding layers, with hyper-util's server for both HTTP versions.
    pub(crate) async fn serve_auto<S, B>(self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.accept(move |io| {
            let service = TowerToHyperService::new(service.clone());
            async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                // RFC 8441 section 3: without this setting clients must not use extended CONNECT.
                server.http2().enable_connect_protocol();
                let io = TokioIo::new(io);
                let _ = server.serve_connection_with_upgrades(io, service).await;
            }
        })
        .await;
    }

    /// Accepts connections and serves each one in a task of its own.
    pub(crate) async fn accept<F, U>(self, serve: F)
    where
        F: Fn(Box<dyn Io>) -> U,
        U: Future<Output = ()> + Send + 'static,
    {
        let mut listener = self.listener;
        let Some(tls) = self.tls else {
            loop {
                let (io, _) = Listener::accept(&mut listener).await;
                tokio::spawn(serve(Box::new(io)));
            }
        };
        let mut listener = TlsListener(listener, tls);
        loop {
            let (io, _) = listener.accept().await;
            tokio::spawn(serve(Box::new(io)));
        }
    }
}

/// A boxed transport.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Accepts connections and completes their TLS handshakes, one after the other.
struct TlsListener(TcpListener, Acceptor);

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (io, addr) = Listener::accept(&mut self.0).await;
            if let Ok(io) = self.1.accept(io).await {
                return (io, addr);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
