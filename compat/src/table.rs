//! Generates the tables of libraries and compares them with the project's documentation.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::scenes::Cell;
use crate::stack::{Feature, Stack};

/// The guide's page with the tables.
pub(crate) const GUIDE_PAGE: &str = "docs/compatibility.md";

/// Holds the required versions of the libraries.
const MANIFEST: &str = include_str!("../Cargo.toml");

/// The result of one scene.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) stack: &'static Stack,
    pub(crate) protocol: Protocol,
    pub(crate) feature: Feature,
    pub(crate) cell: Cell,
}

/// Returns the table in Markdown. It has a row for each library and set of protocols with the same
/// results, a column for each feature, and the reasons below.
pub(crate) fn libraries(stacks: &'static [Stack], outcomes: &[Outcome]) -> String {
    let headings = Feature::ALL.map(Feature::heading).join(" | ");
    let mut table = format!("| library | over | {headings} |\n|---|---|");
    table.push_str(&"---|".repeat(Feature::ALL.len()));
    let mut reasons: Vec<&'static str> = Vec::new();
    for stack in stacks {
        for (cells, protocols) in distinct_rows(stack, outcomes) {
            let format_protocols = HttpVersion::ALL.map(|http| format_protocols(http, &protocols));
            let format_protocols: Vec<String> = format_protocols.into_iter().flatten().collect();
            write!(
                table,
                "\n| {} | {} |",
                name_with_version(stack),
                format_protocols.join(", ")
            )
            .expect("a write to a string");
            for cell in cells {
                match cell {
                    Cell::Works => table.push_str(" yes |"),
                    Cell::Not(reason) => {
                        write!(table, " no ({}) |", number(&mut reasons, reason))
                            .expect("a write to a string");
                    }
                }
            }
        }
    }
    table.push('\n');
    for (at, reason) in reasons.iter().enumerate() {
        write!(table, "\n{}. {reason}", at + 1).expect("a write to a string");
    }
    table.push('\n');
    table
}

/// Returns the README's table in Markdown: the libraries whose dead peers are evicted over the same
/// versions of HTTP.
pub(crate) fn summary(stacks: &'static [Stack], outcomes: &[Outcome]) -> String {
    let mut rows: Vec<(Vec<HttpVersion>, Vec<String>)> = Vec::new();
    for stack in stacks {
        let over = HttpVersion::ALL.into_iter().filter(|http| {
            let results = outcomes.iter().filter(|outcome| {
                (outcome.stack.name, outcome.protocol.http, outcome.feature)
                    == (stack.name, *http, Feature::DeadPeer)
            });
            unanimous(results.map(|outcome| outcome.cell)) == Some(Cell::Works)
        });
        let over: Vec<HttpVersion> = over.collect();
        let library = name_with_version(stack);
        match rows.iter_mut().find(|(known, _)| *known == over) {
            Some((_, libraries)) => libraries.push(library),
            None => rows.push((over, vec![library])),
        }
    }
    let mut table = "| over | unmodified library |\n|---|---|\n".to_owned();
    for (over, libraries) in rows {
        let over: Vec<String> = over.iter().map(HttpVersion::to_string).collect();
        writeln!(table, "| {} | {} |", over.join(", "), libraries.join("; "))
            .expect("a write to a string");
    }
    table
}

/// Of a library in two versions, the name of the older one has its version already.
fn name_with_version(stack: &Stack) -> String {
    let version = version(stack.library);
    match stack.name.ends_with(version) {
        true => stack.name.to_owned(),
        false => format!("{} {version}", stack.name),
    }
}

/// Returns the distinct rows of a library with the protocols that each row applies to.
fn distinct_rows(stack: &Stack, outcomes: &[Outcome]) -> Vec<(Vec<Cell>, Vec<Protocol>)> {
    let mut rows: Vec<(Vec<Cell>, Vec<Protocol>)> = Vec::new();
    for protocol in Protocol::ALL {
        let cells = Feature::ALL.map(|feature| {
            let results = outcomes.iter().filter(|outcome| {
                (outcome.stack.name, outcome.protocol, outcome.feature)
                    == (stack.name, protocol, feature)
            });
            let cell = unanimous(results.map(|outcome| outcome.cell));
            cell.expect("every scene ran")
        });
        match rows.iter_mut().find(|(known, _)| *known == cells) {
            Some((_, protocols)) => protocols.push(protocol),
            None => rows.push((cells.to_vec(), vec![protocol])),
        }
    }
    rows
}

/// Formats an HTTP version if it is among `protocols`, with a note if only with or without TLS.
fn format_protocols(http: HttpVersion, protocols: &[Protocol]) -> Option<String> {
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

/// Returns the value that all cells share; `None` without cells.
pub(crate) fn unanimous(mut cells: impl Iterator<Item = Cell>) -> Option<Cell> {
    let cell = cells.next()?;
    assert!(
        cells.all(|other| other == cell),
        "two scenes have different results"
    );
    Some(cell)
}

/// Compares `table` with the text of `page` between the marks of `name`, or replaces that text if
/// `COMPAT_TABLES=write` is set. `page` is relative to the project's root.
pub(crate) fn check_page(page: &str, name: &str, table: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    let text = fs::read_to_string(&path).map_err(|error| format!("{page}: {error}"))?;
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let marked = text.split_once(&begin).and_then(|(before, rest)| {
        let (between, after) = rest.split_once(&end)?;
        Some((before, between, after))
    });
    let Some((before, between, after)) = marked else {
        return Err(format!("{page} has no {begin} … {end}"));
    };
    if between == table {
        return Ok(());
    }
    if std::env::var("COMPAT_TABLES").is_ok_and(|what| what == "write") {
        let text = format!("{before}{begin}{table}{end}{after}");
        return fs::write(&path, text).map_err(|error| format!("{page}: {error}"));
    }
    Err(format!(
        "The table {name} in {page} differs from the results. COMPAT_TABLES=write writes:\n{table}"
    ))
}

/// Returns the version of a library that the manifest requires.
fn version(library: &str) -> &'static str {
    let line = MANIFEST.lines().find_map(|line| {
        let rest = line.strip_prefix(library)?.trim_start();
        rest.strip_prefix('=')
    });
    let line = line.expect("a dependency's name");
    line.split('"')
        .nth(1)
        .expect("a version is the first string")
}

/// Returns the number of a reason, counted from 1. Equal reasons share a number.
pub(crate) fn number(reasons: &mut Vec<&'static str>, reason: &'static str) -> usize {
    let at = reasons.iter().position(|known| *known == reason);
    at.unwrap_or_else(|| {
        reasons.push(reason);
        reasons.len() - 1
    }) + 1
}
