//! What a registry shows of itself only to those who debug it.

use tower_ws_liveness::Registry;

use crate::support::until;

/// A number in the registry's `Debug` output.
pub(crate) fn count(registry: &Registry, field: &str) -> usize {
    let shown = format!("{registry:?}");
    let (_, after) = shown.split_once(&format!("{field}: ")).expect("the field");
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap();
    after[..digits].parse().unwrap()
}

/// Waits until nothing is left, and checks that this is so by every count.
pub(crate) async fn empties(what: &str, registry: &Registry) {
    until(what, || count(registry, "present") == 0).await;
    assert_eq!(count(registry, "admitted"), 0, "{what}");
    assert_eq!(registry.len(), 0, "{what}");
    assert!(registry.snapshot().is_empty(), "{what}");
}
