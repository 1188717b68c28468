//! The scenes that every client program must pass.

use tower_ws_liveness::Reason;

use super::process::Process;
use super::program::{Behaviour, Program};
use super::tabs;
use super::timing::{HTTP1, MIN_PONGS, assert_stays_open, short_heartbeat};
use crate::rig::{Rig, long_heartbeat, long_idle};
use crate::scenes::Cell;
use crate::stack::Stack;
use crate::support::{ms, until};

/// Payloads at the limits of the length encodings (RFC 6455 section 5.2), and longer than one read.
/// None is empty: yawc 0.5 loops forever over an empty compressed message, also without the layers.
const SIZES: [usize; 6] = [1, 125, 126, 65_535, 65_536, 300_000];

/// Runs the scene of a behaviour.
///
/// # Panics
///
/// If the scene fails.
pub(super) async fn run(program: &Program, stack: Stack, behaviour: Behaviour) -> Cell {
    match behaviour {
        Behaviour::Echo => echo(program, stack).await,
        Behaviour::Pings => pings(program, stack).await,
        Behaviour::Await => return run_task(program, stack, behaviour, "await").await,
        Behaviour::Block => return run_task(program, stack, behaviour, "block").await,
        Behaviour::Stop => return stop(program, stack).await,
        Behaviour::Kill => kill(program, stack).await,
        Behaviour::Kick => kick(program, stack).await,
        Behaviour::Close => close(program, stack).await,
        Behaviour::Deflate => deflate(program, stack).await,
        Behaviour::HiddenTab => tabs::hidden(program, stack).await,
        Behaviour::FrozenTab => tabs::frozen(program, stack).await,
        Behaviour::StoppedTab => tabs::stopped(program, stack).await,
        Behaviour::ClosedTab => tabs::closed(program, stack).await,
        Behaviour::LeftPage => return tabs::left(program, stack).await,
    }
    Cell::Works
}

/// Messages are echoed intact, with pings between them.
async fn echo(program: &Program, stack: Stack) {
    let heartbeat = long_heartbeat().interval(ms(5));
    let rig = Rig::start(stack, HTTP1, heartbeat, long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    for size in SIZES {
        let text = "text ".repeat(size / 5 + 1);
        process.echo(&format!("text {}", &text[..size])).await;
        let bytes: String = (0..size).map(|at| format!("{:02x}", at % 251)).collect();
        process.echo(&format!("binary {bytes}")).await;
    }
    let live = rig.handle().await;
    until("a pong", || live.stats().pongs_received() > 0).await;
}

/// A client without code for pings answers them.
async fn pings(program: &Program, stack: Stack) {
    let heartbeat = long_heartbeat().interval(ms(50));
    let rig = Rig::start(stack, HTTP1, heartbeat, long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    let live = rig.handle().await;
    let answered = until("pongs for the layer's pings", || {
        live.stats().pongs_received() >= MIN_PONGS
    });
    tokio::select! {
        line = process.next_line() => panic!("unexpected {line:?}"),
        () = answered => {}
    }
    assert!(live.rtt().is_some());
    process.echo("text after the pings").await;
    assert_eq!(rig.pongs.count(), 0, "pongs that the handler received");
    assert_eq!(rig.recorder.total(), 0);
}

/// A task shorter than the timeout has no effect. A longer one causes an eviction if it prevents
/// the library from answering.
async fn run_task(program: &Program, stack: Stack, behaviour: Behaviour, task: &str) -> Cell {
    let rig = Rig::start(stack, HTTP1, short_heartbeat(), long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    let live = rig.handle().await;
    process.echo(&format!("text {task} 1")).await;
    process.echo("text after a while").await;
    assert_eq!(rig.recorder.total(), 0);

    process.echo(&format!("text {task} 7")).await;
    if let Some(why) = program.limit(behaviour) {
        assert_eq!(
            rig.end_reason().await,
            Reason::HeartbeatTimeout { missed: 1 }
        );
        return Cell::Not(why);
    }
    assert_stays_open(&rig, &live).await;
    process.echo("text after all").await;
    Cell::Works
}

/// A stopped client is evicted, and receives the Close frame when it continues.
async fn stop(program: &Program, stack: Stack) -> Cell {
    let rig = Rig::start(stack, HTTP1, short_heartbeat(), long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    process.stop();
    assert_eq!(
        rig.end_reason().await,
        Reason::HeartbeatTimeout { missed: 1 }
    );
    process.resume();
    let Some(why) = program.limit(Behaviour::Stop) else {
        process.expect("close 3008 heartbeat timeout").await;
        return Cell::Works;
    };
    process.expect("close 1006 ").await;
    Cell::Not(why)
}

/// The end of a killed client's transport is detected without a ping.
async fn kill(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, long_heartbeat(), long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    process.kill();
    assert_vanished(rig.end_reason().await);
}

/// The server evicts a client, whose application receives the code and the reason.
async fn kick(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, long_heartbeat(), long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    assert!(rig.handle().await.evict(4321, "signed in elsewhere"));
    process.expect("close 4321 signed in elsewhere").await;
    assert_eq!(rig.end_reason().await, Reason::Kicked { code: 4321 });
}

/// The client closes with a code, which becomes the reason of the end.
async fn close(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, long_heartbeat(), long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    process.send_command("close 4000 done").await;
    let line = process.next_line().await.unwrap_or_default();
    assert!(line.starts_with("close 4000"), "{line}");
    assert_eq!(
        rig.end_reason().await,
        Reason::PeerClosed { code: Some(4000) }
    );
}

/// Client and library negotiate compression, and pings are sent between compressed messages.
async fn deflate(program: &Program, stack: Stack) {
    let heartbeat = long_heartbeat().interval(ms(5));
    let rig = Rig::start(stack, HTTP1, heartbeat, long_idle()).await;
    let mut process = Process::start(program, rig.addr).await;
    let agreed = &process.extensions;
    assert!(agreed.starts_with("permessage-deflate"), "{agreed}");
    let live = rig.handle().await;
    for round in 0..20 {
        let text = format!("round {round}: {}", "again and ".repeat(10_000));
        process.echo(&format!("text {text}")).await;
    }
    let stats = live.stats();
    // The client's direction is not checked: undici decompresses but does not compress.
    assert!(stats.bytes_sent() < 200_000, "of 2 MB: {stats:?}");
    let pongs = stats.pongs_received();
    until("another pong", || live.stats().pongs_received() > pongs).await;
    assert_eq!(rig.recorder.total(), 0);
}

/// Asserts that the connection ended without a Close frame from the client.
pub(super) fn assert_vanished(reason: Reason) {
    let vanished = matches!(reason, Reason::PeerVanished | Reason::Transport(_));
    assert!(vanished, "{reason}");
}
