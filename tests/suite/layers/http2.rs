//! WebSocket over HTTP/2 (RFC 8441) next to the other streams of a connection.
//!
//! Scenarios that are the same over HTTP/1.1 are in the other files, which run over both.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::routing::{MethodRouter, any, get};
use h2::ext::Protocol;
use hyper::header::{ALLOW, UPGRADE};
use hyper::server::conn::http2;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_ws_liveness::{HeartbeatLayer, Liveness, Reason};

use crate::support::h2_client::{H2Client, H2Stream};
use crate::support::h2_link::URI;
use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::Wire;
use crate::support::{Server, alive_tasks, echo, echo_route, ms, until, within};

async fn h2(addr: SocketAddr) -> H2Client {
    within("the connection", H2Client::connect(addr))
        .await
        .unwrap()
}

/// Opens a WebSocket on a new stream.
async fn open(h2: &H2Client) -> RawClient<H2Stream> {
    let opened = within("the response", h2.websocket(URI)).await;
    let (response, stream) = opened.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    RawClient::over(stream)
}

async fn open_on(scene: &mut Scene, h2: &H2Client) -> (RawClient<H2Stream>, Liveness) {
    let client = open(h2).await;
    (client, scene.next_live().await)
}

async fn echoes(client: &mut RawClient<H2Stream>, text: &str) {
    client.send(&Frame::text(text)).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text(text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_stream_is_evicted_while_its_neighbour_stays_open() {
    for missed in [1, 3] {
        let heartbeat = quiet()
            .interval(ms(50))
            .timeout(ms(1_000))
            .missed_pings(missed);
        let mut scene = Scene::start(Wire::Http2, heartbeat, patient(), echo).await;
        let h2 = h2(scene.addr()).await;
        let (mut live_client, _) = open_on(&mut scene, &h2).await;
        let (dead_client, dead) = open_on(&mut scene, &h2).await;
        let mut dead_client = dead_client.answering(Answer::Nothing);

        let reason = Reason::HeartbeatTimeout { missed };
        tokio::select! {
            event = scene.recorder.nth(1) => {
                assert_eq!((event.id, event.reason), (dead.id(), reason));
            }
            frame = live_client.next() => panic!("the live client received {frame:?}"),
        }
        assert_eq!(scene.local.nth(1).await.reason, reason);
        // The stream ends; the HTTP/2 connection stays open.
        dead_client.closed().await;
        scene.handlers_done(1).await;
        echoes(&mut live_client, "still here").await;
        let pings = live_client.pings + 3;
        live_client.live_until_ping(pings).await;
        assert_eq!(scene.registry.len(), 1);
        scene.recorder.stays_at(1).await;
        echoes(&mut open(&h2).await, "a new stream").await;
    }
}

#[tokio::test]
async fn the_end_of_the_http2_connection_evicts_each_stream_once() {
    let mut scene = Scene::start(Wire::Http2, quiet(), patient(), echo).await;
    let idle_tasks = alive_tasks();
    let h2 = h2(scene.addr()).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(open_on(&mut scene, &h2).await);
    }
    for (client, _) in &mut clients {
        echoes(client, "hello").await;
    }
    assert_eq!(scene.registry.len(), 10);
    drop(h2); // What a killed process does.
    scene.recorder.nth(10).await;
    scene.handlers_done(10).await;
    for (_, live) in &clients {
        assert_eq!(scene.recorder.count(live.id()), 1);
        assert_eq!(scene.local.count(live.id()), 1);
    }
    drop(clients);
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    assert!(scene.registry.is_empty());
    scene.recorder.stays_at(10).await;
}

/// Echoes bytes over any upgraded stream.
fn tunnel() -> MethodRouter {
    any(|mut request: Request<Body>| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut received = Vec::new();
            io.read_to_end(&mut received).await.unwrap();
            io.write_all(&received).await.unwrap();
            io.shutdown().await.unwrap();
        });
        StatusCode::OK
    })
}

/// Asserts that bytes that look like frames pass unchanged.
async fn tunnels(mut stream: H2Stream) {
    let sent = [&Frame::text("as if").masked()[..], &[0x8a, 0]].concat();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    let read = stream.read_to_end(&mut received);
    within("the echo", read).await.unwrap();
    assert_eq!(received, sent);
}

fn request(method: Method, uri: &str) -> Request<()> {
    let request = Request::builder().method(method).uri(uri);
    request.version(Version::HTTP_2).body(()).unwrap()
}

