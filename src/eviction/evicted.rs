//! The error that reads, writes and pings return after the end of a connection.

use std::error::Error;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;

use super::Reason;

/// The error of an operation on a connection that has ended, with the reason of the end.
///
/// A handler gets it inside the [`io::Error`] of a read or a write, which the WebSocket library and
/// axum usually wrap again; [`Evicted::from_error`] extracts it:
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
/// In the `io::Error` it is the inner error, for [`io::Error::get_ref`] and
/// [`io::Error::downcast`], and it is also in the chain of [sources](Error::source). Two values are
/// equal if their reasons are.
#[derive(Clone)]
pub struct Evicted {
    reason: Reason,
    /// A copy of this error, set only by `into_io_error`, which explains it.
    source: Option<Box<Evicted>>,
}

impl Evicted {
    pub(crate) const fn new(reason: Reason) -> Self {
        Self {
            reason,
            source: None,
        }
    }

    /// The reason of the connection's end.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Finds an eviction in an error and its chain of sources.
    ///
    /// It follows [`Error::source`] and the inner error of each [`io::Error`], so it finds the
    /// eviction however often a library has wrapped it, in an `io::Error` or in a type of its own.
    /// `None` means that the error has another cause.
    #[must_use]
    pub fn from_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(evicted) = error.downcast_ref::<Self>() {
                return Some(Self::new(evicted.reason));
            }
            // `io::Error::source` returns the source of its inner error, and skips the inner error.
            // Following the inner error instead also reaches that source.
            next = match error.downcast_ref().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    /// Converts into the error that the handler's reads and writes return.
    ///
    /// `io::Error::source` returns the *source of* the inner error, not the inner error. So the
    /// inner error is an `Evicted` whose source is an `Evicted`: `get_ref` returns the former, and
    /// callers that follow the chain of sources find the latter. This costs one allocation per
    /// connection.
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

// Compares only the reason, so that a value from an `io::Error` equals one that was never in one.
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

    /// Finds an eviction as a caller does that only follows `Error::source`.
    fn find_by_sources<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Evicted> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(evicted) = error.downcast_ref() {
                return Some(evicted);
            }
            next = error.source();
        }
        None
    }

    #[test]
    fn io_error_has_it_as_inner_error_and_as_source() {
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
        // It is the last error of the chain.
        assert!(source.source().is_none());

        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
        let inner: Evicted = error.downcast().unwrap();
        assert_eq!(inner, Evicted::new(REASON));
    }

    #[test]
    fn converting_to_io_error_twice_does_not_extend_the_chain() {
        let once: Evicted = Evicted::new(REASON).into_io_error().downcast().unwrap();
        let twice = once.into_io_error();
        assert!(twice.source().unwrap().source().is_none());
    }

    #[test]
    fn found_in_errors_of_tungstenite_and_axum() {
        let error = Evicted::new(REASON).into_io_error();
        let error = tungstenite::Error::Io(error);
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
        let error = axum::Error::new(error);
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
        assert_eq!(find_by_sources(&error), Some(&Evicted::new(REASON)));
    }

    #[test]
    fn found_in_nested_io_errors() {
        // TLS and other wrapping streams nest `io::Error`s, with a library's error in between.
        let error = Evicted::new(REASON).into_io_error();
        let error = io::Error::new(io::ErrorKind::BrokenPipe, error);
        let error = io::Error::other(tungstenite::Error::Io(error));
        let error = axum::Error::new(io::Error::other(error));
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
    }

    #[test]
    fn found_as_an_inner_error_that_the_sources_skip() {
        // An application that wraps the error of a ping in an `io::Error` gets this.
        let error = io::Error::other(Evicted::new(REASON));
        assert!(find_by_sources(&error).is_none());
        assert_eq!(Evicted::from_error(&error), Some(Evicted::new(REASON)));
    }

    #[test]
    fn found_without_any_wrapper() {
        let evicted = Evicted::new(Reason::Drained);
        assert_eq!(Evicted::from_error(&evicted), Some(evicted.clone()));
        assert!(evicted.source().is_none());
        assert_eq!(format!("{evicted:?}"), "Evicted { reason: Drained }");
    }

    #[test]
    fn other_errors_have_no_eviction() {
        let plain = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(Evicted::from_error(&plain), None);
        let custom = io::Error::other("reset");
        assert_eq!(Evicted::from_error(&custom), None);
        let wrapped = axum::Error::new(tungstenite::Error::Io(custom));
        assert_eq!(Evicted::from_error(&wrapped), None);
    }
}
