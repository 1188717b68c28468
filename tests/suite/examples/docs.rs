//! The docs of every public item have an example.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The names that `lib.rs` re-exports.
fn public_items(lib: &str) -> Vec<&str> {
    let reexports = lib.split("\npub use ").skip(1);
    let paths = reexports.map(|rest| rest.split_once(';').expect("a complete `pub use`").0);
    let words = paths.flat_map(|path| path.split(|c: char| !c.is_alphanumeric()));
    // The other words are modules.
    words
        .filter(|word| word.starts_with(char::is_uppercase))
        .collect()
}

/// Adds the items of all files in `folder` whose docs have an example.
fn add_items_with_example(folder: &Path, items: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_items_with_example(&path, items);
            continue;
        }
        // Docs, attributes and the first line of the item, without a blank line in between.
        let mut has_example = false;
        for line in fs::read_to_string(path).unwrap().lines().map(str::trim) {
            let mut words = line.split(|c: char| !c.is_alphanumeric());
            match (words.next(), words.next(), words.next()) {
                (Some("pub"), Some("struct" | "enum" | "trait" | "type"), Some(name)) => {
                    if has_example {
                        items.insert(name.to_owned());
                    }
                    has_example = false;
                }
                _ => has_example = !line.is_empty() && (has_example || line.starts_with("/// ```")),
            }
        }
    }
}

#[test]
fn every_public_item_has_an_example() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let public = public_items(&lib);
    assert!(public.contains(&"HeartbeatLayer") && public.contains(&"Tier"));
    let mut items = HashSet::new();
    add_items_with_example(&src, &mut items);
    let mut without = public;
    without.retain(|item| !items.contains(*item));
    assert_eq!(without, Vec::<&str>::new());
}
