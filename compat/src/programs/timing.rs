//! Times for the scenes of client programs, and the check that a client stays connected.

use std::time::Duration;

use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness};

use crate::http_version::HttpVersion;
use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat};
use crate::support::ms;

pub(super) const HTTP1: Protocol = Protocol {
    http: HttpVersion::One,
    tls: None,
};

/// More pongs than a library would send by itself during a scene.
pub(super) const MIN_PONGS: u64 = 10;

/// Longer than interval and timeout of [`short_heartbeat`] together.
pub(super) const LONGER_THAN_TIMEOUT: Duration = Duration::from_millis(4_500);

/// A heartbeat that evicts a dead client within 3.1 s and tolerates delays on a busy machine.
pub(super) fn short_heartbeat() -> HeartbeatLayerBuilder {
    long_heartbeat().interval(ms(100)).timeout(ms(3_000))
}

/// Asserts that the only connection stays open for longer than a dead one would.
pub(super) async fn assert_stays_open(rig: &Rig, live: &Liveness) {
    let before = live.stats().pongs_received();
    rig.recorder.stays_at_for(0, LONGER_THAN_TIMEOUT).await;
    let pongs = live.stats().pongs_received() - before;
    assert!(
        pongs >= MIN_PONGS,
        "{pongs} pongs in {LONGER_THAN_TIMEOUT:?}"
    );
}
