//! Runs every scene with every stock client program.
//!
//! ```sh
//! compat/clients/install
//! cargo test --manifest-path compat/Cargo.toml --test programs -- --ignored
//! ```
//!
//! A client program is a short script in `compat/clients`, written as users of its library write
//! it, without code for pings. To add one, add a line to `program::ALL`.

mod process;
mod program;
mod reconnects;
mod scenes;
mod table;
mod tabs;
mod timing;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use self::program::Behaviour;
use self::table::ProgramOutcome;
use crate::stacks;

/// The results for one table so far.
#[derive(Debug)]
struct SharedResults<T>(Arc<Mutex<Vec<T>>>);

/// Number of scenes that run at the same time. They mostly wait, so there can be more than cores.
const SCENES_AT_ONCE: usize = 6;

/// Runs the scenes that the command line selects. Checks a table of the guide if all of its scenes
/// ran.
pub fn run() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SCENES_AT_ONCE);
    let (outcomes, reconnects) = (SharedResults::default(), SharedResults::default());
    let mut trials = trials(&outcomes);
    let count = trials.len();
    trials.extend(reconnects::trials(&reconnects));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        return conclusion.exit_code();
    }
    let programs = outcomes.check_table("programs", count, |outcomes| {
        table::programs(program::ALL, outcomes)
    });
    let reconnects = reconnects.check_table("reconnects", reconnects::count(), reconnects::table);
    match programs.and(reconnects) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl<T> SharedResults<T> {
    fn extend(&self, outcomes: impl IntoIterator<Item = T>) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.extend(outcomes);
    }

    /// Compares the guide's table `name` with the one generated from all `count` outcomes.
    fn check_table(
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
        crate::table::check_page(crate::table::GUIDE_PAGE, name, &table)
    }
}

impl<T> Default for SharedResults<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for SharedResults<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn trials(outcomes: &SharedResults<ProgramOutcome>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for program in program::ALL {
        for behaviour in Behaviour::ALL {
            if !program.has(behaviour) {
                continue;
            }
            for stack in behaviour.stacks(stacks::ALL) {
                let outcomes = outcomes.clone();
                let name = format!("{}: {behaviour:?} with {}", program.name, stack.name);
                let trial = Trial::test(name, move || {
                    // One runtime per scene: dropping it ends all tasks of the scene.
                    let runtime = Runtime::new()?;
                    let cell = runtime.block_on(scenes::run(program, *stack, behaviour));
                    let outcome = ProgramOutcome {
                        program,
                        behaviour,
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
