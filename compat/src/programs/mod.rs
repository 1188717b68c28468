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
mod reconnects;
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

/// What the scenes of one table have seen so far.
#[derive(Debug)]
struct Shared<T>(Arc<Mutex<Vec<T>>>);

/// The scenes wait for most of their time, so more of them are played at once than there are cores.
const AT_ONCE: usize = 6;

/// Plays all that are asked for on the command line. There is a table only of scenes that were all
/// played.
pub fn run() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let (outcomes, reconnects) = (Shared::default(), Shared::default());
    let mut trials = trials(&outcomes);
    let count = trials.len();
    trials.extend(reconnects::trials(&reconnects));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        return conclusion.exit_code();
    }
    let programs = outcomes.judge("programs", count, |seen| {
        table::programs(program::ALL, seen)
    });
    let reconnects = reconnects.judge("reconnects", reconnects::count(), reconnects::table);
    match programs.and(reconnects) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl<T> Shared<T> {
    fn extend(&self, outcomes: impl IntoIterator<Item = T>) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.extend(outcomes);
    }

    /// Compares the README's table of this name with the one of all `count` outcomes.
    fn judge(
        &self,
        name: &str,
        count: usize,
        table: impl FnOnce(&[T]) -> String,
    ) -> Result<(), String> {
        let outcomes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if outcomes.len() < count {
            eprintln!("no table of {name}: {} of {count} outcomes", outcomes.len());
            return Ok(());
        }
        let table = table(&outcomes);
        println!("{table}");
        crate::table::judge(name, &table)
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn trials(outcomes: &Shared<Outcome>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for program in program::ALL {
        for feature in Feature::ALL {
            if !program.has(feature) {
                continue;
            }
            for stack in feature.stacks(stacks::ALL) {
                let outcomes = outcomes.clone();
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
                    outcomes.extend([outcome]);
                    Ok(())
                });
                let needs = format!("needs {}", program.needs);
                trials.push(trial.with_kind(needs).with_ignored_flag(true));
            }
        }
    }
    trials
}
