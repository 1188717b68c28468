//! How long a client is waited for, and what shows that it lives.

use std::time::Duration;

use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness};

use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::rig::{Rig, quiet};
use crate::support::ms;

pub(super) const HTTP1: Protocol = Protocol {
    http: HttpVersion::One,
    tls: None,
};

/// Pongs, more than any library would send by chance.
pub(super) const ENOUGH: u64 = 10;

/// Longer than the interval and the timeout of `impatient`.
pub(super) const TOO_LONG: Duration = Duration::from_millis(4_500);

/// A heartbeat that lets a living client go on on a busy machine, and ends a dead one soon.
pub(super) fn impatient() -> HeartbeatLayerBuilder {
    quiet().interval(ms(100)).timeout(ms(3_000))
}

/// Asserts that the only connection lives on, where a dead one would have been evicted.
pub(super) async fn lives(rig: &Rig, live: &Liveness) {
    let before = live.stats().pongs_received();
    rig.recorder.stays_at_for(0, TOO_LONG).await;
    let answered = live.stats().pongs_received() - before;
    assert!(answered >= ENOUGH, "{answered} pongs in {TOO_LONG:?}");
}
