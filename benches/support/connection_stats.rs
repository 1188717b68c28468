//! Counters that a server process keeps about its connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts open connections and records how long dead peers were silent.
#[derive(Clone, Default)]
pub(crate) struct ConnectionStats(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    silences: Mutex<Vec<Duration>>,
}

/// Counts one open connection until it is dropped.
pub(crate) struct OpenConnection(ConnectionStats);

impl ConnectionStats {
    /// Counts one more open connection.
    pub(crate) fn connection_opened(&self) -> OpenConnection {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.clone())
    }

    /// Records that a peer was found dead after this much silence.
    pub(crate) fn peer_found_dead(&self, silence: Duration) {
        self.silences().push(silence);
    }

    fn silences(&self) -> MutexGuard<'_, Vec<Duration>> {
        let silences = &self.0.silences;
        silences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the reply to a command from standard input: see [`server`](super::server).
    pub(crate) fn reply(&self, command: &str, heap: fn() -> usize) -> String {
        match command {
            "open" => self.0.open.load(Ordering::Relaxed).to_string(),
            "heap" => heap().to_string(),
            "silences" => {
                let silences = std::mem::take(&mut *self.silences());
                let millis = silences
                    .iter()
                    .map(|silence| silence.as_millis().to_string());
                millis.collect::<Vec<_>>().join(" ")
            }
            _ => format!("unknown command: {command}"),
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
