//! The examples `raw_tungstenite` and `hyper_server` as processes, with clients that are killed or
//! stopped.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tungstenite::{Error, Message, client};

use crate::child::{PATIENCE, Process};
use crate::harness::Trial;

pub(crate) const RAW: &str = "role-raw-tungstenite";
pub(crate) const HYPER: &str = "role-hyper-server";
pub(crate) const CLIENT: &str = "role-raw-client";

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 6] = [
        ("raw_reports_a_killed_client_once", || {
            killed(RAW, "alice");
        }),
        ("hyper_reports_a_killed_client_once", || {
            killed(HYPER, "ws");
        }),
        ("raw_evicts_a_stopped_client", || stopped(RAW, "alice")),
        ("hyper_evicts_a_stopped_client", || stopped(HYPER, "ws")),
        ("raw_gives_the_seat_to_the_newer_connection", replaced),
        ("raw_sends_close_frames_on_an_interrupt", interrupted),
    ];
    crate::trials("raw_streams", tests)
}

/// Sends "hello", and reads until the end, which answers pings.
pub(crate) fn talk(url: &str) -> ExitCode {
    let authority = url.strip_prefix("ws://").unwrap().split('/').next();
    let io = TcpStream::connect(authority.unwrap()).unwrap();
    let (mut socket, _) = client(url, io).unwrap();
    socket.send(Message::text("hello")).unwrap();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => println!("{text}"),
            Ok(Message::Ping(_)) => println!("ping"),
            Ok(Message::Close(Some(frame))) => println!("close {}", u16::from(frame.code)),
            Ok(_) => {}
            Err(Error::ConnectionClosed) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

fn killed(role: &str, path: &str) {
    let mut server = Server::start(role);
    let (client, name) = server.guest(path);
    if role == HYPER {
        assert_eq!(server.connected(), 1);
    }
    client.signal(Signal::SIGKILL);
    let killed = Instant::now();
    // The kernel of a killed client sends FIN, or RST if bytes are unread.
    server.expect_gone(&name, &["peer_vanished", "transport"]);
    assert!(killed.elapsed() < Duration::from_secs(15), "at once");
    server.expect_no_more_of(&name, path);
}

fn stopped(role: &str, path: &str) {
    let mut server = Server::start(role);
    let (mut client, name) = server.guest(path);
    // The client is alive before the stop.
    for _ in 0..2 {
        expect(&mut client, "ping");
    }
    client.stop();
    server.expect_gone(&name, &["heartbeat_timeout"]);
    if role == HYPER {
        assert_eq!(server.connected(), 0);
    }
    server.expect_no_more_of(&name, path);
}

fn replaced() {
    let mut server = Server::start(RAW);
    let (first, _) = server.guest("alice");
    let second = server.client("alice");
    assert_eq!(server.process.line(), "alice is here");
    assert_eq!(server.process.line(), "alice is gone: replaced");
    // The end of the first connection did not remove the second's seat, which is the one replaced
    // now.
    let _third = server.client("alice");
    assert_eq!(server.process.line(), "alice is here");
    assert_eq!(server.process.line(), "alice is gone: replaced");
    drop((first, second));
}

fn interrupted() {
    let mut server = Server::start(RAW);
    let mut clients: Vec<_> = ["alice", "bob"]
        .map(|name| server.guest(name).0)
        .into_iter()
        .collect();
    server.process.signal(Signal::SIGINT);
    for client in &mut clients {
        expect(client, "close 1001");
        assert_eq!(client.exit_status(), Some(0), "a clean end");
    }
    for _ in 0..2 {
        let line = server.process.line();
        assert!(line.ends_with(" is gone: drained"), "{line}");
    }
    assert_eq!(server.process.line(), "drained: 2 sessions");
    assert_eq!(server.process.exit_status(), Some(0));
}

/// Waits for a line, skipping pings.
fn expect(process: &mut Process, line: &str) {
    loop {
        match process.line() {
            next if next == line => return,
            next => assert_eq!(next, "ping"),
        }
    }
}

struct Server {
    process: Process,
    addr: String,
}

impl Server {
    fn start(role: &str) -> Self {
        let mut process = Process::start(&[role, "--addr", "127.0.0.1:0"]);
        let line = process.line();
        let addr = line.strip_prefix("listening on ").expect(&line).to_owned();
        Self { process, addr }
    }

    /// A client process that has received its echo.
    fn client(&self, path: &str) -> Process {
        let mut client = Process::start(&[CLIENT, &format!("ws://{}/{path}", self.addr)]);
        expect(&mut client, "hello");
        client
    }

    /// As [`client`](Self::client), with the name that the server gives it.
    fn guest(&mut self, path: &str) -> (Process, String) {
        let client = self.client(path);
        let line = self.process.line();
        let name = line.strip_suffix(" is here").expect(&line).to_owned();
        (client, name)
    }

    fn expect_gone(&mut self, name: &str, reasons: &[&str]) {
        let line = self.process.line();
        let (gone, reason) = line.split_once(" is gone: ").expect(&line);
        assert_eq!(gone, name);
        assert!(reasons.contains(&reason), "{line}");
    }

    /// The server reports nothing more of this client: its next report is of another client, and
    /// after that it reports nothing.
    fn expect_no_more_of(&mut self, name: &str, path: &str) {
        let other = if path == "ws" { path } else { "another-user" };
        let (next, known_as) = self.guest(other);
        assert_ne!(known_as, name);
        next.signal(Signal::SIGKILL);
        self.expect_gone(&known_as, &["peer_vanished", "transport"]);
        assert!(self.process.line_by(Instant::now()).is_err());
    }

    /// Number of connections on the page at `/`, which only `hyper_server` has.
    fn connected(&self) -> usize {
        let mut http = TcpStream::connect(&self.addr).unwrap();
        http.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        http.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        http.read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        let count = body.strip_suffix(" connected\n").expect(body);
        count.parse().unwrap()
    }
}
