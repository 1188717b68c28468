//! Runs the scenes of `src/scenes/` and checks the tables of libraries.

use std::process::ExitCode;

fn main() -> ExitCode {
    tower_ws_liveness_compat::libraries::run()
}
