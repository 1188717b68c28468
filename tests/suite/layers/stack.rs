//! An application with both layers and a third, and the full lifecycle of its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::any;
use futures_util::future::join_all;
use h2::ext::Protocol;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tower_ws_liveness::{HeartbeatLayer, IdleTimeoutLayer, Liveness, Reason, Registry};

use crate::support::h2_client::{H2Client, H2Stream};
use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::recorder::{Event, Recorder};
use crate::support::scene::{patient, quiet};
use crate::support::{Server, ms, until, within};

/// Request headers that every client sends, for authentication and CORS.
pub(crate) const TOKEN: &str = "Bearer valid";
pub(crate) const WEBSITE: &str = "https://example.com";

/// The position of a third layer relative to the idle timeout (inner) and the heartbeat (outer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Inside,
    Between,
    Outside,
    Both,
}

impl Position {
    pub(crate) const ALL: [Self; 4] = [Self::Inside, Self::Between, Self::Outside, Self::Both];
}

/// Both layers, a handler behind them, and recorders for every hook.
pub(crate) struct Stack {
    pub(crate) heartbeat: HeartbeatLayer,
    pub(crate) idle: IdleTimeoutLayer,
    pub(crate) registry: Registry,
    pub(crate) recorder: Recorder,
    /// Records the hooks that the handler registers on each connection's `Liveness`.
    local: Recorder,
    handles_tx: mpsc::UnboundedSender<Liveness>,
    handles: Mutex<mpsc::UnboundedReceiver<Liveness>>,
    /// Pings and pongs that reached the handler. Only our layers send any.
    control_frames: Arc<AtomicUsize>,
}

impl Stack {
    /// The timeout is short enough to evict dead peers soon, and long enough for a live peer on a
    /// busy machine.
    pub(crate) fn new() -> Self {
        let recorder = Recorder::new();
        let heartbeat = quiet().interval(ms(50)).timeout(ms(1_500));
        let heartbeat = heartbeat.on_evict(recorder.hook()).build().unwrap();
        let (handles_tx, handles) = mpsc::unbounded_channel();
        Self {
            registry: heartbeat.registry(),
            heartbeat,
            idle: patient().build().unwrap(),
            recorder,
            local: Recorder::new(),
            handles_tx,
            handles: Mutex::new(handles),
            control_frames: Arc::default(),
        }
    }

