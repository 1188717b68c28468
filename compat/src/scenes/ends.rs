//! Scenes: evictions by the layers, as both sides observe them.

use futures_util::future::join_all;
use tower_ws_liveness::{Reason, Traffic};

use super::Cell;
use crate::message_client::MessageClient;
use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::stack::{Dialect, Feature, Of, Stack};
use crate::support::raw::{CLOSE, Frame};
use crate::support::{ms, never, within};

/// A peer that stops answering pings is evicted after the timeout; a closed socket is detected
/// immediately.
pub(super) async fn dead_peer(stack: Stack, protocol: Protocol) {
    let rig = Rig::start(
        stack,
        protocol,
        long_heartbeat().interval(ms(50)),
        long_idle(),
    )
    .await;
    let (mut client, live) = rig.open().await;
    client.echo_text("alive").await;
    let mut client = client.without_pongs();
    // Set only now, so that a slow machine does not cause an earlier eviction.
    live.set_timeout(ms(200)).expect("a valid timeout");
    assert_eq!(close_frame(&mut client).await.close_code(), Some(3008));
    assert_eq!(
        rig.end_reason().await,
        Reason::HeartbeatTimeout { missed: 1 }
    );

    let rig = Rig::start(stack, protocol, long_heartbeat(), long_idle()).await;
    let (mut client, _) = rig.open().await;
    client.echo_text("alive").await;
    drop(client);
    let reason = rig.end_reason().await;
    let vanished = matches!(reason, Reason::PeerVanished | Reason::Transport(_));
    assert!(vanished, "{reason}");
}

/// No messages are sent while every ping is answered.
pub(super) async fn idle(stack: Stack, protocol: Protocol) -> Cell {
    if let Some(why) = stack.limit(Of::Feature(Feature::Idle)) {
        match stack.dialect {
            Dialect::Plain => without_idle_layer(stack, protocol).await,
            Dialect::SocketIo | Dialect::JsonRpc => never_idle(stack, protocol).await,
        }
        return Cell::Not(why);
    }
    let (heartbeat, idle) = (
        long_heartbeat().interval(ms(20)),
        long_idle().timeout(ms(1_000)),
    );
    let rig = Rig::start(stack, protocol, heartbeat, idle).await;
    let (mut client, _) = rig.open().await;
    client.echo_text("hello").await;
    let close = close_frame(&mut client).await;
    assert_eq!(close, Frame::close(1001, "idle timeout"));
    assert!(client.socket.frames.pings > 0);
    client.send(&close).await;
    assert_eq!(rig.end_reason().await, Reason::IdleTimeout);
    Cell::Works
}

/// The library sends messages of its own, which keep an otherwise idle connection open.
async fn never_idle(stack: Stack, protocol: Protocol) {
    let bare = Rig::bare(stack, protocol).await;
    let client = bare.try_open(None).await.expect("an upgrade");
    let mut client = MessageClient::connect(stack.dialect, client).await;
    let message = within(
        "a message of the library without the layers",
        client.socket.frames.next(),
    )
    .await;
    let message = message.expect("no error").expect("no end of the stream");
    assert!(!message.is_control(), "{message:?}");

    let watches = [Traffic::Either, Traffic::Inbound, Traffic::Outbound];
    join_all(watches.map(async |watch| {
        let idle = long_idle().timeout(ms(1_500)).watch(watch);
        let rig = Rig::start(stack, protocol, long_heartbeat(), idle).await;
        let (mut client, _) = rig.open().await;
        never("an eviction", ms(4_000), client.receive()).await;
        assert!(client.engine_io_pings > 0, "messages of the library");
        assert_eq!(rig.registry.len(), 1);
        assert_eq!(rig.recorder.total(), 0);
    }))
    .await;
}

/// A connection without messages stays open. This is the only limit of ours, not of the library, so
/// it is not checked without the layers.
async fn without_idle_layer(stack: Stack, protocol: Protocol) {
    let (heartbeat, idle) = (
        long_heartbeat().interval(ms(20)),
        long_idle().timeout(ms(50)),
    );
    let rig = Rig::start(stack, protocol, heartbeat, idle).await;
    let (mut client, _) = rig.open().await;
    client.echo_text("hello").await;
    let message = tokio::time::timeout(ms(500), client.receive()).await;
    assert!(message.is_err(), "unexpected {message:?}");
    client.echo_text("still here").await;
    rig.recorder.stays_at(0).await;
}

/// The application evicts a connection, and the client receives the code and the reason.
pub(super) async fn kick(stack: Stack, protocol: Protocol) {
    let rig = Rig::start(stack, protocol, long_heartbeat(), long_idle()).await;
    let (mut client, live) = rig.open().await;
    client.echo_text("hello").await;
    assert!(live.evict(4321, "signed in elsewhere"));
    let close = close_frame(&mut client).await;
    assert_eq!(close, Frame::close(4321, "signed in elsewhere"));
    client.send(&close).await;
    client.socket.frames.closed().await;
    assert_eq!(rig.end_reason().await, Reason::Kicked { code: 4321 });
}

async fn close_frame(client: &mut MessageClient) -> Frame {
    let frame = within("a Close frame", client.receive()).await;
    assert_eq!(frame.opcode, CLOSE, "{frame:?}");
    frame
}
