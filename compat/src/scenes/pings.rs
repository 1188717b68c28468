//! A silent peer is pinged, and the handler never sees a pong that it did not ask for.

use crate::protocol::Protocol;
use crate::rig::{Rig, patient, quiet};
use crate::stack::Stack;
use crate::support::ms;
use crate::support::raw::{Frame, PONG};

/// More than any library would take for chance.
const ENOUGH: u64 = 5;

pub(super) async fn play(stack: Stack, protocol: Protocol) {
    let heartbeat = quiet().interval(ms(10));
    let rig = Rig::start(stack, protocol, heartbeat, patient()).await;
    let (mut talk, live) = rig.open().await;
    talk.answer_pings(&live, ENOUGH).await;
    assert!(talk.client.frames.pings as u64 >= ENOUGH);
    assert!(live.rtt().is_some());

    // An unsolicited pong (RFC 6455 section 5.5.3) is the handler's. What comes after it shows that
    // the handler has read that far.
    talk.send(&Frame::new(PONG, "mine")).await;
    talk.echo_text("after the pongs").await;
    let seen = usize::from(stack.shows_pongs);
    assert_eq!(rig.pongs.count(), seen, "pongs that the handler saw");
    assert_eq!(rig.recorder.total(), 0);
}
