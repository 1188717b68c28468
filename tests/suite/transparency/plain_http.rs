//! Requests that open no WebSocket pass unchanged, uncounted, and without leaking a task.
//!
//! These tests use HTTP/1.1, where an upgrade depends on headers. `layers/http2.rs` covers extended
//! CONNECT.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tower_ws_liveness::{HeartbeatLayer, Liveness, Reason, Registry};

use crate::support::raw::{Frame, RawClient};
use crate::support::recorder::Recorder;
use crate::support::scene::{patient, quiet};
use crate::support::{Server, alive_tasks, echo, echo_route, until, within};

/// Both layers around these routes, with one recorder and one registry.
fn layered(routes: Router) -> (Router, Recorder, Registry) {
    let recorder = Recorder::new();
    let heartbeat = quiet().on_evict(recorder.hook()).build().unwrap();
    let registry = heartbeat.registry();
    let idle = patient().on_evict(recorder.hook()).build().unwrap();
    (routes.layer(idle).layer(heartbeat), recorder, registry)
}

/// A persistent HTTP/1.1 connection.
struct Http {
    requests: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Http {
    async fn connect(addr: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
        let (requests, connection) = handshake(io).await.unwrap();
        let connection = tokio::spawn(connection.with_upgrades());
        Self {
            requests,
            connection,
        }
    }

    async fn send(&mut self, request: hyper::Request<Full<Bytes>>) -> Response<Bytes> {
        within("the connection", self.requests.ready())
            .await
            .unwrap();
        let response = within("the response", self.requests.send_request(request)).await;
        let (head, body) = response.unwrap().into_parts();
        let body = within("the body", body.collect()).await.unwrap().to_bytes();
        Response::from_parts(head, body)
    }

    async fn close(self) {
        drop(self.requests);
        within("the connection's end", self.connection)
            .await
            .unwrap()
            .unwrap();
    }
}

fn request(path: &str, body: impl Into<Bytes>) -> hyper::Request<Full<Bytes>> {
    hyper::Request::post(path)
        .header(HOST, "localhost")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A request for an upgrade to WebSocket.
fn upgrade(path: &str, version: &str) -> hyper::Request<Full<Bytes>> {
    hyper::Request::get(path)
        .header(HOST, "localhost")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header("sec-websocket-version", version)
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Full::default())
        .unwrap()
}

fn refusing(status: StatusCode) -> MethodRouter<(), Infallible> {
    any(move || async move { (status, [("x-kept", "yes")], "not here") })
}

#[tokio::test]
async fn refused_upgrades_and_ordinary_requests_leave_nothing_behind() {
    let (app, recorder, registry) = layered(
        Router::new()
            .route("/plain", get(|| async { "plain" }))
            .route(
                "/post",
                post(|body: Body| async move { Response::new(body) }),
            )
            .route("/200", refusing(StatusCode::OK))
            .route("/426", refusing(StatusCode::UPGRADE_REQUIRED))
            .route("/403", refusing(StatusCode::FORBIDDEN))
            .route("/ws", echo_route()),
    );
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let mut http = Http::connect(server.addr).await;

    let mut plain = request("/plain", "");
    *plain.method_mut() = hyper::Method::GET;
    let response = http.send(plain).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.body(), "plain");
    let open_tasks = alive_tasks();

    let body: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let response = http.send(request("/post", body.clone())).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(*response.body() == body, "the body changed");

    for _ in 0..10 {
        for (path, status) in [
            ("/200", StatusCode::OK),
            ("/426", StatusCode::UPGRADE_REQUIRED),
            ("/403", StatusCode::FORBIDDEN),
        ] {
            let response = http.send(upgrade(path, "13")).await;
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["x-kept"], "yes");
            assert_eq!(response.body(), "not here");
        }
        // axum's extractor refuses this version.
        let response = http.send(upgrade("/ws", "12")).await;
        assert!(response.status().is_client_error(), "{response:?}");
        let response = http.send(upgrade("/nowhere", "13")).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let mut other = upgrade("/200", "13");
        other
            .headers_mut()
            .insert(UPGRADE, "other".parse().unwrap());
        let response = http.send(other).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.body(), "not here");
        assert!(registry.is_empty());
    }
    // The HTTP connection is still open and serves with no more tasks than before.
    until("the tasks of the refused upgrades have ended", || {
        alive_tasks() <= open_tasks
    })
    .await;

    http.close().await;
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}

