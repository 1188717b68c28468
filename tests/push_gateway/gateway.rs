//! Test clients of the gateway: bots and publishers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::BURST;
use crate::process::Server;
use crate::support::raw::{Frame, RawClient, TEXT};
use crate::support::{PATIENCE, ms};

/// A bot that reads every event immediately, in a task of its own.
pub(crate) struct Bot {
    name: String,
    received: Receiver<(Instant, Received)>,
    task: JoinHandle<()>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    Event(u64),
    /// The end of the connection, with the code of its Close frame, if any.
    Closed(Option<u16>),
}

impl Bot {
    pub(crate) fn connect(runtime: &Runtime, server: &Server, name: &str) -> Self {
        let client = runtime.block_on(raw(&server.addr, name));
        let (sender, received) = channel();
        Self {
            name: name.to_owned(),
            received,
            task: runtime.spawn(listen(client, sender)),
        }
    }

    pub(crate) fn next(&self) -> (Instant, Received) {
        let received = self.received.recv_timeout(PATIENCE);
        received.unwrap_or_else(|_| panic!("{} receives nothing for {PATIENCE:?}", self.name))
    }

    /// Waits for this event, which must be the next, and returns when it arrived.
    pub(crate) fn expect_event(&self, event: u64) -> Instant {
        let (at, received) = self.next();
        assert_eq!(received, Received::Event(event), "{}", self.name);
        at
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut client: RawClient, sender: Sender<(Instant, Received)>) {
    loop {
        let frame = client.next().await.unwrap_or(None);
        let at = Instant::now();
        let received = match &frame {
            Some(frame) if frame.opcode == TEXT => Received::Event(event_number(&frame.payload)),
            other => Received::Closed(other.as_ref().and_then(Frame::close_code)),
        };
        let is_over = matches!(received, Received::Closed(_));
        // Fails when the test has ended.
        if sender.send((at, received)).is_err() || is_over {
            return;
        }
    }
}

/// A bot that reads only when the test does.
pub(crate) async fn raw(addr: &str, name: &str) -> RawClient {
    RawClient::connect(addr.parse().unwrap(), &format!("/ws/{name}")).await
}

pub(crate) fn event_number(event: &[u8]) -> u64 {
    let event: Value = serde_json::from_slice(event).unwrap();
    event["event"].as_u64().unwrap()
}

/// Bots that connect, get some events, and end in different ways.
#[derive(Default)]
pub(crate) struct ShortLivedBots {
    /// Number of bots so far: each has ended, or must be evicted.
    bots: usize,
    /// Number of queued events, counted for each session.
    pub(crate) pushed: usize,
    /// Bots that are open and read nothing.
    silent: Vec<RawClient>,
}

impl ShortLivedBots {
    const PER_ROUND: usize = 20;
    const EVENT_BYTES: usize = 500;

    /// Connects [`PER_ROUND`](Self::PER_ROUND) bots, and ends each while events are pushed.
    pub(crate) fn round(
        &mut self,
        runtime: &Runtime,
        server: &Server,
        http: &mut Http,
        steady: &[Bot],
    ) {
        let first = self.bots;
        let connect = |bot| async move { raw(&server.addr, &format!("short-lived-{bot}")).await };
        let bots = runtime.block_on(join_all((first..first + Self::PER_ROUND).map(connect)));
        self.bots += bots.len();

        let text = "n".repeat(Self::EVENT_BYTES);
        self.push(http, &text, BURST / 2);
        for (way, mut bot) in bots.into_iter().enumerate() {
            match way % 4 {
                // As if the process was killed with bytes unread, or a firewall sent a reset.
                0 => drop(bot),
                1 => bot.reset(),
                // Killed after it has read everything.
                2 => runtime.block_on(async {
                    for _ in 0..BURST / 2 {
                        bot.expect_frame().await;
                    }
                }),
                // Replaced by a new connection, which then ends, too.
                3 if way > 3 => {
                    let name = format!("short-lived-{}", first + way);
                    drop(runtime.block_on(raw(&server.addr, &name)));
                    self.bots += 1;
                }
                // As if its cable was pulled.
                _ => self.silent.push(bot),
            }
        }
        self.push(http, &text, BURST / 2);
        for bot in steady {
            (http.last_event - BURST + 1..=http.last_event).for_each(|event| {
                bot.expect_event(event);
            });
        }
    }

    fn push(&mut self, http: &mut Http, text: &str, times: u64) {
        for _ in 0..times {
            self.pushed += http.push(text).1;
        }
    }

    /// Waits until every bot was evicted once and its socket is closed.
    pub(crate) fn wait_for_evictions(
        &mut self,
        server: &mut Server,
        http: &mut Http,
        steady: &[Bot],
    ) {
        let start = Instant::now();
        // The sockets of the steady bots and of `http`. Hooks are called before a socket is closed,
        // and silent bots do not close theirs.
        let sockets = steady.len() + 1;
        while server.evictions().len() < self.bots || server.established() > sockets {
            assert!(start.elapsed() < PATIENCE, "{:?} are left", http.bots());
            server.listen_for(ms(10));
        }
        assert_eq!(http.bots().len(), steady.len());
        let mut ids: Vec<_> = server.evictions().iter().map(|one| one.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(
            (ids.len(), server.evictions().len()),
            (self.bots, self.bots)
        );
        self.silent.clear();
    }
}

// Publishers and operators.

/// A connection to the gateway for plain HTTP requests.
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    /// Number of the last pushed event.
    pub(crate) last_event: u64,
}

impl Http {
    pub(crate) fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(&server.addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
            last_event: 0,
        }
    }

    /// Pushes an event. Returns its number, and for how many sessions it was queued.
    pub(crate) fn push(&mut self, text: &str) -> (u64, usize) {
        let (status, body) = self.request("POST /events", text.as_bytes());
        assert_eq!(status, 202);
        let answer: Value = serde_json::from_slice(&body).unwrap();
        self.last_event = answer["event"].as_u64().unwrap();
        let sessions = answer["sessions"].as_u64().unwrap();
        (self.last_event, sessions.try_into().unwrap())
    }

    fn sessions(&mut self) -> Vec<Value> {
        let (status, body) = self.request("GET /sessions", b"");
        assert_eq!(status, 200);
        let mut answer: Value = serde_json::from_slice(&body).unwrap();
        answer["sessions"].as_array_mut().unwrap().split_off(0)
    }

    /// Names of the connected bots.
    pub(crate) fn bots(&mut self) -> Vec<String> {
        let sessions = self.sessions();
        let bot = |session: &Value| session["bot"].as_str().unwrap().to_owned();
        sessions.iter().map(bot).collect()
    }

    pub(crate) fn session(&mut self, bot: &str) -> Value {
        let sessions = self.sessions();
        let session = sessions.iter().find(|session| session["bot"] == bot);
        session.expect(bot).clone()
    }

    /// Sends a request with a body. Returns the status and body of the response.
    pub(crate) fn request(&mut self, what: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let length = body.len();
        let head = format!("{what} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {length}\r\n\r\n");
        self.exchange(&[head.as_bytes(), body].concat())
    }

    pub(crate) fn exchange(&mut self, request: &[u8]) -> (u16, Vec<u8>) {
        self.stream.get_mut().write_all(request).unwrap();
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            match line.trim_end().split_once(' ') {
                Some(("HTTP/1.1", rest)) => status = Some(rest[..3].parse().unwrap()),
                Some(("content-length:", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (status.expect("an answer"), body)
    }
}
