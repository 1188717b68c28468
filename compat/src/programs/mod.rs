//! Every stock client through every scene.
//!
//! ```sh
//! compat/clients/install
//! cargo test --manifest-path compat/Cargo.toml --test programs -- --ignored
//! ```
//!
//! A client is a short script in `compat/clients`, written as that library's users write, with no
//! code for pings. It is added with a line in `program::ALL`.

mod patience;
mod process;
mod program;
mod scenes;
mod table;
mod tabs;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use self::program::Feature;
use self::table::Outcome;
use crate::stacks;

type Outcomes = Arc<Mutex<Vec<Outcome>>>;

/// The scenes wait for most of their time, so more of them are played at once than there are cores.
const AT_ONCE: usize = 6;

/// Plays all that are asked for on the command line. Only of all there is a table.
pub fn run() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let outcomes = Outcomes::default();
    let trials = trials(&outcomes);
    let count = trials.len();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    if conclusion.has_failed() || outcomes.len() < count {
        eprintln!("no table: {} of {count} scenes were played", outcomes.len());
        return conclusion.exit_code();
    }
    match crate::table::judge("programs", &table::programs(program::ALL, &outcomes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trials(outcomes: &Outcomes) -> Vec<Trial> {
    let mut trials = Vec::new();
    for program in program::ALL {
        for feature in Feature::ALL {
            if !program.has(feature) {
                continue;
            }
            for stack in feature.stacks(stacks::ALL) {
                let outcomes = Arc::clone(outcomes);
                let name = format!("{}: {feature:?} with {}", program.name, stack.name);
                let trial = Trial::test(name, move || {
                    // A runtime of its own: when it is dropped, nothing of the scene is left.
                    let runtime = Runtime::new()?;
                    let cell = runtime.block_on(scenes::play(program, *stack, feature));
                    let outcome = Outcome {
                        program,
                        feature,
                        cell,
                    };
                    outcomes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(outcome);
                    Ok(())
                });
                let needs = format!("needs {}", program.needs);
                trials.push(trial.with_kind(needs).with_ignored_flag(true));
            }
        }
    }
    trials
}
