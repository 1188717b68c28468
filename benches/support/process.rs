//! Child processes of a bench, which execute the same binary in another role.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::options::Options;

/// First argument of a server process.
pub(crate) const SERVE: &str = "serve";

/// A process that replies to each line with a line. It is killed on drop, and ends with this
/// process.
pub(crate) struct Process {
    child: Child,
    /// The process ends when this is closed.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// A running server process.
pub(crate) struct Server {
    process: Process,
    /// The address it listens on. Every other loopback address reaches it too.
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Starts this binary as a server.
    pub(crate) fn start(options: Options) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).args(options.to_args());
        Self::spawn(command)
    }

    /// Starts `command`, which must print the address of a server.
    pub(crate) fn spawn(command: Command) -> Result<Self, Box<dyn Error>> {
        let mut process = Process::spawn(command)?;
        let line = process.read_line()?;
        let addr = line.strip_prefix("listening on ");
        let addr = addr.ok_or("the server printed no address")?.parse()?;
        Ok(Self { process, addr })
    }

    /// Waits for at most `limit` until `count` connections are open.
    pub(crate) fn wait_for_open(
        &mut self,
        count: usize,
        limit: Duration,
    ) -> Result<(), Box<dyn Error>> {
        let begun = std::time::Instant::now();
        loop {
            let open = self.request("open")?;
            if open.parse() == Ok(count) {
                return Ok(());
            }
            if begun.elapsed() > limit {
                return Err(format!("{open} connections are open instead of {count}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for at most `limit` until the heap is stable, and returns its size in bytes.
    pub(crate) fn settled_heap(&mut self, limit: Duration) -> Result<usize, Box<dyn Error>> {
        /// Longer than the remaining work of a connection that was just opened or closed.
        const STABLE_FOR: Duration = Duration::from_millis(500);
        /// Heap that a request itself may allocate.
        const NOISE_BYTES: usize = 1024;
        let begun = std::time::Instant::now();
        let mut heap = self.heap()?;
        let mut since = begun;
        while since.elapsed() < STABLE_FOR {
            if begun.elapsed() > limit {
                return Err(format!("the heap is not stable at {heap} bytes").into());
            }
            std::thread::sleep(Duration::from_millis(50));
            let now = self.heap()?;
            if now.abs_diff(heap) > NOISE_BYTES {
                heap = now;
                since = std::time::Instant::now();
            }
        }
        Ok(heap)
    }

    /// Returns the allocated bytes of the heap.
    pub(crate) fn heap(&mut self) -> Result<usize, Box<dyn Error>> {
        Ok(self.request("heap")?.parse()?)
    }

    /// Ends the process and waits for it.
    pub(crate) fn end(self) -> Result<(), Box<dyn Error>> {
        self.process.end()
    }
}

impl Deref for Server {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Process {
    /// Starts `command` with piped standard input and output.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().expect("stdout is piped");
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        })
    }

    /// The process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command and waits for the reply.
    pub(crate) fn request(&mut self, command: &str) -> Result<String, Box<dyn Error>> {
        self.send_line(command)?;
        self.read_line()
    }

    /// Sends a command without waiting, so that several processes can work at the same time. The
    /// caller must [read](Self::read_line) the reply.
    pub(crate) fn send_line(&mut self, command: &str) -> Result<(), Box<dyn Error>> {
        let input = self.input.as_mut().ok_or("the process was ended")?;
        Ok(writeln!(input, "{command}")?)
    }

    /// Reads the next line of output.
    pub(crate) fn read_line(&mut self) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a process has ended".into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Returns the CPU time of all threads in user and kernel mode, with nanosecond resolution.
    /// Includes threads that have ended.
    pub(crate) fn cpu(&self) -> Result<Duration, Box<dyn Error>> {
        let pid = i32::try_from(self.pid())?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?;
        Ok(clock.now()?.into())
    }

    /// Returns the resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64, Box<dyn Error>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.ok_or("no VmRSS")?.parse::<u64>()? * 1024)
    }

    /// Ends the process and waits for it.
    pub(crate) fn end(mut self) -> Result<(), Box<dyn Error>> {
        self.input = None;
        let status = self.child.wait()?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| format!("a process ended with {status}").into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Raises the soft limit of open files to the hard limit, and returns it.
pub(crate) fn raise_file_limit() -> Result<u64, Box<dyn Error>> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Returns the limit of open files.
///
/// # Errors
///
/// If the limit is below `needed`.
pub(crate) fn require_files(needed: u64) -> Result<u64, Box<dyn Error>> {
    let limit = raise_file_limit()?;
    if limit < needed {
        return Err(
            format!("{needed} files are needed, and {limit} may be open (ulimit -Hn)").into(),
        );
    }
    Ok(limit)
}
