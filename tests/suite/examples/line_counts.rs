//! The guide's table of programs: the lines that each has for its connections.

use std::fs;
use std::path::Path;

/// The bound for each program. Code that is longer would be a library of its own.
const MAX_LINES: usize = 40;

/// A program, and the parts of its file that are counted: each from a line that begins with the first
/// text to the next one that begins with the second, or one line if that is empty.
///
/// What is counted is the same for all, and stands below the table: each line that is there only because
/// connections open, race and end.
struct Program {
    name: &'static str,
    file: &'static str,
    parts: &'static [(&'static str, &'static str)],
}

const PROGRAMS: [Program; 6] = [
    Program {
        name: "Presence",
        file: "examples/presence.rs",
        parts: &[
            ("const MAX_CONNECTIONS_PER_USER", ""),
            ("const CLOSE_TOO_SLOW", ""),
            ("let heartbeat = ", ".timeout("),
            (".layer(heartbeat", ""),
            ("users: Groups<", ""),
            ("roster: Arc<", ""),
            ("struct Roster", "}"),
            ("let roster = ", "}));"),
            ("let users = Groups::builder()", "});"),
            ("users: users.build(),", "roster,"),
            ("match event {", "};"),
            ("fn subscribe(", "}"),
            ("live: Liveness,", ""),
            ("let (max, policy)", "if registered.is_ok()"),
            ("let (online, mut changes)", ""),
            ("Err(RecvError::Lagged", "}"),
        ],
    },
    Program {
        name: "Several devices",
        file: "examples/devices.rs",
        parts: &[
            ("const INTERVAL", "const TIMEOUT"),
            ("let heartbeat = ", ".build()?;"),
            (".layer(heartbeat", ""),
            ("users: Groups<", ""),
            ("let users = Groups::builder()", ".build();"),
            ("live: Liveness,", ""),
            ("let (max, policy)", "Err(error)"),
        ],
    },
    Program {
        name: "Game lobby",
        file: "examples/lobby.rs",
        parts: &[
            ("const INTERVAL", "const TIMEOUT"),
            ("players: Arc<", ""),
            ("linger: Linger<", ""),
            ("let linger = ", "});"),
            ("players: Arc::default(),", ""),
            ("linger: linger.build()?,", ""),
            ("let heartbeat = ", ".timeout("),
            (".layer(heartbeat", ""),
            ("live: Liveness,", ""),
            ("let registered =", "if let Ok(registered)"),
        ],
    },
    Program {
        name: "Trading feed",
        file: "examples/feed.rs",
        parts: &[
            ("const CLOSE_TOO_SLOW", ""),
            ("let ended = ", ".build()?;"),
            (".layer(heartbeat", ""),
            ("live: Liveness,", ""),
            ("if let Err(error) = live.register", "}"),
            ("type Traders", ""),
            ("traders: Arc<", ""),
            ("traders: Arc::default", ""),
            ("registry: Registry,", ""),
            ("registry: Registry::new(),", ""),
            ("let mut newest = ", ""),
            ("let (mut queued, mut slow)", "let traders ="),
            ("Err(TrySendError::Full", ""),
            ("drop(traders)", "}"),
        ],
    },
    Program {
        name: "Admin kick",
        file: "examples/feed.rs",
        parts: &[
            ("const CLOSE_KICKED", ""),
            ("let ended = ", ".build()?;"),
            (".layer(heartbeat", ""),
            ("live: Liveness,", ""),
            ("if let Err(error) = live.register", "}"),
            ("if lock(&feed.kicked)", "}"),
            ("type Traders", ""),
            ("traders: Arc<", ""),
            ("traders: Arc::default", ""),
            ("registry: Registry,", ""),
            ("kicked: Arc<", ""),
            ("kicked: Arc::default", ""),
            ("registry: Registry::new(),", ""),
            ("fn kick(&self", "}"),
        ],
    },
    Program {
        name: "Graceful deploy",
        file: "examples/graceful_drain.rs",
        parts: &[
            ("const HANDLER_GRACE", ""),
            ("const DRAIN_DEADLINE", ""),
            ("let heartbeat = ", "let registry = "),
            (".route_service(\"/ready\"", ""),
            (".layer(heartbeat", ""),
            ("let plan = ", "};"),
            ("let Ok(mut inbox)", "};"),
            ("let mut draining = ", ""),
            ("() = &mut draining", "}"),
            ("live.evict_as(", ""),
            ("type Sessions", ""),
            ("registry: Registry,", ""),
            ("sessions: Arc<", ""),
            ("registry,", ""),
            ("sessions: Arc::default", ""),
            ("let accepted = lock", ""),
            ("live.register", ""),
            ("let mut accepted = lock", "}"),
            ("let seats:", ""),
            ("if let Err(TrySendError::Full", "}"),
        ],
    },
];

/// The program of the table that is there without the crate too, with the same tests.
const LOBBY_BY_HAND: Program = Program {
    name: "Game lobby",
    file: "tests/processes/lobby_by_hand.rs",
    parts: &[
        ("const INTERVAL", "const CLOSE_REPLACED"),
        ("players: Arc::default(),", "connections: Arc::default(),"),
        ("struct Session {", "}"),
        ("players: Arc<Mutex<HashMap", "connections: Arc<"),
        ("grace: Duration,", ""),
        ("fn enter(", "}"),
        ("fn exit(", "}"),
        ("let (connection, player, replaced)", ""),
        ("lobby.exit(", ""),
        ("let mut pings", "let mut heard"),
        ("let message = tokio::select!", ""),
        ("() = replaced.notified()", "}"),
        ("_ = pings.tick()", "}"),
        ("heard = Instant::now()", ""),
    ],
};

/// The handler that getting started replaces.
const HEARTBEAT_BY_HAND: Program = Program {
    name: "heartbeat",
    file: "docs/getting-started.md",
    parts: &[
        ("type Sessions", ""),
        ("let mut pings", "let mut last_pong"),
        ("_ = pings.tick()", "}"),
        ("Some(Ok(Message::Pong(_)))", ""),
        ("sessions.lock().unwrap().remove", ""),
    ],
};

#[test]
fn the_table_of_programs_has_the_counted_lines() {
    let page = read("docs/programs.md");
    let lobby_by_hand = LOBBY_BY_HAND.count();
    for program in PROGRAMS {
        let (count, name, file) = (program.count(), program.name, program.file);
        assert!(count <= MAX_LINES, "{name}: {count}");
        let by_hand = match name == LOBBY_BY_HAND.name {
            true => lobby_by_hand.to_string(),
            false => "not measured".to_owned(),
        };
        let start = format!("| {name} | `{file}` |");
        let row = page.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row {start}"));
        let end = format!("| {count} | {by_hand} |");
        assert!(row.ends_with(&end), "{end}: {row}");
    }
    let heartbeat = format!("take {} lines in each handler", HEARTBEAT_BY_HAND.count());
    assert!(page.contains(&heartbeat), "{heartbeat}");
}

impl Program {
    fn count(&self) -> usize {
        count(&read(self.file), self.parts)
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
