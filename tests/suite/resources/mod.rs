//! Tasks, transports and memory are released when a connection ends.

mod runtime_shutdown;
mod transport_shutdown;
