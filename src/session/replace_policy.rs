//! Who wins if two connections want the same seat.

use std::borrow::Cow;

use crate::config_error::{self, ConfigError};
use crate::monitor::CloseFrame;

/// What [`Liveness::register_with`](crate::Liveness::register_with) does with a seat that another
/// connection holds.
///
/// All three keep one seat per key. For several connections of a user side by side, let the key say
/// which is which: `(user, device)`, or `(user, live.id())`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacePolicy {
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Evict(CloseFrame),
    Keep,
    Refuse,
}

impl ReplacePolicy {
    /// Who registers last has the seat, and the connection that had it is evicted with
    /// [`Reason::Replaced`](crate::Reason::Replaced). The default, and what
    /// [`Liveness::register`](crate::Liveness::register) does.
    ///
    /// The older peer is told Close 4000 (RFC 6455 section 7.4.2: private use), "replaced by a newer
    /// connection", so that a client can tell this end from others and does not take the seat back at
    /// once. See [`newest_wins_with`](Self::newest_wins_with) for a code of your own: all
    /// stock clients in the README's table reconnect after 4000, and some after every code. Two clients
    /// with one key then replace each other in turns, unless the application closes one of them.
    #[must_use]
    pub const fn newest_wins() -> Self {
        Self {
            kind: Kind::Evict(CloseFrame {
                code: 4000,
                reason: Cow::Borrowed("replaced by a newer connection"),
            }),
        }
    }

    /// As [`newest_wins`](Self::newest_wins), with this Close frame for the older peer.
    ///
    /// # Errors
    ///
    /// By RFC 6455 section 7.4: codes that are not to be sent (1004, 1005, 1006, 1015), reserved ones
    /// (1016 to 2999), and those below 1000 or above 4999. By section 5.5: reasons of more than 123
    /// bytes.
    pub fn newest_wins_with(code: u16, reason: impl Into<String>) -> Result<Self, ConfigError> {
        let frame = CloseFrame {
            code,
            reason: reason.into().into(),
        };
        config_error::close_frame("ReplacePolicy::newest_wins_with", &frame)?;
        Ok(Self {
            kind: Kind::Evict(frame),
        })
    }

    /// Who has the seat keeps it, and the newcomer is refused with
    /// [`RegisterError::Occupied`](crate::RegisterError::Occupied). What becomes of its connection is
    /// up to you.
    ///
    /// A peer that is dead holds its seat until that was noticed. One whose end was noticed does not,
    /// even if its hooks have not been told yet.
    #[must_use]
    pub const fn oldest_wins() -> Self {
        Self { kind: Kind::Refuse }
    }

    /// Who registers last has the seat, and the connection that had it lives on without one.
    #[must_use]
    pub const fn keep_both() -> Self {
        Self { kind: Kind::Keep }
    }
}

impl Default for ReplacePolicy {
    fn default() -> Self {
        Self::newest_wins()
    }
}
