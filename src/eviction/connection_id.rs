//! Process-wide unique connection ids.

use std::error::Error;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies one connection while the process runs.
///
/// An id is never reused, so an id that was kept after its connection ended can be compared with
/// the one that a session map holds now: they differ if the peer has reconnected since. Ids are
/// ordered by creation. They have no meaning across processes and restarts.
///
/// Its `Display` output is a plain number, which [`FromStr`] and [`from_u64`](Self::from_u64) turn
/// into an id again: for an operator's command, or an id from a log. With the feature `serde` an id
/// is serialised as that number. An id that was made of a number may belong to no connection:
/// [`Registry::get`](crate::Registry::get) returns `None` then.
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
///
/// assert_eq!(id.to_string().parse(), Ok(id));
/// assert_eq!(ConnectionId::from_u64(id.as_u64()), Some(id));
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

    /// The id with this number. `None` for 0, which no connection has.
    #[must_use]
    pub const fn from_u64(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
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

impl FromStr for ConnectionId {
    type Err = ParseConnectionIdError;

    /// Parses the decimal digits that `Display` writes.
    ///
    /// # Errors
    ///
    /// Returns an error for anything but digits, also for a sign or a space, for 0, and for a number
    /// above `u64::MAX`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The parser of integers accepts a plus sign.
        let has_only_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(id) if has_only_digits => Ok(Self(id)),
            Ok(_) | Err(_) => Err(ParseConnectionIdError(())),
        }
    }
}

/// A text is not the number of a [`ConnectionId`].
///
/// ```
/// use tower_ws_liveness::{ConnectionId, ParseConnectionIdError};
///
/// let parsed: Result<ConnectionId, ParseConnectionIdError> = "conn-7".parse();
/// assert_eq!(
///     parsed.unwrap_err().to_string(),
///     "not a connection id: must be a decimal number from 1 to 18446744073709551615"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseConnectionIdError(());

impl fmt::Display for ParseConnectionIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = u64::MAX;
        write!(
            f,
            "not a connection id: must be a decimal number from 1 to {max}"
        )
    }
}

impl Error for ParseConnectionIdError {}

/// Serialises the id as its number.
#[cfg(feature = "serde")]
impl serde::Serialize for ConnectionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.as_u64())
    }
}

/// Deserialises the id from its number. 0 is an error.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ConnectionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = u64::deserialize(deserializer)?;
        Self::from_u64(id).ok_or_else(|| serde::de::Error::custom("a connection id is not 0"))
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
    fn an_id_is_made_of_its_number_and_of_its_text() {
        for number in [1, 7, u64::MAX] {
            let id = ConnectionId::from_u64(number).unwrap();
            assert_eq!(id.as_u64(), number);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(ConnectionId::from_u64(0), None);
        let refused = [
            "",
            "0",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x1",
            "1.0",
            "18446744073709551616",
            "\u{661}",
        ];
        for text in refused {
            let parsed = text.parse::<ConnectionId>();
            assert_eq!(parsed, Err(ParseConnectionIdError(())), "{text:?}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn an_id_is_serialised_as_its_number() {
        use std::collections::BTreeMap;

        let id = ConnectionId::from_u64(7).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "7");
        assert_eq!(serde_json::from_str::<ConnectionId>("7").unwrap(), id);
        let map = BTreeMap::from([(id, "alice".to_owned())]);
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(json, r#"{"7":"alice"}"#);
        let read: BTreeMap<ConnectionId, String> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, map);
        for refused in ["0", "-1", "\"7\"", "null", "1.5"] {
            assert!(
                serde_json::from_str::<ConnectionId>(refused).is_err(),
                "{refused}"
            );
        }
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
