//! What is special to TLS, seen by a client that looks below it.

use std::process::ExitCode;

fn main() -> ExitCode {
    tower_ws_liveness_compat::tls_scenes::run()
}
