//! Tasks, transports and memory come back at the end of a connection.

mod runtime_shutdown;
mod transport_shutdown;
