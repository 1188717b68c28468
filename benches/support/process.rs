//! Servers and others as processes of their own: the bench starts itself again, and talks to what it
//! started.

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

/// The first argument of a process that is to be a server.
pub(crate) const SERVE: &str = "serve";

/// A process that answers a line with a line. It ends when this is dropped, or when this process ends.
pub(crate) struct Process {
    child: Child,
    /// Closed, it ends the process.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// A server that runs.
pub(crate) struct Server {
    process: Process,
    /// Where it listens. It can be reached at every address of loopback.
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Starts this very program as a server.
    pub(crate) fn start(options: Options) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).args(options.to_args());
        Self::spawn(command)
    }

    /// Starts `command`, which is to become a server.
    pub(crate) fn spawn(command: Command) -> Result<Self, Box<dyn Error>> {
        let mut process = Process::spawn(command)?;
        let line = process.hear()?;
        let addr = line.strip_prefix("listening on ");
        let addr = addr.ok_or("the server does not say where it is")?.parse()?;
        Ok(Self { process, addr })
    }

    /// Waits, for at most `patience`, until it has so many open connections.
    pub(crate) fn wait_for_open(
        &mut self,
        count: usize,
        patience: Duration,
    ) -> Result<(), Box<dyn Error>> {
        let begun = std::time::Instant::now();
        loop {
            let open = self.ask("open")?;
            if open.parse() == Ok(count) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                return Err(format!("{open} connections are open instead of {count}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits, for at most `patience`, until its heap has hardly changed for a while. Returns the bytes of
    /// it.
    pub(crate) fn settled_heap(&mut self, patience: Duration) -> Result<usize, Box<dyn Error>> {
        /// Longer than a connection that was just opened or closed still has to do.
        const WHILE: Duration = Duration::from_millis(500);
        /// What the asking itself may take.
        const NOISE: usize = 1024;
        let begun = std::time::Instant::now();
        let mut heap = self.heap()?;
        let mut since = begun;
        while since.elapsed() < WHILE {
            if begun.elapsed() > patience {
                return Err(format!("the heap still changes at {heap} bytes").into());
            }
            std::thread::sleep(Duration::from_millis(50));
            let now = self.heap()?;
            if now.abs_diff(heap) > NOISE {
                heap = now;
                since = std::time::Instant::now();
            }
        }
        Ok(heap)
    }

    /// Bytes of its heap that are allocated.
    pub(crate) fn heap(&mut self) -> Result<usize, Box<dyn Error>> {
        Ok(self.ask("heap")?.parse()?)
    }

    /// Ends it, and waits until it has ended.
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
    /// Starts `command`.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().expect("it was asked for");
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        })
    }

    /// The name by which the operating system knows it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it something, and waits for the answer.
    pub(crate) fn ask(&mut self, what: &str) -> Result<String, Box<dyn Error>> {
        self.tell(what)?;
        self.hear()
    }

    /// Asks it something. The answer is to be [heard](Self::hear): others may be asked meanwhile.
    pub(crate) fn tell(&mut self, what: &str) -> Result<(), Box<dyn Error>> {
        let input = self.input.as_mut().ok_or("the process was ended")?;
        Ok(writeln!(input, "{what}")?)
    }

    /// Its next line.
    pub(crate) fn hear(&mut self) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("a process is gone".into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Processor time that it has used, of all its threads, in user and in kernel mode, to the
    /// nanosecond. Threads that have ended count as well.
    pub(crate) fn cpu(&self) -> Result<Duration, Box<dyn Error>> {
        let pid = i32::try_from(self.pid())?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?;
        Ok(clock.now()?.into())
    }

    /// Bytes of its memory that are resident.
    pub(crate) fn resident(&self) -> Result<u64, Box<dyn Error>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.ok_or("no VmRSS")?.parse::<u64>()? * 1024)
    }

    /// Ends it, and waits until it has ended.
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
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Raises the limit of open files as far as it can be. Returns it.
pub(crate) fn raise_file_limit() -> Result<u64, Box<dyn Error>> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The limit of open files, if it suffices for `needed`; an error that says so if not.
pub(crate) fn need_files(needed: u64) -> Result<u64, Box<dyn Error>> {
    let limit = raise_file_limit()?;
    if limit < needed {
        return Err(
            format!("{needed} files are needed, and {limit} may be open (ulimit -Hn)").into(),
        );
    }
    Ok(limit)
}
