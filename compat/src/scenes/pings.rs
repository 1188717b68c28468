//! Scene: a silent peer is pinged, and the handler receives no pong for these pings.

use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::stack::Stack;
use crate::support::ms;
use crate::support::raw::{Frame, PONG};

/// More pings than a library would send by itself during the scene.
const MIN_PONGS: u64 = 5;

pub(super) async fn run(stack: Stack, protocol: Protocol) {
    let heartbeat = long_heartbeat().interval(ms(10));
    let rig = Rig::start(stack, protocol, heartbeat, long_idle()).await;
    let (mut client, live) = rig.open().await;
    client.answer_pings(&live, MIN_PONGS).await;
    assert!(client.socket.frames.pings as u64 >= MIN_PONGS);
    assert!(live.rtt().is_some());

    // An unsolicited pong (RFC 6455 section 5.5.3) is passed to the handler. The echo after it
    // shows that the handler has read that far.
    client.send(&Frame::new(PONG, "mine")).await;
    client.echo_text("after the pongs").await;
    let expected = usize::from(stack.shows_pongs);
    assert_eq!(
        rig.pongs.count(),
        expected,
        "pongs that the handler received"
    );
    assert_eq!(rig.recorder.total(), 0);
}
