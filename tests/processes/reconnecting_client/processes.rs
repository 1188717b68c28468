//! Child processes of these tests, and in-process servers that misbehave.

use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Utf8Bytes, WebSocket};

use crate::{child, roles};

pub(crate) const CLIENT: &str = "role-reconnecting-client";

pub(crate) use child::PATIENCE;

/// A child process that prints JSON lines.
pub(crate) struct Process {
    role: child::Process,
    /// All events read so far.
    pub(crate) events: Vec<Value>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        Self {
            role: child::Process::start(args),
            events: Vec::new(),
        }
    }

    /// Waits for the next event for which `is_it` holds, skipping others.
    pub(crate) fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let line = match self.role.line_by(end) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("no {what}: {:#?}", self.events),
                Err(RecvTimeoutError::Disconnected) => panic!("ended: {:#?}", self.events),
            };
            let event: Value = serde_json::from_str(&line).expect(&line);
            self.events.push(event.clone());
            if is_it(&event) {
                return event;
            }
        }
    }

    /// Waits for the next event of this name, skipping others.
    pub(crate) fn wait(&mut self, name: &str) -> Value {
        self.wait_for(name, |event| event["event"] == name)
    }

    /// Reads the next event, which must be of this name.
    pub(crate) fn expect(&mut self, name: &str) -> Value {
        let event = self.wait_for(name, |_| true);
        assert_eq!(event["event"], name, "{:#?}", self.events);
        event
    }

    /// Waits until the process exits by itself.
    pub(crate) fn exit_status(&mut self) -> i32 {
        let status = self.role.exit_status();
        status.unwrap_or_else(|| panic!("did not end: {:#?}", self.events))
    }
}

impl Deref for Process {
    type Target = child::Process;

    fn deref(&self) -> &Self::Target {
        &self.role
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.role
    }
}

/// Starts the echo server. Returns it with its address.
pub(crate) fn echo(addr: &str, flags: &[&str]) -> (Process, String) {
    let args = [&[roles::SERVER, "--log-evictions", "--addr", addr], flags].concat();
    let mut server = Process::start(&args);
    let line = server.line();
    let addr = line.strip_prefix("listening on ").expect(&line).to_owned();
    (server, addr)
}

pub(crate) fn client(addr: &str, flags: &[&str]) -> Process {
    let url = format!("ws://{addr}/ws");
    Process::start(&[&[CLIENT, "--jsonl", "--url", &url], flags].concat())
}

/// Serves each connection in its own thread, with its number (from 0). Returns the address.
pub(crate) fn serve(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    serve_on(listener, serve);
    addr
}

pub(crate) fn serve_on(
    listener: TcpListener,
    serve: impl Fn(usize, TcpStream) + Send + Sync + 'static,
) {
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for (number, io) in listener.incoming().map_while(Result::ok).enumerate() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(number, io));
        }
    });
}

/// Echoes every text message until the connection ends.
pub(crate) fn echo_all(io: TcpStream) {
    let Ok(mut socket) = tungstenite::accept(io) else {
        return;
    };
    while let Ok(message) = socket.read() {
        if message.is_text() && socket.send(message).is_err() {
            return;
        }
    }
}

/// Starts the closing handshake, and waits for its end.
pub(crate) fn close(mut socket: WebSocket<TcpStream>, code: u16) {
    let frame = CloseFrame {
        code: code.into(),
        reason: Utf8Bytes::default(),
    };
    socket.close(Some(frame)).unwrap();
    while socket.read().is_ok() {}
}

/// Reads a request up to its empty line, and writes the response, which is made from the key of the
/// opening handshake.
pub(crate) fn answer(mut io: TcpStream, response: impl FnOnce(&str) -> Vec<u8>) -> TcpStream {
    let mut key = String::new();
    for line in BufReader::new(&io).lines() {
        let line = line.unwrap();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("Sec-WebSocket-Key: ") {
            value.clone_into(&mut key);
        }
    }
    io.write_all(&response(&key)).unwrap();
    io
}

/// Relays bytes to the server and back, until it swallows them. The connections stay open, as
/// behind a NAT that has dropped its mapping.
pub(crate) struct Relay {
    pub(crate) addr: String,
    swallows: Arc<Mutex<Arc<AtomicBool>>>,
}

impl Relay {
    pub(crate) fn to(server: &str) -> Self {
        let server: SocketAddr = server.parse().unwrap();
        let swallows = Arc::new(Mutex::new(Arc::new(AtomicBool::new(false))));
        let current = Arc::clone(&swallows);
        let addr = serve(move |_, near| {
            let swallow = Arc::clone(&current.lock().unwrap());
            let far = TcpStream::connect(server).unwrap();
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let same = Arc::clone(&swallow);
            std::thread::spawn(move || carry(back.0, back.1, &same));
            carry(near, far, &swallow);
        });
        Self { addr, swallows }
    }

    /// Swallows all bytes of the current connections. Later connections are not affected.
    pub(crate) fn swallow(&self) {
        let mut swallows = self.swallows.lock().unwrap();
        swallows.store(true, Ordering::SeqCst);
        *swallows = Arc::default();
    }
}

fn carry(from: TcpStream, to: TcpStream, swallow: &AtomicBool) {
    let (mut from, mut to) = (from, to);
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if swallow.load(Ordering::SeqCst) {
            // Reads on, so that the sender notices nothing, and does not forward the end of the
            // stream.
            let _ = copy(&mut from, &mut std::io::sink());
            std::mem::forget(to);
            return;
        }
        if to.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
    if !swallow.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}
