//! What every client has to pass.

use tower_ws_liveness::Reason;

use super::patience::{ENOUGH, HTTP1, impatient, lives};
use super::process::Process;
use super::program::{Feature, Program};
use super::tabs;
use crate::rig::{Rig, patient, quiet};
use crate::scenes::Cell;
use crate::stack::Stack;
use crate::support::{ms, until};

/// Around the borders of the length's encodings (RFC 6455 section 5.2), and more than one read.
/// None is empty: yawc 0.5 never gets done with a compressed message that is (without the layers,
/// too).
const SIZES: [usize; 6] = [1, 125, 126, 65_535, 65_536, 300_000];

/// Plays the scene of a feature. Panics if it does not end as it should.
pub(super) async fn play(program: &Program, stack: Stack, feature: Feature) -> Cell {
    match feature {
        Feature::Echo => echo(program, stack).await,
        Feature::Pings => pings(program, stack).await,
        Feature::Await => return busy(program, stack, feature, "await").await,
        Feature::Block => return busy(program, stack, feature, "block").await,
        Feature::Stop => return stop(program, stack).await,
        Feature::Kill => kill(program, stack).await,
        Feature::Kick => kick(program, stack).await,
        Feature::Close => close(program, stack).await,
        Feature::Deflate => deflate(program, stack).await,
        Feature::HiddenTab => tabs::hidden(program, stack).await,
        Feature::FrozenTab => tabs::frozen(program, stack).await,
        Feature::StoppedTab => tabs::stopped(program, stack).await,
        Feature::ClosedTab => tabs::closed(program, stack).await,
        Feature::LeftPage => return tabs::left(program, stack).await,
    }
    Cell::Works
}

/// Messages travel both ways, whole, while pings come and go between them.
async fn echo(program: &Program, stack: Stack) {
    let heartbeat = quiet().interval(ms(5));
    let rig = Rig::start(stack, HTTP1, heartbeat, patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    for size in SIZES {
        let text = "text ".repeat(size / 5 + 1);
        process.echo(&format!("text {}", &text[..size])).await;
        let bytes: String = (0..size).map(|at| format!("{:02x}", at % 251)).collect();
        process.echo(&format!("binary {bytes}")).await;
    }
    let live = rig.live().await;
    until("a pong", || live.stats().pongs_received() > 0).await;
}

/// A client that has no code for pings answers them all the same.
async fn pings(program: &Program, stack: Stack) {
    let heartbeat = quiet().interval(ms(50));
    let rig = Rig::start(stack, HTTP1, heartbeat, patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    let live = rig.live().await;
    let answered = until("pongs for our pings", || {
        live.stats().pongs_received() >= ENOUGH
    });
    tokio::select! {
        line = process.next_line() => panic!("{line:?} from somebody who was sent nothing"),
        () = answered => {}
    }
    assert!(live.rtt().is_some());
    process.echo("text after the pings").await;
    assert_eq!(rig.pongs.count(), 0, "pongs that the handler saw");
    assert_eq!(rig.recorder.total(), 0);
}

/// A task that is shorter than the timeout is nobody's end. A longer one is, if it keeps the
/// library from answering.
async fn busy(program: &Program, stack: Stack, feature: Feature, task: &str) -> Cell {
    let rig = Rig::start(stack, HTTP1, impatient(), patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    let live = rig.live().await;
    process.echo(&format!("text {task} 1")).await;
    process.echo("text after a while").await;
    assert_eq!(rig.recorder.total(), 0);

    process.echo(&format!("text {task} 7")).await;
    if let Some(why) = program.limit(feature) {
        assert_eq!(rig.ended().await, Reason::HeartbeatTimeout { missed: 1 });
        return Cell::Not(why);
    }
    lives(&rig, &live).await;
    process.echo("text after all").await;
    Cell::Works
}

/// A client that is stopped is evicted, and learns of it when it goes on.
async fn stop(program: &Program, stack: Stack) -> Cell {
    let rig = Rig::start(stack, HTTP1, impatient(), patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    process.stop();
    assert_eq!(rig.ended().await, Reason::HeartbeatTimeout { missed: 1 });
    process.go_on();
    let Some(why) = program.limit(Feature::Stop) else {
        process.expect("close 3008 heartbeat timeout").await;
        return Cell::Works;
    };
    process.expect("close 1006 ").await;
    Cell::Not(why)
}

/// The transport tells of a client that is killed; no ping is needed.
async fn kill(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, quiet(), patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    process.kill();
    gone(rig.ended().await);
}

/// The application sends a client away, and the client's application is told the code and why.
async fn kick(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, quiet(), patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    assert!(rig.live().await.evict(4321, "signed in elsewhere"));
    process.expect("close 4321 signed in elsewhere").await;
    assert_eq!(rig.ended().await, Reason::Kicked { code: 4321 });
}

async fn close(program: &Program, stack: Stack) {
    let rig = Rig::start(stack, HTTP1, quiet(), patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    process.echo("text alive").await;
    process.tell("close 4000 done").await;
    let line = process.next_line().await.unwrap_or_default();
    assert!(line.starts_with("close 4000"), "{line}");
    assert_eq!(rig.ended().await, Reason::PeerClosed { code: Some(4000) });
}

/// Client and library agree to compress, and pings go between messages that are.
async fn deflate(program: &Program, stack: Stack) {
    let heartbeat = quiet().interval(ms(5));
    let rig = Rig::start(stack, HTTP1, heartbeat, patient()).await;
    let mut process = Process::start(program, rig.addr).await;
    let agreed = &process.extensions;
    assert!(agreed.starts_with("permessage-deflate"), "{agreed}");
    let live = rig.live().await;
    for round in 0..20 {
        let text = format!("round {round}: {}", "again and ".repeat(10_000));
        process.echo(&format!("text {text}")).await;
    }
    let stats = live.stats();
    // The other way it is the client's choice: undici compresses nothing, but reads what is.
    assert!(stats.bytes_sent() < 200_000, "of 2 MB: {stats:?}");
    let seen = stats.pongs_received();
    until("another pong", || live.stats().pongs_received() > seen).await;
    assert_eq!(rig.recorder.total(), 0);
}

/// What the end of a client without a Close frame is called.
pub(super) fn gone(reason: Reason) {
    let gone = matches!(reason, Reason::PeerVanished | Reason::Transport(_));
    assert!(gone, "{reason}");
}
