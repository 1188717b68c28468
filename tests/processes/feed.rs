//! The feed example as a process: slow, killed and kicked traders.
//!
//! A process with the role `role-feed-server` is the example, one with `role-trader` a client of it.

use std::process::ExitCode;
use std::sync::Barrier;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::child::{PATIENCE, Process};
use crate::examples::feed;
use crate::harness::Trial;
use crate::text_client::TextClient;
use crate::{http, roles};

pub(crate) const SERVER: &str = "role-feed-server";
pub(crate) const TRADER: &str = "role-trader";

pub(crate) fn server(args: Vec<String>) -> ExitCode {
    roles::serve(feed::run(args))
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 6] = [
        ("a_slow_consumer_delays_no_other", slow_consumer),
        ("a_killed_trader_leaves_immediately", killed),
        ("a_kick_ends_all_connections_of_a_user", kicked),
        ("no_connection_escapes_a_kick", racing_kicks),
        ("wrong_names_and_large_prices_are_refused", refused),
        ("wrong_flags_are_refused", flags),
    ];
    crate::trials("feed", tests)
}

/// Prints `connected`, the number of each price, and `closed` at the end.
pub(crate) fn trader(addr: &str, user: &str) -> ExitCode {
    let mut socket = connect(addr, user).unwrap();
    println!("connected");
    while let Some(price) = socket.text() {
        println!("{}", number(&price));
    }
    println!("closed");
    ExitCode::SUCCESS
}

/// Prices that are large, so that few of them fill the buffers of a socket.
fn slow_consumer() {
    let feed = Feed::open("4");
    let mut slow = feed.send_trader("slow");
    let mut fast = feed.connect("fast").unwrap();
    feed.post(&json!({"price": 1, "queued": 2}));
    assert_eq!(slow.line(), "1");
    slow.stop();
    let price = "x".repeat(60_000);
    let end = Instant::now() + PATIENCE;
    let mut last = 0;
    for posted in 1.. {
        assert_eq!(next_price(&mut fast), posted);
        if feed.evictions("slow_consumer") == 1 {
            last = posted;
            break;
        }
        assert!(Instant::now() < end, "{posted} prices");
        let (status, _) = http::post(&feed.addr, "/prices", &price);
        assert_eq!(status, 200);
    }
    feed.post(&json!({"price": last + 1, "queued": 1}));
    assert_eq!(next_price(&mut fast), last + 1);
    assert_eq!(feed.metrics().lines().count(), 2, "{}", feed.metrics());

    // What the slow one got has no gap.
    slow.signal(Signal::SIGCONT);
    let mut received = 1;
    loop {
        match slow.line() {
            line if line == "closed" => break,
            line => assert_eq!(line, (received + 1).to_string()),
        }
        received += 1;
    }
    assert!(received < last, "{received} of {last}");

    let mut slow = feed.send_trader("slow");
    feed.post(&json!({"price": last + 2, "queued": 2}));
    assert_eq!(slow.line(), (last + 2).to_string());
}

fn killed() {
    let feed = Feed::open("4");
    let alice = feed.send_trader("alice");
    let mut bob = feed.connect("bob").unwrap();
    feed.post(&json!({"price": 1, "queued": 2}));
    alice.signal(Signal::SIGKILL);
    feed.until("websocket_server_active_connections 1");
    feed.post(&json!({"price": 2, "queued": 1}));
    let mut alice = feed.send_trader("alice");
    feed.post(&json!({"price": 3, "queued": 2}));
    assert_eq!(alice.line(), "3");
    assert_eq!([1, 2, 3], [(); 3].map(|()| next_price(&mut bob)));
}

fn kicked() {
    let feed = Feed::open("4");
    let mut alice = [(); 2].map(|()| feed.connect("alice").unwrap());
    let mut bob = feed.connect("bob").unwrap();
    assert_eq!(feed.kick("alice"), 2);
    for socket in &mut alice {
        assert_eq!(socket.close_code(), Some(4001));
    }
    assert_eq!(feed.connect("alice").unwrap_err(), 403);
    assert_eq!(feed.kick("alice"), 0);
    feed.post(&json!({"price": 1, "queued": 1}));
    assert_eq!(next_price(&mut bob), 1);
    let metrics = "websocket_server_active_connections 1\n\
                   websocket_server_evictions_total{reason=\"admin\"} 2\n";
    assert_eq!(feed.metrics(), metrics);
}

