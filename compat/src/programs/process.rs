//! A client program as a child process, with commands on stdin and events on stdout.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::program::{Program, RunsOn};
use crate::support::{ms, within};

/// A running client program. Commands and events are one line each.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// The negotiated extensions.
    pub(crate) extensions: String,
    /// Its working directory.
    directory: TempDir,
}

impl Process {
    /// Starts a client and waits until its WebSocket is open.
    pub(crate) async fn start(program: &Program, addr: SocketAddr) -> Self {
        let arguments = [format!("ws://{addr}/ws")];
        let mut process = Self::spawn(program.runs_on, program.script, arguments);
        let line = process.next_line().await;
        let line = line.unwrap_or_else(|| panic!("{} has ended: is it installed?", program.needs));
        let extensions = line.strip_prefix("open ").expect(&line);
        process.extensions = extensions.to_owned();
        process
    }

    /// Starts a script from `compat/clients`.
    pub(crate) fn spawn(
        runs_on: RunsOn,
        script: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        let installed = installed();
        let mut command = match runs_on {
            RunsOn::Python => Command::new(installed.join("venv/bin/python")),
            RunsOn::Node => Command::new("node"),
        };
        let started = command
            .arg(clients.join(script))
            .args(arguments)
            .env("NODE_PATH", installed.join("node_modules"))
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Its own process group, so that signals reach all processes of a browser.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = started.unwrap_or_else(|error| {
            panic!("{runs_on:?} is not installed: compat/clients/install does it ({error})")
        });
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = child.stdout.take().expect("a pipe");
        Self {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            extensions: String::new(),
            directory,
        }
    }

    /// Sends a command.
    pub(crate) async fn send_command(&mut self, command: &str) {
        let line = format!("{command}\n");
        let written = self.stdin.write_all(line.as_bytes()).await;
        written.expect("the client runs");
    }

    /// Sends a message and asserts that the next line is its echo.
    pub(crate) async fn echo(&mut self, message: &str) {
        self.send_command(message).await;
        self.expect(message).await;
    }

    /// Waits for the next line and asserts that it equals `line`.
    pub(crate) async fn expect(&mut self, line: &str) {
        let next = self.next_line().await.unwrap_or_default();
        assert!(next == line, "{next:.200}, not {line:.200}");
    }

    /// Reads the next line; `None` if the client has ended.
    pub(crate) async fn next_line(&mut self) -> Option<String> {
        let line = within("a line from the client", self.lines.next_line()).await;
        line.expect("UTF-8")
    }

    /// Stops the client with SIGSTOP.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Continues a stopped client.
    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        killpg(self.group(), signal).expect("the client runs");
    }

    fn group(&self) -> Pid {
        let id = self
            .child
            .id()
            .expect("the process has not been waited for");
        Pid::from_raw(id.try_into().expect("a process id"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if all processes of the group have ended. SIGKILL ends stopped ones too.
        let _ = killpg(self.group(), Signal::SIGKILL);
        // A browser's processes may still write to the directory for a moment.
        for _ in 0..100 {
            if std::fs::remove_dir_all(self.directory.path()).is_ok() {
                break;
            }
            std::thread::sleep(ms(10));
        }
    }
}

/// The directory that `compat/clients/install` installs to.
fn installed() -> PathBuf {
    match std::env::var_os("COMPAT_CLIENTS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients"),
    }
}
