//! A client that runs as a process: commands go in by its stdin, and what it sees comes out of its
//! stdout, a line for each.

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

#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// The extensions that were agreed upon.
    pub(crate) extensions: String,
    /// Where it may leave files.
    directory: TempDir,
}

impl Process {
    /// Starts a client, and waits until its WebSocket is open.
    pub(crate) async fn start(program: &Program, addr: SocketAddr) -> Self {
        let arguments = [format!("ws://{addr}/ws")];
        let mut process = Self::spawn(program.runs_on, program.script, arguments);
        let line = process.next_line().await;
        let line = line.unwrap_or_else(|| panic!("{} has ended: is it installed?", program.needs));
        let extensions = line.strip_prefix("open ").expect(&line);
        process.extensions = extensions.to_owned();
        process
    }

    /// Starts a script of `compat/clients`.
    pub(crate) fn spawn(
        runs_on: RunsOn,
        script: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Self {
        let directory = TempDir::new().expect("a directory for a while");
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
            // Signals are for a browser's other processes too.
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

    pub(crate) async fn tell(&mut self, command: &str) {
        let line = format!("{command}\n");
        let told = self.stdin.write_all(line.as_bytes()).await;
        told.expect("the client runs");
    }

    /// Sends a message, and waits for its echo. Nothing else comes before it.
    pub(crate) async fn echo(&mut self, message: &str) {
        self.tell(message).await;
        self.expect(message).await;
    }

    /// Waits for what the client has to tell next.
    pub(crate) async fn expect(&mut self, line: &str) {
        let next = self.next_line().await.unwrap_or_default();
        assert!(next == line, "{next:.200}, not {line:.200}");
    }

    /// The next line; `None` if the client has ended.
    pub(crate) async fn next_line(&mut self) -> Option<String> {
        let line = within("a line from the client", self.lines.next_line()).await;
        line.expect("UTF-8")
    }

    /// Stops the client where it is.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        killpg(self.group(), signal).expect("the client runs");
    }

    fn group(&self) -> Pid {
        let id = self.child.id().expect("nobody has waited for it");
        Pid::from_raw(id.try_into().expect("a process id"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if all of them are gone. SIGKILL ends stopped ones too.
        let _ = killpg(self.group(), Signal::SIGKILL);
        // A browser's processes still write until they notice.
        for _ in 0..100 {
            if std::fs::remove_dir_all(self.directory.path()).is_ok() {
                break;
            }
            std::thread::sleep(ms(10));
        }
    }
}

/// Where `compat/clients/install` puts what it installs.
fn installed() -> PathBuf {
    match std::env::var_os("COMPAT_CLIENTS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients"),
    }
}
