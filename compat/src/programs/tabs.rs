//! What becomes of a page is not what becomes of its WebSocket: a browser's network process answers
//! pings, whatever the page does.

use tower_ws_liveness::Reason;

use super::patience::{HTTP1, TOO_LONG, impatient, lives};
use super::process::Process;
use super::program::{Feature, Program};
use crate::rig::{Rig, patient, quiet};
use crate::scenes::Cell;
use crate::stack::Stack;

/// Another tab is in front.
pub(super) async fn hidden(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, impatient(), patient()).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.live().await;
    page.tell("hide").await;
    page.expect("hidden").await;
    lives(&rig, &live).await;
    page.echo("text from behind").await;
}

/// The browser runs none of the page's code any more.
pub(super) async fn frozen(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, impatient(), patient()).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.live().await;
    page.tell("hide").await;
    page.expect("hidden").await;
    page.tell("freeze").await;
    page.expect("freeze").await;
    lives(&rig, &live).await;
    page.tell("resume").await;
    page.expect("resume").await;
    // Chromium is done with the WebSocket of a page that it has frozen, once it goes on.
    page.expect("close 1006 ").await;
    assert_eq!(rig.ended().await, Reason::PeerClosed { code: Some(1001) });
}

/// The operating system does not run the page's process any more.
pub(super) async fn stopped(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, impatient(), patient()).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.live().await;
    page.tell("stop").await;
    page.expect("stopped").await;
    lives(&rig, &live).await;
    page.go_on();
    page.echo("text once more").await;
}

/// The user closes the tab.
pub(super) async fn closed(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, quiet(), patient()).await;
    let mut page = Process::start(program, rig.addr).await;
    page.echo("text alive").await;
    page.tell("close_tab").await;
    assert_eq!(rig.ended().await, Reason::PeerClosed { code: Some(1001) });
}

/// The user goes elsewhere in the same tab. If the browser keeps the page for a way back, its
/// WebSocket lives on and answers pings. Only an idle timeout knows that nobody is there.
pub(super) async fn left(program: &Program, stack: Stack) -> Cell {
    let idle = patient().timeout(TOO_LONG * 2);
    let rig = Rig::start(stack, HTTP1, impatient(), idle).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.live().await;
    page.echo("text alive").await;
    page.tell("leave").await;
    page.expect("at about:blank").await;
    let Some(why) = program.limit(Feature::LeftPage) else {
        assert_eq!(rig.ended().await, Reason::PeerClosed { code: Some(1001) });
        return Cell::Works;
    };
    lives(&rig, &live).await;
    assert_eq!(rig.ended().await, Reason::IdleTimeout);
    Cell::Not(why)
}
