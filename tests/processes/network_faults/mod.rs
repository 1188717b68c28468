//! Real faults between real processes: lost packets, pulled cables, slow links, resets, stopped and
//! killed programs. Each test has network namespaces of its own; see [`netns`].
//!
//! Wherever a fault is one that only the layer notices, two servers face it at the same time: one
//! with the layer, and as the control one without it, which has to keep its connection for many
//! times as long. A neighbour, whose connection does not cross the cable, has to keep its own.
//!
//! All of it is ignored, and run with `cargo test --test processes -- --ignored`.

mod fault_server;
mod netns;
mod scene;
mod slow_link;

pub(crate) use fault_server::{ROLE as SERVER, main as server};

use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use netns::Way;
use nix::sys::signal::Signal;
use scene::{ALLOWANCE, Scene, Times, ms};

use crate::roles;

/// Why they are ignored: `libtest-mimic` has no reasons, but shows a test's kind.
const NEEDS: &str = "needs root and network namespaces";

/// What most faults are faced with: a peer may be silent for a second and a little.
const QUICK: Times = Times {
    interval: ms(500),
    timeout: ms(500),
};
/// Where there has to be time to get well again.
const PATIENT: Times = Times {
    interval: ms(2000),
    timeout: ms(2000),
};
/// Where a ping may wait for a while behind large messages.
const LENIENT: Times = Times {
    interval: ms(500),
    timeout: ms(1500),
};
/// Where no ping must be sent at all.
const NEVER: Times = Times {
    interval: ms(60_000),
    timeout: ms(60_000),
};

pub(crate) fn trials() -> Vec<Trial> {
    // Those that take longest come first.
    let tests: [(&str, fn()); 19] = [
        ("a_slow_download_is_not_death", slow_link::download),
        ("a_slow_upload_is_not_death", slow_link::upload),
        (
            "a_slow_download_through_a_long_queue",
            slow_link::long_queue,
        ),
        (
            "without_its_socket_options_it_is_evicted",
            slow_link::untuned,
        ),
        ("a_blackhole", blackhole),
        ("a_blackhole_for_what_the_server_sends", deaf_client),
        ("a_blackhole_for_what_the_client_sends", mute_client),
        ("a_pulled_plug", pulled_plug),
        ("a_stopped_client", stopped),
        ("a_killed_client_behind_a_blackhole", killed_in_silence),
        ("a_dead_peer_that_is_written_to", dead_but_writable),
        ("a_blackhole_that_ends_in_time", blackhole_ends),
        ("a_stopped_client_that_goes_on_in_time", goes_on),
        ("a_killed_client", killed),
        ("a_reset", reset),
        ("a_stopped_server_does_not_blame_its_peers", stopped_server),
        ("a_suspended_host_does_not_blame_its_peers", suspended),
        ("a_phone_that_is_gone_in_the_middle_of_a_message", phone),
        ("a_phone_that_is_gone_and_is_pinged", pinged_phone),
    ];
    let trials = crate::trials("network_faults", tests).into_iter();
    trials
        .map(|trial| trial.with_kind(NEEDS).with_ignored_flag(true))
        .collect()
}

// Peers that are gone without a word. Only the layer notices.

fn blackhole() {
    silence(
        "blackhole both ways",
        |scene| {
            scene.cable.block(Way::ToClient);
            scene.cable.block(Way::ToServer);
        },
        |scene| {
            assert!(scene.cable.unblock(Way::ToClient) > 0, "nothing was lost");
            // Besides the ends' own words, acknowledgements are lost; the client has none to give.
            scene.cable.unblock(Way::ToServer);
        },
    );
}

fn deaf_client() {
    silence(
        "blackhole server to client",
        |scene| scene.cable.block(Way::ToClient),
        |scene| assert!(scene.cable.unblock(Way::ToClient) > 0, "nothing was lost"),
    );
}

fn mute_client() {
    silence(
        "blackhole client to server",
        |scene| scene.cable.block(Way::ToServer),
        // The client hears nothing either: without acknowledgements, the server's kernel repeats the
        // ping and sends nothing else.
        |scene| assert!(scene.cable.unblock(Way::ToServer) > 0, "nothing was lost"),
    );
}

fn pulled_plug() {
    silence(
        "link down",
        |scene| scene.cable.plug(false),
        |scene| scene.cable.plug(true),
    );
}

fn stopped() {
    silence(
        "SIGSTOP",
        |scene| {
            scene.victim.stop();
            scene.control.stop();
        },
        |scene| {
            scene.victim.signal(Signal::SIGCONT);
            scene.victim.expect_closed();
            scene.control.signal(Signal::SIGCONT);
        },
    );
}

