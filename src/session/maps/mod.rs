//! Implementations of `SessionMap` for common map types.

#[cfg(feature = "dashmap")]
mod dashmap;
mod locks;
mod map_in;
#[cfg(feature = "papaya")]
mod papaya;
#[cfg(feature = "scc")]
mod scc;
mod seat_table;
mod shared;

pub use map_in::{MapIn, map_in};
pub use seat_table::SeatTable;