#[tokio::test]
async fn an_upgrade_succeeds_on_a_connection_on_which_others_were_refused() {
    let (app, recorder, registry) = layered(
        Router::new()
            .route("/403", refusing(StatusCode::FORBIDDEN))
            .route("/ws", echo_route()),
    );
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let mut http = Http::connect(server.addr).await;
    let response = http.send(upgrade("/403", "13")).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);

    let response = http.requests.send_request(upgrade("/ws", "13"));
    let response = within("the response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = within("the upgrade", hyper::upgrade::on(response)).await;
    let mut client = RawClient::over(TokioIo::new(upgraded.unwrap()));
    client.send(&Frame::text("hello")).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text("hello"));
    assert_eq!(registry.len(), 1);
    drop((client, http));
    // Each layer has the hook.
    for n in [1, 2] {
        assert_eq!(recorder.nth(n).await.reason, Reason::PeerVanished);
    }
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    recorder.stays_at(2).await;
}

/// Middleware that replaces an upgrade response by a 403.
async fn forbid(State(body): State<&'static str>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    (StatusCode::FORBIDDEN, body).into_response()
}

#[tokio::test]
async fn an_upgrade_that_middleware_replaces_is_not_a_connection() {
    let routes = Router::new().route("/ws", echo_route());
    let routes = routes.layer(middleware::from_fn_with_state("replaced", forbid));
    let (app, recorder, registry) = layered(routes);
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let mut http = Http::connect(server.addr).await;
    for _ in 0..5 {
        let response = http.send(upgrade("/ws", "13")).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.body(), "replaced");
    }
    http.close().await;
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}

#[tokio::test]
async fn an_upgrade_replaced_outside_the_layers_leaves_no_connection() {
    let (app, recorder, registry) = layered(Router::new().route("/ws", echo_route()));
    let app = app.layer(middleware::from_fn_with_state("replaced", forbid));
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let mut http = Http::connect(server.addr).await;
    let response = http.send(upgrade("/ws", "13")).await;
    assert_eq!(response.body(), "replaced");
    http.close().await;
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    assert!(registry.is_empty());
    // The layers saw the 101, so each of them may report its end once.
    let ids: Vec<_> = recorder.all().iter().map(|event| event.id).collect();
    assert!(
        ids.len() <= 2 && ids.iter().all(|id| *id == ids[0]),
        "{ids:?}"
    );
}

/// Echoes in upper case over an upgrade to another protocol. The handler downcasts the upgrade to
/// the TCP stream, which succeeds only if no layer has wrapped it.
async fn shout(mut request: Request) -> Response {
    assert_eq!(request.headers()[UPGRADE], "shout/1");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let parts = downcast::<TokioIo<TcpStream>>(upgrade.await.unwrap());
        let parts = parts.expect("the unwrapped TCP stream");
        let mut received = parts.read_buf.to_vec();
        let mut io = parts.io.into_inner();
        io.read_to_end(&mut received).await.unwrap();
        received.make_ascii_uppercase();
        io.write_all(&received).await.unwrap();
        io.shutdown().await.unwrap();
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, "shout/1")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

#[tokio::test]
async fn an_upgrade_to_another_protocol_passes_unchanged() {
    let (app, recorder, registry) = layered(Router::new().route("/shout", get(shout)));
    let server = Server::start(app).await;
    let idle_tasks = alive_tasks();
    let mut io = TcpStream::connect(server.addr).await.unwrap();
    io.write_all(
        b"GET /shout HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: shout/1\r\n\r\n",
    )
    .await
    .unwrap();
    // Some of the bytes look like frames.
    let sent = [
        &b"hello "[..],
        &Frame::text("frame").masked(),
        &[0x89, 0, 0x8a, 0],
    ]
    .concat();
    io.write_all(&sent).await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within("the shout", io.read_to_end(&mut answer))
        .await
        .unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    assert_eq!(answer[end..], sent.to_ascii_uppercase());
    drop(io);
    until("every task has ended", || alive_tasks() <= idle_tasks).await;
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}

