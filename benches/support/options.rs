//! The options of a server process.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;

/// The kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The handler alone.
    Bare,
    /// The handler with a heartbeat written into it: [`hand_written`](super::hand_written).
    HandWritten,
    /// The handler of `Bare` behind both layers.
    Layered,
    /// Another library with a heartbeat of its own, on axum: [`sockudo`](super::sockudo).
    Sockudo,
    /// A hand-written heartbeat without axum: [`raw_tungstenite`](super::raw_tungstenite).
    RawTungstenite,
    /// Sockets and pings without a WebSocket library: [`floor`](super::floor).
    Floor,
}

impl Kind {
    /// The servers that echo messages.
    pub(crate) const ECHOING: [Self; 5] = [
        Self::Bare,
        Self::HandWritten,
        Self::Layered,
        Self::Sockudo,
        Self::RawTungstenite,
    ];

    /// The servers with a heartbeat whose WebSocket is not axum's.
    pub(crate) const RIVALS: [Self; 2] = [Self::Sockudo, Self::RawTungstenite];

    /// Name of the server on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::HandWritten => "hand-written",
            Self::Layered => "layered",
            Self::Sockudo => "sockudo-ws",
            Self::RawTungstenite => "raw tokio-tungstenite",
            Self::Floor => "floor",
        }
    }

    /// The shortest interval that the server supports: sockudo-ws takes whole seconds.
    pub(crate) fn min_interval(self) -> Duration {
        match self {
            Self::Sockudo => Duration::from_secs(1),
            _ => Duration::ZERO,
        }
    }

    /// Whether a pong that answers no ping shows that the peer is alive. For sockudo-ws only the
    /// pong to its outstanding ping does.
    pub(crate) fn accepts_unsolicited_pong(self) -> bool {
        self != Self::Sockudo
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ECHOING
            .into_iter()
            .chain([Self::Floor])
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("unknown server: {name}"))
    }
}

/// Read buffers in bytes under comparison: axum's default, and one that suits small messages.
pub(crate) const BUFFERS: [Option<usize>; 2] = [None, Some(4096)];

/// Name of a read buffer in headlines.
pub(crate) fn buffer_name(buffer: Option<usize>) -> String {
    match buffer {
        None => "axum's default read buffer".to_owned(),
        Some(size) => format!("read buffer of {size} bytes"),
    }
}

/// The options of a server process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The kind of server.
    pub(crate) kind: Kind,
    /// Size of the WebSocket library's read buffer in bytes; `None` for axum's default (128 KiB).
    /// sockudo-ws always has one of 64 KiB.
    pub(crate) buffer: Option<usize>,
    /// Silence after which a ping is sent.
    pub(crate) interval: Duration,
    /// Time for which a ping may stay unanswered.
    pub(crate) timeout: Duration,
    /// Worker threads; 0 for the current-thread runtime.
    pub(crate) workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Bare,
            buffer: None,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            workers: 2,
        }
    }
}

impl Options {
    /// Formats the options as arguments for [`parse`](Self::parse).
    pub(crate) fn to_args(self) -> Vec<String> {
        [
            self.kind.name().to_owned(),
            self.buffer.unwrap_or(0).to_string(),
            self.interval.as_millis().to_string(),
            self.timeout.as_millis().to_string(),
            self.workers.to_string(),
        ]
        .into()
    }

    /// Parses the arguments of a server process.
    pub(crate) fn parse(args: &[String]) -> Result<Self, Box<dyn Error>> {
        let [kind, buffer, interval, timeout, workers] = args else {
            return Err("a server takes kind, buffer, interval, timeout and workers".into());
        };
        Ok(Self {
            kind: kind.parse()?,
            buffer: Some(buffer.parse()?).filter(|&buffer| buffer > 0),
            interval: Duration::from_millis(interval.parse()?),
            timeout: Duration::from_millis(timeout.parse()?),
            workers: workers.parse()?,
        })
    }
}

/// Applies the read buffer's size to the upgrade, in the same way for every server.
pub(crate) fn configure(options: Options, upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    match options.buffer {
        Some(size) => upgrade.read_buffer_size(size),
        None => upgrade,
    }
}
