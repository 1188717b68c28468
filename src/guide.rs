//! Guide: how to use the layers, and what to know before.
//!
//! - [`getting_started`]: installation, versions, where the layers go, what a handler sees
//! - [`programs`]: presence, devices, a lobby, a feed, kicks, deploys: the example to start from
//! - [`times`]: which times fit proxies, networks and clients; all settings
//! - [`session_map`]: seats, replaced connections, grace periods, messages while away, devices, rooms
//! - [`shutdown`]: drains, deploys, supervisors
//! - [`troubleshooting`]: what each [`Reason`](crate::Reason) means and what to change
//! - [`testing`]: tests of hooks, maps and applications, without sockets
//! - [`clients`]: browsers, clients that reconnect, clients in Rust, raw streams
//! - [`tls_and_http2`]: rustls, OpenSSL, streams of one HTTP/2 connection
//! - [`other_layers`]: the position among the layers of tower, tower-http and axum
//! - [`promises`]: what is guaranteed, and the limits
//! - [`observability`]: health, counters, the registry, logs
//! - [`operations`]: TCP options, cost, a million connections
//! - [`compatibility`]: tables of libraries and clients
//!
//! The pages are the files in `docs/` of the repository.

/// Adds a page, with the targets of links between pages. The pages define these targets too, as
/// files; Markdown uses the first definition.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = "[clients]: crate::guide::clients"]
        #[doc = "[compatibility]: crate::guide::compatibility"]
        #[doc = "[getting-started]: crate::guide::getting_started"]
        #[doc = "[observability]: crate::guide::observability"]
        #[doc = "[operations]: crate::guide::operations"]
        #[doc = "[other-layers]: crate::guide::other_layers"]
        #[doc = "[programs]: crate::guide::programs"]
        #[doc = "[promises]: crate::guide::promises"]
        #[doc = "[session-map]: crate::guide::session_map"]
        #[doc = "[shutdown]: crate::guide::shutdown"]
        #[doc = "[testing]: crate::guide::testing"]
        #[doc = "[times]: crate::guide::times"]
        #[doc = "[tls]: crate::guide::tls_and_http2"]
        #[doc = "[troubleshooting]: crate::guide::troubleshooting"]
        #[doc = ""]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

page!(getting_started, "../docs/getting-started.md");
page!(programs, "../docs/programs.md");
page!(times, "../docs/times.md");
page!(session_map, "../docs/session-map.md");
page!(shutdown, "../docs/shutdown.md");
page!(troubleshooting, "../docs/troubleshooting.md");
// Its snippets need the feature. Without it, only the documentation's own test leaves the page out.
#[cfg(any(not(doctest), feature = "test-util"))]
page!(testing, "../docs/testing.md");
page!(clients, "../docs/clients.md");
page!(tls_and_http2, "../docs/tls-and-http2.md");
page!(other_layers, "../docs/other-layers.md");
page!(promises, "../docs/promises.md");
page!(observability, "../docs/observability.md");
page!(operations, "../docs/operations.md");
page!(compatibility, "../docs/compatibility.md");
