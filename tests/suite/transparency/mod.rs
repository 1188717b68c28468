//! Bytes pass unchanged between handler and peer, and on connections without an upgrade.

mod conversations;
mod early_bytes;
mod frames;
mod large_frames;
#[cfg(feature = "tcp")]
mod lingering_close;
mod plain_http;
mod repeated_writes;
mod scripted_transport;
mod transfers;
mod wakers;
