//! Runs the scenes of `src/tls_scenes/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tower_ws_liveness_compat::tls_scenes::run()
}
