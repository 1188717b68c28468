//! The reconnecting clients, and the rule by which each of them comes back.

use std::time::Duration;

use super::Ending;
use super::server::Dialect;
use crate::programs::program::RunsOn;

#[derive(Debug)]
pub(super) struct Client {
    /// As the README's table calls it.
    pub(super) name: &'static str,
    /// The package whose version stands in the table.
    pub(super) package: &'static str,
    /// What has to be installed.
    pub(super) needs: &'static str,
    /// In `compat/clients`.
    pub(super) script: &'static str,
    pub(super) runs_on: RunsOn,
    pub(super) dialect: Dialect,
    /// The least and the most that it waits before it connects for the first time after an end.
    pub(super) waits: (Duration, Duration),
    /// Codes after which it does not come back, and why.
    pub(super) stays_away: Option<(&'static [u16], &'static str)>,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const ALL: &[Client] = &[
    Client {
        name: "graphql-ws",
        package: "graphql-ws",
        needs: "graphql-ws for Node.js",
        script: "graphql_ws.js",
        runs_on: RunsOn::Node,
        dialect: Dialect::GraphQl,
        // `retryWait` in `createClient`: two to the power of the attempt in seconds, and 0.3 to 3 s.
        waits: (ms(1_300), ms(4_000)),
        stays_away: Some((
            &[1008, 1011, 4500],
            "fatal by `isFatalInternalCloseCode` of graphql-ws (`client.ts`) are 1002 to 1999, except for \
             1005, 1006, 1012, 1013 and 1014; by its `shouldRetryConnectOrThrow` 4004, 4005, 4400, 4401, \
             4406, 4409, 4429 and 4500; the application's `shouldRetry` is not asked",
        )),
    },
    Client {
        name: "Phoenix",
        package: "phoenix",
        needs: "phoenix for Node.js",
        script: "phoenix.js",
        runs_on: RunsOn::Node,
        dialect: Dialect::Phoenix,
        // `reconnectAfterMs` in `Socket`. `onConnClose` looks at no code.
        waits: (ms(10), ms(10)),
        stays_away: None,
    },
    Client {
        name: "reconnecting-websocket",
        package: "reconnecting-websocket",
        needs: "reconnecting-websocket for Node.js",
        script: "reconnecting_websocket.js",
        runs_on: RunsOn::Node,
        dialect: Dialect::Bare,
        // `DEFAULT.minReconnectionDelay`, drawn once for a page. `_handleClose` looks at no code.
        waits: (ms(1_000), ms(5_000)),
        stays_away: None,
    },
    Client {
        name: "SignalR",
        package: "@microsoft/signalr",
        needs: "@microsoft/signalr for Node.js",
        script: "signalr.js",
        runs_on: RunsOn::Node,
        dialect: Dialect::SignalR,
        // `DefaultReconnectPolicy`. `HubConnection._connectionClosed` looks at no code.
        waits: (ms(0), ms(0)),
        stays_away: None,
    },
    Client {
        name: "Centrifuge",
        package: "centrifuge",
        needs: "centrifuge for Node.js",
        script: "centrifuge.js",
        runs_on: RunsOn::Node,
        dialect: Dialect::Centrifuge,
        // `backoff` with `minReconnectDelay`.
        waits: (ms(500), ms(1_000)),
        stays_away: Some((
            &[4500],
            "final by the `onClose` that Centrifuge gives its transports are 1009, 3500 to 3999 and 4500 to \
             4999, and every code with a reason that is JSON without `\"reconnect\": true`",
        )),
    },
    Client {
        name: "Python's websockets",
        package: "websockets",
        needs: "Python's websockets",
        script: "websockets_reconnecting.py",
        runs_on: RunsOn::Python,
        dialect: Dialect::Bare,
        // `connect.__aiter__` waits only after an attempt that failed.
        waits: (ms(0), ms(0)),
        stays_away: None,
    },
];

impl Client {
    /// Why it is expected not to come back after this.
    pub(super) fn stays_away_after(&self, ending: Ending) -> Option<&'static str> {
        let (codes, why) = self.stays_away?;
        codes.contains(&ending.reported().0).then_some(why)
    }
}
