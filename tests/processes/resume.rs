//! The resume example as processes: clients that are killed or stopped miss and double no message.
//!
//! A process with the role `role-resume` is the server or the client of the example. What a client
//! prints is what it has stored.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tungstenite::client;

use crate::child::{PATIENCE, Process};
use crate::examples::resume;
use crate::harness::Trial;
use crate::roles;
use crate::text_client::TextClient;

pub(crate) const ROLE: &str = "role-resume";

pub(crate) fn role(args: Vec<String>) -> ExitCode {
    roles::serve(resume::run(args))
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 9] = [
        (
            "a_client_killed_in_the_middle_of_a_push_gets_each_message_once",
            killed,
        ),
        ("a_client_that_is_cut_off_continues_where_it_was", cut_off),
        ("after_the_grace_period_a_client_starts_again", expired),
        ("an_overflow_while_away_is_reported", overflowed),
        ("a_newer_client_takes_the_messages_over", taken_over),
        (
            "an_older_connection_of_a_client_takes_nothing_over",
            outdated,
        ),
        ("a_message_that_never_fits_is_not_answered_503", too_large),
        ("a_client_that_is_refused_does_not_retry", refused_client),
        ("wrong_places_and_flags_are_refused", refused),
    ];
    crate::trials("resume", tests)
}

fn killed() {
    let feed = Feed::open(&["--grace-ms", "600000", "--max-messages", "1000000"]);
    let mut client = feed.client("alice", &[]);
    let session = new_session(&mut client);
    let (received, pushed) = feed.push_meanwhile(|| {
        let mut received = Vec::new();
        for _ in 0..4 {
            received.extend((0..30).map(|_| client.line()));
            client.signal(Signal::SIGKILL);
            // What it has printed before it was killed.
            while let Ok(line) = client.line_by(Instant::now() + PATIENCE) {
                received.push(line);
            }
            let from = received.len().to_string();
            client = feed.client("alice", &["--session", &session, "--from", &from]);
            assert_eq!(client.line(), format!("resumed {session}"));
        }
        received
    });
    assert_each_once(&mut client, received, pushed);
}

fn cut_off() {
    let feed = Feed::open(&["--grace-ms", "600000", "--max-messages", "1000000"]);
    let relay = Relay::to(&feed.addr);
    let mut client = Process::start(&[ROLE, "--connect", &relay.addr, "--user", "alice"]);
    let session = new_session(&mut client);
    let (received, pushed) = feed.push_meanwhile(|| {
        let mut received = Vec::new();
        for _ in 0..3 {
            received.extend((0..30).map(|_| client.line()));
            relay.cut();
            loop {
                let line = client.line();
                if line == format!("resumed {session}") {
                    break;
                }
                received.push(line);
            }
        }
        received
    });
    assert_each_once(&mut client, received, pushed);
}

/// Asserts that the client has received the messages that were pushed, or will, and no other.
fn assert_each_once(client: &mut Process, mut received: Vec<String>, pushed: usize) {
    while received.len() < pushed {
        received.push(client.line());
    }
    let expected = (0..pushed).map(|position| format!("message {position} text {position}"));
    assert_eq!(received, expected.collect::<Vec<_>>());
}

fn expired() {
    let feed = Feed::open(&["--grace-ms", "300"]);
    let mut client = feed.client("alice", &[]);
    let old = new_session(&mut client);
    assert_eq!(feed.push("alice", "old"), (200, "0\n".to_owned()));
    assert_eq!(client.line(), "message 0 old");
    client.signal(Signal::SIGKILL);
    let end = Instant::now() + PATIENCE;
    while feed.push("alice", "lost").0 != 404 {
        assert!(Instant::now() < end, "the session does not end");
        thread::sleep(Duration::from_millis(20));
    }

    // The new session has a message at the position that the client asks for.
    let mut other = feed.client("alice", &[]);
    let new = new_session(&mut other);
    assert_ne!(new, old);
    // So that it acknowledges nothing.
    other.stop();
    assert_eq!(feed.push("alice", "new").0, 200);
    assert_eq!(feed.push("alice", "newer").0, 200);
    let mut client = feed.client("alice", &["--session", &old, "--from", "1"]);
    assert_eq!(new_session(&mut client), new);
    assert_eq!(client.line(), "message 0 new");
    assert_eq!(client.line(), "message 1 newer");
}

