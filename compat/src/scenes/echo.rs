//! Messages travel both ways, whole, while pings come and go between them, until the client says
//! goodbye.

use tower_ws_liveness::Reason;

use crate::protocol::Protocol;
use crate::rig::{Rig, patient, quiet};
use crate::stack::Stack;
use crate::support::ms;
use crate::support::raw::Frame;

/// Around the borders of the length's encodings (RFC 6455 section 5.2), and more than one read.
const SIZES: [usize; 7] = [0, 1, 125, 126, 65_535, 65_536, 300_000];

pub(super) async fn play(stack: Stack, protocol: Protocol) {
    let heartbeat = quiet().interval(ms(5));
    let rig = Rig::start(stack, protocol, heartbeat, patient()).await;
    let (mut talk, live) = rig.open().await;
    for size in SIZES {
        talk.echo_text(&"text ".repeat(size / 5 + 1)[..size]).await;
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        talk.echo_binary(&bytes).await;
        // Some of our pings are in between.
        talk.answer_pings(&live, 1).await;
    }
    assert_eq!(rig.registry.len(), 1);
    assert!(live.stats().bytes_sent() > 800_000, "{:?}", live.stats());

    // The library answers to a Close frame by itself (RFC 6455 section 5.5.1). A pong for a ping
    // that is on its way now would come too late.
    let mut talk = talk.silent();
    talk.send(&Frame::close(1000, "bye")).await;
    let close = talk.client.frames.closed().await.expect("a Close frame");
    assert_eq!(close.close_code(), Some(1000));
    let reason = rig.ended().await;
    assert_eq!(reason, Reason::PeerClosed { code: Some(1000) });
}
