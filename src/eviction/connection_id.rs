//! Process-wide unique connection ids.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies one connection while the process runs.
///
/// An id is never reused, so an id that was kept after its connection ended can be compared with
/// the one that a session map holds now: they differ if the peer has reconnected since. Ids are
/// ordered by creation. They have no meaning across processes and restarts.
///
/// Its `Display` output is a plain number.
///
/// ```
/// use tokio::io::duplex;
/// use tower_ws_liveness::{ConnectionId, HeartbeatLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = HeartbeatLayer::default();
/// let (_io, live) = layer.wrap_server(duplex(64).0);
/// // Kept by another task, an id does not keep the connection's state alive.
/// let id: ConnectionId = live.id();
/// let found = layer.registry().get(id).expect("an open connection");
/// assert!(found.evict(4000, "kicked"));
/// assert!(layer.registry().get(id).is_none());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(NonZeroU64);

impl ConnectionId {
    /// The id as a number, for logs and for maps that are keyed by integers.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0.get()
    }

    /// Returns an id that this process has not used before.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);

        // `Relaxed` is enough: uniqueness needs only the atomicity of the addition.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(NonZeroU64::new(id).expect("a process opens fewer than 2^64 connections"))
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
    fn ids_increase_and_display_as_numbers() {
        let first = ConnectionId::next();
        let second = ConnectionId::next();
        assert!(first < second);
        assert_eq!(first.to_string(), first.as_u64().to_string());
        assert_eq!(format!("{first:>20}"), format!("{:>20}", first.as_u64()));
        // The niche of `NonZeroU64` makes an optional id no larger than an id.
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
