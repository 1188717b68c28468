//! The chat example as a process, with a guest that is killed or stopped.
//!
//! A process with the role `role-chat-server` is the example, one with `role-guest` a client of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tungstenite::{Message, WebSocket, client};

use crate::child::{PATIENCE, Process};
use crate::examples::chat;
use crate::harness::Trial;
use crate::roles;

pub(crate) const SERVER: &str = "role-chat-server";
pub(crate) const GUEST: &str = "role-guest";

pub(crate) fn server(args: Vec<String>) -> ExitCode {
    roles::serve(chat::run(args))
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 2] = [
        ("a_killed_guest_loses_its_seat_immediately", killed),
        ("a_stopped_guest_is_evicted_by_the_heartbeat", stopped),
    ];
    crate::trials("chat", tests)
}

/// Prints `connected`, and reads until the end, which answers pings.
pub(crate) fn guest(addr: &str, user: &str) -> ExitCode {
    let mut socket = connect(addr, user);
    println!("connected");
    while socket.read().is_ok() {}
    ExitCode::FAILURE
}

fn killed() {
    let room = Room::open();
    let mut host = room.enter("host");
    let bob = room.send_guest("bob");
    wait_for(&mut host, "bob is here");
    let killed = Instant::now();
    bob.signal(Signal::SIGKILL);
    wait_for(&mut host, "bob is gone");
    assert!(killed.elapsed() < Duration::from_secs(5), "at once");
    room.expect_gone("bob", &["peer_vanished", "transport"]);
}

fn stopped() {
    let room = Room::open();
    let mut host = room.enter("host");
    let bob = room.send_guest("bob");
    wait_for(&mut host, "bob is here");
    bob.signal(Signal::SIGSTOP);
    wait_for(&mut host, "bob is gone");
    room.expect_gone("bob", &["heartbeat_timeout"]);
    // A new connection under the name gets the seat.
    let back = room.send_guest("bob");
    wait_for(&mut host, "bob is here");
    assert_eq!(room.users(), ["bob", "host"]);
    drop(back);
}

struct Room {
    addr: String,
    _server: Process,
}

impl Room {
    fn open() -> Self {
        let mut server = Process::start(&[SERVER, "--addr", "127.0.0.1:0"]);
        let line = server.line();
        let addr = line
            .strip_prefix("open http://")
            .and_then(|rest| rest.split_once('/'))
            .expect("the address on the first line")
            .0
            .to_owned();
        Self {
            addr,
            _server: server,
        }
    }

    fn enter(&self, user: &str) -> WebSocket<TcpStream> {
        connect(&self.addr, user)
    }

    /// A guest in its own process.
    fn send_guest(&self, user: &str) -> Process {
        let mut guest = Process::start(&[GUEST, &self.addr, user]);
        assert_eq!(guest.line(), "connected");
        guest
    }

    fn dashboard(&self) -> Value {
        let mut http = TcpStream::connect(&self.addr).unwrap();
        http.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = "GET /sessions HTTP/1.1\r\nhost: chat\r\nconnection: close\r\n\r\n";
        http.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        http.read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    fn users(&self) -> Vec<String> {
        let dashboard = self.dashboard();
        let sessions = dashboard["sessions"].as_array().unwrap().iter();
        sessions
            .map(|session| session["user"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The user left the map and was evicted once, for one of these reasons.
    fn expect_gone(&self, user: &str, reasons: &[&str]) {
        assert_eq!(self.users(), ["host"]);
        let dashboard = self.dashboard();
        let evictions = dashboard["evictions"].as_array().unwrap();
        assert_eq!(evictions.len(), 1, "{evictions:?}");
        assert_eq!(evictions[0]["user"], user);
        let reason = evictions[0]["reason"].as_str().unwrap();
        assert!(reasons.contains(&reason), "{reason}");
    }
}

fn connect(addr: &str, user: &str) -> WebSocket<TcpStream> {
    let io = TcpStream::connect(addr).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    let (socket, _) = client(format!("ws://{addr}/ws/{user}"), io).unwrap();
    socket
}

/// Reads until the room sends this notice.
fn wait_for(socket: &mut WebSocket<TcpStream>, notice: &str) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Message::Text(line) = socket.read().unwrap() {
            if line.contains(notice) {
                return;
            }
        }
    }
    panic!("the room did not send {notice:?}");
}
