//! What the tests of opening handshakes below HTTP share.

use tower_ws_liveness::HeartbeatLayer;

use crate::support::recorder::Recorder;

/// The answer to [`opening`](crate::support::raw::opening).
pub(crate) const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
    \r\n";

/// A heartbeat, and who is told of its connections.
pub(crate) fn heartbeat() -> (HeartbeatLayer, Recorder) {
    let recorder = Recorder::new();
    let layer = HeartbeatLayer::builder().on_evict(recorder.hook());
    (layer.build().unwrap(), recorder)
}
