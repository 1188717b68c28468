//! The harness of test binaries that also play processes: libtest's flags and output.

use std::error::Error;
use std::process::{ExitCode, exit};
use std::sync::Mutex;
use std::thread::{self, Builder};
use std::time::Instant;

/// A test. It fails if it panics, and its output is not captured.
pub(crate) struct Trial {
    pub(crate) name: String,
    pub(crate) test: fn(),
    /// Why the test is ignored by default.
    pub(crate) ignored: Option<&'static str>,
}

/// The flags of `cargo test -- FLAGS`, as far as they select tests.
pub(crate) struct Arguments {
    list: bool,
    pub(crate) ignored: bool,
    include_ignored: bool,
    exact: bool,
    pub(crate) test_threads: Option<usize>,
    skipped: Vec<String>,
    filters: Vec<String>,
}

impl Arguments {
    /// Ends the process if a flag is unknown or invalid.
    pub(crate) fn from_env() -> Self {
        Self::parse(pico_args::Arguments::from_env()).unwrap_or_else(|error| {
            eprintln!("error: {error}");
            exit(1)
        })
    }

    fn parse(mut args: pico_args::Arguments) -> Result<Self, Box<dyn Error>> {
        // They change nothing: the output is never captured, and has one format.
        args.contains("--nocapture");
        args.contains("--show-output");
        args.contains(["-q", "--quiet"]);
        let _color: Option<String> = args.opt_value_from_str("--color")?;
        let _format: Option<String> = args.opt_value_from_str("--format")?;
        let mut arguments = Self {
            list: args.contains("--list"),
            ignored: args.contains("--ignored"),
            include_ignored: args.contains("--include-ignored"),
            exact: args.contains("--exact"),
            test_threads: args.opt_value_from_str("--test-threads")?,
            skipped: args.values_from_str("--skip")?,
            filters: Vec::new(),
        };
        for filter in args.finish() {
            match filter.to_str() {
                Some(filter) if !filter.starts_with('-') => arguments.filters.push(filter.into()),
                _ => return Err(format!("unknown flag {filter:?}").into()),
            }
        }
        Ok(arguments)
    }

    fn selects(&self, trial: &Trial) -> bool {
        let matches = |filter: &String| match self.exact {
            true => trial.name == *filter,
            false => trial.name.contains(filter),
        };
        (!self.ignored || trial.ignored.is_some())
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skipped.iter().any(matches)
    }
}

/// Runs the selected tests, each in a thread of its own, `test_threads` at a time and in order.
pub(crate) fn run(arguments: &Arguments, mut trials: Vec<Trial>) -> ExitCode {
    let all = trials.len();
    trials.retain(|trial| arguments.selects(trial));
    let filtered_out = all - trials.len();
    if arguments.list {
        trials
            .iter()
            .for_each(|trial| println!("{}: test", trial.name));
        println!("\n{} tests, 0 benchmarks", trials.len());
        return ExitCode::SUCCESS;
    }

    println!("\nrunning {} tests", trials.len());
    let begun = Instant::now();
    let runs_ignored = arguments.ignored || arguments.include_ignored;
    let mut ignored = 0;
    if !runs_ignored {
        trials.retain(|trial| match trial.ignored {
            Some(reason) => {
                println!("test {} ... ignored, {reason}", trial.name);
                ignored += 1;
                false
            }
            None => true,
        });
    }
    let queue = Mutex::new(trials.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..arguments.test_threads.unwrap_or(1).max(1) {
            scope.spawn(|| {
                loop {
                    let Some(trial) = queue.lock().unwrap().next() else {
                        return;
                    };
                    // The name of the thread is part of the message of a panic.
                    let thread = Builder::new().name(trial.name.clone()).spawn(trial.test);
                    match thread.expect("a thread").join() {
                        Ok(()) => println!("test {} ... ok", trial.name),
                        Err(_) => {
                            println!("test {} ... FAILED", trial.name);
                            failures.lock().unwrap().push(&trial.name);
                        }
                    }
                }
            });
        }
    });

    let failures = failures.into_inner().unwrap();
    if !failures.is_empty() {
        println!("\nfailures:");
        failures.iter().for_each(|name| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; {ignored} ignored; 0 measured; {filtered_out} \
         filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        trials.len() - failures.len(),
        failures.len(),
        begun.elapsed().as_secs_f64(),
    );
    match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(101),
    }
}
