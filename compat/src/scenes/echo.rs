//! Scene: messages are echoed intact between pings, then the client closes.

use tower_ws_liveness::Reason;

use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::stack::Stack;
use crate::support::ms;
use crate::support::raw::Frame;

/// Payloads at the limits of the length encodings (RFC 6455 section 5.2), and longer than one read.
const SIZES: [usize; 7] = [0, 1, 125, 126, 65_535, 65_536, 300_000];

pub(super) async fn run(stack: Stack, protocol: Protocol) {
    let heartbeat = long_heartbeat().interval(ms(5));
    let rig = Rig::start(stack, protocol, heartbeat, long_idle()).await;
    let (mut client, live) = rig.open().await;
    for size in SIZES {
        client
            .echo_text(&"text ".repeat(size / 5 + 1)[..size])
            .await;
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        client.echo_binary(&bytes).await;
        // Sends some of the layer's pings between the messages.
        client.answer_pings(&live, 1).await;
    }
    assert_eq!(rig.registry.len(), 1);
    assert!(live.stats().bytes_sent() > 800_000, "{:?}", live.stats());

    // The library replies to a Close frame by itself (RFC 6455 section 5.5.1). After its own Close
    // frame the client must not send a pong for a ping that is still in flight.
    let mut client = client.without_pongs();
    client.send(&Frame::close(1000, "done")).await;
    let close = client.socket.frames.closed().await.expect("a Close frame");
    assert_eq!(close.close_code(), Some(1000));
    let reason = rig.end_reason().await;
    assert_eq!(reason, Reason::PeerClosed { code: Some(1000) });
}