    /// An echo at `/ws`, without any layer.
    pub(crate) fn routes(&self) -> Router {
        let (observe, control_frames) = (self.observer(), Arc::clone(&self.control_frames));
        let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
            observe(live);
            ws.on_upgrade(move |socket| echo(socket, control_frames))
        });
        Router::new().route("/ws", route)
    }

    /// Returns the function with which a handler registers its hook and passes on its handle.
    pub(crate) fn observer(&self) -> impl Fn(Liveness) + Clone + Send + Sync + 'static + use<> {
        let (handles_tx, local) = (self.handles_tx.clone(), self.local.clone());
        move |live| {
            let own = local.clone();
            live.on_evict(move |ev| own.record(ev));
            // The receiver may be dropped already.
            let _ = handles_tx.send(live);
        }
    }

    /// Wraps the routes in both of our layers.
    pub(crate) fn around(&self, routes: Router) -> Router {
        routes
            .layer(self.idle.clone())
            .layer(self.heartbeat.clone())
    }

    /// Wraps the routes in both of our layers, and in `layer` at this position.
    pub(crate) fn with(
        &self,
        position: Position,
        routes: Router,
        layer: impl Fn(Router) -> Router,
    ) -> Router {
        let at = |positions: &[Position], app| match positions.contains(&position) {
            true => layer(app),
            false => app,
        };
        let app = at(&[Position::Inside, Position::Both], routes);
        let app = at(&[Position::Between], app.layer(self.idle.clone()));
        let app = app.layer(self.heartbeat.clone());
        at(&[Position::Outside, Position::Both], app)
    }

    pub(crate) async fn next_live(&self) -> Liveness {
        let mut handles = self.handles.lock().await;
        within("the handler", handles.recv()).await.unwrap()
    }

    /// Serves the application and calls [`full_lifecycle_at`](Self::full_lifecycle_at).
    pub(crate) async fn full_lifecycle(&self, app: Router, path: &str) {
        let server = Server::start(app).await;
        self.full_lifecycle_at(server.addr, path).await;
    }

    /// Runs four connections over HTTP/1.1 and HTTP/2 from handshake to end. Two echo, answer pings
    /// that the handler does not see, and close. Two are dead. Each end is reported once.
    pub(crate) async fn full_lifecycle_at(&self, addr: SocketAddr, path: &str) {
        let h2 = H2Client::connect(addr).await.unwrap();
        let mut one = http1(addr, path).await;
        let one_live = self.next_live().await;
        let mut other = http2(&h2, path).await;
        let other_live = self.next_live().await;
        let dead = [
            self.answer_nothing(http1(addr, path).await).await,
            self.answer_nothing(http2(&h2, path).await).await,
        ];
        until("all are registered", || self.registry.len() == 4).await;
        echoes(&mut one).await;
        echoes(&mut other).await;
        tokio::select! {
            _ = within("two evictions", self.recorder.reached(2)) => {}
            frame = one.next() => panic!("the live client received {frame:?} over HTTP/1.1"),
            frame = other.next() => panic!("the live client received {frame:?} over HTTP/2"),
        }
        for live in &dead {
            self.evicted_once(live, Reason::HeartbeatTimeout { missed: 1 })
                .await;
        }
        for (client, live) in [(&mut one, &one_live), (&mut other, &other_live)] {
            echoes(client).await;
            assert!(client.pings >= 1 && live.stats().pongs_received() >= 1);
            client.send(&Frame::close(4001, "bye")).await.unwrap();
            assert_eq!(client.closed().await, Some(Frame::close(4001, "bye")));
            self.evicted_once(live, Reason::PeerClosed { code: Some(4001) })
                .await;
        }
        until("the registry is empty", || self.registry.is_empty()).await;
        self.recorder.stays_at(4).await;
        assert_eq!(self.local.total(), 4);
        let control_frames = self.control_frames.load(Ordering::SeqCst);
        assert_eq!(
            control_frames, 0,
            "pings and pongs that reached the handler"
        );
    }

    /// Makes this client answer nothing. Its connection stays open until the server ends it.
    async fn answer_nothing(&self, client: Client) -> Liveness {
        let live = self.next_live().await;
        let mut client = client.answering(Answer::Nothing);
        tokio::spawn(async move { client.closed().await });
        live
    }

    async fn evicted_once(&self, live: &Liveness, reason: Reason) {
        let eviction = within("evicted()", live.evicted()).await;
        assert_eq!(eviction.reason(), reason);
        for recorder in [&self.recorder, &self.local] {
            let all = recorder.all();
            let events: Vec<_> = all.iter().filter(|event| event.id == live.id()).collect();
            assert_eq!(events.len(), 1, "{events:?}");
            assert_eq!(events[0].reason, reason);
        }
    }

    /// Asserts that no connection is registered, that no layer hook was called, and that the slots
    /// taken in the registry are free again. A hook that a handler registered on its handle is
    /// called with `UpgradeFailed`.
    pub(crate) async fn assert_no_connection(&self) {
        within(
            "every handshake has released its slot",
            self.registry.wait_idle(),
        )
        .await;
        assert!(self.registry.is_empty());
        assert_eq!(self.recorder.total(), 0);
        let local = self.local.all();
        let has_failed = |event: &Event| event.reason == Reason::UpgradeFailed;
        assert!(local.iter().all(has_failed), "{local:?}");
    }
}

/// Runs the full lifecycle with this layer in every position.
pub(crate) async fn works_in_every_position(layer: impl Fn(Router) -> Router) {
    works_in(Position::ALL, layer).await;
}

