//! A library that does not know a protocol says no, behind the layers and without them.

use crate::client::Refused;
use crate::protocol::Protocol;
use crate::rig::{Rig, patient, quiet};
use crate::stack::Stack;

pub(super) async fn play(stack: Stack, protocol: Protocol) {
    let bare = Rig::bare(stack, protocol).await.try_open(None).await;
    let bare = bare.map(|_| "opened").expect_err("the library can do it");
    // What is served with offers it. A library that never got to see the request would prove nothing.
    assert_ne!(bare, Refused::NotOffered);
    let rig = Rig::start(stack, protocol, quiet(), patient()).await;
    let layered = rig.try_open(None).await.map(|_| "opened");
    assert_eq!(layered, Err(bare));
    // Nothing was opened, so nothing ends, and nothing is left behind.
    rig.registry.wait_idle().await;
    rig.recorder.stays_at(0).await;
}
