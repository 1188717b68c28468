//! What the fuzz targets check, as plain functions: `targets` feeds them from libFuzzer, and
//! `tests/seeds.rs` from the committed seeds and a random generator, on any toolchain.

#![forbid(unsafe_code)]

mod ending;
mod frames;
pub mod scanner;
mod scenario;
#[path = "../../tests/support/script.rs"]
mod script;
pub mod stream;
mod transparent;
