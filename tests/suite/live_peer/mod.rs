//! A live peer is never evicted as dead, however slow it or its handler is.

mod backpressure;
mod busy_handler;
mod early_pong;
mod fairness;
mod heartbeat;
mod http2_flow_control;
mod http2_neighbours;
mod nginx;
mod ping;
mod unread_bytes;
