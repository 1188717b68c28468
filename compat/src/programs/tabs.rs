//! Scenes of browser tabs: the browser's network process answers pings, not the page.

use tower_ws_liveness::Reason;

use super::process::Process;
use super::program::{Behaviour, Program};
use super::timing::{HTTP1, LONGER_THAN_TIMEOUT, assert_stays_open, short_heartbeat};
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::scenes::Cell;
use crate::stack::Stack;

/// The tab is hidden behind another tab.
pub(super) async fn hidden(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, short_heartbeat(), long_idle()).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.handle().await;
    page.send_command("hide").await;
    page.expect("hidden").await;
    assert_stays_open(&rig, &live).await;
    page.echo("text from behind").await;
}

/// The browser has frozen the page and runs none of its code.
pub(super) async fn frozen(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, short_heartbeat(), long_idle()).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.handle().await;
    page.send_command("hide").await;
    page.expect("hidden").await;
    page.send_command("freeze").await;
    page.expect("freeze").await;
    assert_stays_open(&rig, &live).await;
    page.send_command("resume").await;
    page.expect("resume").await;
    // Chromium closes the WebSocket of a frozen page once the page is resumed.
    page.expect("close 1006 ").await;
    assert_eq!(
        rig.end_reason().await,
        Reason::PeerClosed { code: Some(1001) }
    );
}

/// The process of the page is stopped.
pub(super) async fn stopped(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, short_heartbeat(), long_idle()).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.handle().await;
    page.send_command("stop").await;
    page.expect("stopped").await;
    assert_stays_open(&rig, &live).await;
    page.resume();
    page.echo("text once more").await;
}

/// The tab is closed.
pub(super) async fn closed(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, long_heartbeat(), long_idle()).await;
    let mut page = Process::start(program, rig.addr).await;
    page.echo("text alive").await;
    page.send_command("close_tab").await;
    assert_eq!(
        rig.end_reason().await,
        Reason::PeerClosed { code: Some(1001) }
    );
}

/// The tab navigates to another page. If the browser keeps the old page for a return, its WebSocket
/// stays open and answers pings. Only an idle timeout ends it.
pub(super) async fn left(program: &Program, stack: Stack) -> Cell {
    let idle = long_idle().timeout(LONGER_THAN_TIMEOUT * 2);
    let rig = Rig::start(stack, HTTP1, short_heartbeat(), idle).await;
    let mut page = Process::start(program, rig.addr).await;
    let live = rig.handle().await;
    page.echo("text alive").await;
    page.send_command("leave").await;
    page.expect("at about:blank").await;
    let Some(why) = program.limit(Behaviour::LeftPage) else {
        assert_eq!(
            rig.end_reason().await,
            Reason::PeerClosed { code: Some(1001) }
        );
        return Cell::Works;
    };
    assert_stays_open(&rig, &live).await;
    assert_eq!(rig.end_reason().await, Reason::IdleTimeout);
    Cell::Not(why)
}
