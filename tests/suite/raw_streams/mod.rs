//! Streams that are wrapped without HTTP, at the server and at the client.

mod handshakes;
mod opening_handshake;
mod pending_handshake;
mod transports;
mod wires;
