//! Generates the table of client programs.

use std::fmt::Write;

use super::program::{Behaviour, Program, RunsOn};
use crate::scenes::Cell;
use crate::table::{number, unanimous};

/// Hold the required versions of the packages.
const REQUIREMENTS: &str = include_str!("../../clients/requirements.txt");
const PACKAGE: &str = include_str!("../../clients/package.json");

/// The result of one scene with one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramOutcome {
    pub(crate) program: &'static Program,
    pub(crate) behaviour: Behaviour,
    pub(crate) cell: Cell,
}

/// Returns the table in Markdown: a column for each client, a row for each behaviour, and the
/// reasons below.
pub(crate) fn programs(programs: &'static [Program], outcomes: &[ProgramOutcome]) -> String {
    let names: Vec<String> = programs.iter().map(name).collect();
    let mut table = format!(
        "| | {} |\n|---|{}\n",
        names.join(" | "),
        "---|".repeat(programs.len())
    );
    let mut reasons: Vec<&'static str> = Vec::new();
    for behaviour in Behaviour::ALL {
        write!(table, "| {} |", behaviour.heading()).expect("a write to a string");
        for program in programs {
            // One outcome for each server.
            let results = outcomes.iter().filter(|outcome| {
                (outcome.program.name, outcome.behaviour) == (program.name, behaviour)
            });
            let cell = match unanimous(results.map(|outcome| outcome.cell)) {
                None => "–".to_owned(),
                Some(Cell::Works) => "yes".to_owned(),
                Some(Cell::Not(reason)) => format!("no ({})", number(&mut reasons, reason)),
            };
            write!(table, " {cell} |").expect("a write to a string");
        }
        table.push('\n');
    }
    for (at, reason) in reasons.iter().enumerate() {
        write!(table, "\n{}. {reason}", at + 1).expect("a write to a string");
    }
    table.push('\n');
    table
}

/// Returns the name with the required major version.
fn name(program: &Program) -> String {
    let Some(package) = program.package else {
        return program.name.to_owned();
    };
    let required = required_version(program.runs_on, package);
    program
        .name
        .replacen(package, &format!("{package} {required}"), 1)
}

/// Returns the required major version of a package.
pub(super) fn required_version(runs_on: RunsOn, package: &str) -> &'static str {
    match runs_on {
        RunsOn::Python => version(REQUIREMENTS, &format!("{package}==")),
        RunsOn::Node => version(PACKAGE, &format!("\"{package}\": \"^")),
    }
}

/// Returns the digits after `before`.
fn version(list: &'static str, before: &str) -> &'static str {
    let rest = list.split_once(before).expect("a package's name").1;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    &rest[..end.expect("something after the version")]
}
