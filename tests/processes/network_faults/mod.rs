//! Network faults between real processes: lost packets, pulled cables, slow links, resets.
//!
//! Each test has its own network namespaces, see [`netns`]. Where only the layer can notice a
//! fault, two servers face it at the same time: one with the layer, and one without it as the
//! control, which must keep its connection for many times as long. A neighbour, whose connection
//! does not cross the cable, must keep its connection, too.
//!
//! All of these tests are ignored by default. `cargo test --test processes -- --ignored` runs them.

mod fault_server;
mod netns;
mod scene;
mod slow_link;

pub(crate) use fault_server::{ROLE as SERVER, main as server};

use std::thread::sleep;
use std::time::{Duration, Instant};

use netns::Way;
use nix::sys::signal::Signal;
use scene::{ALLOWANCE, Scene, Times, ms};

use crate::harness::Trial;
use crate::roles;

/// Why the tests are ignored.
const NEEDS: &str = "needs root and network namespaces";

/// For most faults: a peer may be silent for a little more than a second.
const FAST_HEARTBEAT: Times = Times {
    interval: ms(500),
    timeout: ms(500),
};
/// For faults that end in time.
const SLOW_HEARTBEAT: Times = Times {
    interval: ms(2000),
    timeout: ms(2000),
};
/// For pings that wait behind large messages.
const LONG_TIMEOUT: Times = Times {
    interval: ms(500),
    timeout: ms(1500),
};
/// For tests in which no ping is sent.
const NO_PINGS: Times = Times {
    interval: ms(60_000),
    timeout: ms(60_000),
};

pub(crate) fn trials() -> Vec<Trial> {
    // The slowest tests come first.
    let tests: [(&str, fn()); 27] = [
        ("a_slow_download_is_not_evicted", slow_link::download),
        ("a_slow_upload_is_not_evicted", slow_link::upload),
        (
            "a_slow_download_through_a_long_queue_is_not_evicted",
            slow_link::long_queue,
        ),
        (
            "a_slow_download_through_a_long_queue_with_cubic_is_not_evicted",
            slow_link::long_queue_with_cubic,
        ),
        (
            "a_slow_download_through_a_long_queue_with_bbr_is_not_evicted",
            slow_link::long_queue_with_bbr,
        ),
        (
            "a_slow_download_without_socket_options_is_not_evicted",
            slow_link::untuned,
        ),
        (
            "a_slow_download_through_a_full_send_buffer_is_no_write_stall",
            slow_link::full_buffer,
        ),
        (
            "the_kernel_of_a_stopped_client_acknowledges",
            stopped_acknowledges,
        ),
        ("nothing_comes_back_over_a_cut_link", cut_is_silent),
        (
            "a_client_that_stops_behind_unread_bytes_is_evicted",
            unread_then_stopped,
        ),
        (
            "a_client_that_stops_behind_a_closed_window_is_evicted",
            closed_window_then_stopped,
        ),
        (
            "a_client_cut_off_behind_a_closed_window_is_evicted",
            closed_window_then_cut,
        ),
        ("a_client_behind_a_blackhole_is_evicted", blackhole),
        ("a_client_that_receives_nothing_is_evicted", deaf_client),
        ("a_client_whose_packets_are_lost_is_evicted", mute_client),
        ("a_client_with_a_pulled_plug_is_evicted", pulled_plug),
        ("a_stopped_client_is_evicted", stopped),
        (
            "a_killed_client_behind_a_blackhole_is_evicted",
            killed_in_silence,
        ),
        (
            "a_dead_peer_that_is_written_to_is_evicted",
            dead_but_writable,
        ),
        (
            "a_client_behind_a_short_blackhole_is_not_evicted",
            blackhole_ends,
        ),
        (
            "a_stopped_client_that_resumes_in_time_is_not_evicted",
            resumes,
        ),
        ("a_killed_client_is_evicted_immediately", killed),
        ("a_reset_is_noticed_immediately", reset),
        ("a_stopped_server_evicts_no_client", stopped_server),
        ("a_suspended_host_evicts_no_client", suspended),
        ("a_link_lost_within_a_message_is_a_write_stall", lost_link),
        (
            "a_pinged_client_whose_link_is_lost_within_a_message_is_evicted",
            lost_link_with_pings,
        ),
    ];
    let mut trials = crate::trials("network_faults", tests);
    for trial in &mut trials {
        trial.ignored = Some(NEEDS);
    }
    trials
}

// Peers that end without FIN or RST. Only the layer notices.

