//! Reproducible random choices, and waits in real time for the effects of threads.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any wait without a deadlock.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The seed of a test's random choices. Prints it if the test fails.
///
/// The environment variable `STORM_SEED` sets it. The interleaving of the threads still differs
/// between runs.
pub(crate) struct Seed(u64);

impl Seed {
    pub(crate) fn new() -> Self {
        let given = std::env::var("STORM_SEED").ok();
        Self(given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap()))
    }

    /// The generator of one thread in one round.
    pub(crate) fn rng(&self, thread: u64, round: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.0 ^ thread << 32 ^ round << 48)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("to repeat these choices: STORM_SEED={}", self.0);
        }
    }
}

/// Polls `condition` every millisecond until it holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `act` on a new thread. Panics if it does not return within [`PATIENCE`].
pub(crate) fn run_on_thread<R: Send + 'static>(act: impl FnOnce() -> R + Send + 'static) -> R {
    let (result_tx, result) = mpsc::channel();
    let thread = thread::spawn(move || {
        // The receiver is gone after a timeout.
        let _ = result_tx.send(act());
    });
    match result.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the thread does not return"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let panic = thread.join().expect_err("a panic of the thread");
            std::panic::resume_unwind(panic)
        }
    }
}
