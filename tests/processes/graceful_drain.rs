//! The graceful_drain example as a process: SIGTERM loses no accepted message.
//!
//! Every client that reads gets each message that was accepted before the signal, and then Close
//! 1001. A process with the role `role-graceful-drain` is the example, one with `role-drain-client`
//! a client of it.

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
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tungstenite::Message;

use crate::child::Process;
use crate::examples::graceful_drain;
use crate::harness::Trial;
use crate::text_client::TextClient;

pub(crate) const SERVER: &str = "role-graceful-drain";
pub(crate) const CLIENT: &str = "role-drain-client";

/// Bound on a wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tolerance on wall-clock bounds for a loaded machine.
const SLACK: Duration = Duration::from_secs(4);
/// Sum of the example's two shutdown deadlines.
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

/// Prints each line, and the code of the Close frame at the end.
pub(crate) fn client(addr: &str) -> ExitCode {
    let mut socket = TextClient::connect(addr, "/ws").unwrap();
    while let Some(line) = socket.text() {
        println!("{line}");
    }
    println!("close {:?}", socket.close_code());
    ExitCode::SUCCESS
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 11] = [
        ("no_client_loses_an_accepted_message", accepted_messages),
        (
            "no_client_loses_an_accepted_message_at_any_moment",
            random_moments,
        ),
        ("messages_and_clients_are_accepted_during_the_delay", delay),
        ("a_drain_interrupts_no_push", pushes),
        (
            "killed_and_frozen_clients_delay_no_other",
            killed_and_frozen,
        ),
        ("accepted_lines_of_clients_are_delivered", lines_of_clients),
        ("a_stuck_client_is_cut_in_time", stuck),
        ("a_client_that_reads_late_gets_every_message", late_reader),
        ("no_client_connects_after_the_signal", late_clients),
        ("without_clients_the_server_exits_immediately", alone),
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
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
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

    /// Waits until the process exits. Returns its status and the lines after the first.
    async fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The reader thread ends with the pipe.
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

    /// Posts messages as fast as it can until the server refuses one. Counts them in `accepted`.
    async fn publisher(&self, accepted: &Arc<AtomicU64>) -> JoinHandle<Vec<u64>> {
        let mut http = self.http().await;
        let accepted = Arc::clone(accepted);
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Ok(Some(number)) = post(&mut http, "a message").await {
                numbers.push(number);
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            numbers
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only for a child that has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status that a load balancer is answered.
async fn ready(http: &mut SendRequest<Full<bytes::Bytes>>) -> u16 {
    http.ready().await.unwrap();
    let request = hyper::Request::get("/ready").header("host", "room");
    let request = request.body(Full::default()).unwrap();
    let response = http.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    // The next request needs the end of this body.
    response.into_body().collect().await.unwrap();
    status
}

/// The number of the message if it was accepted.
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
    /// Number of the last message before the client joined.
    since: u64,
    socket: Socket,
}

/// What a client received in total.
struct Received {
    since: u64,
    numbers: Vec<u64>,
    /// Numbers of its own lines that were accepted.
    accepted: Vec<u64>,
    code: Option<u16>,
}

impl Client {
    /// Reads until the end of the connection.
    fn listen(mut self) -> JoinHandle<Received> {
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
            Received {
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

/// Asserts that the client got every message from its join up to `last`, and possibly later ones,
/// once each and in order, and then Close 1001.
fn assert_received_all(received: &Received, last: u64, context: &str) {
    assert_eq!(received.code, Some(1001), "{context}");
    let expected = received.since + 1..=received.since + received.numbers.len() as u64;
    assert!(received.numbers.iter().copied().eq(expected), "{context}");
    let last_received = received.numbers.last().copied().unwrap_or(received.since);
    assert!(
        last_received >= last,
        "{context}: {last_received} of {last}"
    );
}

#[track_caller]
fn assert_report(lines: &[String], expected: &str) {
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0], format!("drained: {expected}"));
}

// The tests.

/// Sends SIGTERM after `after` accepted messages.
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
        let received = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_received_all(&received, last, context);
    }
    let (status, lines) = server.ended().await;
    assert!(status.success(), "{context}: {status}");
    assert!(
        signalled.elapsed() < SLACK,
        "{context}: no client was stuck"
    );
    assert_report(
        &lines,
        "20 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
    );
}

fn accepted_messages() {
    block_on(round(1, 500, "one publisher"));
    block_on(round(4, 500, "four publishers"));
}

fn random_moments() {
    for number in 0..10 {
        let after = fastrand::u64(1..300);
        let publishers = 1 + number % 3;
        let context = format!("round {number}, after {after}, {publishers} publishers");
        block_on(round(publishers, after, &context));
    }
}

/// Load balancers see 503 first. Until the end of the delay nothing else changes.
fn delay() {
    block_on(async {
        let server = Server::start_with(&["--addr", "127.0.0.1:0", "--delay-ms", "2000"]);
        let early = server.join().await.listen();
        let mut http = server.http().await;
        assert_eq!(ready(&mut http).await, 200);
        let signalled = server.signal(Signal::SIGTERM);
        while ready(&mut http).await == 200 {
            assert!(signalled.elapsed() < PATIENCE);
        }
        let noticed = signalled.elapsed();
        let mut last = post(&mut http, "during the delay").await.unwrap().unwrap();
        let late = server.join().await;
        assert_eq!(late.since, last);
        let late = late.listen();
        // Refused, or answered no more: the server may have ended before the next message.
        while let Ok(Some(number)) = post(&mut http, "a message").await {
            last = number;
        }
        let refused = signalled.elapsed();
        assert!(refused >= Duration::from_secs(2), "{refused:?}");
        assert!(noticed < refused, "{noticed:?}");
        for listener in [early, late] {
            let received = timeout(PATIENCE, listener).await.unwrap().unwrap();
            assert_received_all(&received, last, "delayed");
        }
        let (status, lines) = server.ended().await;
        assert!(status.success(), "{status}");
        let took = signalled.elapsed();
        assert!(took < Duration::from_secs(2) + SLACK, "{took:?}");
        assert_report(
            &lines,
            "2 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
        );
    });
}

/// SIGTERM arrives while large messages are half-way to their clients.
fn pushes() {
    block_on(async {
        let server = Server::start();
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(server.join().await.listen());
        }
        let accepted = Arc::new(AtomicU64::new(0));
        let line = Arc::new("x".repeat(60_000));
        let mut publishing = Vec::new();
        for _ in 0..4 {
            let mut http = server.http().await;
            let (accepted, line) = (Arc::clone(&accepted), Arc::clone(&line));
            publishing.push(tokio::spawn(async move {
                let mut last = 0;
                while let Ok(Some(number)) = post(&mut http, &line).await {
                    last = number;
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
                last
            }));
        }
        while accepted.load(Ordering::Relaxed) < 50 {
            tokio::task::yield_now().await;
        }
        let signalled = server.signal(Signal::SIGTERM);
        let mut last = 0;
        for publisher in publishing {
            last = last.max(timeout(PATIENCE, publisher).await.unwrap().unwrap());
        }
        for client in clients {
            let received = timeout(PATIENCE, client).await.unwrap().unwrap();
            assert_received_all(&received, last, "pushes");
        }
        let (status, lines) = server.ended().await;
        assert!(status.success(), "{status}");
        assert!(signalled.elapsed() < SLACK);
        assert_report(
            &lines,
            "5 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
        );
    });
}

/// SIGTERM arrives after one client was killed and while another one is frozen, which then reads on.
fn killed_and_frozen() {
    block_on(async {
        let server = Server::start();
        let listener = server.join().await.listen();
        let [mut killed, mut frozen] = [(); 2].map(|()| Process::start(&[CLIENT, &server.addr]));
        for client in [&mut killed, &mut frozen] {
            assert_eq!(client.line(), "welcome 0");
        }
        let accepted = Arc::new(AtomicU64::new(0));
        let publisher = server.publisher(&accepted).await;
        assert_eq!(killed.line(), "1 a message");
        killed.signal(Signal::SIGKILL);
        frozen.stop();
        let stopped_at = accepted.load(Ordering::Relaxed);
        while accepted.load(Ordering::Relaxed) < stopped_at + 20 {
            tokio::task::yield_now().await;
        }
        let signalled = server.signal(Signal::SIGTERM);
        let numbers = timeout(PATIENCE, publisher).await.unwrap().unwrap();
        let last = *numbers.last().unwrap();
        let received = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_received_all(&received, last, "beside a frozen client");
        assert!(signalled.elapsed() < SLACK);

        frozen.signal(Signal::SIGCONT);
        for number in 1..=last {
            assert_eq!(frozen.line(), format!("{number} a message"));
        }
        assert_eq!(frozen.line(), "close Some(1001)");
        let (status, _) = server.ended().await;
        assert!(status.success(), "{status}");
    });
}

fn lines_of_clients() {
    block_on(async {
        let server = Server::start();
        let listener = server.join().await.listen();
        let mut talkers = Vec::new();
        let (count, mut counted) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..5 {
            let (mut sink, mut stream) = server.join().await.socket.split();
            let count = count.clone();
            talkers.push(tokio::spawn(async move {
                let mut accepted = 0_u64;
                loop {
                    if sink.send(Message::text("a line")).await.is_err() {
                        return accepted;
                    }
                    loop {
                        match stream.next().await {
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
        let received = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_received_all(&received, last, "lines");
        assert!(received.accepted.is_empty(), "the listener sent no lines");
        let (status, _) = server.ended().await;
        assert!(status.success());
    });
}

fn stuck() {
    block_on(async {
        let server = Server::start();
        let listener = server.join().await.listen();
        let stuck = server.join().await;
        // More than the socket buffers hold, and less than the client's inbox.
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
        let received = timeout(PATIENCE, listener).await.unwrap().unwrap();
        assert_received_all(&received, *numbers.last().unwrap(), "beside a stuck client");
        assert!(
            signalled.elapsed() < SLACK,
            "the stuck client delays the others"
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

/// Messages wait for the client in the server when the signal arrives.
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
        // More than the socket buffers hold, and little enough to be read before the deadline.
        for _ in 0..150 {
            last = post(&mut http, &line).await.unwrap().unwrap();
        }
        let signalled = server.signal(Signal::SIGTERM);
        while let Ok(Some(number)) = post(&mut http, &line).await {
            last = number;
        }
        for client in clients {
            let received = timeout(PATIENCE, client.listen()).await.unwrap().unwrap();
            assert_received_all(&received, last, "late");
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

fn late_clients() {
    block_on(async {
        let server = Server::start();
        let url = format!("ws://{}/ws", server.addr);
        // A client that does not answer the Close frame keeps the server running for a while.
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
        // The server answers 503 or closes the connection.
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
            "1 sessions, 0 left by the handlers: 0 clean, 0 cut, 0 already gone",
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
        let wrong = [
            &["--no-such-flag"][..],
            &["--addr"],
            &["--addr", "nowhere"],
            &["--delay-ms", "soon"],
        ];
        for flags in wrong {
            let (status, lines) = Server::start_with(flags).ended().await;
            assert!(!status.success(), "{flags:?}");
            assert!(lines.is_empty(), "{lines:?}");
        }
        let (status, _) = Server::start_with(&["--help"]).ended().await;
        assert!(status.success());
    });
}
