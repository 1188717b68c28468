//! The stock client programs and their expected behaviour.

use crate::http_version::HttpVersion;
use crate::stack::{Dialect, Of, Stack};

/// A client program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// The name in the guide's table.
    pub(crate) name: &'static str,
    /// The package whose version is in the table; `None` if Debian chooses the version.
    pub(crate) package: Option<&'static str>,
    /// The software that it needs.
    pub(crate) needs: &'static str,
    /// File name of the script in `compat/clients`.
    pub(crate) script: &'static str,
    pub(crate) runs_on: RunsOn,
    /// Whether the application awaits each message, and may await something else in between.
    pub(crate) awaits_messages: bool,
    /// Whether it is a browser with tabs.
    pub(crate) is_browser: bool,
    pub(crate) limits: &'static [(Behaviour, &'static str)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunsOn {
    Python,
    Node,
}

/// A row of the table: a behaviour of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Echo,
    Pings,
    Await,
    Block,
    Stop,
    Kill,
    Kick,
    Close,
    Deflate,
    HiddenTab,
    FrozenTab,
    StoppedTab,
    ClosedTab,
    LeftPage,
}

const ONE_EVENT_LOOP: &str = "the event loop that is blocked is the one that answers pings: one that is \
    blocked for longer than interval and timeout together cannot be distinguished from a dead one";

pub(crate) const ALL: &[Program] = &[
    Program {
        name: "websockets, asyncio",
        package: Some("websockets"),
        needs: "Python's websockets",
        script: "websockets_asyncio.py",
        runs_on: RunsOn::Python,
        awaits_messages: true,
        is_browser: false,
        limits: &[(Behaviour::Block, ONE_EVENT_LOOP)],
    },
    Program {
        name: "websockets, threads",
        package: Some("websockets"),
        needs: "Python's websockets",
        script: "websockets_sync.py",
        runs_on: RunsOn::Python,
        awaits_messages: false,
        is_browser: false,
        limits: &[],
    },
    Program {
        name: "aiohttp",
        package: Some("aiohttp"),
        needs: "Python's aiohttp",
        script: "aiohttp_client.py",
        runs_on: RunsOn::Python,
        awaits_messages: true,
        is_browser: false,
        limits: &[
            (
                Behaviour::Await,
                "aiohttp answers pings only while the application awaits `receive()`: it should \
                 never await anything else for as long as interval and timeout together",
            ),
            (Behaviour::Block, ONE_EVENT_LOOP),
        ],
    },
    Program {
        name: "ws",
        package: Some("ws"),
        needs: "ws for Node.js",
        script: "ws.js",
        runs_on: RunsOn::Node,
        awaits_messages: false,
        is_browser: false,
        limits: &[(Behaviour::Block, ONE_EVENT_LOOP)],
    },
    Program {
        name: "undici",
        package: Some("undici"),
        needs: "undici for Node.js",
        script: "undici.js",
        runs_on: RunsOn::Node,
        awaits_messages: false,
        is_browser: false,
        limits: &[(Behaviour::Block, ONE_EVENT_LOOP)],
    },
    Program {
        name: "Chromium",
        package: None,
        needs: "Chromium, and chrome-remote-interface for Node.js",
        script: "chromium.js",
        runs_on: RunsOn::Node,
        awaits_messages: false,
        is_browser: true,
        limits: &[
            (
                Behaviour::Stop,
                "Chromium shows its page 1006 instead, as for any connection that was cut",
            ),
            (
                Behaviour::LeftPage,
                "Chromium keeps the page for a way back, and its WebSocket open, where pings are \
                 still answered; an idle timeout ends it",
            ),
        ],
    },
];

impl Program {
    /// Whether the behaviour applies to this client.
    pub(crate) fn has(&self, behaviour: Behaviour) -> bool {
        match behaviour {
            Behaviour::Await => self.awaits_messages,
            Behaviour::HiddenTab
            | Behaviour::FrozenTab
            | Behaviour::StoppedTab
            | Behaviour::ClosedTab
            | Behaviour::LeftPage => self.is_browser,
            _ => true,
        }
    }

    /// Returns the reason if `behaviour` is not expected.
    pub(crate) fn limit(&self, behaviour: Behaviour) -> Option<&'static str> {
        let limit = self.limits.iter().find(|limit| limit.0 == behaviour)?;
        Some(limit.1)
    }
}

impl Behaviour {
    pub(crate) const ALL: [Self; 14] = [
        Self::Echo,
        Self::Pings,
        Self::Await,
        Self::Block,
        Self::Stop,
        Self::Kill,
        Self::Kick,
        Self::Close,
        Self::Deflate,
        Self::HiddenTab,
        Self::FrozenTab,
        Self::StoppedTab,
        Self::ClosedTab,
        Self::LeftPage,
    ];

    /// The heading of the row.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::Echo => "messages are echoed, up to 300,000 bytes",
            Self::Pings => "answers pings, and shows none to its application",
            Self::Await => "stays connected while its application awaits something else",
            Self::Block => "stays connected while its application blocks its thread",
            Self::Stop => "stopped: evicted, and finds code 3008 when it resumes",
            Self::Kill => "killed: evicted immediately",
            Self::Kick => "kicked: is shown the code and the reason",
            Self::Close => "closes: the server reports its code",
            Self::Deflate => "permessage-deflate",
            Self::HiddenTab => "a background tab stays connected",
            Self::FrozenTab => "a frozen tab stays connected",
            Self::StoppedTab => "a tab whose process is stopped stays connected",
            Self::ClosedTab => "a closed tab is evicted immediately",
            Self::LeftPage => "a page that is left is evicted immediately",
        }
    }

    /// Returns the servers to run with. What depends on the client alone runs with the first.
    pub(crate) fn stacks(self, all: &'static [Stack]) -> Vec<&'static Stack> {
        let supports = |stack: &&Stack| {
            stack.dialect == Dialect::Plain && stack.limit(Of::Http(HttpVersion::One)).is_none()
        };
        let deflates = |stack: &&Stack| {
            stack
                .limit(Of::Feature(crate::stack::Feature::Deflate))
                .is_none()
        };
        let all = all.iter().filter(supports);
        match self {
            Self::Echo | Self::Pings => all.collect(),
            Self::Deflate => all.filter(deflates).collect(),
            _ => all.take(1).collect(),
        }
    }
}
