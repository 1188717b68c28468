//! Behind nginx: its read timeout, and how ends of clients reach the server through it.
//!
//! nginx closes a connection after `proxy_read_timeout` without a byte from the server (60 s by
//! default, 5 s here).
//!
//! ```text
//! apt-get install nginx-light
//! cargo test --test suite nginx:: -- --ignored
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tower_ws_liveness::Reason;

use crate::support::raw::{Answer, Frame, RawClient};
use crate::support::scene::{Scene, patient, quiet};
use crate::support::wire::Wire;
use crate::support::{SLACK, Server, echo, echo_route, ms, until, within};

/// nginx's `proxy_read_timeout`: how long it waits for a byte from the server.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Rounding of nginx's timers and of the driver's.
const TIMER_ROUNDING: Duration = Duration::from_millis(500);

type Client = RawClient<UnixStream>;

/// nginx in front of a server. It listens on a Unix socket, which needs no free port.
struct Nginx {
    child: Child,
    dir: PathBuf,
}

impl Nginx {
    async fn start(upstream: SocketAddr) -> Self {
        let name = format!("nginx-{}-{}", std::process::id(), upstream.port());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let prefix = dir.display().to_string();
        fs::write(dir.join("nginx.conf"), config(&prefix, upstream)).unwrap();
        // Not on every user's `PATH`.
        let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .find(|path| fs::exists(path).unwrap_or(false))
            .unwrap_or("nginx");
        let spawned = Command::new(program)
            .args(["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"])
            .stdin(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                fs::remove_dir_all(&dir).unwrap();
                panic!("this test needs nginx (Debian: nginx-light): {error}");
            }
        };
        let mut nginx = Self { child, dir };
        until("nginx listens", || {
            let status = nginx.child.try_wait().unwrap();
            assert!(status.is_none(), "nginx has ended: {status:?}");
            std::os::unix::net::UnixStream::connect(nginx.socket()).is_ok()
        })
        .await;
        nginx
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    async fn connect(&self) -> Client {
        let io = UnixStream::connect(self.socket()).await.unwrap();
        RawClient::handshake(io, "/ws").await
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Fails only if the process or the directory is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// One process without children, so that killing it leaves no worker behind.
fn config(dir: &str, upstream: SocketAddr) -> String {
    let seconds = READ_TIMEOUT.as_secs();
    format!(
        "daemon off;
        master_process off;
        pid {dir}/pid;
        events {{ worker_connections 64; }}
        http {{
            access_log off;
            client_body_temp_path {dir}/body;
            proxy_temp_path {dir}/proxy;
            fastcgi_temp_path {dir}/fastcgi;
            uwsgi_temp_path {dir}/uwsgi;
            scgi_temp_path {dir}/scgi;
            server {{
                listen unix:{dir}/socket;
                location / {{
                    proxy_pass http://{upstream};
                    proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection upgrade;
                    proxy_read_timeout {seconds}s;
                }}
            }}
        }}"
    )
}

async fn assert_echoes(client: &mut Client, text: &str) {
    client.send(&Frame::text(text)).await.unwrap();
    assert_eq!(client.expect_frame().await, Frame::text(text));
}

/// The time from the client's last message until nginx closes its socket.
async fn cut_after(client: &mut Client) -> Duration {
    let quiet_since = Instant::now();
    let close = client.closed().await;
    assert_eq!(close, None, "nginx sends no Close frame");
    quiet_since.elapsed()
}

#[track_caller]
fn assert_about_the_read_timeout(cut: Duration) {
    let expected = READ_TIMEOUT - TIMER_ROUNDING..READ_TIMEOUT + SLACK;
    assert!(expected.contains(&cut), "cut after {cut:?}");
}

#[tokio::test]
#[ignore = "needs nginx"]
async fn pings_keep_a_quiet_socket_open_through_nginx() {
    let heartbeat = quiet().interval(ms(2_000));
    let mut scene = Scene::start(Wire::Http1, heartbeat, patient(), echo).await;
    let nginx = Nginx::start(scene.addr()).await;
    let mut client = nginx.connect().await;
    let live = scene.next_live().await;
    assert_echoes(&mut client, "hello").await;
    // Neither side sends a message for two and a half times nginx's read timeout.
    let silence = timeout(READ_TIMEOUT * 5 / 2, client.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert!(client.pings >= 3, "{} pings", client.pings);
    assert_echoes(&mut client, "still here").await;
    assert_eq!(scene.recorder.total(), 0);
    drop(client);
    scene.ended(&live, Reason::PeerVanished).await;
    scene.assert_evicted_once().await;
}

#[tokio::test]
#[ignore = "needs nginx"]
async fn a_quiet_socket_is_cut_without_the_layers() {
    let server = Server::start(Router::new().route("/ws", echo_route())).await;
    let nginx = Nginx::start(server.addr).await;
    let mut client = nginx.connect().await;
    assert_echoes(&mut client, "hello").await;
    assert_about_the_read_timeout(cut_after(&mut client).await);
}

/// The server sees the end of the stream without a Close frame.
#[tokio::test]
#[ignore = "needs nginx"]
async fn an_interval_above_the_read_timeout_does_not_keep_a_socket_open() {
    let mut scene = Scene::start(Wire::Http1, quiet(), patient(), echo).await;
    let nginx = Nginx::start(scene.addr()).await;
    let mut client = nginx.connect().await;
    let live = scene.next_live().await;
    assert_echoes(&mut client, "hello").await;
    assert_about_the_read_timeout(cut_after(&mut client).await);
    scene.ended(&live, Reason::PeerVanished).await;
    scene.assert_evicted_once().await;
}

/// The kernel closes a killed client's socket, and nginx then closes its own to the server.
#[tokio::test]
#[ignore = "needs nginx"]
async fn a_client_that_is_killed_is_reported_at_once() {
    let heartbeat = quiet().interval(ms(2_000));
    let mut scene = Scene::start(Wire::Http1, heartbeat, patient(), echo).await;
    let nginx = Nginx::start(scene.addr()).await;
    let mut client = nginx.connect().await;
    let live = scene.next_live().await;
    assert_echoes(&mut client, "hello").await;
    let killed = Instant::now();
    drop(client);
    scene.ended(&live, Reason::PeerVanished).await;
    assert!(killed.elapsed() < SLACK, "{:?}", killed.elapsed());
    scene.assert_evicted_once().await;
}

/// nginx accepts the pings for a stopped client and the kernel buffers them, so only missing pongs
/// show that it is stopped.
#[tokio::test]
#[ignore = "needs nginx"]
async fn a_client_that_is_frozen_is_evicted_by_the_heartbeat() {
    let (interval, answer) = (ms(500), ms(1_000));
    let heartbeat = quiet().interval(interval).timeout(answer).missed_pings(2);
    let mut scene = Scene::start(Wire::Http1, heartbeat, patient(), echo).await;
    let nginx = Nginx::start(scene.addr()).await;
    let mut neighbour = nginx.connect().await;
    scene.next_live().await;
    let mut frozen = nginx.connect().await.answering(Answer::Nothing);
    let live = scene.next_live().await;
    assert_echoes(&mut frozen, "good night").await;
    let since = Instant::now();
    tokio::select! {
        event = scene.recorder.nth(1) => {
            let reason = Reason::HeartbeatTimeout { missed: 2 };
            assert_eq!((event.id, event.reason), (live.id(), reason));
        }
        frame = neighbour.next() => panic!("the neighbour was sent {frame:?}"),
    }
    let took = since.elapsed();
    let due = interval + answer * 2;
    assert!(took >= answer * 2 && took < due + SLACK, "{took:?}");
    // What the client receives when it runs again.
    let close = frozen.closed().await.expect("a Close frame");
    assert_eq!(close.close_code(), Some(3008));
    assert_eq!(frozen.pings, 2);
    assert_echoes(&mut neighbour, "good morning").await;
    assert_eq!(scene.registry.len(), 1);
    scene.recorder.stays_at(1).await;
}

#[tokio::test]
#[ignore = "needs nginx"]
async fn when_nginx_is_killed_all_of_its_clients_are_reported() {
    const CLIENTS: usize = 10;
    let heartbeat = quiet().interval(ms(2_000));
    let mut scene = Scene::start(Wire::Http1, heartbeat, patient(), echo).await;
    let mut nginx = Nginx::start(scene.addr()).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = nginx.connect().await;
        assert_echoes(&mut client, "hello").await;
        clients.push((client, scene.next_live().await));
    }
    let killed = Instant::now();
    nginx.kill();
    scene.recorder.nth(CLIENTS).await;
    assert!(killed.elapsed() < SLACK, "{:?}", killed.elapsed());
    for (client, live) in &mut clients {
        // A reset, if nginx had not read all bytes.
        let reason = within("evicted()", live.evicted()).await.reason();
        let is_end = matches!(reason, Reason::PeerVanished | Reason::Transport(_));
        assert!(is_end, "{reason:?}");
        assert_eq!(scene.recorder.count(live.id()), 1);
        assert_eq!(client.closed().await, None);
    }
    scene.handlers_done(CLIENTS).await;
    scene.recorder.stays_at(CLIENTS).await;
    assert!(scene.registry.is_empty());
}
