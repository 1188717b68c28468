//! The stock clients, and what each of them is to show.

use crate::http_version::HttpVersion;
use crate::stack::{Dialect, Of, Stack};

/// A client that somebody may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// As the README's table calls it.
    pub(crate) name: &'static str,
    /// The package whose version stands in the table. `None` where Debian decides.
    pub(crate) package: Option<&'static str>,
    /// What has to be installed.
    pub(crate) needs: &'static str,
    /// In `compat/clients`.
    pub(crate) script: &'static str,
    pub(crate) runs_on: RunsOn,
    /// Whether the application asks for each message, and may await something else in between.
    pub(crate) awaits: bool,
    /// Whether it is a browser.
    pub(crate) tabs: bool,
    pub(crate) limits: &'static [(Feature, &'static str)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunsOn {
    Python,
    Node,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
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

const ONE_LOOP: &str = "the event loop that is blocked is the one that answers pings: one that is \
    blocked for longer than interval and timeout together cannot be told from a dead one";

pub(crate) const ALL: &[Program] = &[
    Program {
        name: "websockets, asyncio",
        package: Some("websockets"),
        needs: "Python's websockets",
        script: "websockets_asyncio.py",
        runs_on: RunsOn::Python,
        awaits: true,
        tabs: false,
        limits: &[(Feature::Block, ONE_LOOP)],
    },
    Program {
        name: "websockets, threads",
        package: Some("websockets"),
        needs: "Python's websockets",
        script: "websockets_sync.py",
        runs_on: RunsOn::Python,
        awaits: false,
        tabs: false,
        limits: &[],
    },
    Program {
        name: "aiohttp",
        package: Some("aiohttp"),
        needs: "Python's aiohttp",
        script: "aiohttp_client.py",
        runs_on: RunsOn::Python,
        awaits: true,
        tabs: false,
        limits: &[
            (
                Feature::Await,
                "aiohttp answers pings only while the application awaits `receive()`: it should \
                 never await anything else for as long as interval and timeout together",
            ),
            (Feature::Block, ONE_LOOP),
        ],
    },
    Program {
        name: "ws",
        package: Some("ws"),
        needs: "ws for Node.js",
        script: "ws.js",
        runs_on: RunsOn::Node,
        awaits: false,
        tabs: false,
        limits: &[(Feature::Block, ONE_LOOP)],
    },
    Program {
        name: "undici",
        package: Some("undici"),
        needs: "undici for Node.js",
        script: "undici.js",
        runs_on: RunsOn::Node,
        awaits: false,
        tabs: false,
        limits: &[(Feature::Block, ONE_LOOP)],
    },
    Program {
        name: "Chromium",
        package: None,
        needs: "Chromium, and chrome-remote-interface for Node.js",
        script: "chromium.js",
        runs_on: RunsOn::Node,
        awaits: false,
        tabs: true,
        limits: &[
            (
                Feature::Stop,
                "Chromium shows its page 1006 instead, as for any connection that was cut",
            ),
            (
                Feature::LeftPage,
                "Chromium keeps the page for a way back, and its WebSocket open, where pings are \
                 still answered; an idle timeout ends it",
            ),
        ],
    },
];

impl Program {
    /// Whether there is something to play.
    pub(crate) fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Await => self.awaits,
            Feature::HiddenTab
            | Feature::FrozenTab
            | Feature::StoppedTab
            | Feature::ClosedTab
            | Feature::LeftPage => self.tabs,
            _ => true,
        }
    }

    /// Why this is not expected to work.
    pub(crate) fn limit(&self, feature: Feature) -> Option<&'static str> {
        let limit = self.limits.iter().find(|limit| limit.0 == feature)?;
        Some(limit.1)
    }
}

impl Feature {
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

    /// The head of the row.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Echo => "messages come and go, up to 300,000 bytes",
            Self::Pings => "answers pings, and shows none to its application",
            Self::Await => "lives while its application awaits something else",
            Self::Block => "lives while its application blocks its thread",
            Self::Stop => "stopped: evicted, and finds code 3008 when it goes on",
            Self::Kill => "killed: gone at once",
            Self::Kick => "kicked: is shown the code and the reason",
            Self::Close => "closes: its code is told",
            Self::Deflate => "permessage-deflate",
            Self::HiddenTab => "a tab in the background lives",
            Self::FrozenTab => "a frozen tab lives",
            Self::StoppedTab => "a tab whose process is stopped lives",
            Self::ClosedTab => "a closed tab is gone at once",
            Self::LeftPage => "a page that is left is gone at once",
        }
    }

    /// The servers it is played with. What depends on the client alone is played with the first.
    pub(crate) fn stacks(self, all: &'static [Stack]) -> Vec<&'static Stack> {
        let speaks = |stack: &&Stack| {
            stack.dialect == Dialect::Plain && stack.limit(Of::Http(HttpVersion::One)).is_none()
        };
        let deflates = |stack: &&Stack| {
            stack
                .limit(Of::Feature(crate::stack::Feature::Deflate))
                .is_none()
        };
        let all = all.iter().filter(speaks);
        match self {
            Self::Echo | Self::Pings => all.collect(),
            Self::Deflate => all.filter(deflates).collect(),
            _ => all.take(1).collect(),
        }
    }
}
