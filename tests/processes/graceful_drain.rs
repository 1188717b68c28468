//! The graceful_drain example as a real process: whatever it had accepted when SIGTERM came, every
//! client that reads on gets, and then Close 1001.
//!
//! With the role `role-graceful-drain` a process is the example.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tungstenite::Message;

use crate::examples::graceful_drain;

pub(crate) const SERVER: &str = "role-graceful-drain";

/// How long something may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(4);
/// The example's own, both together.
const BOUND: Duration = Duration::from_secs(5);

pub(crate) fn server(args: Vec<String>) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match runtime.block_on(graceful_drain::run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 8] = [
        ("nobody_loses_what_was_accepted", nobody_loses),
        ("nor_at_any_other_moment", nor_at_any_other_moment),
        ("lines_of_clients_are_accepted_or_not", lines_of_clients),
        ("a_stuck_client_is_cut_in_time", stuck),
        ("who_reads_late_gets_everything", late_reader),
        ("nobody_comes_in_after_the_signal", nobody_comes_in),
        ("without_clients_it_ends_at_once", alone),
        ("wrong_flags_are_refused", flags),
    ];
    crate::trials("graceful_drain", tests)
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

// The server.

struct Server {
    child: Child,
    lines: Receiver<String>,
    addr: String,
}

impl Server {
    fn start() -> Self {
        Self::start_with(&["--addr", "127.0.0.1:0"])
    }

    fn start_with(flags: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(SERVER)
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let first: String = lines.recv_timeout(PATIENCE).unwrap_or_default();
        let addr = first.strip_prefix("listening on ").unwrap_or_default();
        Self {
            addr: addr.to_owned(),
            child,
            lines,
        }
    }

    fn signal(&self, signal: Signal) -> Instant {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
        Instant::now()
    }

