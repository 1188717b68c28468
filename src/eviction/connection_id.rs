//! The name of one connection.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names one connection for as long as the process runs.
///
/// An id is never reused, so an id that was kept after its connection ended can be compared with
/// the one that a session map holds now: they differ if the peer has reconnected since. Ids order
/// by creation; they say nothing across processes and restarts.
///
/// Displays as a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(NonZeroU64);

impl ConnectionId {
    /// The id as a number, for logs and for maps that are keyed by integers.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0.get()
    }

    /// An id that this process has not given out before.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);

        // Only uniqueness is asked for, and the atomicity of the addition alone provides it.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(NonZeroU64::new(id).expect("a process does not live to open 2^64 connections"))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::thread;

    #[test]
    fn ids_grow_and_display_as_numbers() {
        let first = ConnectionId::next();
        let second = ConnectionId::next();
        assert!(first < second);
        assert_eq!(first.to_string(), first.as_u64().to_string());
        assert_eq!(format!("{first:>20}"), format!("{:>20}", first.as_u64()));
        // An optional id costs no more than an id.
        assert_eq!(size_of::<Option<ConnectionId>>(), size_of::<u64>());
    }

    #[test]
    fn ids_are_unique_across_threads() {
        let threads: Vec<_> = (0..4)
            .map(|_| thread::spawn(|| (0..1_000).map(|_| ConnectionId::next()).collect::<Vec<_>>()))
            .collect();
        let ids: BTreeSet<_> = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(ids.len(), 4_000);
    }
}
