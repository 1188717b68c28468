//! What the crate's own tests use, and the scenes too.
#![allow(dead_code)] // the scenes use a part of it

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use tokio::time::{sleep, timeout};

#[path = "../../tests/support/h2_client.rs"]
pub(crate) mod h2_client;
#[path = "../../tests/support/raw.rs"]
pub(crate) mod raw;
#[path = "../../tests/support/recorder.rs"]
pub(crate) mod recorder;

/// How long anybody waits for what must come, be it six browsers that start on two cores. It only
/// decides how late a failure is noticed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for something that must happen, and names it if it does not.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

/// Waits until `condition` holds, for what nobody announces.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            sleep(ms(2)).await;
        }
    };
    within(what, holds).await;
}

/// Asserts that something does *not* happen during `span`.
pub(crate) async fn never<F>(what: &str, span: Duration, future: F)
where
    F: Future<Output: Debug>,
{
    if let Ok(output) = timeout(span, future).await {
        panic!("{what}: {output:?}");
    }
}