#[tokio::test]
async fn the_layers_add_one_task_in_total() {
    const CONNECTIONS: usize = 25;

    /// Returns the number of tasks with all connections open, and waits until they have ended.
    async fn tasks(app: Router, wait_for_end: impl AsyncFnOnce()) -> usize {
        let server = Server::start(app).await;
        let before = alive_tasks();
        let mut clients = Vec::new();
        for n in 0..CONNECTIONS {
            let mut client = RawClient::connect(server.addr, "/ws").await;
            let hello = Frame::text(&format!("hello {n}"));
            client.send(&hello).await.unwrap();
            assert_eq!(client.expect_frame().await, hello);
            clients.push(client);
        }
        // The task that serves HTTP on a connection ends soon after the upgrade.
        until("one task each", || {
            (CONNECTIONS..=CONNECTIONS + 1).contains(&(alive_tasks().saturating_sub(before)))
        })
        .await;
        let opened = alive_tasks().saturating_sub(before);
        drop(clients);
        wait_for_end().await;
        until("every task has ended", || alive_tasks() <= before).await;
        opened
    }

    let bare = Router::new().route("/ws", echo_route());
    assert_eq!(tasks(bare.clone(), async || {}).await, CONNECTIONS);
    let (app, recorder, registry) = layered(bare);
    let ends = recorder.reached(2 * CONNECTIONS);
    let layered = tasks(app, async || {
        within("all evictions", ends).await;
    })
    .await;
    assert!(layered <= CONNECTIONS + 1, "{layered} tasks");
    assert!(registry.is_empty());
}

// The extractor without a connection to extract.

/// The layer is not missing in the source: `Router::layer` applies to the routes added before it.
#[tokio::test]
async fn the_extractor_names_the_missing_layer_and_its_place() {
    let app = Router::new()
        .layer(HeartbeatLayer::default())
        .route(
            "/ws",
            any(|ws: WebSocketUpgrade, _: Liveness| async { ws.on_upgrade(echo) }),
        )
        .route(
            "/maybe",
            any(|live: Option<Liveness>| async move {
                if live.is_some() { "alive" } else { "no layer" }
            }),
        );
    let server = Server::start(app).await;
    let mut http = Http::connect(server.addr).await;
    let response = http.send(upgrade("/ws", "13")).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = String::from_utf8_lossy(response.body());
    for wanted in ["HeartbeatLayer", "add the layer after the route"] {
        assert!(body.contains(wanted), "{wanted:?} is not in {body}");
    }
    let response = http.send(upgrade("/maybe", "13")).await;
    assert_eq!(response.body(), "no layer");
}

/// A route that needs a [`Liveness`], and one that works without.
fn liveness_routes() -> Router {
    let maybe = async |live: Option<Liveness>| match live {
        Some(_) => "alive",
        None => "no upgrade",
    };
    Router::new()
        .route("/live", any(async |_: Liveness| "alive"))
        .route("/maybe", any(maybe))
}

#[tokio::test]
async fn a_request_without_upgrade_has_no_liveness() {
    let (app, recorder, registry) = layered(liveness_routes());
    let server = Server::start(app).await;
    let mut http = Http::connect(server.addr).await;
    let response = http.send(request("/maybe", "")).await;
    assert_eq!(response.body(), "no upgrade");
    let response = http.send(request("/live", "")).await;
    assert!(!response.status().is_success(), "{response:?}");
    let response = http.send(upgrade("/maybe", "13")).await;
    assert_eq!(response.body(), "alive");
    http.close().await;
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}

