//! Runs every scene with every library over every protocol.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use crate::protocol::Protocol;
use crate::scenes;
use crate::stack::Feature;
use crate::stacks;
use crate::table::{self, Outcome};

type Outcomes = Arc<Mutex<Vec<Outcome>>>;

/// Runs the scenes that the command line selects. Checks the tables if all of them ran.
pub fn run() -> ExitCode {
    let arguments = Arguments::from_args();
    let outcomes = Outcomes::default();
    let trials = trials(&outcomes);
    let count = trials.len();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        return conclusion.exit_code();
    }
    let outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    if outcomes.len() < count {
        eprintln!("no table: {} of {count} scenes ran", outcomes.len());
        return conclusion.exit_code();
    }
    let libraries = table::libraries(stacks::ALL, &outcomes);
    let summary = table::summary(stacks::ALL, &outcomes);
    let checked = table::check_page(table::GUIDE_PAGE, "libraries", &libraries)
        .and(table::check_page("README.md", "summary", &summary));
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trials(outcomes: &Outcomes) -> Vec<Trial> {
    let mut trials = Vec::new();
    for stack in stacks::ALL {
        for protocol in Protocol::ALL {
            for feature in Feature::ALL {
                let outcomes = Arc::clone(outcomes);
                let name = format!("{}: {feature} over {protocol}", stack.name);
                trials.push(Trial::test(name, move || {
                    // One runtime per scene: dropping it ends all tasks of the scene.
                    let runtime = Runtime::new()?;
                    let cell = runtime.block_on(scenes::run(*stack, protocol, feature));
                    let outcome = Outcome {
                        stack,
                        protocol,
                        feature,
                        cell,
                    };
                    outcomes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(outcome);
                    Ok(())
                }));
            }
        }
    }
    trials
}