fn blackhole() {
    silence(
        "blackhole both ways",
        |scene| {
            scene.cable.block(Way::ToClient);
            scene.cable.block(Way::ToServer);
        },
        |scene| {
            assert!(scene.cable.unblock(Way::ToClient) > 0, "nothing was lost");
            // Only acknowledgements are lost as well, and the client has none to send.
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
        // The client receives nothing either: without acknowledgements, the server's kernel
        // retransmits the ping and sends nothing else.
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

/// The layer notices the fault in time, the control does not. After the repair the control's
/// connection still works.
fn silence(name: &str, strike: impl FnOnce(&mut Scene), repair: impl FnOnce(&mut Scene)) {
    let mut scene = Scene::start(roles::SERVER, FAST_HEARTBEAT);
    let took = scene.evicted_by_heartbeat(strike);
    let watched = scene.control_has_noticed_nothing();
    repair(&mut scene);
    scene.control.echo("the server has kept me");
    scene.neighbour_has_noticed_nothing();
    println!("{name}: heartbeat_timeout after {took:?}; kept by the control for {watched:?}");
}

// What the peer's kernel did.

fn stopped_acknowledges() {
    peer_kernel("acknowledges", "SIGSTOP", |scene| scene.victim.stop());
}

fn cut_is_silent() {
    for way in [Way::ToClient, Way::ToServer] {
        peer_kernel("silent", "blackhole", |scene| scene.cable.block(way));
    }
    peer_kernel("silent", "link down", |scene| scene.cable.plug(false));
}

fn peer_kernel(expected: &str, fault: &str, strike: impl Fn(&mut Scene)) {
    for pushes in [false, true] {
        let mut scene = Scene::start(fault_server::ROLE, LONG_TIMEOUT);
        scene.victim.expect_ping();
        if pushes {
            scene.victim.send_line("push");
            scene.victim.expect("echo tick", ALLOWANCE);
        }
        let took = scene.evicted_by_heartbeat_after(Duration::ZERO, &strike);
        let eviction = scene.layered.eviction_of(scene.id);
        assert_eq!(eviction.entry["peer_kernel"], expected, "{eviction:?}");
        println!("{fault}, pushes {pushes}: evicted after {took:?}, its kernel: {expected}");
    }
}

// Bytes that the handler does not read are ahead of the pong.

/// The receive window stays open.
fn unread_then_stopped() {
    behind_unread_bytes(40_000, "acknowledges", |scene| scene.victim.stop());
}

/// The client has more to send than our kernel takes at first, and less than it takes in the end.
fn closed_window_then_stopped() {
    behind_unread_bytes(256 * 1024, "acknowledges", |scene| scene.victim.stop());
}

/// The client has more to send than our kernel takes.
fn closed_window_then_cut() {
    behind_unread_bytes(8_000_000, "silent", |scene| {
        scene.cable.block(Way::ToClient);
        scene.cable.block(Way::ToServer);
    });
}

fn behind_unread_bytes(unread: usize, expected: &str, strike: impl FnOnce(&mut Scene)) {
    let mut scene = Scene::start(fault_server::ROLE, FAST_HEARTBEAT);
    scene.victim.expect_ping();
    scene.victim.send_line("deaf");
    scene.victim.send_line(&format!("put {unread}"));
    // Alive, although no pong can be read.
    scene.layered.listen_for(FAST_HEARTBEAT.bound() * 4);
    scene.no_client_was_evicted();
    // The first miss takes two pings.
    scene.times.timeout *= 2;
    let took = scene.evicted_by_heartbeat_after(FAST_HEARTBEAT.timeout, strike);
    let eviction = scene.layered.eviction_of(scene.id);
    assert_eq!(eviction.entry["peer_kernel"], expected, "{eviction:?}");
    println!("behind {unread} unread bytes: heartbeat_timeout after {took:?}, {expected}");
}

fn killed_in_silence() {
    let mut scene = Scene::start(roles::SERVER, FAST_HEARTBEAT);
    let took = scene.evicted_by_heartbeat(|scene| {
        scene.cable.block(Way::ToClient);
        scene.cable.block(Way::ToServer);
        scene.victim.signal(Signal::SIGKILL);
        scene.control.signal(Signal::SIGKILL);
    });
    let watched = scene.control_has_noticed_nothing();
    // The kernel's FIN or RST for the killed client.
    assert!(scene.cable.unblock(Way::ToServer) > 0, "nothing was lost");
    scene.neighbour_has_noticed_nothing();
    println!(
        "SIGKILL behind a blackhole: heartbeat_timeout after {took:?}; kept by the control for \
         {watched:?}"
    );
}

/// The handler writes all the time, and the kernel accepts it: that is no sign of life.
fn dead_but_writable() {
    let mut scene = Scene::start(fault_server::ROLE, LONG_TIMEOUT);
    for client in [&mut scene.victim, &mut scene.control] {
        client.send_line("push");
        for _ in 0..3 {
            client.expect("echo tick", ALLOWANCE);
        }
    }
    let took = scene.evicted_by_heartbeat_after(LONG_TIMEOUT.timeout, |scene| {
        scene.cable.block(Way::ToClient);
        scene.cable.block(Way::ToServer);
    });
    let (id, struck) = (scene.id, scene.struck);
    let failed = scene.layered.note("failed", id);
    let eviction = scene.layered.eviction_of(id);
    // The handler gets the reason from its next write, within 100 ms.
    assert_eq!(failed.entry["reason"], "heartbeat_timeout", "{failed:?}");
    let write_failed = failed.at.saturating_duration_since(eviction.at);
    assert!(write_failed <= ms(100) + ALLOWANCE, "{write_failed:?}");
    // The kernel accepted writes after the fault. Otherwise this tests a write stall.
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
        "dead but writable: heartbeat_timeout after {took:?}, {taken} writes later, the writer \
         failed after {write_failed:?}; the control wrote on for {watched:?}, {pushes} times"
    );
}

// Faults that end in time.

fn blackhole_ends() {
    is_not_evicted_by(
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

fn resumes() {
    is_not_evicted_by(
        "SIGSTOP for 60 % of the bound",
        |scene| scene.victim.stop(),
        |scene| scene.victim.signal(Signal::SIGCONT),
    );
}

/// The fault begins just after a sign of life, so that the ping is sent at half the bound and is
/// lost. It ends before the kernel has retransmitted the ping several times, with doubling pauses.
fn is_not_evicted_by(name: &str, strike: impl Fn(&mut Scene), repair: impl Fn(&mut Scene)) {
    let bound = SLOW_HEARTBEAT.interval + SLOW_HEARTBEAT.timeout;
    for _ in 0..5 {
        let mut scene = Scene::start(roles::SERVER, SLOW_HEARTBEAT);
        let asked = scene.last_sign_of_life();
        strike(&mut scene);
        sleep((bound * 6 / 10).saturating_sub(asked.elapsed()));
        repair(&mut scene);
        let lasted = asked.elapsed();
        if lasted > bound * 7 / 10 {
            continue; // the machine was too slow: this round proves nothing
        }
        scene.layered.listen_for(bound + ALLOWANCE);
        scene.victim.echo("all is well again");
        scene.no_client_was_evicted();
        println!("{name}: not evicted, fault lasted {lasted:?}");
        return;
    }
    panic!("no round in which the fault ended in time");
}

// Ends that the kernel reports. The control notices them, too.

fn killed() {
    noticed_immediately("SIGKILL", &[], "peer vanished without a Close");
}

fn reset() {
    let text = "transport error (connection reset)";
    noticed_immediately("RST", &[roles::ZERO_LINGER], text);
}

fn noticed_immediately(name: &str, client_flags: &[&str], text: &str) {
    let mut scene = Scene::start_with(fault_server::ROLE, NO_PINGS, client_flags);
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
    let mut scene = Scene::start(roles::SERVER, FAST_HEARTBEAT);
    for offset in [0, 170, 340] {
        sleep(ms(offset));
        scene.layered.stop();
        sleep((FAST_HEARTBEAT.interval + FAST_HEARTBEAT.timeout) * 3);
        scene.victim.drain_pings();
        scene.layered.signal(Signal::SIGCONT);
        // The server sends a new ping before it evicts.
        scene.victim.expect_ping();
        scene.layered.listen_for(FAST_HEARTBEAT.bound() * 2);
        scene.no_client_was_evicted();
    }
    scene.victim.echo("I was never away");
    scene.neighbour.echo("nor was I");
    println!("SIGSTOP of the server, 3 times: no client evicted");
}

/// Both ends are suspended with a ping unanswered, and the server resumes first: it must send a new
/// ping.
fn suspended() {
    let mut scene = Scene::start(roles::SERVER, SLOW_HEARTBEAT);
    scene.last_sign_of_life();
    scene.victim.stop();
    // The ping is sent and not answered.
    sleep(SLOW_HEARTBEAT.interval + SLOW_HEARTBEAT.timeout / 2);
    scene.layered.stop();
    sleep(SLOW_HEARTBEAT.timeout * 2);
    scene.layered.signal(Signal::SIGCONT);
    sleep(SLOW_HEARTBEAT.timeout / 4);
    scene.victim.signal(Signal::SIGCONT);
    scene.layered.listen_for(SLOW_HEARTBEAT.bound() + ALLOWANCE);
    scene.no_client_was_evicted();
    scene.victim.echo("good morning");
    scene.neighbour.echo("good morning");
    println!("both ends suspended: no client evicted");
}

// The link is lost while the server sends a message.

/// `write_timeout` of the server.
const WRITE_TIMEOUT: Duration = ms(2000);

/// Without pings: the stalled write is the only sign.
fn lost_link() {
    link_lost_within_a_message(NO_PINGS, &["write_stalled"]);
}

/// With pings, unless none can be sent within the message.
fn lost_link_with_pings() {
    link_lost_within_a_message(LONG_TIMEOUT, &["write_stalled", "heartbeat_timeout"]);
}

fn link_lost_within_a_message(times: Times, reasons: &[&str]) {
    let stall = WRITE_TIMEOUT.as_millis().to_string();
    let flags = ["--write-timeout-ms", &stall];
    let mut scene = Scene::with_flags(fault_server::ROLE, times, &flags, &[]);
    // Slow enough for the fault to fall into a message.
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
        "{eviction:?} before the link was lost"
    );
    let took = eviction.at - scene.struck;
    // Before the stall is reported, the write is retried for 100 ms.
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