/// The fault strikes, the layer notices in time, the control does not, and when the fault is
/// repaired the control's session goes on as if nothing had been.
fn silence(name: &str, strike: impl FnOnce(&mut Scene), repair: impl FnOnce(&mut Scene)) {
    let mut scene = Scene::start(roles::SERVER, QUICK);
    let took = scene.evicted_by_heartbeat(strike);
    let watched = scene.control_has_noticed_nothing();
    repair(&mut scene);
    scene.control.echo("the server has kept me");
    scene.neighbour_has_noticed_nothing();
    println!("{name}: heartbeat_timeout after {took:?}; kept by the control for {watched:?}");
}

fn killed_in_silence() {
    let mut scene = Scene::start(roles::SERVER, QUICK);
    let took = scene.evicted_by_heartbeat(|scene| {
        scene.cable.block(Way::ToClient);
        scene.cable.block(Way::ToServer);
        scene.victim.signal(Signal::SIGKILL);
        scene.control.signal(Signal::SIGKILL);
    });
    let watched = scene.control_has_noticed_nothing();
    // What the kernel had to say for the killed.
    assert!(scene.cable.unblock(Way::ToServer) > 0, "nothing was lost");
    scene.neighbour_has_noticed_nothing();
    println!(
        "SIGKILL behind a blackhole: heartbeat_timeout after {took:?}; kept by the control for \
         {watched:?}"
    );
}

/// The handler writes all the time, and the kernel takes it: that proves nothing.
fn dead_but_writable() {
    let mut scene = Scene::start(fault_server::ROLE, LENIENT);
    for client in [&mut scene.victim, &mut scene.control] {
        client.send_line("push");
        for _ in 0..3 {
            client.expect("echo tick", ALLOWANCE);
        }
    }
    let took = scene.evicted_by_heartbeat_after(LENIENT.timeout, |scene| {
        scene.cable.block(Way::ToClient);
        scene.cable.block(Way::ToServer);
    });
    let (id, struck) = (scene.id, scene.struck);
    let failed = scene.layered.note("failed", id);
    let eviction = scene.layered.eviction_of(id);
    // The writer is told by its next write: it writes every 100 ms.
    assert_eq!(failed.entry["reason"], "heartbeat_timeout", "{failed:?}");
    let told = failed.at.saturating_duration_since(eviction.at);
    assert!(told <= ms(100) + ALLOWANCE, "{told:?}");
    // Had the kernel refused, this were another test.
    let taken =
        scene.layered.notes().iter().filter(|note| {
            note.entry["event"] == "push" && note.at > struck && note.at < eviction.at
        });
    let taken = taken.count();
    assert!(taken >= 3, "only {taken} writes succeeded after the fault");

    let watched = scene.control_has_noticed_nothing();
    let pushes = scene.control_notes("push", struck);
    assert!(pushes > taken * 2, "the control wrote only {pushes} times");
    scene.neighbour_has_noticed_nothing();
    println!(
        "dead but writable: heartbeat_timeout after {took:?}, {taken} writes later, the writer told \
         after {told:?}; the control wrote on for {watched:?}, {pushes} times"
    );
}

// Peers that get well in time.

fn blackhole_ends() {
    lives_through(
        "blackhole for 60 % of the bound",
        |scene| {
            scene.cable.block(Way::ToClient);
            scene.cable.block(Way::ToServer);
        },
        |scene| {
            assert!(scene.cable.unblock(Way::ToClient) > 0, "nothing was lost");
            scene.cable.unblock(Way::ToServer);
        },
    );
}

fn goes_on() {
    lives_through(
        "SIGSTOP for 60 % of the bound",
        |scene| scene.victim.stop(),
        |scene| scene.victim.signal(Signal::SIGCONT),
    );
}

/// The fault strikes just after a sign of life, so that the ping comes at half the bound and is lost,
/// and ends when the kernel has yet to send it again, several times: it doubles its pauses.
fn lives_through(name: &str, strike: impl Fn(&mut Scene), repair: impl Fn(&mut Scene)) {
    let bound = PATIENT.interval + PATIENT.timeout;
    for _ in 0..5 {
        let mut scene = Scene::start(roles::SERVER, PATIENT);
        let asked = scene.last_sign_of_life();
        strike(&mut scene);
        sleep((bound * 6 / 10).saturating_sub(asked.elapsed()));
        repair(&mut scene);
        let lasted = asked.elapsed();
        if lasted > bound * 7 / 10 {
            continue; // the machine took its time: this round proves nothing
        }
        scene.layered.listen_for(bound + ALLOWANCE);
        scene.victim.echo("all is well again");
        scene.nobody_was_evicted();
        println!("{name}: lives, after {lasted:?}");
        return;
    }
    panic!("no round in which the fault ended in time");
}

