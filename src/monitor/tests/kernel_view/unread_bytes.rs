//! Pongs that may wait behind bytes that the handler does not read.

use super::*;

/// The read-ahead buffer is full since millisecond 1,000, when the last byte was read.
fn unread(kernel: KernelView) -> Simulation {
    unread_with(kernel, |_| {})
}

fn unread_with(kernel: KernelView, change: impl FnOnce(&mut HeartbeatPolicy)) -> Simulation {
    let mut sim = asked_with(kernel, change);
    sim.run_until(1_000);
    sim.receive_frame().monitor.on_backlog(at(1_000));
    sim.io_state.read_ahead_full = true;
    sim
}

/// The kernel that acknowledges, and the last data of whose peer arrived at this millisecond.
fn arrived(last_data: u64) -> KernelView {
    KernelView {
        last_data: at(last_data),
        ..queue(0, 12_500)
    }
}

#[test]
fn behind_unread_bytes_a_peer_that_could_send_and_twice_does_not_is_dead() {
    let mut sim = unread(arrived(1_000));
    sim.run_until(19_000)
        .assert_log(&[(11_000, Ping), (15_000, Ping), (19_000, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

proptest! {
    /// Whatever else the kernel shows: nothing arrives from a peer that could send.
    #[test]
    fn a_dead_peer_behind_unread_bytes_is_found_in_time(
        missed_pings in 1..4_u32,
        views in proptest::collection::vec(kernel_views(), 1..20),
    ) {
        let mut sim = unread_with(views[0], |policy| policy.missed_pings = missed_pings);
        let bound = 11_000 + 4_000 * (u64::from(missed_pings) + 1);
        let mut views = views.iter().cycle();
        while sim.deadline() <= at(bound) && !sim.monitor.has_ended() {
            sim.now = sim.deadline();
            sim.kernel = views.next().map(|view| KernelView {
                unacknowledged: 0,
                last_data: at(1_000),
                data_segments: 0,
                rtt_micros: view.rtt_micros.map(|rtt| rtt / 5),
                peer_may_send: true,
                ..view.aged(sim.now)
            });
            sim.poll();
        }
        let reason = Reason::HeartbeatTimeout { missed: missed_pings };
        prop_assert_eq!(sim.monitor.reason(), Some(reason));
    }

    /// Its pong may wait behind a closed window, however long it does.
    #[test]
    fn a_peer_that_may_be_unable_to_send_is_never_missed(
        views in proptest::collection::vec(kernel_views(), 1..20),
    ) {
        let mut sim = unread(views[0]);
        let mut views = views.iter().cycle();
        while sim.now < at(300_000) {
            sim.now = sim.deadline();
            sim.kernel = views.next().map(|view| KernelView {
                peer_may_send: false,
                // Not silent: an acknowledgement in the last three quarters of the wait.
                last_ack: sim.now.before(ms(2_000)),
                ..view.aged(sim.now)
            });
            sim.poll();
            prop_assert!(!sim.monitor.has_ended(), "{:?}", sim.log);
        }
    }
}

#[test]
fn behind_unread_bytes_only_the_first_miss_takes_two_views() {
    let mut sim = unread_with(arrived(1_000), |policy| policy.missed_pings = 3);
    sim.run_until(27_000).assert_log(&[
        (11_000, Ping),
        (15_000, Ping),
        (19_000, Ping),
        (23_000, Ping),
        (27_000, End(Reason::HeartbeatTimeout { missed: 3 })),
    ]);
}

/// The kernel has dropped the pong for lack of memory, with an open window.
#[test]
fn a_pong_that_arrives_after_the_first_view_is_a_sign_of_life() {
    let mut sim = unread(arrived(1_000));
    sim.run_until(15_000);
    sim.kernel = Some(arrived(16_000));
    sim.run_until(25_999)
        .assert_log(&[(11_000, Ping), (15_000, Ping)]);
    // The next silence has a first view again.
    sim.run_until(34_000).assert_log(&[
        (11_000, Ping),
        (15_000, Ping),
        (26_000, Ping),
        (30_000, Ping),
        (34_000, DEAD),
    ]);
}

/// Our kernel drops each pong, or it waits for bytes that the network has lost.
#[test]
fn while_segments_arrive_a_peer_behind_unread_bytes_is_not_missed() {
    let mut sim = unread(arrived(1_000));
    for (seconds, data_segments) in [(15, 1), (19, 2), (23, u32::MAX), (27, 0)] {
        let view = KernelView {
            data_segments,
            ..arrived(1_000)
        };
        sim.show(seconds * 1_000, view);
        assert!(!sim.monitor.has_ended(), "{seconds}");
    }
    sim.run_until(31_000);
    assert_eq!(
        sim.log.last(),
        Some(&(31_000, DEAD)),
        "none since the last view"
    );
}

/// A keepalive probe may carry a byte of old data (RFC 1122 section 4.2.3.6).
#[test]
fn segments_that_arrive_forever_postpone_for_a_bounded_time() {
    let mut sim = unread(arrived(1_000));
    let end = 15_000 + 4_000 * u64::from(MAX_POSTPONEMENTS);
    for millis in (15_000..=end).step_by(4_000) {
        let view = KernelView {
            data_segments: millis as u32,
            ..arrived(1_000)
        };
        sim.show(millis, view);
        assert_eq!(sim.monitor.has_ended(), millis == end, "{millis}");
    }
    assert_eq!(sim.log.last(), Some(&(end, DEAD)));
}

/// The first view, behind a full read-ahead buffer, shows an outage. The ping after it has a first
/// view of its own.
#[test]
fn a_ping_that_follows_without_a_miss_waits_for_its_own_bytes() {
    let mut sim = unread(KernelView {
        last_data: at(1_000),
        ..queue(2_000_000, 10_000)
    });
    sim.run_until(15_000)
        .assert_log(&[(11_000, Ping), (15_000, Ping)]);
    // Less than a 64th.
    sim.show(
        19_000,
        KernelView {
            last_data: at(1_000),
            ..queue(1_980_000, 18_900)
        },
    );
    assert!(!sim.monitor.has_ended());
}

#[test]
fn two_views_without_data_must_follow_one_another() {
    let closed_to_peer = KernelView {
        peer_may_send: false,
        ..arrived(1_000)
    };
    let mut sim = unread(arrived(1_000));
    sim.run_until(15_000);
    sim.show(19_000, closed_to_peer);
    sim.show(23_000, arrived(1_000));
    assert!(!sim.monitor.has_ended());
    sim.run_until(27_000);
    assert_eq!(sim.log.last(), Some(&(27_000, DEAD)));
}

#[test]
fn bytes_that_arrive_behind_unread_bytes_are_a_sign_of_life_at_their_time() {
    // (arrival of the last byte, next ping)
    for (last_data, ping) in [(11_000, 21_000), (14_500, 24_500)] {
        let mut sim = unread(arrived(last_data));
        let (again, dead) = (ping + 4_000, ping + 8_000);
        sim.run_until(dead).assert_log(&[
            (11_000, Ping),
            (ping, Ping),
            (again, Ping),
            (dead, DEAD),
        ]);
    }
}

/// The layer cannot see what they are, and the pong may be among them.
#[test]
fn with_matching_pong_bytes_behind_unread_bytes_are_a_sign_of_life_too() {
    let matching = |policy: &mut HeartbeatPolicy| policy.proof_of_life = ProofOfLife::MatchingPong;
    let mut sim = unread_with(arrived(14_500), matching);
    // The frame that was read proves nothing: the interval runs from the upgrade.
    sim.run_until(24_499).assert_log(&[(10_000, Ping)]);
    sim.run_until(32_500).assert_log(&[
        (10_000, Ping),
        (24_500, Ping),
        (28_500, Ping),
        (32_500, DEAD),
    ]);
}

#[test]
fn a_pong_behind_unread_bytes_is_a_sign_of_life_despite_the_kernels_coarse_clock() {
    // (the kernel's time of the pong, whether it is older than the ping)
    for (last_data, dead) in [(10_980, false), (10_979, true)] {
        let mut sim = unread(arrived(last_data));
        sim.run_until(19_000);
        assert_eq!(sim.monitor.has_ended(), dead, "{last_data}");
    }
}

/// The transport confirms the flush late, and the pong was faster.
#[test]
fn a_pong_from_before_the_flush_is_a_sign_of_life() {
    for (last_data, dead) in [(10_980, false), (10_979, true)] {
        let mut sim = unread(arrived(last_data));
        sim.auto_flush = false;
        sim.run_until(11_500);
        sim.auto_flush = true;
        sim.flush_ping();
        sim.run_until(19_500);
        assert_eq!(sim.monitor.has_ended(), dead, "{last_data}");
    }
}

#[test]
fn a_pong_behind_unread_bytes_counts_if_the_timeout_has_restarted_since() {
    let mut sim = unread(arrived(11_001));
    sim.run_until(12_000).monitor.refused(at(12_000));
    // The peer has drained bytes of the handler's.
    sim.run_until(13_000);
    sim.monitor.accepted(sim.now, false, &sim.policy);
    sim.run_until(21_000).assert_log(&[(11_000, Ping)]);
    sim.run_until(29_001).assert_log(&[
        (11_000, Ping),
        (21_001, Ping),
        (25_001, Ping),
        (29_001, DEAD),
    ]);
}

#[test]
fn a_pong_from_before_a_requested_ping_counts_while_the_timeout_runs() {
    let mut sim = unread(arrived(11_001));
    sim.run_until(12_000);
    sim.monitor.request_ping();
    sim.poll();
    sim.run_until(15_000)
        .assert_log(&[(11_000, Ping), (12_000, Ping)]);
    assert!(!sim.monitor.awaits_answer(), "a sign of life");
}

/// A documented limit: a program that stops behind a closed window is not found. Nor is one that has
/// ended its direction, behind bytes that the handler does not read: the kernel shows both alike.
#[test]
fn behind_a_closed_receive_window_a_peer_may_be_unable_to_answer() {
    let mut kernel = KernelView {
        peer_may_send: false,
        ..arrived(1_000)
    };
    let mut sim = unread(kernel);
    sim.run_until(15_000);
    assert_eq!(
        sim.widened.get(),
        1,
        "before the ping that announces the window"
    );
    sim.run_until(1_000_000);
    assert!(sim.log.iter().all(|(_, act)| *act == Ping));
    assert_eq!(
        sim.widened.get() as usize,
        sim.log.len() - 1,
        "once at each view"
    );
    // Its kernel could acknowledge the ping.
    kernel.unacknowledged = 10;
    kernel.awaits_ack = true;
    sim.kernel = Some(kernel);
    let end = sim.millis();
    sim.run_until(end + 8_000);
    assert_eq!(
        sim.monitor.reason(),
        Some(Reason::HeartbeatTimeout { missed: 1 })
    );
    assert_eq!(sim.peer_kernel(), PeerKernel::Silent);
}

#[test]
fn behind_a_closed_receive_window_a_slow_path_is_not_a_dead_one() {
    let mut sim = unread(KernelView {
        peer_may_send: false,
        ..queue(2_000_000, 14_500)
    });
    sim.run_until(15_000)
        .assert_log(&[(11_000, Ping), (15_000, Ping)]);
}

/// Packets are lost, but the peer's kernel acknowledges others.
#[test]
fn behind_a_closed_receive_window_a_retransmission_is_not_silence() {
    let mut sim = unread(KernelView {
        peer_may_send: false,
        retransmitting: true,
        ..queue(2_000_000, 14_500)
    });
    sim.run_until(15_000);
    assert_eq!(sim.peer_kernel(), PeerKernel::Unknown);
    sim.assert_log(&[(11_000, Ping), (15_000, Ping)]);
}

#[test]
fn after_a_pause_of_the_runtime_a_peer_behind_unread_bytes_is_pinged_once_more() {
    let mut sim = unread(arrived(1_000));
    sim.run_until(11_000);
    sim.pause_until(60_000);
    sim.run_until(68_000).assert_log(&[
        (11_000, Ping),
        (60_000, Ping),
        (64_000, Ping),
        (68_000, DEAD),
    ]);
}
