//! [`OutboxLimits`]: how many messages and bytes an outbox keeps.

use crate::config_error::{self, ConfigError};

/// How many messages and bytes an [`Outbox`](super::Outbox) keeps. Checked once, and used for any number of
/// sessions.
///
/// By default 1,000 messages with 1 MiB together. An outbox takes memory only for the messages that
/// it has; those of all sessions that linger have at most this number of bytes times the
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
    /// Limits on the messages that were not [released](super::OutboxReader::release), and on their
    /// bytes as counted by the producers in [`push`](super::Outbox::push).
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
