//! Servers under valgrind's callgrind, and the instructions that it counts.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, io};

use tokio::time::timeout;

use super::options::Options;
use super::process::{SERVE, Server};

/// Limit for one run. Callgrind slows a server down about fifty times.
const RUN_LIMIT: Duration = Duration::from_secs(180);

/// Has glibc copy in loops of vector instructions. It copies 2 KiB and more with `rep movsb`, of
/// which callgrind counts every byte: an upgrade cost up to 9,000 instructions more wherever the
/// layout of the heap kept hyper's read buffer from growing in place.
const NO_REP_MOVSB: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.x86_rep_movsb_threshold=1073741824",
);

/// The directory of callgrind's profiles.
pub(crate) struct Profiles(PathBuf);

impl Profiles {
    /// Creates the directory.
    ///
    /// # Errors
    ///
    /// If valgrind is not installed.
    pub(crate) fn create() -> Result<Self, Box<dyn Error>> {
        let found = Command::new("valgrind")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        found.map_err(|error| format!("valgrind is needed, and did not start: {error}"))?;
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/callgrind");
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    /// Deletes all profiles.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(self.0)
    }

    /// Runs this binary as a server under callgrind while `work` connects to it, and returns the
    /// instructions of the whole run in user mode. `name` is that of the profile.
    pub(crate) fn instructions(
        &self,
        name: &str,
        options: Options,
        work: impl AsyncFnOnce(SocketAddr) -> io::Result<()>,
    ) -> Result<f64, Box<dyn Error>> {
        let buffer = options.buffer.unwrap_or(0);
        let profile = format!("{name}-{}-{buffer}", options.kind.name());
        let profile = self.0.join(profile);
        let mut command = Command::new("valgrind");
        command
            .env(NO_REP_MOVSB.0, NO_REP_MOVSB.1)
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg(format!("--log-file={}.log", profile.display()))
            .arg(std::env::current_exe()?)
            .arg(SERVE)
            .args(options.to_args());
        let server = Server::spawn(command)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { timeout(RUN_LIMIT, work(server.addr)).await? })?;
        server.end()?;
        read_total(&profile)
    }
}

/// Reads the total at the end of a profile.
fn read_total(profile: &Path) -> Result<f64, Box<dyn Error>> {
    let text = fs::read_to_string(profile)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.ok_or("a profile without a total")?.trim().parse()?)
}
