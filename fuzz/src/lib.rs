//! The checks of the fuzz targets, as plain functions.
//!
//! `targets` calls them with inputs from libFuzzer, and `tests/seeds.rs` with the committed seeds
//! and random inputs, on any toolchain.

#![forbid(unsafe_code)]

mod ending;
mod frames;
pub mod scanner;
mod scenario;
#[path = "../../tests/support/script.rs"]
mod script;
pub mod stream;
mod transparent;
