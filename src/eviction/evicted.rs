//! The error by which a handler, or whoever waits for a pong, learns of the end.

use std::error::Error;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;

use super::Reason;

/// The connection has ended, and this is why.
///
/// A handler meets it inside the [`io::Error`] of a read or a write, most often wrapped by the
/// WebSocket library and by axum; [`Evicted::from_error`] digs it out:
///
/// ```
/// use tower_ws_liveness::Evicted;
///
/// # type WebSocketError = std::io::Error;
/// fn log_end(error: &WebSocketError) {
///     match Evicted::from_error(error) {
///         Some(evicted) => println!("evicted: {}", evicted.reason().as_str()),
///         None => println!("broken: {error}"),
///     }
/// }
/// # log_end(&std::io::Error::other("reset"));
/// ```
///
/// In the `io::Error` it is both the inner error, for [`io::Error::get_ref`] and
/// [`io::Error::downcast`], and a link of the chain of [sources](Error::source). Two values are
/// equal if their reasons are.
#[derive(Clone)]
pub struct Evicted {
    reason: Reason,
    /// The same error once more, on its way through an `io::Error` only: see `into_io_error`.
    source: Option<Box<Evicted>>,
}

impl Evicted {
    pub(crate) const fn new(reason: Reason) -> Self {
        Self {
            reason,
            source: None,
        }
    }

    /// Why the connection ended.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Looks for an eviction in an error and in everything it was caused by.
    ///
    /// Follows [`Error::source`], and looks into each [`io::Error`] on the way, so it does not
    /// matter how often a library wrapped the error, nor whether in an `io::Error` or in a type of
    /// its own. `None` means that the error has another cause.
    #[must_use]
    pub fn from_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut link = Some(error);
        while let Some(error) = link {
            if let Some(evicted) = error.downcast_ref::<Self>() {
                return Some(Self::new(evicted.reason));
            }
            // An `io::Error` passes over its inner error when it is asked for its source. What it
            // does report there is found behind the inner error too, so nothing is missed.
            link = match error.downcast_ref().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    /// The error that the handler's reads and writes fail with.
    ///
    /// `io::Error::source` returns the *source of* the inner error, not the inner error. So the
    /// inner error is an `Evicted` whose source is an `Evicted`: the former is there for `get_ref`,
    /// the latter for those who follow the sources. It costs a box, once per connection.
    pub(crate) fn into_io_error(self) -> io::Error {
        let kind = self.reason.io_error_kind();
        io::Error::new(
            kind,
            Self {
                reason: self.reason,
                source: Some(Box::new(Self::new(self.reason))),
            },
        )
    }
}

impl fmt::Debug for Evicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evicted")
            .field("reason", &self.reason)
            .finish()
    }
}

impl fmt::Display for Evicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection evicted: {}", self.reason)
    }
}

impl Error for Evicted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

// By the reason alone: a value that came through an `io::Error` equals one that did not.
impl PartialEq for Evicted {
    fn eq(&self, other: &Self) -> bool {
        self.reason == other.reason
    }
}

impl Eq for Evicted {}

impl Hash for Evicted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reason.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: Reason = Reason::HeartbeatTimeout { missed: 2 };

    /// What a caller finds who knows of sources only.
    fn by_sources<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Evicted> {
        let mut link = Some(error);
        while let Some(error) = link {
            if let Some(evicted) = error.downcast_ref() {
                return Some(evicted);
            }
            link = error.source();
        }
        None
    }

    #[test]
    fn io_error_holds_it_both_ways() {
        let error = Evicted::new(REASON).into_io_error();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            error.to_string(),
            "connection evicted: heartbeat timeout (2 pings unanswered)"
        );

        let inner = error.get_ref().unwrap().downcast_ref::<Evicted>().unwrap();
        assert_eq!(inner.reason(), REASON);
        let source = error.source().unwrap().downcast_ref::<Evicted>().unwrap();
        assert_eq!(source.reason(), REASON);
        // The chain ends there.
        assert!(source.source().is_none());

        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
        let inner: Evicted = error.downcast().unwrap();
        assert_eq!(inner, Evicted::new(REASON));
    }

    #[test]
    fn a_second_trip_does_not_grow_the_chain() {
        let once: Evicted = Evicted::new(REASON).into_io_error().downcast().unwrap();
        let twice = once.into_io_error();
        assert!(twice.source().unwrap().source().is_none());
    }

    #[test]
    fn found_behind_tungstenite_and_axum() {
        let error = Evicted::new(REASON).into_io_error();
        let error = tungstenite::Error::Io(error);
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
        let error = axum::Error::new(error);
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
        assert_eq!(by_sources(&error), Some(&Evicted::new(REASON)));
    }

    #[test]
    fn found_behind_nested_io_errors() {
        // As TLS and other wrapping streams do, with a library's error in between.
        let error = Evicted::new(REASON).into_io_error();
        let error = io::Error::new(io::ErrorKind::BrokenPipe, error);
        let error = io::Error::other(tungstenite::Error::Io(error));
        let error = axum::Error::new(io::Error::other(error));
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
    }

    #[test]
    fn found_where_the_sources_pass_over_it() {
        // What an application gets that wraps the error of a ping itself.
        let error = io::Error::other(Evicted::new(REASON));
        assert!(by_sources(&error).is_none());
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
    }

    #[test]
    fn found_bare() {
        let evicted = Evicted::new(Reason::Drained);
        assert_eq!(Evicted::from_error(&evicted), Some(evicted.clone()));
        assert!(evicted.source().is_none());
        assert_eq!(format!("{evicted:?}"), "Evicted { reason: Drained }");
    }

    #[test]
    fn other_errors_are_left_alone() {
        let plain = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(Evicted::from_error(&plain), None);
        let custom = io::Error::other("reset");
        assert_eq!(Evicted::from_error(&custom), None);
        let wrapped = axum::Error::new(tungstenite::Error::Io(custom));
        assert_eq!(Evicted::from_error(&wrapped), None);
    }
}