/// With or without a layer, the client's request decides the status: each of these is a client
/// error.
#[tokio::test]
async fn the_extractor_answers_with_the_status_of_what_the_request_lacks() {
    let route = || {
        Router::new().route(
            "/ws",
            any(|live: Liveness| async move { live.id().to_string() }),
        )
    };
    let (app, recorder, registry) = layered(route());
    let layered = Server::start(app).await;
    let bare = Server::start(route()).await;
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let upgrade_required = "Upgrade: websocket\r\nConnection: upgrade";
    let table = [
        // What a browser sends for a plain page load.
        ("GET /ws HTTP/1.1", "", 426, upgrade_required),
        // What `curl --http2` sends.
        (
            "GET /ws HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
            426,
            upgrade_required,
        ),
        (
            "GET /ws HTTP/1.1",
            "Connection: upgrade\r\nUpgrade: h2c, TLS/1.2\r\n",
            426,
            upgrade_required,
        ),
        ("GET /ws HTTP/1.0", upgrade, 426, upgrade_required),
        ("GET /ws HTTP/1.0", "", 426, upgrade_required),
        ("POST /ws HTTP/1.1", upgrade, 405, "Allow: GET"),
        ("POST /ws HTTP/1.0", "", 405, "Allow: GET"),
        ("PUT /ws HTTP/1.1", "", 405, "Allow: GET"),
    ];
    for server in [&layered, &bare] {
        for (line, headers, status, expected) in table {
            let answer = send_raw(server.addr, &format!("{line}\r\nHost: x\r\n{headers}")).await;
            assert_eq!(answer.status, status, "{line} {headers}: {answer:?}");
            for header in expected.split("\r\n") {
                let header = header.to_ascii_lowercase();
                assert!(
                    answer.headers.iter().any(|line| line.starts_with(&header)),
                    "{header} is not in {answer:?}"
                );
            }
            assert!(!answer.body.contains("is applied"), "{answer:?}");
        }
    }
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}

/// The response to one request.
#[derive(Debug)]
struct Reply {
    status: u16,
    /// In lower case.
    headers: Vec<String>,
    body: String,
}

/// Sends a handwritten request: a client library refuses to send some of these.
async fn send_raw(addr: SocketAddr, head: &str) -> Reply {
    let mut io = TcpStream::connect(addr).await.unwrap();
    let request = format!("{}\r\nConnection: close\r\n\r\n", head.trim_end());
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer", io.read_to_string(&mut answer))
        .await
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    Reply {
        status: status.unwrap().parse().unwrap(),
        headers: lines.map(str::to_ascii_lowercase).collect(),
        body: body.to_owned(),
    }
}

/// `Upgrade` may list protocols over several lines, in any order and case (RFC 9110 section 7.8).
#[tokio::test]
async fn the_extractor_finds_a_websocket_among_other_protocols() {
    let (app, recorder, registry) =
        layered(Router::new().route("/ws", any(|_: Liveness| async { "alive" })));
    let server = Server::start(app).await;
    for lists in [
        "h2c, WebSocket",
        "websocket, h2c",
        "h2c\r\nUpgrade: websocket",
    ] {
        let head = format!("GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: {lists}");
        let answer = send_raw(server.addr, &head).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "alive"),
            "{lists}"
        );
    }
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}

/// A unit test of an axum application has no hyper connection, and so no `OnUpgrade`.
#[tokio::test]
async fn a_handler_with_an_optional_liveness_is_testable_without_a_server() {
    let (app, recorder, registry) = layered(liveness_routes());
    let respond = async |app: Router, path: &str| {
        let request = upgrade(path, "13").map(Body::new);
        let (head, body) = app.oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        (head.status, head.headers, body)
    };
    let (status, _, body) = respond(app.clone(), "/maybe").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "no upgrade"));
    let (status, headers, body) = respond(app, "/live").await;
    assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
    assert_eq!(headers[UPGRADE], "websocket");
    assert_eq!(headers[CONNECTION], "upgrade");
    assert!(body.contains("OnUpgrade"), "{body}");
    // Without a layer the extractor reports the missing layer first.
    let (status, _, body) = respond(liveness_routes(), "/live").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("HeartbeatLayer"), "{body}");
    assert!(registry.is_empty());
    recorder.stays_at(0).await;
}
