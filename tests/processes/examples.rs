//! The examples as modules, whose `run` functions the roles call.
#![allow(dead_code, unreachable_pub)]

#[path = "../../examples/chat.rs"]
pub(crate) mod chat;
#[path = "../../examples/devices.rs"]
pub(crate) mod devices;
#[path = "../../examples/echo.rs"]
pub(crate) mod echo;
#[path = "../../examples/feed.rs"]
pub(crate) mod feed;
#[path = "../../examples/graceful_drain.rs"]
pub(crate) mod graceful_drain;
#[cfg(feature = "tcp")]
#[path = "../../examples/hyper_server.rs"]
pub(crate) mod hyper_server;
#[path = "../../examples/lobby.rs"]
pub(crate) mod lobby;
#[path = "../../examples/presence.rs"]
pub(crate) mod presence;
#[cfg(feature = "tcp")]
#[path = "../../examples/raw_tungstenite.rs"]
pub(crate) mod raw_tungstenite;
#[cfg(feature = "tcp")]
#[path = "../../examples/reconnecting_client.rs"]
pub(crate) mod reconnecting_client;
#[path = "../../examples/resume.rs"]
pub(crate) mod resume;