fn overflowed() {
    let feed = Feed::open(&["--grace-ms", "600000", "--max-messages", "3"]);
    let mut client = feed.client("alice", &[]);
    let session = new_session(&mut client);
    client.signal(Signal::SIGKILL);
    for position in 0..3 {
        let pushed = feed.push("alice", "text");
        assert_eq!(pushed, (200, format!("{position}\n")));
    }
    let full = "the outbox has no room for another message\n".to_owned();
    assert_eq!(feed.push("alice", "text"), (503, full.clone()));
    assert_eq!(feed.push("alice", "text"), (503, full));

    // Reported again to a client that was killed before it has stored the report.
    for from in [0, 3, 3] {
        let place = from.to_string();
        let mut client = feed.client("alice", &["--session", &session, "--from", &place]);
        assert_eq!(client.line(), format!("resumed {session}"));
        for position in from..3 {
            assert_eq!(client.line(), format!("message {position} text"));
        }
        assert_eq!(client.line(), "refused 2");
        client.signal(Signal::SIGKILL);
    }

    // Silent for a client that has stored it, until there is another one.
    let place = ["--session", &session, "--from", "3", "--refused", "2"];
    let mut client = feed.client("alice", &place);
    assert_eq!(client.line(), format!("resumed {session}"));
    assert_eq!(feed.push("alice", "next"), (200, "3\n".to_owned()));
    assert_eq!(client.line(), "message 3 next");
    client.signal(Signal::SIGKILL);
    while feed.push("alice", "text").0 == 200 {}
    let place = ["--session", &session, "--from", "4", "--refused", "2"];
    let mut client = feed.client("alice", &place);
    assert_eq!(client.line(), format!("resumed {session}"));
    loop {
        match client.line() {
            line if line == "refused 3" => break,
            line => assert!(line.starts_with("message "), "{line}"),
        }
    }
}

fn taken_over() {
    let feed = Feed::open(&["--grace-ms", "600000"]);
    let mut old = feed.client("alice b", &[]);
    let session = new_session(&mut old);
    assert_eq!(feed.push("alice%20b", "zero").0, 200);
    assert_eq!(old.line(), "message 0 zero");
    old.stop();
    // Sent to the stopped client, which cannot acknowledge it.
    assert_eq!(feed.push("alice%20b", "one").0, 200);
    let mut new = feed.client("alice b", &["--session", &session, "--from", "1"]);
    assert_eq!(new.line(), format!("resumed {session}"));
    assert_eq!(new.line(), "message 1 one");
    assert_eq!(feed.push("alice%20b", "two").0, 200);
    assert_eq!(new.line(), "message 2 two");
    old.signal(Signal::SIGCONT);
    assert_eq!(old.exit_status(), Some(0));
    assert_eq!(feed.push("alice%20b", "three").0, 200);
    assert_eq!(new.line(), "message 3 three");
}

/// As after a pause of the server, which processes the newest connection first.
fn outdated() {
    let feed = Feed::open(&["--grace-ms", "600000"]);
    let connect = |client: &str, attempt: u64| {
        let path = format!("/ws?user=alice&client={client}&attempt={attempt}");
        TextClient::connect(&feed.addr, &path).unwrap()
    };
    let mut newest = connect("one", 2);
    let session = newest.text().unwrap();
    assert!(session.starts_with("new "), "{session}");
    assert_eq!(connect("one", 1).text(), None);
    assert_eq!(feed.push("alice", "zero").0, 200);
    assert_eq!(newest.text().unwrap(), "message 0 zero");

    // The next one of the same client, and any of another one, take it over.
    let mut next = connect("one", 3);
    assert_eq!(next.text().unwrap(), session);
    assert_eq!(newest.close_code(), Some(4000));
    let mut other = connect("two", 1);
    assert_eq!(other.text().unwrap(), session);
    assert_eq!(next.text().unwrap(), "message 0 zero");
    assert_eq!(next.close_code(), Some(4000));
    assert_eq!(other.text().unwrap(), "message 0 zero");
}

fn too_large() {
    let feed = Feed::open(&[]);
    let mut client = feed.client("alice", &[]);
    new_session(&mut client);
    assert_eq!(feed.push("alice", &"x".repeat(1024 * 1024 + 1)).0, 413);
    let largest = "x".repeat(1024 * 1024);
    assert_eq!(feed.push("alice", &largest), (200, "0\n".to_owned()));
    assert_eq!(client.line(), format!("message 0 {largest}"));
}

