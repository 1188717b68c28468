//! How much an outbox keeps, the error of a refused push, and its report to the reader.

use std::error::Error;
use std::fmt;

use crate::config_error::{self, ConfigError};

/// How many messages and counted bytes an [`Outbox`](super::Outbox) keeps. Checked once, and used
/// for any number of sessions.
///
/// By default 1,000 messages with 1 MiB together. The bytes are those that the producers declare in
/// [`push`](super::Outbox::push), not measured ones: a message that is declared with fewer bytes
/// than it has takes more memory than is counted, and the memory of the queue itself is not
/// counted. An outbox takes memory only for the messages that it has. Those of all sessions that
/// linger have at most this number of counted bytes times the
/// [`LingerBuilder::capacity`](crate::LingerBuilder::capacity).
///
/// ```
/// use std::sync::Arc;
///
/// use tower_ws_liveness::{ConfigError, Outbox, OutboxLimits};
///
/// # fn main() -> Result<(), ConfigError> {
/// let limits = OutboxLimits::new(100, 64 * 1024)?;
/// let outbox: Outbox<Arc<str>> = Outbox::new(limits);
/// assert!(outbox.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    pub(super) max_messages: usize,
    pub(super) max_bytes: usize,
}

impl OutboxLimits {
    /// Limits on the messages that were not [released](super::OutboxReader::release), and on the
    /// bytes that the producers declare for them in [`push`](super::Outbox::push).
    ///
    /// # Errors
    ///
    /// Returns an error for 0, for more than 1,000,000 messages, and for more than 1 GiB.
    pub fn new(max_messages: usize, max_bytes: usize) -> Result<Self, ConfigError> {
        config_error::outbox_messages("OutboxLimits::new", max_messages)?;
        config_error::outbox_bytes("OutboxLimits::new", max_bytes)?;
        Ok(Self {
            max_messages,
            max_bytes,
        })
    }
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self {
            max_messages: 1_000,
            max_bytes: 1024 * 1024,
        }
    }
}

/// An outbox has refused a message, which is returned in the error.
///
/// ```
/// use tower_ws_liveness::{Outbox, OutboxError, OutboxLimits};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = Outbox::new(OutboxLimits::new(1, 1024)?);
/// outbox.push("zero", 4)?;
/// let error = outbox.push("one", 3).unwrap_err();
/// assert_eq!(error, OutboxError::TooManyMessages("one"));
/// assert_eq!(error.to_string(), "the outbox has no room for another message");
/// assert_eq!(error.into_message(), "one");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxError<T> {
    /// The outbox has as many messages as its [limits](OutboxLimits) permit.
    TooManyMessages(T),
    /// With this message the outbox would have more counted bytes than its [limits](OutboxLimits)
    /// permit.
    TooManyBytes(T),
    /// The outbox is closed: the session is over.
    Closed(T),
}

impl<T> OutboxError<T> {
    /// The message that was refused.
    #[must_use]
    pub fn into_message(self) -> T {
        match self {
            Self::TooManyMessages(message)
            | Self::TooManyBytes(message)
            | Self::Closed(message) => message,
        }
    }
}

impl<T> fmt::Display for OutboxError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TooManyMessages(_) => "the outbox has no room for another message",
            Self::TooManyBytes(_) => "the outbox has no room for so many bytes",
            Self::Closed(_) => "the outbox is closed",
        })
    }
}

// Not derived, so that the message need not be `Debug`.
impl<T> fmt::Debug for OutboxError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TooManyMessages(_) => "TooManyMessages(..)",
            Self::TooManyBytes(_) => "TooManyBytes(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> Error for OutboxError<T> {}

/// Messages were refused at this place, because the outbox was full: the client must reload
/// everything.
///
/// Returned by [`OutboxReader::recv`](super::OutboxReader::recv) after the last message that was
/// pushed before, and before the next one. A report that was on its way when a connection ended
/// must not be lost, so each newer reader returns it again until a later message is released. The
/// number grows with each refusal, so a client that remembers the last one recognizes a repeated
/// report:
///
/// ```
/// use tower_ws_liveness::{HeartbeatLayer, Outbox, OutboxLimits};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (_stream, live) = HeartbeatLayer::default().wrap_server(tokio::io::duplex(64).0);
/// let outbox = Outbox::new(OutboxLimits::new(1, 1024)?);
/// outbox.push("zero", 4)?;
/// outbox.push("one", 3).unwrap_err();
/// outbox.push("two", 3).unwrap_err();
///
/// let reader = outbox.reader(&live);
/// assert_eq!(reader.try_recv(), Some(Ok((0, "zero"))));
/// let overflow = reader.try_recv().ok_or("a report")?.unwrap_err();
/// assert_eq!(overflow.refused(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxOverflow {
    pub(super) refused: u64,
}

impl OutboxOverflow {
    /// The number of messages that were refused up to this place, since the outbox was created. At
    /// least 1.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl fmt::Display for OutboxOverflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbox full: {} messages refused so far", self.refused)
    }
}

impl Error for OutboxOverflow {}
