//! Decides which of two connections gets a seat that both register.

use std::borrow::Cow;

use crate::config_error::{self, ConfigError};
use crate::monitor::CloseFrame;

/// Decides what [`Liveness::register_with`](crate::Liveness::register_with) does if another
/// connection holds the seat. Default: [`newest_wins`](Self::newest_wins).
///
/// In a map, all three policies keep one seat per key. For several connections per user, use keys
/// that distinguish them, `(user, device)` or `(user, live.id())`, or [`Groups`](crate::Groups).
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use tokio::io::duplex;
/// use tower_ws_liveness::{HeartbeatLayer, Reason, ReplacePolicy, Seat};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layer = HeartbeatLayer::default();
/// let (_phone_io, phone) = layer.wrap_server(duplex(64).0);
/// let (_laptop_io, laptop) = layer.wrap_server(duplex(64).0);
///
/// let sessions: Arc<Mutex<HashMap<&str, Seat<()>>>> = Arc::default();
/// let policy = ReplacePolicy::newest_wins_with(4001, "signed in elsewhere")?;
/// phone.register_with(&sessions, "alice", (), &policy)?;
/// laptop.register_with(&sessions, "alice", (), &policy)?;
/// assert_eq!(phone.evicted().await.reason(), Reason::Replaced);
/// assert_eq!(sessions.lock().unwrap()["alice"].id(), laptop.id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacePolicy {
    pub(super) action: ReplaceAction,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplaceAction {
    /// Takes the seat, and evicts the connection that held it with this Close frame.
    Evict(CloseFrame),
    /// Takes the seat, and keeps the connection that held it open.
    KeepOpen,
    /// Leaves the seat to the connection that holds it.
    Refuse,
}

impl ReplacePolicy {
    /// The connection that registers last gets the seat, and the connection that held it is evicted
    /// with [`Reason::Replaced`](crate::Reason::Replaced). The default, used by
    /// [`Liveness::register`](crate::Liveness::register).
    ///
    /// The older peer gets a Close frame with code 4000 (RFC 6455 section 7.4.2: private use) and
    /// the reason "replaced by a newer connection", so that a client can distinguish this end from
    /// others and does not take the seat back immediately. See
    /// [`newest_wins_with`](Self::newest_wins_with) for another code: all [tested stock clients]
    /// reconnect after 4000, and some after every code. Two clients with one key then replace each
    /// other in turns, unless the application closes one of them.
    ///
    /// [tested stock clients]: crate::guide::compatibility#clients-that-reconnect
    #[must_use]
    pub const fn newest_wins() -> Self {
        Self {
            action: ReplaceAction::Evict(CloseFrame {
                code: 4000,
                reason: Cow::Borrowed("replaced by a newer connection"),
            }),
        }
    }

    /// As [`newest_wins`](Self::newest_wins), with the given Close frame for the older peer.
    ///
    /// # Errors
    ///
    /// Returns an error for codes that RFC 6455 section 7.4 does not allow in a Close frame: 1004,
    /// 1005, 1006 and 1015, the reserved ones (1016 to 2999), and those below 1000 or above 4999;
    /// and for reasons of more than 123 bytes (section 5.5).
    pub fn newest_wins_with(code: u16, reason: impl Into<String>) -> Result<Self, ConfigError> {
        let frame = CloseFrame {
            code,
            reason: reason.into().into(),
        };
        config_error::close_frame("ReplacePolicy::newest_wins_with", &frame)?;
        Ok(Self {
            action: ReplaceAction::Evict(frame),
        })
    }

    /// The connection that holds the seat keeps it, and the registration of the newer one fails
    /// with [`RegisterError::Occupied`](crate::RegisterError::Occupied). The newer connection stays
    /// open; the application decides what to do with it.
    ///
    /// The connection of a dead peer holds its seat until its end is detected. From then on it does
    /// not hold the seat, even if its hooks have not been called yet.
    #[must_use]
    pub const fn oldest_wins() -> Self {
        Self {
            action: ReplaceAction::Refuse,
        }
    }

    /// The connection that registers last gets the seat, and the connection that held it stays open
    /// without one.
    #[must_use]
    pub const fn keep_both() -> Self {
        Self {
            action: ReplaceAction::KeepOpen,
        }
    }
}

impl Default for ReplacePolicy {
    fn default() -> Self {
        Self::newest_wins()
    }
}