/// Users are kicked while they connect.
fn racing_kicks() {
    let feed = Feed::open("4");
    for round in 0..50 {
        let user = format!("user{round}");
        let (addr, start) = (&feed.addr, Barrier::new(5));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    // A connection that stays open would fail the test here.
                    while let Ok(mut socket) = connect(addr, &user) {
                        socket.close_code();
                    }
                });
            }
            start.wait();
            kick(addr, &user);
        });
    }
    feed.until("websocket_server_active_connections 0");
    feed.post(&json!({"price": 1, "queued": 0}));
}

fn refused() {
    let feed = Feed::open("1");
    let long = "x".repeat(65);
    for user in ["al%0aice", &long] {
        assert_eq!(feed.connect(user).unwrap_err(), 400, "{user}");
        let (status, _) = http::post(&feed.addr, &format!("/kick/{user}"), "");
        assert_eq!(status, 400, "{user}");
    }
    let large = "x".repeat(64 * 1024 + 1);
    let (status, _) = http::post(&feed.addr, "/prices", &large);
    assert_eq!(status, 413);
    let (status, _) = http::get(&feed.addr, "/kick/alice");
    assert_eq!(status, 405);
    feed.post(&json!({"price": 1, "queued": 0}));
}

fn flags() {
    for args in [
        ["--queue", "0"],
        ["--queue", "65536"],
        ["--addr", "nowhere"],
    ] {
        let error = error(&args);
        assert!(error.starts_with(args[0]), "{error}");
    }
    assert!(error(&["--no-such-flag"]).starts_with("usage: feed"));
}

fn error(args: &[&str]) -> String {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let failed = roles::runtime().block_on(feed::run(args)).unwrap_err();
    failed.to_string()
}

struct Feed {
    addr: String,
    _process: Process,
}

impl Feed {
    fn open(queue: &str) -> Self {
        let mut process = Process::start(&[SERVER, "--addr", "127.0.0.1:0", "--queue", queue]);
        let line = process.line();
        Self {
            addr: line.strip_prefix("listening on ").unwrap().to_owned(),
            _process: process,
        }
    }

    fn connect(&self, user: &str) -> Result<TextClient, u16> {
        connect(&self.addr, user)
    }

    /// A trader in its own process.
    fn send_trader(&self, user: &str) -> Process {
        let mut process = Process::start(&[TRADER, &self.addr, user]);
        assert_eq!(process.line(), "connected");
        process
    }

    #[track_caller]
    fn post(&self, expected: &Value) {
        let (status, body) = http::post(&self.addr, "/prices", "EUR/USD 1.0712");
        assert_eq!(status, 200);
        assert_eq!(&serde_json::from_str::<Value>(&body).unwrap(), expected);
    }

    fn kick(&self, user: &str) -> u64 {
        kick(&self.addr, user)
    }

    fn metrics(&self) -> String {
        http::get(&self.addr, "/metrics").1
    }

    fn evictions(&self, label: &str) -> u64 {
        let metrics = self.metrics();
        let start = format!("websocket_server_evictions_total{{reason=\"{label}\"}} ");
        let mut counts = metrics.lines().filter_map(|line| line.strip_prefix(&start));
        counts.next().map_or(0, |count| count.parse().unwrap())
    }

    /// Waits until the metrics have this line.
    fn until(&self, line: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.metrics().lines().any(|found| found == line) {
            assert!(Instant::now() < end, "{line}: {}", self.metrics());
            std::thread::yield_now();
        }
    }
}

fn connect(addr: &str, user: &str) -> Result<TextClient, u16> {
    TextClient::connect(addr, &format!("/ws/{user}"))
}

fn kick(addr: &str, user: &str) -> u64 {
    let (status, body) = http::post(addr, &format!("/kick/{user}"), "");
    assert_eq!(status, 200);
    let body: Value = serde_json::from_str(&body).unwrap();
    body["kicked"].as_u64().unwrap()
}

fn next_price(socket: &mut TextClient) -> u64 {
    number(&socket.text().expect("a price"))
}

fn number(price: &str) -> u64 {
    let (number, _) = price.split_once(' ').unwrap();
    number.parse().unwrap()
}
