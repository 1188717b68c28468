//! Every library, over every protocol, through every scene, and the README's table of them.

use std::process::ExitCode;

fn main() -> ExitCode {
    tower_ws_liveness_compat::libraries::run()
}
