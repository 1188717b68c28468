//! A stack: a WebSocket library together with the server it runs on.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::http_version::HttpVersion;
use crate::site::Site;

/// A server under test and its known limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// The name in the tables.
    pub(crate) name: &'static str,
    /// The crate whose version is in the table.
    pub(crate) library: &'static str,
    /// Serves an echo at `/ws` until it is dropped.
    pub(crate) serve: fn(Site) -> BoxFuture<'static, ()>,
    pub(crate) dialect: Dialect,
    /// Whether the library passes pongs to handlers. Without this a scene cannot check that the
    /// layer hides the pongs for its own pings.
    pub(crate) shows_pongs: bool,
    pub(crate) limits: &'static [Limit],
}

/// The message protocol inside the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Raw messages.
    Plain,
    /// Socket.IO over Engine.IO, revision 4, where each message is an event `echo`.
    SocketIo,
    /// JSON-RPC 2.0, where each message calls the method `echo`.
    JsonRpc,
}

/// A feature or HTTP version that a library does not support.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) of: Of,
    /// The reason, as in the table.
    pub(crate) why: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
/// The subject of a [`Limit`].
pub(crate) enum Of {
    Http(HttpVersion),
    Feature(Feature),
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    Echo,
    Pings,
    DeadPeer,
    Idle,
    Kick,
    Deflate,
}

impl Feature {
    pub(crate) const ALL: [Self; 6] = [
        Self::Echo,
        Self::Pings,
        Self::DeadPeer,
        Self::Idle,
        Self::Kick,
        Self::Deflate,
    ];

    /// The heading of the column.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Pings => "pings",
            Self::DeadPeer => "dead peer",
            Self::Idle => "idle",
            Self::Kick => "kick",
            Self::Deflate => "deflate",
        }
    }
}

impl Limit {
    pub(crate) const HTTP1_ONLY: Self = Self {
        of: Of::Http(HttpVersion::Two),
        why: "the library knows the handshake of HTTP/1.1 only: `GET` with `Upgrade`",
    };

    pub(crate) const TUNGSTENITE: Self = Self {
        of: Of::Feature(Feature::Deflate),
        why: "tungstenite knows no extensions",
    };
}

impl Stack {
    /// Returns the reason if `of` is not expected to work.
    pub(crate) fn limit(&self, of: Of) -> Option<&'static str> {
        let limit = self.limits.iter().find(|limit| limit.of == of)?;
        Some(limit.why)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.heading())
    }
}
