//! The processes that `tests/processes.rs` starts, as seen by who started them. Whatever happens,
//! they are killed and reaped in the end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::roles;

/// How long something may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A child, with its stdin and the lines of its stdout.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<(Instant, String)>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if tell.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
        }
    }

    fn next_line(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.expect("a line from the process").1
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a child that is gone already. SIGKILL also ends a stopped one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, and what it has logged so far.
pub(crate) struct Server {
    process: Process,
    pub(crate) addr: String,
    opens: Vec<u64>,
    opens_taken: usize,
    evictions: Vec<Eviction>,
}

/// A line of the server's log.
#[derive(Clone, Debug)]
pub(crate) struct Eviction {
    pub(crate) id: u64,
    pub(crate) reason: String,
    pub(crate) lifetime_ms: u64,
    /// When the line was read.
    pub(crate) at: Instant,
}

impl Server {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let process = Process::start(&[&[roles::SERVER, "--addr", "127.0.0.1:0"], flags].concat());
        let line = process.next_line();
        let addr = line.strip_prefix("listening on ").expect(&line).to_owned();
        Self {
            process,
            addr,
            opens: Vec::new(),
            opens_taken: 0,
            evictions: Vec::new(),
        }
    }

    /// The id of the next connection that was opened.
    pub(crate) fn next_open(&mut self) -> u64 {
        self.listen_until("an open", |this| this.opens.len() > this.opens_taken);
        self.opens_taken += 1;
        self.opens[self.opens_taken - 1]
    }

    /// Waits for the eviction of this connection.
    pub(crate) fn eviction_of(&mut self, id: u64) -> Eviction {
        let find = |this: &Self| this.evictions.iter().find(|one| one.id == id).cloned();
        self.listen_until("an eviction", |this| find(this).is_some());
        find(self).unwrap()
    }

    /// All evictions logged so far, as far as they were listened to.
    pub(crate) fn evictions(&self) -> &[Eviction] {
        &self.evictions
    }

    /// Takes note of all that is logged during `span`.
    pub(crate) fn listen_for(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while self.listen_before(end) {}
    }

    fn listen_until(&mut self, what: &str, happened: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !happened(self) {
            assert!(self.listen_before(end), "{what} within {PATIENCE:?}");
        }
    }

    /// Takes note of one line, if one comes before `end`.
    fn listen_before(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let Ok((at, line)) = self.process.lines.recv_timeout(left) else {
            return false;
        };
        let entry: serde_json::Value = serde_json::from_str(&line).expect(&line);
        let id = entry["id"].as_u64().expect(&line);
        if entry["event"] == "open" {
            self.opens.push(id);
        } else {
            self.evictions.push(Eviction {
                id,
                reason: entry["reason"].as_str().expect(&line).to_owned(),
                lifetime_ms: entry["lifetime_ms"].as_u64().expect(&line),
                at,
            });
        }
        true
    }
}

/// A stock client in a process of its own.
pub(crate) struct Client(Process);

impl Client {
    /// Starts a client, and waits until it has got its first echo.
    pub(crate) fn start(server: &Server, flags: &[&str]) -> Self {
        let process = Process::start(&[&[roles::CLIENT, &server.addr], flags].concat());
        assert_eq!(process.next_line(), "ready");
        Self(process)
    }

    /// Has the client send a line, and waits for the echo.
    pub(crate) fn echo(&mut self, line: &str) {
        writeln!(self.0.stdin, "{line}").unwrap();
        assert_eq!(self.0.next_line(), format!("echo {line}"));
    }

    /// Waits until the client finds its connection closed.
    pub(crate) fn expect_closed(&mut self) {
        assert_eq!(self.0.next_line(), "closed");
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        kill(self.0.pid(), signal).unwrap();
    }

    /// Stops the client, and waits until it stands still.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGSTOP);
        let status = waitpid(self.0.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }
}
