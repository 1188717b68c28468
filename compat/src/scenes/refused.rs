//! Scene: a library without a protocol refuses it, with the layers and without them.

use crate::client::Refusal;
use crate::protocol::Protocol;
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::stack::Stack;

pub(super) async fn run(stack: Stack, protocol: Protocol) {
    let bare = Rig::bare(stack, protocol).await.try_open(None).await;
    let bare = bare.map(|_| "opened").expect_err("the library must refuse");
    // The HTTP server offers extended CONNECT. Otherwise the request would not reach the library.
    assert_ne!(bare, Refusal::NoExtendedConnect);
    let rig = Rig::start(stack, protocol, long_heartbeat(), long_idle()).await;
    let layered = rig.try_open(None).await.map(|_| "opened");
    assert_eq!(layered, Err(bare));
    // No connection was opened, so the hook is not called and the registry stays empty.
    rig.registry.wait_idle().await;
    rig.recorder.stays_at(0).await;
}
