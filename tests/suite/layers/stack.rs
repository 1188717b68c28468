//! Both of our layers in one application with somebody else's, and the whole life of its connections.

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

/// What every client says of itself: what authentication, compression and CORS look for.
pub(crate) const TOKEN: &str = "Bearer let-me-in";
pub(crate) const WEBSITE: &str = "https://example.com";

/// Where a layer is, as seen from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Inside,
    Between,
    Outside,
    Both,
}

impl Place {
    pub(crate) const ALL: [Self; 4] = [Self::Inside, Self::Between, Self::Outside, Self::Both];
}

/// Our layers, a handler behind them, and everybody who is told of something.
pub(crate) struct Stack {
    pub(crate) heartbeat: HeartbeatLayer,
    pub(crate) idle: IdleTimeoutLayer,
    pub(crate) registry: Registry,
    pub(crate) recorder: Recorder,
    /// The hooks of the connections' own handles.
    local: Recorder,
    tell: mpsc::UnboundedSender<Liveness>,
    lives: Mutex<mpsc::UnboundedReceiver<Liveness>>,
    /// The pings and pongs that the handler got to see. Nobody sends any but for our layers.
    strange: Arc<AtomicUsize>,
}

impl Stack {
    /// A heartbeat that evicts the dead soon, and spares whoever answers on a busy machine.
    pub(crate) fn new() -> Self {
        let recorder = Recorder::new();
        let heartbeat = quiet().interval(ms(50)).timeout(ms(1_500));
        let heartbeat = heartbeat.on_evict(recorder.hook()).build().unwrap();
        let (tell, lives) = mpsc::unbounded_channel();
        Self {
            registry: heartbeat.registry(),
            heartbeat,
            idle: patient().build().unwrap(),
            recorder,
            local: Recorder::new(),
            tell,
            lives: Mutex::new(lives),
            strange: Arc::default(),
        }
    }

    /// An echo at `/ws`, of which no layer is around yet.
    pub(crate) fn routes(&self) -> Router {
        let (note, strange) = (self.note(), Arc::clone(&self.strange));
        let route = any(move |ws: WebSocketUpgrade, live: Liveness| async move {
            note(live);
            ws.on_upgrade(move |socket| echo(socket, strange))
        });
        Router::new().route("/ws", route)
    }

    /// What a handler does with its handle.
    pub(crate) fn note(&self) -> impl Fn(Liveness) + Clone + Send + Sync + 'static + use<> {
        let (tell, local) = (self.tell.clone(), self.local.clone());
        move |live| {
            let own = local.clone();
            live.on_evict(move |ev| own.record(ev));
            // Nobody may be listening any more.
            let _ = tell.send(live);
        }
    }

    /// The routes in both of our layers.
    pub(crate) fn around(&self, routes: Router) -> Router {
        routes
            .layer(self.idle.clone())
            .layer(self.heartbeat.clone())
    }

    /// The routes in both of our layers, and in somebody else's at this place.
    pub(crate) fn with(
        &self,
        place: Place,
        routes: Router,
        layer: impl Fn(Router) -> Router,
    ) -> Router {
        let at = |places: &[Place], app| match places.contains(&place) {
            true => layer(app),
            false => app,
        };
        let app = at(&[Place::Inside, Place::Both], routes);
        let app = at(&[Place::Between], app.layer(self.idle.clone()));
        let app = app.layer(self.heartbeat.clone());
        at(&[Place::Outside, Place::Both], app)
    }

    pub(crate) async fn next_live(&self) -> Liveness {
        let mut lives = self.lives.lock().await;
        within("the handler", lives.recv()).await.unwrap()
    }

    /// Whole lives in this application. See [`lives_and_dies_at`](Self::lives_and_dies_at).
    pub(crate) async fn lives_and_dies(&self, app: Router, path: &str) {
        let server = Server::start(app).await;
        self.lives_and_dies_at(server.addr, path).await;
    }

    /// Whole lives over HTTP/1.1 and HTTP/2: echo, pings that nobody sees, a death and a Close, each
    /// of them told of once.
    pub(crate) async fn lives_and_dies_at(&self, addr: SocketAddr, path: &str) {
        let h2 = H2Client::connect(addr).await.unwrap();
        let mut one = http1(addr, path).await;
        let one_live = self.next_live().await;
        let mut other = http2(&h2, path).await;
        let other_live = self.next_live().await;
        let dead = [
            self.dead(http1(addr, path).await).await,
            self.dead(http2(&h2, path).await).await,
        ];
        until("all are in", || self.registry.len() == 4).await;
        echoes(&mut one).await;
        echoes(&mut other).await;
        tokio::select! {
            _ = within("two evictions", self.recorder.reached(2)) => {}
            frame = one.next() => panic!("the living was sent {frame:?} over HTTP/1.1"),
            frame = other.next() => panic!("the living was sent {frame:?} over HTTP/2"),
        }
        for live in &dead {
            self.told_once(live, Reason::HeartbeatTimeout { missed: 1 })
                .await;
        }
        for (client, live) in [(&mut one, &one_live), (&mut other, &other_live)] {
            echoes(client).await;
            assert!(client.pings >= 1 && live.stats().pongs_received() >= 1);
            client.send(&Frame::close(4001, "bye")).await.unwrap();
            assert_eq!(client.closed().await, Some(Frame::close(4001, "bye")));
            self.told_once(live, Reason::PeerClosed { code: Some(4001) })
                .await;
        }
        until("nobody is left", || self.registry.is_empty()).await;
        self.recorder.stays_at(4).await;
        assert_eq!(self.local.total(), 4);
        let strange = self.strange.load(Ordering::SeqCst);
        assert_eq!(strange, 0, "pings and pongs that the handler saw");
    }

    /// A client that answers nothing. It stays open until the server ends it.
    async fn dead(&self, client: Client) -> Liveness {
        let live = self.next_live().await;
        let mut client = client.answering(Answer::Nothing);
        tokio::spawn(async move { client.closed().await });
        live
    }

    async fn told_once(&self, live: &Liveness, reason: Reason) {
        let eviction = within("evicted()", live.evicted()).await;
        assert_eq!(eviction.reason(), reason);
        for recorder in [&self.recorder, &self.local] {
            let all = recorder.all();
            let told: Vec<_> = all.iter().filter(|event| event.id == live.id()).collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!(told[0].reason, reason);
        }
    }

    /// Nobody is in, nobody was told of, and the places that were asked for are free again. Only what
    /// a handler has asked for on its handle, it is told: that there will be no connection.
    pub(crate) async fn untouched(&self) {
        within(
            "nothing is left of any handshake",
            self.registry.wait_idle(),
        )
        .await;
        assert!(self.registry.is_empty());
        assert_eq!(self.recorder.total(), 0);
        let local = self.local.all();
        let is_none = |event: &Event| event.reason == Reason::UpgradeFailed;
        assert!(local.iter().all(is_none), "{local:?}");
    }
}

