//! What a server can be asked about its connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a server knows of its connections.
#[derive(Clone, Default)]
pub(crate) struct Account(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    silences: Mutex<Vec<Duration>>,
}

/// One connection of an account, as long as it is open.
pub(crate) struct Entry(Account);

impl Account {
    /// One more connection is open.
    pub(crate) fn enter(&self) -> Entry {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Entry(self.clone())
    }

    /// A peer was found dead, which was silent for so long.
    pub(crate) fn found_dead(&self, silence: Duration) {
        self.silences().push(silence);
    }

    fn silences(&self) -> MutexGuard<'_, Vec<Duration>> {
        let silences = &self.0.silences;
        silences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to answer to a line of the standard input: see [`server`](super::server).
    pub(crate) fn answer(&self, asked: &str, heap: fn() -> usize) -> String {
        match asked {
            "open" => self.0.open.load(Ordering::Relaxed).to_string(),
            "heap" => heap().to_string(),
            "silences" => {
                let silences = std::mem::take(&mut *self.silences());
                let millis = silences
                    .iter()
                    .map(|silence| silence.as_millis().to_string());
                millis.collect::<Vec<_>>().join(" ")
            }
            _ => format!("nobody knows {asked}"),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