pub(crate) async fn works_in<const N: usize>(
    positions: [Position; N],
    layer: impl Fn(Router) -> Router,
) {
    let all = positions.map(|position| {
        let stack = Stack::new();
        let app = stack.with(position, stack.routes(), &layer);
        async move { stack.full_lifecycle(app, "/ws").await }
    });
    join_all(all).await;
}

async fn echo(mut socket: WebSocket, control_frames: Arc<AtomicUsize>) {
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Text(_) | Message::Binary(_) => {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            Message::Ping(_) | Message::Pong(_) => {
                control_frames.fetch_add(1, Ordering::SeqCst);
            }
            Message::Close(_) => {}
        }
    }
}

/// A WebSocket client over HTTP/1.1 or HTTP/2.
pub(crate) type Client = RawClient<Box<dyn Io>>;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(crate) async fn echoes(client: &mut Client) {
    client.send(&Frame::text("hello")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("hello"));
}

/// Opens a WebSocket over HTTP/1.1.
pub(crate) async fn http1(addr: SocketAddr, path: &str) -> Client {
    let (response, upgraded) = send_http1(addr, &handshake(path)).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(!response.headers().contains_key("content-encoding"));
    RawClient::over(Box::new(upgraded.expect("an upgrade")))
}

/// Opens a WebSocket on a stream of this HTTP/2 connection.
pub(crate) async fn http2(h2: &H2Client, path: &str) -> Client {
    let (response, stream) = send_http2(h2, path).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("content-encoding"));
    RawClient::over(Box::new(stream))
}

/// An opening handshake over HTTP/1.1.
pub(crate) fn handshake(path: &str) -> Request<()> {
    Request::get(path)
        .header(HOST, "localhost")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(AUTHORIZATION, TOKEN)
        .header(ORIGIN, WEBSITE)
        .header(ACCEPT_ENCODING, "gzip")
        .body(())
        .unwrap()
}

/// Sends this request on a new connection. Returns the response and the upgraded stream, if any.
pub(crate) async fn send_http1(
    addr: SocketAddr,
    request: &Request<()>,
) -> (Response<Bytes>, Option<TokioIo<Upgraded>>) {
    let io = TcpStream::connect(addr).await.unwrap();
    io.set_nodelay(true).unwrap();
    let (mut requests, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = request.clone().map(|()| Full::<Bytes>::default());
    let response = within("the response", requests.send_request(request)).await;
    let mut response = response.unwrap();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = within("the upgrade", hyper::upgrade::on(&mut response)).await;
        let upgraded = TokioIo::new(upgraded.unwrap());
        return (response.map(|_| Bytes::new()), Some(upgraded));
    }
    let (head, body) = response.into_parts();
    let body = within("the body", body.collect()).await.unwrap();
    (Response::from_parts(head, body.to_bytes()), None)
}

/// Sends an opening handshake on a new stream.
pub(crate) async fn send_http2(h2: &H2Client, path: &str) -> (Response<()>, H2Stream) {
    let request = Request::connect(format!("http://localhost{path}"))
        .version(Version::HTTP_2)
        .extension(Protocol::from_static("websocket"))
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(AUTHORIZATION, TOKEN)
        .header(ORIGIN, WEBSITE)
        .header(ACCEPT_ENCODING, "gzip")
        .body(())
        .unwrap();
    within("the response", h2.send(request)).await.unwrap()
}

/// Asserts that an opening handshake is refused with this status over HTTP/1.1 and HTTP/2.
pub(crate) async fn refused(app: &Router, path: &str, status: StatusCode) {
    let server = Server::start(app.clone()).await;
    let (response, _) = send_http1(server.addr, &handshake(path)).await;
    assert_eq!(response.status(), status, "over HTTP/1.1");
    let h2 = H2Client::connect(server.addr).await.unwrap();
    let (response, mut stream) = send_http2(&h2, path).await;
    assert_eq!(response.status(), status, "over HTTP/2");
    let rest = stream.read_to_end(&mut Vec::new()).await;
    rest.expect("the rest of the body");
}
