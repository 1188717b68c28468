//! Child processes of `tests/processes` and `tests/push_gateway`, killed and reaped when dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::roles;

/// Bound on a wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A child process, with its stdin and the lines of its stdout.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<(Instant, String)>,
}

impl Process {
    /// Starts this program in a role, in a network namespace if one is given.
    fn start(namespace: Option<&str>, args: &[&str]) -> Self {
        let this = std::env::current_exe().unwrap();
        let mut command = match namespace {
            // `ip netns exec` replaces itself by the program, so the child is the role's process.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(this);
                command
            }
            None => Command::new(this),
        };
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
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

    fn next_line(&self, patience: Duration) -> (Instant, String) {
        let line = self.lines.recv_timeout(patience);
        line.expect("a line from the process")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    fn signal(&mut self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn stop(&mut self) {
        self.signal(Signal::SIGSTOP);
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a child that has exited. SIGKILL also ends a stopped one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server process, and the parsed lines of its log.
pub(crate) struct Server {
    process: Process,
    pub(crate) addr: String,
    opens: Vec<u64>,
    opens_taken: usize,
    evictions: Vec<Eviction>,
    notes: Vec<Note>,
}

/// A log line that is neither an open nor an eviction.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) at: Instant,
    pub(crate) entry: serde_json::Value,
}

/// An eviction in the server's log.
#[derive(Clone, Debug)]
pub(crate) struct Eviction {
    pub(crate) id: u64,
    pub(crate) reason: String,
    pub(crate) lifetime_ms: u64,
    /// The whole line.
    pub(crate) entry: serde_json::Value,
    /// When the line was read.
    pub(crate) at: Instant,
}

impl Server {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let role = [roles::SERVER, "--addr", "127.0.0.1:0"];
        Self::of(Process::start(None, &[&role, flags].concat()))
    }

    /// Starts a server that listens on all addresses of a network namespace.
    pub(crate) fn start_in(namespace: &str, role: &str, flags: &[&str]) -> Self {
        let role = [role, "--addr", "0.0.0.0:0"];
        Self::of(Process::start(Some(namespace), &[&role, flags].concat()))
    }

    fn of(process: Process) -> Self {
        let (_, line) = process.next_line(PATIENCE);
        let addr = line.strip_prefix("listening on ").expect(&line).to_owned();
        Self {
            process,
            addr,
            opens: Vec::new(),
            opens_taken: 0,
            evictions: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.addr.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Number of connections in state ESTABLISHED in the server's kernel.
    pub(crate) fn established(&self) -> usize {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.process.pid()));
        let port = format!(":{:04X}", self.port());
        let is_open = |line: &&str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Fields: number, local address, remote address, state. State 01 is ESTABLISHED.
            fields[1].ends_with(&port) && fields[3] == "01"
        };
        sockets.unwrap().lines().skip(1).filter(is_open).count()
    }

    /// Resident memory of the server in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    /// Log lines read so far that are neither opens nor evictions.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Waits for the first log line with this event and connection id.
    pub(crate) fn note(&mut self, event: &str, id: u64) -> Note {
        let find = |this: &Self| {
            let is_it = |note: &&Note| note.entry["event"] == event && note.entry["id"] == id;
            this.notes.iter().find(is_it).cloned()
        };
        self.listen_until(event, |this| find(this).is_some());
        find(self).unwrap()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops the server with SIGSTOP, and waits until it has stopped.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// Waits for the next open in the log, and returns its connection id.
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

    /// The evictions in the log lines read so far.
    pub(crate) fn evictions(&self) -> &[Eviction] {
        &self.evictions
    }

    /// Reads the log lines that are written during `span`.
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

    /// Reads one log line. Returns false if none is written before `end`.
    fn listen_before(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let Ok((at, line)) = self.process.lines.recv_timeout(left) else {
            return false;
        };
        let entry: serde_json::Value = serde_json::from_str(&line).expect(&line);
        let id = entry["id"].as_u64().expect(&line);
        match entry["event"].as_str() {
            Some("open") => self.opens.push(id),
            Some(_) => self.notes.push(Note { at, entry }),
            None => self.evictions.push(Eviction {
                id,
                reason: entry["reason"].as_str().expect(&line).to_owned(),
                lifetime_ms: entry["lifetime_ms"].as_u64().expect(&line),
                entry,
                at,
            }),
        }
        true
    }
}

/// A stock client in its own process.
pub(crate) struct Client {
    process: Process,
    pings: Vec<Instant>,
}

impl Client {
    /// Starts a client, and waits for its first echo.
    pub(crate) fn start(server: &Server, flags: &[&str]) -> Self {
        Self::of(Process::start(
            None,
            &[&[roles::CLIENT, &server.addr], flags].concat(),
        ))
    }

    /// Starts a client in a network namespace where the server's address is `addr`.
    pub(crate) fn start_in(namespace: &str, addr: &str, flags: &[&str]) -> Self {
        Self::of(Process::start(
            Some(namespace),
            &[&[roles::CLIENT, addr], flags].concat(),
        ))
    }

    fn of(process: Process) -> Self {
        let mut client = Self {
            process,
            pings: Vec::new(),
        };
        client.expect("ready", PATIENCE);
        client
    }

    /// Lets the client send a line, and waits for the echo.
    pub(crate) fn echo(&mut self, line: &str) {
        self.send_line(line);
        self.expect(&format!("echo {line}"), PATIENCE);
    }

    /// Lets the client send a line.
    pub(crate) fn send_line(&mut self, line: &str) {
        writeln!(self.process.stdin, "{line}").unwrap();
    }

    /// Waits for this line, skipping pings, and returns when it was printed.
    pub(crate) fn expect(&mut self, line: &str, patience: Duration) -> Instant {
        let (at, next) = self.next_line(patience);
        assert_eq!(next, line);
        at
    }

    /// The client's next line, skipping pings, and when it was printed.
    pub(crate) fn next_line(&mut self, patience: Duration) -> (Instant, String) {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.process.next_line(left) {
                (at, line) if line == "ping" => self.pings.push(at),
                line => return line,
            }
        }
    }

    /// Waits for the next ping, which must be the client's next line.
    pub(crate) fn expect_ping(&mut self) -> Instant {
        let (at, line) = self.process.next_line(PATIENCE);
        assert_eq!(line, "ping");
        self.pings.push(at);
        at
    }

    /// Reads the lines printed so far, which must all be pings.
    pub(crate) fn drain_pings(&mut self) {
        while let Ok((at, line)) = self.process.lines.try_recv() {
            assert_eq!(line, "ping");
            self.pings.push(at);
        }
    }

    /// Times of the pings in the lines read so far.
    pub(crate) fn pings(&self) -> &[Instant] {
        &self.pings
    }

    /// Waits until the client reports that its connection is closed.
    pub(crate) fn expect_closed(&mut self) {
        self.expect("closed", PATIENCE);
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Stops the client with SIGSTOP, and waits until it has stopped.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }
}
