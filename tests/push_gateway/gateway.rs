//! What the tests set on the gateway: bots that are sockets of the test, and publishers.

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

/// A bot that hears everything at once, whatever the test does meanwhile.
pub(crate) struct Bot {
    name: String,
    heard: Receiver<(Instant, Heard)>,
    task: JoinHandle<()>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Event(u64),
    /// The end of the connection, with the code of the Close frame if there was one.
    Closed(Option<u16>),
}

impl Bot {
    pub(crate) fn connect(runtime: &Runtime, server: &Server, name: &str) -> Self {
        let client = runtime.block_on(raw(&server.addr, name));
        let (tell, heard) = channel();
        Self {
            name: name.to_owned(),
            heard,
            task: runtime.spawn(listen(client, tell)),
        }
    }

    pub(crate) fn next(&self) -> (Instant, Heard) {
        let heard = self.heard.recv_timeout(PATIENCE);
        heard.unwrap_or_else(|_| panic!("{} hears nothing for {PATIENCE:?}", self.name))
    }

    /// Waits for this event, which must be the next, and returns when it came.
    pub(crate) fn hear(&self, event: u64) -> Instant {
        let (at, heard) = self.next();
        assert_eq!(heard, Heard::Event(event), "{}", self.name);
        at
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut client: RawClient, tell: Sender<(Instant, Heard)>) {
    loop {
        let frame = client.next().await.unwrap_or(None);
        let at = Instant::now();
        let heard = match &frame {
            Some(frame) if frame.opcode == TEXT => Heard::Event(event_number(&frame.payload)),
            other => Heard::Closed(other.as_ref().and_then(Frame::close_code)),
        };
        let is_over = matches!(heard, Heard::Closed(_));
        // Fails when the test has ended.
        if tell.send((at, heard)).is_err() || is_over {
            return;
        }
    }
}

/// A bot that reads nothing by itself.
pub(crate) async fn raw(addr: &str, name: &str) -> RawClient {
    RawClient::connect(addr.parse().unwrap(), &format!("/ws/{name}")).await
}

pub(crate) fn event_number(event: &[u8]) -> u64 {
    let event: Value = serde_json::from_slice(event).unwrap();
    event["event"].as_u64().unwrap()
}

/// Bots that come, get some events, and die.
#[derive(Default)]
pub(crate) struct Doomed {
    /// How many there were, that is, how many sessions have ended or will.
    bots: usize,
    /// How many events were queued, counted for each session.
    pub(crate) pushed: usize,
    /// Those that just fall silent.
    silent: Vec<RawClient>,
}

impl Doomed {
    const COMPANY: usize = 20;
    const NEWS: usize = 500;

    /// A company of bots that are dead, in one way or another, before the burst is over.
    pub(crate) fn round(
        &mut self,
        runtime: &Runtime,
        server: &Server,
        http: &mut Http,
        steady: &[Bot],
    ) {
        let first = self.bots;
        let connect = |bot| async move { raw(&server.addr, &format!("doomed-{bot}")).await };
        let company = runtime.block_on(join_all((first..first + Self::COMPANY).map(connect)));
        self.bots += company.len();

        let news = "n".repeat(Self::NEWS);
        self.push(http, &news, BURST / 2);
        for (way, mut bot) in company.into_iter().enumerate() {
            match way % 4 {
                // As a process dies that has not read everything, and as a firewall kills.
                0 => drop(bot),
                1 => bot.reset(),
                // It has read everything.
                2 => runtime.block_on(async {
                    for _ in 0..BURST / 2 {
                        bot.expect_frame().await;
                    }
                }),
                // Its seat is taken over, and the new one falls away as well.
                3 if way > 3 => {
                    let name = format!("doomed-{}", first + way);
                    drop(runtime.block_on(raw(&server.addr, &name)));
                    self.bots += 1;
                }
                // Its cable was pulled.
                _ => self.silent.push(bot),
            }
        }
        self.push(http, &news, BURST / 2);
        for bot in steady {
            (http.last_event - BURST + 1..=http.last_event).for_each(|event| {
                bot.hear(event);
            });
        }
    }

    fn push(&mut self, http: &mut Http, news: &str, times: u64) {
        for _ in 0..times {
            self.pushed += http.push(news).1;
        }
    }

    /// Waits until all of them were found dead, nobody twice, and their sockets are closed.
    pub(crate) fn rest(&mut self, server: &mut Server, http: &mut Http, steady: &[Bot]) {
        let start = Instant::now();
        // Those of the steady and the operator's. Hooks are told before a socket is closed, and the
        // silent do not help with that.
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

/// A connection to the gateway for plain requests.
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    /// The number of the event that was pushed last.
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
        let told: Value = serde_json::from_slice(&body).unwrap();
        self.last_event = told["event"].as_u64().unwrap();
        let sessions = told["sessions"].as_u64().unwrap();
        (self.last_event, sessions.try_into().unwrap())
    }

    fn sessions(&mut self) -> Vec<Value> {
        let (status, body) = self.request("GET /sessions", b"");
        assert_eq!(status, 200);
        let mut told: Value = serde_json::from_slice(&body).unwrap();
        told["sessions"].as_array_mut().unwrap().split_off(0)
    }

    /// Who is there.
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

    /// A request with a body: the status of the answer, and its body.
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
