//! Guide: how to use the layers, and what to know before.
//!
//! - [`other_layers`]: the position of the layers among those of tower, tower-http and axum
//! - [`limits`]: the runtime, errors in the handler, types and memory
//!
//! The pages are the files in `docs/` of the repository.

#[doc = include_str!("../docs/limits.md")]
pub mod limits {}

#[doc = include_str!("../docs/other-layers.md")]
pub mod other_layers {}
