//! The devices example as a process, with devices that are killed or stopped.
//!
//! A process with the role `role-devices-server` is the example, one with `role-device` a client of
//! it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket, client};

use crate::child::{PATIENCE, Process};
use crate::examples::devices;
use crate::harness::Trial;
use crate::roles;

pub(crate) const SERVER: &str = "role-devices-server";
pub(crate) const DEVICE: &str = "role-device";

pub(crate) fn server(args: Vec<String>) -> ExitCode {
    roles::serve(devices::run(args))
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 5] = [
        ("the_oldest_device_goes_if_there_are_too_many", too_many),
        ("a_user_comes_once_and_goes_once", once),
        ("a_killed_device_leaves_immediately", killed),
        ("a_stopped_device_is_replaced_by_itself", stopped),
        ("wrong_names_and_flags_are_refused", refused),
    ];
    crate::trials("devices", tests)
}

/// Prints `connected`, and reads until the end, which answers pings.
pub(crate) fn device(addr: &str, query: &str) -> ExitCode {
    let mut socket = connect(addr, query);
    println!("connected");
    while socket.read().is_ok() {}
    ExitCode::FAILURE
}

fn too_many() {
    let server = Server::start("2");
    let mut phone = server.connect("alice", "phone");
    let tablet = server.connect("alice", "tablet");
    let _bob = server.connect("bob", "phone");
    let laptop = server.connect("alice", "laptop");
    assert_eq!(close_code(&mut phone), 4000);
    let users = json!({"alice": ["tablet", "laptop"], "bob": ["phone"]});
    assert_eq!(server.users(), users);
    drop((tablet, laptop));
}

fn once() {
    let server = Server::start("2");
    let events = server.events();
    let devices: Vec<_> = (0..5)
        .map(|number| server.connect("alice", &format!("device{number}")))
        .collect();
    assert_eq!(next(&events), "first alice");
    let bob = server.connect("b%C3%B6b+2", "phone");
    assert_eq!(next(&events), "first böb 2");
    drop(devices);
    assert_eq!(next(&events), "last alice");
    drop(bob);
    assert_eq!(next(&events), "last böb 2");
    assert_eq!(server.users(), json!({}));
}

fn killed() {
    let server = Server::start("2");
    let events = server.events();
    let phone = server.send_device("alice", "phone");
    assert_eq!(next(&events), "first alice");
    phone.signal(Signal::SIGKILL);
    assert_eq!(next(&events), "last alice");
    let _phone = server.send_device("alice", "phone");
    assert_eq!(next(&events), "first alice");
    assert_eq!(server.users(), json!({"alice": ["phone"]}));
}

fn stopped() {
    let server = Server::start("2");
    let events = server.events();
    let phone = server.connect("alice", "phone");
    let tablet = server.send_device("alice", "tablet");
    tablet.stop();
    // The newest device goes, not the oldest, since it is the same one.
    let again = server.connect("alice", "tablet");
    assert_eq!(server.users(), json!({"alice": ["phone", "tablet"]}));
    drop((again, phone));
    assert_eq!(next(&events), "first alice");
    assert_eq!(next(&events), "last alice");
}

fn refused() {
    let server = Server::start("1");
    for query in [
        "user=alice",
        "user=&device=phone",
        "user=al%0aice&device=phone",
        "user=%zz&device=phone",
    ] {
        let io = TcpStream::connect(&server.addr).unwrap();
        let url = format!("ws://{}/ws?{query}", server.addr);
        let error = client(url, io).unwrap_err().to_string();
        assert!(error.contains("400"), "{query}: {error}");
    }
    assert_eq!(server.users(), json!({}));
    for args in [["--max", "0"], ["--max", "x"], ["--addr", "nowhere"]] {
        let runtime = roles::runtime();
        let args = args.map(str::to_owned).to_vec();
        let error = runtime.block_on(devices::run(args.clone())).unwrap_err();
        assert!(error.to_string().starts_with(&args[0]), "{error}");
    }
}

struct Server {
    addr: String,
    _process: Process,
}

impl Server {
    fn start(max: &str) -> Self {
        let mut process = Process::start(&[SERVER, "--addr", "127.0.0.1:0", "--max", max]);
        let line = process.line();
        let addr = line.strip_prefix("listening on ").unwrap().to_owned();
        Self {
            addr,
            _process: process,
        }
    }

    fn connect(&self, user: &str, device: &str) -> WebSocket<TcpStream> {
        connect(&self.addr, &format!("user={user}&device={device}"))
    }

    /// A device in its own process.
    fn send_device(&self, user: &str, device: &str) -> Process {
        let query = format!("user={user}&device={device}");
        let mut process = Process::start(&[DEVICE, &self.addr, &query]);
        assert_eq!(process.line(), "connected");
        process
    }

    fn get(&self, path: &str) -> TcpStream {
        let mut http = TcpStream::connect(&self.addr).unwrap();
        http.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0, so that the body is not chunked.
        write!(http, "GET {path} HTTP/1.0\r\nhost: devices\r\n\r\n").unwrap();
        http
    }

    fn users(&self) -> Value {
        let mut response = String::new();
        self.get("/users").read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// The lines of `/events` from now on.
    fn events(&self) -> Receiver<String> {
        let mut lines = BufReader::new(self.get("/events")).lines();
        // The head of the response: the server has subscribed.
        let head = lines.by_ref().map_while(Result::ok);
        assert!(head.take_while(|line| !line.is_empty()).count() > 0);
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

fn next(events: &Receiver<String>) -> String {
    events.recv_timeout(PATIENCE).expect("an event")
}

fn connect(addr: &str, query: &str) -> WebSocket<TcpStream> {
    let io = TcpStream::connect(addr).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    let (socket, _) = client(format!("ws://{addr}/ws?{query}"), io).unwrap();
    socket
}

fn close_code(socket: &mut WebSocket<TcpStream>) -> u16 {
    loop {
        if let Message::Close(frame) = socket.read().unwrap() {
            return frame.unwrap().code.into();
        }
    }
}
