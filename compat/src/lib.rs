//! Compatibility tests of the layers with WebSocket libraries, frameworks, TLS stacks and clients.
//!
//! A scene is a test scenario that runs against a real server. Servers on many unmodified WebSocket
//! libraries run behind both layers, and each must pass every scene.
//!
//! ```sh
//! cargo test --manifest-path compat/Cargo.toml
//! ```
//!
//! `tests/libraries.rs` generates the tables of libraries in `docs/compatibility.md` and in the
//! project's README from the results and fails if they differ. With `COMPAT_TABLES=write` in the
//! environment it writes the tables.
//!
//! To add a library, add a file to `stacks` that serves an echo at `/ws`, and a line to
//! `stacks::ALL`. Declare a feature that cannot work there as a `Limit` with its reason. The limit
//! must be the library's: the scenes check that it exists with the layers and without them. (The
//! exception is below HTTP, where there is no idle layer.)
//!
//! `tests/programs.rs` runs stock client programs against the same servers, and generates two more
//! tables; see `programs`.

mod client;
pub mod frameworks;
mod http_version;
pub mod libraries;
mod message_client;
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
mod tls;
pub mod tls_scenes;