/// Whole lives behind this layer, wherever it is.
pub(crate) async fn works_everywhere(layer: impl Fn(Router) -> Router) {
    works_at(Place::ALL, layer).await;
}

pub(crate) async fn works_at<const N: usize>(places: [Place; N], layer: impl Fn(Router) -> Router) {
    let all = places.map(|place| {
        let stack = Stack::new();
        let app = stack.with(place, stack.routes(), &layer);
        async move { stack.lives_and_dies(app, "/ws").await }
    });
    join_all(all).await;
}

async fn echo(mut socket: WebSocket, strange: Arc<AtomicUsize>) {
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Text(_) | Message::Binary(_) => {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            Message::Ping(_) | Message::Pong(_) => {
                strange.fetch_add(1, Ordering::SeqCst);
            }
            Message::Close(_) => {}
        }
    }
}

/// A WebSocket of either protocol.
pub(crate) type Client = RawClient<Box<dyn Io>>;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(crate) async fn echoes(client: &mut Client) {
    client.send(&Frame::text("hello")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("hello"));
}

/// Opens a WebSocket over HTTP/1.1.
pub(crate) async fn http1(addr: SocketAddr, path: &str) -> Client {
    let (response, upgraded) = ask_http1(addr, &handshake(path)).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(!response.headers().contains_key("content-encoding"));
    RawClient::over(Box::new(upgraded.expect("an upgrade")))
}

/// Opens a WebSocket on a stream of this HTTP/2 connection.
pub(crate) async fn http2(h2: &H2Client, path: &str) -> Client {
    let (response, stream) = ask_http2(h2, path).await;
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

/// Sends this request on a connection of its own, for the response and what it was upgraded to.
pub(crate) async fn ask_http1(
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

/// Sends an opening handshake on a stream of its own.
pub(crate) async fn ask_http2(h2: &H2Client, path: &str) -> (Response<()>, H2Stream) {
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

/// Asks for a WebSocket over both protocols, and is refused with this status by both.
pub(crate) async fn refused(app: &Router, path: &str, status: StatusCode) {
    let server = Server::start(app.clone()).await;
    let (response, _) = ask_http1(server.addr, &handshake(path)).await;
    assert_eq!(response.status(), status, "over HTTP/1.1");
    let h2 = H2Client::connect(server.addr).await.unwrap();
    let (response, mut stream) = ask_http2(&h2, path).await;
    assert_eq!(response.status(), status, "over HTTP/2");
    let rest = stream.read_to_end(&mut Vec::new()).await;
    rest.expect("the whole of the body");
}
