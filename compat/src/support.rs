//! Helpers shared with the crate's own tests.
#![allow(dead_code)] // each test binary uses a part of it

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

/// Limit of every wait for an event that must happen. Long enough for six browsers to start on two
/// cores; it only determines how late a failure is reported.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for `future`, and panics with `what` if it does not complete within [`WAIT_LIMIT`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(WAIT_LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: did not happen within {WAIT_LIMIT:?}"),
    }
}

/// Polls `condition` every 2 ms until it holds, for an event without a notification.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            sleep(ms(2)).await;
        }
    };
    within(what, holds).await;
}

/// Asserts that `future` does *not* complete during `span`.
pub(crate) async fn never<F>(what: &str, span: Duration, future: F)
where
    F: Future<Output: Debug>,
{
    if let Ok(output) = timeout(span, future).await {
        panic!("{what}: {output:?}");
    }
}
