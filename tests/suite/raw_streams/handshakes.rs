//! Helpers for the tests of opening handshakes through wrapped streams.

use tower_ws_liveness::HeartbeatLayer;

use crate::support::recorder::Recorder;

/// The response to [`opening`](crate::support::raw::opening).
pub(crate) const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
    \r\n";

/// A heartbeat with default settings, and a recorder of its evictions.
pub(crate) fn heartbeat() -> (HeartbeatLayer, Recorder) {
    let recorder = Recorder::new();
    let layer = HeartbeatLayer::builder().on_evict(recorder.hook());
    (layer.build().unwrap(), recorder)
}
