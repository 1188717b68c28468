//! Ends that the layers decide upon, as both sides see them.

use futures_util::future::join_all;
use tower_ws_liveness::{Reason, Traffic};

use super::Cell;
use crate::protocol::Protocol;
use crate::rig::{Rig, patient, quiet};
use crate::stack::{Dialect, Feature, Of, Stack};
use crate::support::raw::{CLOSE, Frame};
use crate::support::{ms, never, within};
use crate::talk::Talk;

/// A peer that answers no ping any more is gone soon; one that is killed, at once.
pub(super) async fn death(stack: Stack, protocol: Protocol) {
    let rig = Rig::start(stack, protocol, quiet().interval(ms(50)), patient()).await;
    let (mut talk, live) = rig.open().await;
    talk.echo_text("alive").await;
    let mut talk = talk.silent();
    // Only now, so that nobody on a busy machine is dead before.
    live.set_timeout(ms(200)).expect("a time");
    assert_eq!(close_frame(&mut talk).await.close_code(), Some(3008));
    assert_eq!(rig.ended().await, Reason::HeartbeatTimeout { missed: 1 });

    let rig = Rig::start(stack, protocol, quiet(), patient()).await;
    let (mut talk, _) = rig.open().await;
    talk.echo_text("alive").await;
    drop(talk);
    let reason = rig.ended().await;
    let gone = matches!(reason, Reason::PeerVanished | Reason::Transport(_));
    assert!(gone, "{reason}");
}

/// Nobody says anything, and every ping is answered.
pub(super) async fn idle(stack: Stack, protocol: Protocol) -> Cell {
    if let Some(why) = stack.limit(Of::Feature(Feature::Idle)) {
        match stack.dialect {
            Dialect::Plain => without_idle_layer(stack, protocol).await,
            Dialect::SocketIo | Dialect::JsonRpc => never_idle(stack, protocol).await,
        }
        return Cell::Not(why);
    }
    let (heartbeat, idle) = (quiet().interval(ms(20)), patient().timeout(ms(1_000)));
    let rig = Rig::start(stack, protocol, heartbeat, idle).await;
    let (mut talk, _) = rig.open().await;
    talk.echo_text("hello").await;
    let close = close_frame(&mut talk).await;
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    assert!(talk.client.frames.pings > 0);
    talk.send(&close).await;
    assert_eq!(rig.ended().await, Reason::IdleTimeout);
    Cell::Works
}

/// The library has messages of its own, which keep a connection that nobody else uses.
async fn never_idle(stack: Stack, protocol: Protocol) {
    let bare = Rig::bare(stack, protocol).await;
    let client = bare.try_open(None).await.expect("an upgrade");
    let mut talk = Talk::begin(stack.dialect, client).await;
    let message = within("a message without the layers", talk.client.frames.next()).await;
    let message = message.expect("no error").expect("no end of the stream");
    assert!(!message.is_control(), "{message:?}");

    let watches = [Traffic::Either, Traffic::Inbound, Traffic::Outbound];
    join_all(watches.map(async |watch| {
        let idle = patient().timeout(ms(1_500)).watch(watch);
        let rig = Rig::start(stack, protocol, quiet(), idle).await;
        let (mut talk, _) = rig.open().await;
        never("an end", ms(4_000), talk.listen()).await;
        assert!(talk.heartbeats > 0, "messages of its own");
        assert_eq!(rig.registry.len(), 1);
        assert_eq!(rig.recorder.total(), 0);
    }))
    .await;
}

/// Nobody says anything for long, and nobody is sent away. The only limit that is ours: there is no
/// such thing to be looked for in the library alone.
async fn without_idle_layer(stack: Stack, protocol: Protocol) {
    let (heartbeat, idle) = (quiet().interval(ms(20)), patient().timeout(ms(50)));
    let rig = Rig::start(stack, protocol, heartbeat, idle).await;
    let (mut talk, _) = rig.open().await;
    talk.echo_text("hello").await;
    let quiet = tokio::time::timeout(ms(500), talk.listen()).await;
    assert!(quiet.is_err(), "{quiet:?} to somebody who says nothing");
    talk.echo_text("still here").await;
    rig.recorder.stays_at(0).await;
}

/// The application sends somebody away, and the client is told the code and why.
pub(super) async fn kick(stack: Stack, protocol: Protocol) {
    let rig = Rig::start(stack, protocol, quiet(), patient()).await;
    let (mut talk, live) = rig.open().await;
    talk.echo_text("hello").await;
    assert!(live.evict(4321, "signed in elsewhere"));
    let close = close_frame(&mut talk).await;
    assert_eq!(close, Frame::close(4321, "signed in elsewhere"));
    talk.send(&close).await;
    talk.client.frames.closed().await;
    assert_eq!(rig.ended().await, Reason::Kicked { code: 4321 });
}

async fn close_frame(talk: &mut Talk) -> Frame {
    let frame = within("a Close frame", talk.listen()).await;
    assert_eq!(frame.opcode, CLOSE, "{frame:?}");
    frame
}
