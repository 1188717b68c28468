//! Where the layers work: servers on many WebSocket libraries, none of them changed, behind both
//! layers, and the scenes that each of them has to pass.
//!
//! ```sh
//! cargo test --manifest-path compat/Cargo.toml
//! ```
//!
//! What `tests/libraries.rs` sees becomes the table in the project's README. The test fails if the
//! README says anything else; with `COMPAT_README=write` in the environment it writes the table.
//!
//! A library is added with a file in `stacks`, which serves an echo at `/ws`, and with a line in
//! `stacks::ALL`. What cannot work there is declared as a `Limit` with its reason. A limit has to be
//! real, and must not be ours: the scenes look for it behind the layers and without them. (One is ours:
//! below HTTP there is no idle layer.)
//!
//! `tests/programs.rs` has stock clients at the other end instead, and a table of them; see
//! `programs`.

mod client;
pub mod frameworks;
mod http_version;
pub mod libraries;
pub mod programs;
mod protocol;
mod rig;
mod scenes;
mod site;
pub mod socketio;
mod stack;
mod stacks;
mod support;
mod table;
mod talk;
mod tls;
pub mod tls_scenes;
