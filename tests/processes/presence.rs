//! The presence example as a process: users who are killed, stopped, and come back.
//!
//! A process with the role `role-presence-server` is the example, one with `role-user` a client of
//! it.

use std::collections::{BTreeSet, VecDeque};
use std::process::ExitCode;

use nix::sys::signal::Signal;

use crate::child::Process;
use crate::examples::presence;
use crate::harness::Trial;
use crate::roles;
use crate::text_client::TextClient;

pub(crate) const SERVER: &str = "role-presence-server";
pub(crate) const USER: &str = "role-user";

pub(crate) fn server(args: Vec<String>) -> ExitCode {
    roles::serve(presence::run(args))
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 6] = [
        ("a_killed_user_goes_with_the_last_connection", killed),
        ("a_stopped_user_goes_and_comes_back", stopped),
        ("every_client_has_the_same_list", same_list),
        ("the_whole_list_is_one_message", whole_list),
        ("wrong_names_are_refused", names),
        ("wrong_flags_are_refused", flags),
    ];
    crate::trials("presence", tests)
}

/// Prints each line until the end.
pub(crate) fn user(addr: &str, name: &str) -> ExitCode {
    let mut client = Client::connect(addr, name);
    while let Some(line) = client.socket.text() {
        println!("{line}");
    }
    println!("closed");
    ExitCode::SUCCESS
}

fn killed() {
    let (_server, addr) = start(&[]);
    let mut bob = Client::connect(&addr, "bob");
    assert_eq!(bob.next(), "first bob");
    let mut tabs = [(); 2].map(|()| Process::start(&[USER, &addr, "alice%20c"]));
    for tab in &mut tabs {
        assert_eq!([tab.line(), tab.line()], ["first alice c", "first bob"]);
    }
    for tab in &tabs {
        tab.signal(Signal::SIGKILL);
    }
    assert_eq!(bob.next(), "first alice c");
    assert_eq!(bob.next(), "last alice c");
    let alice = Process::start(&[USER, &addr, "alice%20c"]);
    assert_eq!(bob.next(), "first alice c");
    alice.signal(Signal::SIGKILL);
    assert_eq!(bob.next(), "last alice c");
}

fn stopped() {
    let (_server, addr) = start(&["--interval-ms", "500", "--timeout-ms", "1500"]);
    let mut bob = Client::connect(&addr, "bob");
    assert_eq!(bob.next(), "first bob");
    let mut alice = Process::start(&[USER, &addr, "alice"]);
    assert_eq!([alice.line(), alice.line()], ["first alice", "first bob"]);
    assert_eq!(bob.next(), "first alice");
    alice.stop();
    assert_eq!(bob.next(), "last alice");
    // Only the frozen one went.
    let mut carol = Client::connect(&addr, "carol");
    assert_eq!([carol.next(), carol.next()], ["first bob", "first carol"]);
    assert_eq!(bob.next(), "first carol");
    alice.signal(Signal::SIGCONT);
    assert_eq!(alice.line(), "closed");
    let _alice = Process::start(&[USER, &addr, "alice"]);
    assert_eq!([bob.next(), carol.next()], [(); 2].map(|()| "first alice"));
}

/// Each client applies its lines in order, while users come and go. A lost or doubled line would
/// fail the test.
fn same_list() {
    let (_server, addr) = start(&[]);
    let addr = &addr;
    std::thread::scope(|scope| {
        // Four in the end, with `end`.
        let watchers = [0, 1, 2].map(|number| {
            let name = format!("watcher{number}");
            scope.spawn(move || {
                let mut client = Client::connect(addr, &name);
                client.until(|online| online.len() == 4 && online.contains("end"));
                client
            })
        });
        let guests = ["one", "two", "three"].map(|name| {
            scope.spawn(move || {
                for _ in 0..100 {
                    Client::connect(addr, name).until(|online| online.contains(name));
                }
            })
        });
        for guest in guests {
            guest.join().unwrap();
        }
        let _end = Client::connect(addr, "end");
        // Each stays until all have seen it.
        let _watchers = watchers.map(|watcher| watcher.join().unwrap());
    });
}

/// With one message per user, changes would fill the queue meanwhile.
fn whole_list() {
    let (_server, addr) = start(&[]);
    let mut bob = Client::connect(&addr, "bob");
    assert_eq!(bob.next(), "first bob");
    let mut carol = TextClient::connect(&addr, "/ws/carol").unwrap();
    assert_eq!(carol.text().unwrap(), "first bob\nfirst carol");
}

fn names() {
    let (_server, addr) = start(&[]);
    for name in ["al%0aice", &"x".repeat(65)] {
        let status = TextClient::connect(&addr, &format!("/ws/{name}")).err();
        assert_eq!(status, Some(400), "{name}");
    }
}

fn flags() {
    for args in [
        ["--interval-ms", "x"],
        ["--timeout-ms", "-1"],
        ["--addr", "nowhere"],
    ] {
        let error = error(&args);
        assert!(error.starts_with(args[0]), "{error}");
    }
    assert!(error(&["--interval-ms", "0"]).contains("interval"));
    assert!(error(&["--no-such-flag"]).starts_with("usage: presence"));
}

fn error(args: &[&str]) -> String {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let failed = roles::runtime().block_on(presence::run(args)).unwrap_err();
    failed.to_string()
}

/// Returns the server and its address.
fn start(flags: &[&str]) -> (Process, String) {
    let mut server = Process::start(&[&[SERVER, "--addr", "127.0.0.1:0"], flags].concat());
    let line = server.line();
    let addr = line.strip_prefix("listening on ").unwrap().to_owned();
    (server, addr)
}

struct Client {
    socket: TextClient,
    /// Received, but not returned yet.
    lines: VecDeque<String>,
    online: BTreeSet<String>,
}

impl Client {
    fn connect(addr: &str, name: &str) -> Self {
        Self {
            socket: TextClient::connect(addr, &format!("/ws/{name}")).unwrap(),
            lines: VecDeque::new(),
            online: BTreeSet::new(),
        }
    }

    fn next(&mut self) -> String {
        while self.lines.is_empty() {
            let text = self.socket.text().expect("a line");
            self.lines.extend(text.lines().map(str::to_owned));
        }
        self.lines.pop_front().unwrap()
    }

    /// Applies lines until the list of users meets `condition`.
    fn until(&mut self, condition: impl Fn(&BTreeSet<String>) -> bool) {
        while !condition(&self.online) {
            let line = self.next();
            let changed = match line.split_once(' ').unwrap() {
                ("first", user) => self.online.insert(user.to_owned()),
                ("last", user) => self.online.remove(user),
                _ => false,
            };
            assert!(changed, "{line}: {:?}", self.online);
        }
    }
}
