//! The table of what stock clients do, made of what the scenes saw.

use std::fmt::Write;

use super::program::{Feature, Program, RunsOn};
use crate::scenes::Cell;
use crate::table::{number, unanimous};

/// Which versions are installed.
const REQUIREMENTS: &str = include_str!("../../clients/requirements.txt");
const PACKAGE: &str = include_str!("../../clients/package.json");

/// What was seen of one feature with one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) program: &'static Program,
    pub(crate) feature: Feature,
    pub(crate) cell: Cell,
}

/// The table in Markdown: a column for each client, a row for each feature, and the reasons below.
pub(crate) fn programs(programs: &'static [Program], outcomes: &[Outcome]) -> String {
    let names: Vec<String> = programs.iter().map(name).collect();
    let mut table = format!(
        "| | {} |\n|---|{}\n",
        names.join(" | "),
        "---|".repeat(programs.len())
    );
    let mut whys: Vec<&'static str> = Vec::new();
    for feature in Feature::ALL {
        write!(table, "| {} |", feature.head()).expect("a string grows");
        for program in programs {
            // One for each server.
            let seen = outcomes.iter().filter(|outcome| {
                (outcome.program.name, outcome.feature) == (program.name, feature)
            });
            let cell = match unanimous(seen.map(|outcome| outcome.cell)) {
                None => "–".to_owned(),
                Some(Cell::Works) => "yes".to_owned(),
                Some(Cell::Not(why)) => format!("no [{}]", number(&mut whys, why)),
            };
            write!(table, " {cell} |").expect("a string grows");
        }
        table.push('\n');
    }
    for (at, why) in whys.iter().enumerate() {
        write!(table, "\n{}. {why}", at + 1).expect("a string grows");
    }
    table.push('\n');
    table
}

/// With the version that is asked for: what stands between the name and the line's end has its
/// digits.
fn name(program: &Program) -> String {
    let Some(package) = program.package else {
        return program.name.to_owned();
    };
    let asked = asked_version(program.runs_on, package);
    program
        .name
        .replacen(package, &format!("{package} {asked}"), 1)
}

/// The major version of a client's package that is installed.
pub(super) fn asked_version(runs_on: RunsOn, package: &str) -> &'static str {
    match runs_on {
        RunsOn::Python => version(REQUIREMENTS, &format!("{package}==")),
        RunsOn::Node => version(PACKAGE, &format!("\"{package}\": \"^")),
    }
}

/// The major version that stands after `before`.
fn version(list: &'static str, before: &str) -> &'static str {
    let rest = list.split_once(before).expect("a package's name").1;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    &rest[..end.expect("something after the version")]
}