// Ends that the kernel tells of. The control notices them too.

fn killed() {
    told_at_once("SIGKILL", &[], "peer vanished without a Close");
}

fn reset() {
    let text = "transport error (connection reset)";
    told_at_once("RST", &[roles::ZERO_LINGER], text);
}

fn told_at_once(name: &str, client_flags: &[&str], text: &str) {
    let mut scene = Scene::start_with(fault_server::ROLE, NEVER, client_flags);
    scene.victim.signal(Signal::SIGKILL);
    scene.control.signal(Signal::SIGKILL);
    let killed = Instant::now();
    let eviction = scene.layered.eviction_of(scene.id);
    assert_eq!(eviction.entry["text"], text, "{eviction:?}");
    let took = eviction.at.saturating_duration_since(killed);
    assert!(took <= ALLOWANCE, "{took:?}");
    scene.control_is_gone();
    scene.neighbour_has_noticed_nothing();
    println!("{name}: {text} after {took:?}; noticed by the control as well");
}

// The fault is the server's own.

fn stopped_server() {
    let mut scene = Scene::start(roles::SERVER, QUICK);
    for offset in [0, 170, 340] {
        sleep(ms(offset));
        scene.layered.stop();
        sleep((QUICK.interval + QUICK.timeout) * 3);
        scene.victim.drain_pings();
        scene.layered.signal(Signal::SIGCONT);
        // Before anything is decided, they are asked again.
        scene.victim.expect_ping();
        scene.layered.listen_for(QUICK.bound() * 2);
        scene.nobody_was_evicted();
    }
    scene.victim.echo("I was never away");
    scene.neighbour.echo("nor was I");
    println!("SIGSTOP of the server, 3 times: all peers live");
}

/// Both ends are away for long, the server is back first, and a ping is out that was not answered:
/// the peer has to be asked once more.
fn suspended() {
    let mut scene = Scene::start(roles::SERVER, PATIENT);
    scene.last_sign_of_life();
    scene.victim.stop();
    // The ping goes out, and the client does not answer.
    sleep(PATIENT.interval + PATIENT.timeout / 2);
    scene.layered.stop();
    sleep(PATIENT.timeout * 2);
    scene.layered.signal(Signal::SIGCONT);
    sleep(PATIENT.timeout / 4);
    scene.victim.signal(Signal::SIGCONT);
    scene.layered.listen_for(PATIENT.bound() + ALLOWANCE);
    scene.nobody_was_evicted();
    scene.victim.echo("good morning");
    scene.neighbour.echo("good morning");
    println!("both ends suspended: all peers live");
}

// Phones: the link is lost in the middle of what the server sends.

/// How long a write may stay where it is.
const WRITE_TIMEOUT: Duration = ms(2000);

/// No ping: the write itself has to tell.
fn phone() {
    gone_in_the_middle_of_a_message(NEVER, &["write_stalled"]);
}

/// With pings, unless none can be sent within the message.
fn pinged_phone() {
    gone_in_the_middle_of_a_message(LENIENT, &["write_stalled", "heartbeat_timeout"]);
}

fn gone_in_the_middle_of_a_message(times: Times, reasons: &[&str]) {
    let stall = WRITE_TIMEOUT.as_millis().to_string();
    let flags = ["--write-timeout-ms", &stall];
    let mut scene = Scene::with_flags(fault_server::ROLE, times, &flags, &[]);
    // Slow enough for there to be a middle.
    scene.cable.shape(Way::ToClient, "40mbit", "50ms");
    for client in [&mut scene.victim, &mut scene.control] {
        client.send_line("send 2000000 20");
    }
    for client in [&mut scene.victim, &mut scene.control] {
        client.expect("binary 2000000 whole", Duration::from_secs(60));
    }
    scene.strike(|scene| scene.cable.plug(false));
    let eviction = scene.layered.eviction_of(scene.id);
    assert!(reasons.contains(&eviction.reason.as_str()), "{eviction:?}");
    assert!(
        eviction.at > scene.struck,
        "{eviction:?} while the peer lived"
    );
    let took = eviction.at - scene.struck;
    // Before a stall is found, whoever wants to write is asked to try once more.
    let due = WRITE_TIMEOUT + ms(100) + WRITE_TIMEOUT / 32;
    assert!(took <= due + ALLOWANCE, "{took:?}, {due:?} was due");
    let failed = scene.layered.note("failed", scene.id);
    assert_eq!(failed.entry["reason"], eviction.entry["reason"]);
    let watched = scene.control_has_noticed_nothing();
    scene.neighbour_has_noticed_nothing();
    println!(
        "link down in the middle of 2 MB: {} after {took:?}; kept by the control for {watched:?}",
        eviction.reason
    );
}
