//! Implementations of `SessionMap` for common map types.

#[cfg(feature = "dashmap")]
mod dashmap;
mod hash_map;
#[cfg(feature = "papaya")]
mod papaya;
#[cfg(feature = "scc")]
mod scc;
mod shared;
