//! Bytes pass unchanged: between the handler and its peer, and where nothing is upgraded.

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
