//! Stock WebSocket clients, each a program of its own, and the README's table of them.

use std::process::ExitCode;

fn main() -> ExitCode {
    tower_ws_liveness_compat::programs::run()
}