fn refused_client() {
    let feed = Feed::open(&[]);
    let args = ["--connect", &feed.addr, "--user", ""].map(str::to_owned);
    let running = resume::run(args.to_vec());
    let ended = roles::runtime().block_on(async { tokio::time::timeout(PATIENCE, running).await });
    let error = ended.expect("it retries").unwrap_err().to_string();
    assert_eq!(error, "refused: 400 Bad Request");
    let mut client = feed.client("alice", &["--session", "a b&user=/?#\u{e9}", "--from", "1"]);
    new_session(&mut client);
}

fn refused() {
    let feed = Feed::open(&[]);
    for query in ["", "?user=", "?user=%ff", "?session=x&from=0"] {
        let stream = TcpStream::connect(&feed.addr).unwrap();
        let refused = client(format!("ws://{}/ws{query}", feed.addr), stream);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("400"), "{query}: {error}");
    }
    let session = new_session(&mut feed.client("alice", &[]));
    // Positions that no message has had.
    for from in ["1", "18446744073709551615"] {
        let mut client = feed.client("alice", &["--session", &session, "--from", from]);
        assert_eq!(new_session(&mut client), session);
    }
    for args in [
        ["--max-messages", "0"],
        ["--max-messages", "x"],
        ["--grace-ms", "0"],
        ["--connect", "127.0.0.1:1"],
    ] {
        let args = args.map(str::to_owned).to_vec();
        let runtime = roles::runtime();
        assert!(
            runtime.block_on(resume::run(args.clone())).is_err(),
            "{args:?}"
        );
    }
}

/// The session with which a client starts, or starts again.
fn new_session(client: &mut Process) -> String {
    let line = client.line();
    line.strip_prefix("new ").expect(&line).to_owned()
}

struct Feed {
    addr: String,
    _server: Process,
}

impl Feed {
    fn open(flags: &[&str]) -> Self {
        let mut server = Process::start(&[&[ROLE, "--addr", "127.0.0.1:0"], flags].concat());
        let line = server.line();
        let addr = line.strip_prefix("listening on ").expect("the address");
        Self {
            addr: addr.to_owned(),
            _server: server,
        }
    }

    fn client(&self, user: &str, flags: &[&str]) -> Process {
        let args = [ROLE, "--connect", &self.addr, "--user", user];
        Process::start(&[&args, flags].concat())
    }

    fn push(&self, user: &str, text: &str) -> (u16, String) {
        push(&self.addr, user, text)
    }

    /// Pushes numbered messages for alice while `act` runs. Returns their number.
    fn push_meanwhile<R>(&self, act: impl FnOnce() -> R) -> (R, usize) {
        let (addr, begun) = (&self.addr, Instant::now());
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let pushing = scope.spawn(|| {
                let mut pushed = 0;
                while !is_over.load(Ordering::Relaxed) {
                    assert!(begun.elapsed() < PATIENCE);
                    let text = format!("text {pushed}");
                    assert_eq!(push(addr, "alice", &text), (200, format!("{pushed}\n")));
                    pushed += 1;
                }
                pushed
            });
            let result = act();
            is_over.store(true, Ordering::Relaxed);
            (result, pushing.join().unwrap())
        })
    }
}

/// Relays connections to the server, until it cuts them.
struct Relay {
    addr: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            addr: listener.local_addr().unwrap().to_string(),
            open: Arc::default(),
        };
        let (server, open) = (server.to_owned(), Arc::clone(&relay.open));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(&server).unwrap();
                let clone = |stream: &TcpStream| stream.try_clone().unwrap();
                open.lock().unwrap().push(clone(&near));
                for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
                    thread::spawn(move || {
                        let _ = io::copy(&mut &from, &mut &to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        relay
    }

    fn cut(&self) {
        for connection in self.open.lock().unwrap().drain(..) {
            // It may have ended.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// The status and the body of the response.
fn push(addr: &str, user: &str, text: &str) -> (u16, String) {
    let mut http = TcpStream::connect(addr).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = text.len();
    // HTTP/1.0, so that the connection is closed after the response.
    let head = format!("POST /push?user={user} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n");
    http.write_all(format!("{head}{text}").as_bytes()).unwrap();
    let mut response = String::new();
    http.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}
