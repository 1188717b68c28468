//! The guide's table of programs: how many lines each example has for its connections and sessions.

use std::fs;
use std::path::Path;

/// The bound for each program. Code that is longer would be a library of its own.
const MAX_LINES: usize = 40;

/// A program of the table, its example, and the parts of it that are counted: each from a line that
/// begins with the first text to the next one that begins with the second, or one line if that is
/// empty.
type Program = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const PROGRAMS: [Program; 6] = [
    (
        "Presence",
        "presence",
        &[
            ("let heartbeat = ", ".timeout("),
            (".layer(heartbeat", ""),
            ("users: Groups<", ""),
            ("online: BTreeSet<", ""),
            ("let users = Groups::builder()", "});"),
            ("users: users.build(),", ""),
            ("match event {", "};"),
            ("live: Liveness,", ""),
            ("let (max, policy)", "if registered.is_ok()"),
            ("Err(RecvError::Lagged", "}"),
        ],
    ),
    (
        "Several devices",
        "devices",
        &[
            ("const INTERVAL", "const TIMEOUT"),
            ("let heartbeat = ", ".build()?;"),
            (".layer(heartbeat", ""),
            ("users: Groups<", ""),
            ("let users = Groups::builder()", ".build();"),
            ("live: Liveness,", ""),
            ("let (max, policy)", "Err(error)"),
        ],
    ),
    (
        "Game lobby",
        "lobby",
        &[
            ("const INTERVAL", "const TIMEOUT"),
            ("players: Arc<", ""),
            ("linger: Linger<", ""),
            ("let linger = ", "});"),
            ("linger: linger.build()?,", ""),
            ("let heartbeat = ", ".timeout("),
            (".layer(heartbeat", ""),
            ("live: Liveness,", ""),
            ("let registered =", "if let Ok(registered)"),
        ],
    ),
    (
        "Trading feed",
        "feed",
        &[
            ("let ended = ", ".build()?;"),
            (".layer(heartbeat", ""),
            ("live: Liveness,", ""),
            ("if let Err(error) = live.register", "}"),
            ("traders: Arc<", ""),
            ("registry: Registry,", ""),
            ("registry: Registry::new(),", ""),
            ("let mut newest = ", ""),
            ("Err(TrySendError::Full", "Err(TrySendError::Closed"),
            ("drop(traders)", "}"),
        ],
    ),
    (
        "Admin kick",
        "feed",
        &[
            ("let ended = ", ".build()?;"),
            (".layer(heartbeat", ""),
            ("live: Liveness,", ""),
            ("if let Err(error) = live.register", "}"),
            ("if lock(&feed.kicked)", "}"),
            ("traders: Arc<", ""),
            ("registry: Registry,", ""),
            ("kicked: Arc<", ""),
            ("registry: Registry::new(),", ""),
            ("fn kick(&self", "}"),
        ],
    ),
    (
        "Graceful deploy",
        "graceful_drain",
        &[
            ("const HANDLER_GRACE", ""),
            ("const DRAIN_DEADLINE", ""),
            ("let heartbeat = ", "let registry = "),
            (".route_service(\"/ready\"", ""),
            (".layer(heartbeat", ""),
            ("let plan = ", "};"),
            ("let Ok(mut inbox)", "};"),
            ("let mut draining = ", ""),
            ("() = &mut draining", ""),
            ("drop(lock(&room.accepted));", "}"),
            ("let close_frame = ", "};"),
            ("if socket.send(Message::Close", "}"),
            ("registry: Registry,", ""),
            ("sessions: Arc<", ""),
            ("live.register", ""),
            ("if self.registry.is_draining()", "}"),
        ],
    ),
];

#[test]
fn the_table_of_programs_has_the_counted_lines() {
    let page = read("docs/programs.md");
    for (program, example, parts) in PROGRAMS {
        let count = count(&read(&format!("examples/{example}.rs")), parts);
        assert!(count <= MAX_LINES, "{program}: {count}");
        let start = format!("| {program} | `examples/{example}.rs` |");
        let row = page.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row {start}"));
        assert!(row.ends_with(&format!("| {count} |")), "{count}: {row}");
    }
}

/// The lines of the parts, without comments. No two parts may share a line.
fn count(example: &str, parts: &[(&str, &str)]) -> usize {
    let lines: Vec<(usize, &str)> = example
        .lines()
        .map(|line| (line.len() - line.trim_start().len(), line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with("//"))
        .collect();
    let mut counted = vec![false; lines.len()];
    for (first, last) in parts {
        let begins = |(_, line): &(usize, &str)| line.starts_with(first);
        let begin = lines.iter().position(begins);
        let begin = begin.unwrap_or_else(|| panic!("no line {first}"));
        let (indent, _) = lines[begin];
        let mut end = begin;
        if !last.is_empty() {
            // A bracket that closes a part stands as far to the right as its first line.
            let is_bracket = last.starts_with('}');
            let ends = |(depth, line): &(usize, &str)| {
                line.starts_with(last) && (!is_bracket || *depth == indent)
            };
            let rest = lines[begin + 1..].iter().position(ends);
            end += 1 + rest.unwrap_or_else(|| panic!("no line {last} after {first}"));
        }
        for is_counted in &mut counted[begin..=end] {
            assert!(!*is_counted, "a line of {first} is in two parts");
            *is_counted = true;
        }
    }
    counted.into_iter().filter(|is_counted| *is_counted).count()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}