    /// Waits for the process to end, and returns how and what it has printed since the first line.
    async fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The reader ends with the pipe.
                return (status, self.lines.iter().collect());
            }
            assert!(begun.elapsed() < PATIENCE, "the process does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn join(&self) -> Client {
        let url = format!("ws://{}/ws", self.addr);
        let (mut socket, _) = connect_async(url).await.unwrap();
        let welcome = next_line(&mut socket).await.unwrap();
        let since = welcome.strip_prefix("welcome ").expect(&welcome);
        Client {
            since: since.parse().unwrap(),
            socket,
        }
    }

    async fn http(&self) -> SendRequest<Full<bytes::Bytes>> {
        let io = TokioIo::new(TcpStream::connect(&self.addr).await.unwrap());
        let (requests, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        requests
    }

    /// Posts as fast as it can until the server will not have it, and counts in `accepted`.
    async fn publisher(&self, accepted: &Arc<AtomicU64>) -> JoinHandle<Vec<u64>> {
        let mut http = self.http().await;
        let accepted = Arc::clone(accepted);
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Ok(Some(number)) = post(&mut http, "news").await {
                numbers.push(number);
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            numbers
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only for a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of the message, if it was accepted.
async fn post(
    http: &mut SendRequest<Full<bytes::Bytes>>,
    line: &str,
) -> Result<Option<u64>, hyper::Error> {
    http.ready().await?;
    let request = hyper::Request::post("/publish")
        .header("host", "room")
        .body(Full::from(line.to_owned()))
        .unwrap();
    let response = http.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    match status.as_u16() {
        202 => {
            let number = std::str::from_utf8(&body).unwrap().trim();
            Ok(Some(number.parse().unwrap()))
        }
        503 => Ok(None),
        other => panic!("{other}"),
    }
}

// Clients.

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Client {
    /// The last message before it came.
    since: u64,
    socket: Socket,
}

/// What a client has got in the end.
struct Heard {
    since: u64,
    numbers: Vec<u64>,
    /// Its own lines that were accepted.
    accepted: Vec<u64>,
    code: Option<u16>,
}

impl Client {
    /// Reads until the end.
    fn listen(mut self) -> JoinHandle<Heard> {
        tokio::spawn(async move {
            let (mut numbers, mut accepted, mut code) = (Vec::new(), Vec::new(), None);
            while let Some(Ok(message)) = self.socket.next().await {
                match message {
                    Message::Text(line) => match line.strip_prefix("accepted ") {
                        Some(number) => accepted.push(number.parse().unwrap()),
                        None => {
                            let number = line.split_once(' ').unwrap().0;
                            numbers.push(number.parse().unwrap());
                        }
                    },
                    Message::Close(frame) => code = frame.map(|frame| frame.code.into()),
                    _ => {}
                }
            }
            Heard {
                since: self.since,
                numbers,
                accepted,
                code,
            }
        })
    }
}

async fn next_line(socket: &mut Socket) -> Option<String> {
    match socket.next().await {
        Some(Ok(Message::Text(line))) => Some(line.to_string()),
        _ => None,
    }
}

/// Everything from its coming on up to `last`, whatever of the unanswered came after that, once each
/// and in order, and the Close.
fn assert_heard_all(heard: &Heard, last: u64, context: &str) {
    assert_eq!(heard.code, Some(1001), "{context}");
    let expected = heard.since + 1..=heard.since + heard.numbers.len() as u64;
    assert!(heard.numbers.iter().copied().eq(expected), "{context}");
    let heard_last = heard.numbers.last().copied().unwrap_or(heard.since);
    assert!(heard_last >= last, "{context}: {heard_last} of {last}");
}

#[track_caller]
fn assert_report(lines: &[String], expected: &str) {
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0], format!("drained: {expected}"));
}

// The tests.

/// SIGTERM comes `after` so many messages; one publisher or several.
async fn round(publishers: usize, after: u64, context: &str) {
    let server = Server::start();
    let mut listeners = Vec::new();
    for _ in 0..20 {
        listeners.push(server.join().await.listen());
    }
    let accepted = Arc::new(AtomicU64::new(0));
    let mut publishing = Vec::new();
    for _ in 0..publishers {
        publishing.push(server.publisher(&accepted).await);
    }
    let begun = Instant::now();
    while accepted.load(Ordering::Relaxed) < after {
        assert!(begun.elapsed() < PATIENCE, "{context}: too slow");
        tokio::task::yield_now().await;
    }
    let signalled = server.signal(Signal::SIGTERM);
    let mut last = 0;
    for publisher in publishing {
        let numbers = timeout(PATIENCE, publisher).await.unwrap().unwrap();
        last = last.max(numbers.last().copied().unwrap_or_default());
    }
    assert!(last >= after);
    for listener in listeners {
        let heard = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_heard_all(&heard, last, context);
    }
    let (status, lines) = server.ended().await;
    assert!(status.success(), "{context}: {status}");
    assert!(signalled.elapsed() < SLACK, "{context}: nobody was stuck");
    assert_report(
        &lines,
        "20 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
    );
}

fn nobody_loses() {
    block_on(round(1, 500, "one publisher"));
    block_on(round(4, 500, "four publishers"));
}

fn nor_at_any_other_moment() {
    for number in 0..10 {
        let after = fastrand::u64(1..300);
        let publishers = 1 + number % 3;
        let context = format!("round {number}, after {after}, {publishers} publishers");
        block_on(round(publishers, after, &context));
    }
}

fn lines_of_clients() {
    block_on(async {
        let server = Server::start();
        let listener = server.join().await.listen();
        let mut talkers = Vec::new();
        let (count, mut counted) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..5 {
            let (mut tell, mut hear) = server.join().await.socket.split();
            let count = count.clone();
            talkers.push(tokio::spawn(async move {
                let mut accepted = 0_u64;
                loop {
                    if tell.send(Message::text("a line")).await.is_err() {
                        return accepted;
                    }
                    loop {
                        match hear.next().await {
                            Some(Ok(Message::Text(line))) => {
                                if let Some(number) = line.strip_prefix("accepted ") {
                                    accepted = number.parse().unwrap();
                                    let _ = count.send(());
                                    break;
                                }
                            }
                            Some(Ok(_)) => {}
                            _ => return accepted,
                        }
                    }
                }
            }));
        }
        for _ in 0..100 {
            timeout(PATIENCE, counted.recv()).await.unwrap().unwrap();
        }
        server.signal(Signal::SIGINT);
        let mut last = 0;
        for talker in talkers {
            last = last.max(timeout(PATIENCE, talker).await.unwrap().unwrap());
        }
        assert!(last >= 100);
        let heard = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_heard_all(&heard, last, "lines");
        assert!(heard.accepted.is_empty(), "it said nothing");
        let (status, _) = server.ended().await;
        assert!(status.success());
    });
}

fn stuck() {
    block_on(async {
        let server = Server::start();
        let listener = server.join().await.listen();
        let stuck = server.join().await;
        // More than any socket's buffers hold, and less than an inbox.
        let mut http = server.http().await;
        let line = "x".repeat(60_000);
        for _ in 0..400 {
            post(&mut http, &line).await.unwrap().unwrap();
        }
        let accepted = Arc::new(AtomicU64::new(0));
        let publisher = server.publisher(&accepted).await;
        while accepted.load(Ordering::Relaxed) < 20 {
            tokio::task::yield_now().await;
        }
        let signalled = server.signal(Signal::SIGTERM);
        let numbers = timeout(PATIENCE, publisher).await.unwrap().unwrap();
        let heard = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_heard_all(&heard, *numbers.last().unwrap(), "beside a stuck one");
        assert!(
            signalled.elapsed() < SLACK,
            "nobody waits for the stuck one"
        );
        let (status, lines) = server.ended().await;
        assert!(status.success(), "{status}");
        let took = signalled.elapsed();
        assert!(took < BOUND + SLACK, "{took:?}");
        assert_report(
            &lines,
            "2 sessions, 1 left by the handlers: 0 clean, 1 cut, 0 already gone",
        );
        drop(stuck);
    });
}

/// What waits for a client when the signal comes is not in any socket yet.
fn late_reader() {
    block_on(async {
        let server = Server::start();
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(server.join().await);
        }
        let mut http = server.http().await;
        let line = "x".repeat(60_000);
        let mut last = 0;
        // More than the buffers of a socket hold, and little enough to be read in time.
        for _ in 0..150 {
            last = post(&mut http, &line).await.unwrap().unwrap();
        }
        let signalled = server.signal(Signal::SIGTERM);
        while let Ok(Some(number)) = post(&mut http, &line).await {
            last = number;
        }
        for client in clients {
            let heard = timeout(PATIENCE, client.listen()).await.unwrap().unwrap();
            assert_heard_all(&heard, last, "late");
        }
        let (status, lines) = server.ended().await;
        assert!(status.success(), "{status}");
        assert!(signalled.elapsed() < SLACK);
        assert_report(
            &lines,
            "4 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
        );
    });
}

