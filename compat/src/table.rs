//! The table of what works, made of what the scenes saw, and its place in the README.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::scenes::Cell;
use crate::stack::{Feature, Stack};

/// Which versions are asked for.
const MANIFEST: &str = include_str!("../Cargo.toml");

/// What was seen of one feature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) stack: &'static Stack,
    pub(crate) protocol: Protocol,
    pub(crate) feature: Feature,
    pub(crate) cell: Cell,
}

/// The table in Markdown: for each library a row for all protocols over which it behaves the same,
/// a column for each feature, and the reasons below.
pub(crate) fn libraries(stacks: &'static [Stack], outcomes: &[Outcome]) -> String {
    let heads = Feature::ALL.map(Feature::head).join(" | ");
    let mut table = format!("| library | over | {heads} |\n|---|---|");
    table.push_str(&"---|".repeat(Feature::ALL.len()));
    let mut whys: Vec<&'static str> = Vec::new();
    for stack in stacks {
        for (cells, protocols) in alike(stack, outcomes) {
            let version = version(stack.library);
            let over = HttpVersion::ALL.map(|http| over(http, &protocols));
            let over: Vec<String> = over.into_iter().flatten().collect();
            let name = stack.name;
            write!(table, "\n| {name} {version} | {} |", over.join(", ")).expect("memory");
            for cell in cells {
                match cell {
                    Cell::Works => table.push_str(" yes |"),
                    Cell::Not(why) => {
                        write!(table, " no [{}] |", number(&mut whys, why)).expect("memory");
                    }
                }
            }
        }
    }
    table.push('\n');
    for (at, why) in whys.iter().enumerate() {
        write!(table, "\n{}. {why}", at + 1).expect("memory");
    }
    table.push('\n');
    table
}

/// The different rows of a library, and the protocols that each is true of.
fn alike(stack: &Stack, outcomes: &[Outcome]) -> Vec<(Vec<Cell>, Vec<Protocol>)> {
    let mut rows: Vec<(Vec<Cell>, Vec<Protocol>)> = Vec::new();
    for protocol in Protocol::ALL {
        let cells = Feature::ALL.map(|feature| {
            let seen = outcomes.iter().filter(|outcome| {
                (outcome.stack.name, outcome.protocol, outcome.feature)
                    == (stack.name, protocol, feature)
            });
            let cell = unanimous(seen.map(|outcome| outcome.cell));
            cell.expect("every scene was played")
        });
        match rows.iter_mut().find(|(known, _)| *known == cells) {
            Some((_, protocols)) => protocols.push(protocol),
            None => rows.push((cells.to_vec(), vec![protocol])),
        }
    }
    rows
}

/// An HTTP, if it is among `protocols`, and whether it is so with TLS and without.
fn over(http: HttpVersion, protocols: &[Protocol]) -> Option<String> {
    let has = |tls: bool| {
        let mut protocols = protocols.iter();
        protocols.any(|protocol| (protocol.http, protocol.tls.is_some()) == (http, tls))
    };
    match (has(false), has(true)) {
        (true, true) => Some(http.to_string()),
        (true, false) => Some(format!("{http} without TLS")),
        (false, true) => Some(format!("{http} with TLS")),
        (false, false) => None,
    }
}

/// What all of them say, if there are any.
pub(crate) fn unanimous(mut cells: impl Iterator<Item = Cell>) -> Option<Cell> {
    let cell = cells.next()?;
    assert!(cells.all(|other| other == cell), "two scenes disagree");
    Some(cell)
}

/// Compares what stands between the marks of `name` in the README with `table`, or puts it there
/// if `COMPAT_README=write` is set.
pub(crate) fn judge(name: &str, table: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).map_err(|error| format!("README.md: {error}"))?;
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let marked = readme.split_once(&begin).and_then(|(before, rest)| {
        let (between, after) = rest.split_once(&end)?;
        Some((before, between, after))
    });
    let Some((before, between, after)) = marked else {
        return Err(format!("README.md has no {begin} … {end}"));
    };
    if between == table {
        return Ok(());
    }
    if std::env::var("COMPAT_README").is_ok_and(|what| what == "write") {
        let readme = format!("{before}{begin}{table}{end}{after}");
        return fs::write(&path, readme).map_err(|error| format!("README.md: {error}"));
    }
    Err(format!(
        "README.md says something else of {name} than was seen. COMPAT_README=write writes:\n{table}"
    ))
}

/// The version of a library that the manifest asks for.
fn version(library: &str) -> &'static str {
    let line = MANIFEST.lines().find_map(|line| {
        let rest = line.strip_prefix(library)?.trim_start();
        rest.strip_prefix('=')
    });
    let line = line.expect("a dependency's name");
    line.split('"').nth(1).expect("a version, first of all")
}

/// The number of a reason, from 1; the same reason has the same number.
pub(crate) fn number(whys: &mut Vec<&'static str>, why: &'static str) -> usize {
    let at = whys.iter().position(|known| *known == why);
    at.unwrap_or_else(|| {
        whys.push(why);
        whys.len() - 1
    }) + 1
}
