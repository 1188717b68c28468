//! Runs the scenes of `src/programs/` and checks the guide's tables of client programs.

use std::process::ExitCode;

fn main() -> ExitCode {
    tower_ws_liveness_compat::programs::run()
}
