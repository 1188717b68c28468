//! A server that somebody may have: a WebSocket library, and what it is served with.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::http_version::HttpVersion;
use crate::site::Site;

/// One server, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// As the README's table calls it.
    pub(crate) name: &'static str,
    /// The crate whose version stands in the table.
    pub(crate) library: &'static str,
    /// Serves an echo at `/ws` until it is dropped.
    pub(crate) serve: fn(Site) -> BoxFuture<'static, ()>,
    pub(crate) dialect: Dialect,
    /// Whether the library shows pongs to its handlers. Where it does not, nobody can see there
    /// whether ours are hidden.
    pub(crate) shows_pongs: bool,
    pub(crate) limits: &'static [Limit],
}

/// What is spoken inside of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Messages as they are.
    Plain,
    /// Socket.IO over Engine.IO, revision 4, where each message is an event `echo`.
    SocketIo,
    /// JSON-RPC 2.0, where each message calls the method `echo`.
    JsonRpc,
}

/// What does not work with a library, for a reason of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) of: Of,
    /// The reason, a sentence of the README.
    pub(crate) why: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Http(HttpVersion),
    Feature(Feature),
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    Echo,
    Pings,
    Death,
    Idle,
    Kick,
    Deflate,
}

impl Feature {
    pub(crate) const ALL: [Self; 6] = [
        Self::Echo,
        Self::Pings,
        Self::Death,
        Self::Idle,
        Self::Kick,
        Self::Deflate,
    ];

    /// The head of the column.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Pings => "pings",
            Self::Death => "death",
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
    /// Why this is not expected to work.
    pub(crate) fn limit(&self, of: Of) -> Option<&'static str> {
        let limit = self.limits.iter().find(|limit| limit.of == of)?;
        Some(limit.why)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.head())
    }
}
