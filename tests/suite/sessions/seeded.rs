//! Random choices that can be made again, and waiting in real time for what threads bring about.
#![allow(dead_code)] // every test binary uses its own part of this

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes; a deadlock takes for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where the random choices of a test come from. Says so if the test fails.
///
/// With `STORM_SEED` in the environment the choices are those of that seed. Their order is up to the
/// threads all the same.
pub(crate) struct Seed(u64);

impl Seed {
    pub(crate) fn new() -> Self {
        let given = std::env::var("STORM_SEED").ok();
        Self(given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap()))
    }

    /// The choices of one thread in one round.
    pub(crate) fn rng(&self, thread: u64, round: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.0 ^ thread << 32 ^ round << 48)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("to choose the same again: STORM_SEED={}", self.0);
        }
    }
}

/// Waits until `condition` holds, for conditions that nobody announces.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Does `act` on a thread of its own, which has to come back.
pub(crate) fn comes_back<R: Send + 'static>(act: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, comes) = mpsc::channel();
    let thread = thread::spawn(move || {
        // Nobody waits any more if it is too late.
        let _ = done.send(act());
    });
    match comes.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not come back"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let panic = thread.join().expect_err("it sends unless it panics");
            std::panic::resume_unwind(panic)
        }
    }
}