#[tokio::test]
async fn other_streams_pass_unchanged_while_a_websocket_is_open() {
    let recorder = Recorder::new();
    let heartbeat = HeartbeatLayer::builder()
        .interval(ms(20))
        .timeout(ms(10_000))
        .on_evict(recorder.hook())
        .build()
        .unwrap();
    let registry = heartbeat.registry();
    let app = Router::new()
        .route(
            "/403",
            any(|| async { (StatusCode::FORBIDDEN, "not here") }),
        )
        .route("/get", get(|| async { "here" }))
        .route("/tunnel", tunnel())
        .route("/ws", echo_route())
        // A plain CONNECT has no path.
        .fallback(tunnel())
        .layer(heartbeat);
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let h2 = h2(server.addr).await;
    let mut socket = open(&h2).await;

    for _ in 0..3 {
        for (uri, status, expected) in [
            ("http://localhost/get", StatusCode::OK, "here"),
            ("http://localhost/403", StatusCode::FORBIDDEN, "not here"),
        ] {
            let get = h2.send(request(Method::GET, uri));
            let (response, mut stream) = within("the response", get).await.unwrap();
            assert_eq!(response.status(), status);
            let mut body = String::new();
            stream.read_to_string(&mut body).await.unwrap();
            assert_eq!(body, expected);
        }
        let (response, mut stream) = h2.websocket("http://localhost/403").await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let mut body = String::new();
        stream.read_to_string(&mut body).await.unwrap();
        assert_eq!(body, "not here");

        let mut other = request(Method::CONNECT, "http://localhost/tunnel");
        other
            .extensions_mut()
            .insert(Protocol::from_static("other"));
        let plain = request(Method::CONNECT, "example.com:443");
        for connect in [other, plain] {
            let opened = within("the response", h2.send(connect)).await;
            let (response, stream) = opened.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            tunnels(stream).await;
        }
        let pings = socket.pings + 2;
        socket.live_until_ping(pings).await;
        echoes(&mut socket, "still here").await;
        assert_eq!((registry.len(), recorder.total()), (1, 0));
    }
    drop((socket, h2));
    recorder.nth(1).await;
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    assert!(registry.is_empty());
    recorder.stays_at(1).await;
}

/// RFC 9113 section 8.2.2 forbids connection-specific headers over HTTP/2, so the responses have no
/// `Upgrade`.
#[tokio::test]
async fn the_extractor_answers_with_the_status_of_what_the_request_lacks() {
    let route = || Router::new().fallback(|live: Liveness| async move { live.id().to_string() });
    let layered = Server::start(route().layer(HeartbeatLayer::default())).await;
    let bare = Server::start(route()).await;
    let mut other = request(Method::CONNECT, URI);
    other
        .extensions_mut()
        .insert(Protocol::from_static("other"));
    let table = [
        (request(Method::GET, URI), StatusCode::METHOD_NOT_ALLOWED),
        (request(Method::POST, URI), StatusCode::METHOD_NOT_ALLOWED),
        (other, StatusCode::BAD_REQUEST),
        (
            request(Method::CONNECT, "example.com:443"),
            StatusCode::BAD_REQUEST,
        ),
    ];
    for server in [&layered, &bare] {
        let h2 = h2(server.addr).await;
        for (request, status) in &table {
            let asked = within("the response", h2.send(request.clone())).await;
            let (response, _) = asked.unwrap();
            assert_eq!(response.status(), *status, "{request:?}");
            let allowed = response.headers().get(ALLOW).map(|allow| allow.as_bytes());
            let is_method = *status == StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(allowed, is_method.then_some(&b"CONNECT"[..]));
            assert!(!response.headers().contains_key(UPGRADE));
        }
        let is_layered = std::ptr::eq(server, &layered);
        let (response, _) = h2.websocket(URI).await.unwrap();
        let expected = if is_layered {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        assert_eq!(response.status(), expected);
    }
}

/// Any 2xx opens the tunnel (RFC 8441 section 5), even if no handler takes the upgrade.
#[tokio::test]
async fn a_success_whose_upgrade_is_never_taken_is_evicted_once() {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let route = any(|| async { StatusCode::NO_CONTENT });
    let server = Server::start(Router::new().route("/ws", route).layer(heartbeat)).await;
    let h2 = h2(server.addr).await;
    let (response, stream) = within("the response", h2.websocket(URI)).await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    RawClient::over(stream).closed().await;
    let reason = recorder.nth(1).await.reason;
    let is_expected = matches!(reason, Reason::HandlerDropped | Reason::UpgradeFailed);
    assert!(is_expected, "{reason:?}");
    until("the registry is empty", || registry.is_empty()).await;
    recorder.stays_at(1).await;
}

/// A server that does not offer extended CONNECT opens no WebSocket and serves other requests.
#[tokio::test]
async fn without_extended_connect_the_layers_register_nothing() {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let app = Router::new()
        .route("/get", get(|| async { "here" }))
        .fallback(tunnel())
        .layer(heartbeat);
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let service = TowerToHyperService::new(app);
    let serving =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(theirs), service);
    let serving = tokio::spawn(serving);
    let (requests, connection) = h2::client::handshake(ours).await.unwrap();
    let connection = tokio::spawn(connection);
    let send = async |request| {
        let mut requests = requests.clone().ready().await.unwrap();
        let (response, _kept) = requests.send_request(request, true).unwrap();
        within("the response", response).await.unwrap().status()
    };
    let get = request(Method::GET, "http://localhost/get");
    assert_eq!(send(get).await, StatusCode::OK);
    assert!(!requests.is_extended_connect_protocol_enabled());
    let plain = request(Method::CONNECT, "example.com:443");
    assert_eq!(send(plain).await, StatusCode::OK);
    // The layers do not register a plain CONNECT tunnel.
    assert_eq!((registry.len(), recorder.total()), (0, 0));
    drop(requests);
    within("the client", connection).await.unwrap().unwrap();
    within("the server", serving).await.unwrap().unwrap();
}
