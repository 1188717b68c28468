//! A server-side stream over a scripted transport, with a recording hook.

use std::time::Duration;

use tokio::time::Instant;
use tower_ws_liveness::{HeartbeatLayerBuilder, Liveness, Reason};

use crate::script::{Peer, Stream, wrap_with};
use crate::support::recorder::Recorder;

pub(crate) fn recorded(builder: HeartbeatLayerBuilder) -> (Stream, Liveness, Peer, Recorder) {
    let recorder = Recorder::new();
    let (stream, live, peer) = wrap_with(builder.on_evict(recorder.hook()));
    (stream, live, peer, recorder)
}

/// The time from `from` to the only eviction so far, and its reason.
#[track_caller]
pub(crate) fn only_eviction(recorder: &Recorder, from: Instant) -> (Duration, Reason) {
    let events = recorder.all();
    assert_eq!(events.len(), 1, "{events:?}");
    (events[0].at - from, events[0].reason)
}