fn nobody_comes_in() {
    block_on(async {
        let server = Server::start();
        let url = format!("ws://{}/ws", server.addr);
        // It does not answer the Close, so the server stays for a while.
        let stuck = server.join().await;
        let mut http = server.http().await;
        let waiting = TcpStream::connect(&server.addr).await.unwrap();
        post(&mut http, "before").await.unwrap().unwrap();
        let signalled = server.signal(Signal::SIGTERM);
        let last = loop {
            match post(&mut http, "after").await {
                Ok(Some(_)) => assert!(signalled.elapsed() < PATIENCE),
                end => break end,
            }
        };
        // 503, or the connection was closed.
        assert!(matches!(last, Ok(None) | Err(_)), "{last:?}");
        assert!(connect_async(&url).await.is_err());
        assert!(
            tokio_tungstenite::client_async(&url, waiting)
                .await
                .is_err()
        );
        let (status, lines) = server.ended().await;
        assert!(status.success(), "{status}");
        assert_report(
            &lines,
            "1 sessions, 1 left by the handlers: 0 clean, 1 cut, 0 already gone",
        );
        drop(stuck);
    });
}

fn alone() {
    block_on(async {
        let server = Server::start();
        let signalled = server.signal(Signal::SIGTERM);
        let (status, lines) = server.ended().await;
        assert!(status.success(), "{status}");
        assert!(signalled.elapsed() < SLACK);
        assert_report(
            &lines,
            "0 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
        );
    });
}

fn flags() {
    block_on(async {
        for flags in [&["--no-such-flag"][..], &["--addr"], &["--addr", "nowhere"]] {
            let (status, lines) = Server::start_with(flags).ended().await;
            assert!(!status.success(), "{flags:?}");
            assert!(lines.is_empty(), "{lines:?}");
        }
        let (status, _) = Server::start_with(&["--help"]).ended().await;
        assert!(status.success());
    });
}
