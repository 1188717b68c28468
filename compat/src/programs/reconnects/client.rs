//! The reconnecting clients and their expected rules for reconnecting.

use std::time::Duration;

use super::Ending;
use super::server::ClientProtocol;
use crate::programs::program::RunsOn;

/// A reconnecting client program.
#[derive(Debug)]
pub(super) struct ReconnectingClient {
    /// The name in the guide's table.
    pub(super) name: &'static str,
    /// The package whose version is in the table.
    pub(super) package: &'static str,
    /// The software that it needs.
    pub(super) needs: &'static str,
    /// File name of the script in `compat/clients`.
    pub(super) script: &'static str,
    pub(super) runs_on: RunsOn,
    pub(super) protocol: ClientProtocol,
    /// Minimum and maximum wait before its first attempt to reconnect.
    pub(super) waits: (Duration, Duration),
    /// Codes after which it does not reconnect, and the reason.
    pub(super) no_reconnect: Option<(&'static [u16], &'static str)>,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const ALL: &[ReconnectingClient] = &[
    ReconnectingClient {
        name: "graphql-ws",
        package: "graphql-ws",
        needs: "graphql-ws for Node.js",
        script: "graphql_ws.js",
        runs_on: RunsOn::Node,
        protocol: ClientProtocol::GraphQl,
        // `retryWait` in `createClient`: two to the power of the attempt in seconds, and 0.3 to 3 s.
        waits: (ms(1_300), ms(4_000)),
        no_reconnect: Some((
            &[1008, 1011, 4500],
            "fatal by `isFatalInternalCloseCode` of graphql-ws (`client.ts`) are 1002 to 1999, except for \
             1005, 1006, 1012, 1013 and 1014; by its `shouldRetryConnectOrThrow` 4004, 4005, 4400, 4401, \
             4406, 4409, 4429 and 4500; the application's `shouldRetry` is not asked",
        )),
    },
    ReconnectingClient {
        name: "Phoenix",
        package: "phoenix",
        needs: "phoenix for Node.js",
        script: "phoenix.js",
        runs_on: RunsOn::Node,
        protocol: ClientProtocol::Phoenix,
        // `reconnectAfterMs` in `Socket`. `onConnClose` ignores the code.
        waits: (ms(10), ms(10)),
        no_reconnect: None,
    },
    ReconnectingClient {
        name: "reconnecting-websocket",
        package: "reconnecting-websocket",
        needs: "reconnecting-websocket for Node.js",
        script: "reconnecting_websocket.js",
        runs_on: RunsOn::Node,
        protocol: ClientProtocol::Bare,
        // `DEFAULT.minReconnectionDelay`, drawn once per page. `_handleClose` ignores the code.
        waits: (ms(1_000), ms(5_000)),
        no_reconnect: None,
    },
    ReconnectingClient {
        name: "SignalR",
        package: "@microsoft/signalr",
        needs: "@microsoft/signalr for Node.js",
        script: "signalr.js",
        runs_on: RunsOn::Node,
        protocol: ClientProtocol::SignalR,
        // `DefaultReconnectPolicy`. `HubConnection._connectionClosed` ignores the code.
        waits: (ms(0), ms(0)),
        no_reconnect: None,
    },
    ReconnectingClient {
        name: "Centrifuge",
        package: "centrifuge",
        needs: "centrifuge for Node.js",
        script: "centrifuge.js",
        runs_on: RunsOn::Node,
        protocol: ClientProtocol::Centrifuge,
        // `backoff` with `minReconnectDelay`.
        waits: (ms(500), ms(1_000)),
        no_reconnect: Some((
            &[4500],
            "final by the `onClose` that Centrifuge gives its transports are 1009, 3500 to 3999 and 4500 to \
             4999, and every code with a reason that is JSON without `\"reconnect\": true`",
        )),
    },
    ReconnectingClient {
        name: "Python's websockets",
        package: "websockets",
        needs: "Python's websockets",
        script: "websockets_reconnecting.py",
        runs_on: RunsOn::Python,
        protocol: ClientProtocol::Bare,
        // `connect.__aiter__` waits only after a failed attempt.
        waits: (ms(0), ms(0)),
        no_reconnect: None,
    },
];

impl ReconnectingClient {
    /// Returns the reason if the client is not expected to reconnect after `ending`.
    pub(super) fn no_reconnect_after(&self, ending: Ending) -> Option<&'static str> {
        let (codes, reason) = self.no_reconnect?;
        codes.contains(&ending.reported().0).then_some(reason)
    }
}
