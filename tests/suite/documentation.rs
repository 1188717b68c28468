//! The README, the guide and the other pages of the repository: length, links, completeness.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Longer than this, a reader does not decide in two minutes.
const MAX_README_LINES: usize = 200;
const MAX_README_WORDS: usize = 1_200;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the Markdown files of a folder of the repository.
fn pages(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut pages: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("md")))
        .collect();
    pages.sort();
    pages
}

/// Returns the lines outside of code blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut in_code = false;
    text.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            in_code ^= fence;
            !fence && !in_code
        })
        .collect()
}

/// Returns the fragments that link to the headings of a page, as GitHub and rustdoc form them.
fn anchors(text: &str) -> HashSet<String> {
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Returns the parts of `text` between each `start` and the next `end`.
fn between<'a>(text: &'a str, start: &str, end: char) -> Vec<&'a str> {
    let rests = text.split(start).skip(1);
    rests
        .filter_map(|rest| Some(rest.split_once(end)?.0))
        .collect()
}

/// Returns the target of a line that defines a link, such as `[times]: times.md`.
fn definition(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix('[')?.split_once("]: ")
}

#[test]
fn the_readme_is_read_in_two_minutes() {
    let readme = read(&root().join("README.md"));
    let (lines, words) = (readme.lines().count(), readme.split_whitespace().count());
    assert!(lines <= MAX_README_LINES, "{lines} lines");
    assert!(words <= MAX_README_WORDS, "{words} words");
}

#[test]
fn every_page_of_the_guide_says_first_what_it_answers() {
    for page in pages("docs") {
        let text = read(&page);
        let mut paragraphs = text.split("\n\n");
        let (title, question) = (paragraphs.next().unwrap(), paragraphs.next().unwrap());
        assert!(title.starts_with("# "), "{}: {title}", page.display());
        let emphasized = question.starts_with('*') && question.ends_with(".*");
        assert!(emphasized, "{}: {question}", page.display());
    }
}

/// rustdoc hides these lines, but the repository shows them.
#[test]
fn no_snippet_has_hidden_lines() {
    for page in pages("").into_iter().chain(pages("docs")) {
        let text = read(&page);
        for snippet in text.split("```rust").skip(1) {
            let (snippet, _) = snippet.split_once("```").expect("the end of the snippet");
            let hidden = snippet
                .lines()
                .find(|line| line.trim_start().starts_with("# "));
            assert_eq!(hidden, None, "{}", page.display());
        }
    }
}

#[test]
fn the_readme_and_rustdoc_have_every_page_of_the_guide() {
    let (readme, guide) = (
        read(&root().join("README.md")),
        read(&root().join("src/guide.rs")),
    );
    for page in pages("docs") {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(readme.contains(&format!("](docs/{name})")), "{name}");
        assert!(guide.contains(&format!("\"../docs/{name}\"")), "{name}");
    }
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    for folder in ["", "docs", "benches", "compat"] {
        for page in pages(folder) {
            let text = read(&page);
            let prose = prose(&text);
            let definitions: Vec<_> = prose.iter().filter_map(|line| definition(line)).collect();
            let mut targets: Vec<&str> = definitions.iter().map(|(_, target)| *target).collect();
            for line in &prose {
                targets.extend(between(line, "](", ')'));
                for label in between(line, "][", ']') {
                    let defined = definitions.iter().any(|(known, _)| *known == label);
                    assert!(defined, "{}: [{label}] has no target", page.display());
                }
            }
            for target in targets {
                check(&page, target);
            }
        }
    }
}

/// Checks that a file and a heading exist. Other sites cannot be reached in a test.
fn check(page: &Path, target: &str) {
    if target.starts_with("https://") {
        return;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = match path {
        "" => page.to_owned(),
        path => page.parent().unwrap().join(path),
    };
    assert!(path.exists(), "{}: {target}", page.display());
    if !anchor.is_empty() {
        let found = anchors(&read(&path)).contains(anchor);
        assert!(found, "{}: {target}", page.display());
    }
}
