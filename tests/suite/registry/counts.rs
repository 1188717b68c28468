//! Counters that are only in the `Debug` output of a registry.

use tower_ws_liveness::Registry;

use crate::support::until;

/// Parses a counter from the registry's `Debug` output.
pub(crate) fn count(registry: &Registry, field: &str) -> usize {
    let shown = format!("{registry:?}");
    let (_, after) = shown.split_once(&format!("{field}: ")).expect("the field");
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap();
    after[..digits].parse().unwrap()
}

/// Waits until the registry holds no connection, and asserts that every counter agrees.
pub(crate) async fn until_empty(what: &str, registry: &Registry) {
    until(what, || count(registry, "present") == 0).await;
    assert_eq!(count(registry, "admitted"), 0, "{what}");
    assert_eq!(registry.len(), 0, "{what}");
    assert!(registry.snapshot().is_empty(), "{what}");
}
