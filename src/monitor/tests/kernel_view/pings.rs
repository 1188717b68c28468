//! Pings that wait behind other bytes.

use super::*;

#[test]
fn a_delivered_ping_without_a_pong_is_missed() {
    let mut sim = asked(queue(0, 11_001));
    sim.run_until(14_000)
        .assert_log(&[(10_000, Ping), (14_000, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

#[test]
fn a_ping_to_which_nothing_comes_back_is_missed() {
    for last_ack in [9_000, 10_000] {
        let mut sim = asked(queue(10, last_ack));
        sim.run_until(14_000)
            .assert_log(&[(10_000, Ping), (14_000, DEAD)]);
        assert_eq!(sim.peer_kernel(), PeerKernel::Silent);
    }
}

#[test]
fn each_missed_ping_asks_the_kernel_again() {
    let mut sim = asked_with(queue(0, 10_001), |policy| policy.missed_pings = 2);
    sim.run_until(14_000);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
    sim.kernel = Some(queue(10, 13_000));
    sim.run_until(18_000).assert_log(&[
        (10_000, Ping),
        (14_000, Ping),
        (18_000, End(Reason::HeartbeatTimeout { missed: 2 })),
    ]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Silent);
}

#[test]
fn a_ping_behind_a_queue_that_drains_is_not_missed() {
    let mut sim = asked(queue(2_000_000, 13_990));
    sim.run_until(14_000);
    sim.show(17_990, queue(1_000_000, 17_980));
    sim.show(21_980, queue(10, 21_980))
        .assert_log(&[(10_000, Ping)]);
    assert!(sim.receive_pong(0));
    sim.run_until(31_979).assert_log(&[(10_000, Ping)]);
}

#[test]
fn a_ping_that_was_behind_a_queue_has_a_whole_timeout_once_it_is_delivered() {
    let mut sim = asked(queue(2_000_000, 14_000));
    sim.run_until(14_000);
    sim.kernel = Some(queue(0, 17_999));
    sim.run_until(21_999).assert_log(&[(10_000, Ping)]);
    sim.run_until(22_000)
        .assert_log(&[(10_000, Ping), (22_000, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

#[test]
fn bytes_that_were_written_after_the_ping_do_not_delay_it() {
    for (unacknowledged, end) in [(50, 14_000), (51, 16_000)] {
        let mut sim = asked(queue(unacknowledged, 12_000));
        sim.run_until(10_000);
        sim.monitor.sent(50);
        sim.run_until(14_000);
        sim.kernel = Some(queue(unacknowledged, 17_999));
        sim.run_until(end)
            .assert_log(&[(10_000, Ping), (end, DEAD)]);
    }
}

/// The kernel also counts the response head of the upgrade, which the monitor does not.
#[test]
fn bytes_from_before_the_upgrade_are_ahead_of_the_ping() {
    let mut sim = asked(queue(200, 14_000));
    sim.run_until(14_000);
    // 3 of the 200 bytes are less than a 64th, 4 are not.
    sim.show(18_000, queue(196, 18_000));
    sim.show(22_000, queue(193, 22_000))
        .assert_log(&[(10_000, Ping), (22_000, DEAD)]);
}

#[test]
fn the_number_of_bytes_sent_may_exceed_32_bits() {
    let mut sim = asked(queue(2_000_000, 14_000));
    sim.monitor.sent((1 << 32) - 5);
    sim.run_until(10_000);
    sim.monitor.sent(50);
    sim.run_until(14_000);
    sim.show(18_000, queue(1_000_000, 18_000));
    sim.show(22_000, queue(50, 22_000));
    sim.run_until(26_000)
        .assert_log(&[(10_000, Ping), (26_000, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

#[test]
fn on_a_slow_path_a_delivered_ping_has_one_more_timeout() {
    // (round trip in ms, time of the verdict)
    for (rtt, end) in [(1_000, 14_000), (1_001, 18_000)] {
        let mut sim = asked(KernelView {
            rtt_micros: Some(rtt * 1_000),
            ..queue(0, 10_500)
        });
        sim.run_until(end)
            .assert_log(&[(10_000, Ping), (end, DEAD)]);
    }
}

/// The postponement for the first ping does not use up those for the second.
#[test]
fn after_a_ping_that_arrived_late_the_next_one_waits_for_its_own_bytes() {
    let slow = KernelView {
        rtt_micros: Some(1_001_000),
        ..queue(500, 13_900)
    };
    let mut sim = asked_with(slow, |policy| policy.missed_pings = 2);
    sim.run_until(10_000);
    sim.monitor.sent(1_000);
    // Late; then the first miss.
    sim.run_until(17_000).monitor.sent(1_000_000);
    sim.show(18_000, queue(1_000_000, 17_900))
        .assert_log(&[(10_000, Ping), (18_000, Ping)]);
    sim.show(22_000, queue(1_000_010 - 64_000, 21_900));
    sim.show(25_900, queue(1_000_010 - 128_000, 25_900));
    sim.show(29_900, queue(10, 29_900))
        .assert_log(&[(10_000, Ping), (18_000, Ping)]);
    assert!(sim.receive_pong(1));
}

/// A segment is lost on a path with a long queue: until it arrives, others do.
#[test]
fn bytes_that_are_received_behind_a_gap_drain() {
    let behind_gap = |bytes, last_ack| KernelView {
        received_behind_gap: bytes,
        retransmitting: true,
        ..queue(640_000, last_ack)
    };
    let mut sim = asked(behind_gap(0, 13_990));
    sim.show(17_990, behind_gap(10_000, 17_990));
    sim.show(21_990, behind_gap(20_000, 21_990));
    // Less than a 64th.
    sim.show(25_990, behind_gap(29_000, 25_990))
        .assert_log(&[(10_000, Ping), (25_990, DEAD)]);
}

#[test]
fn bytes_that_the_peers_kernel_discards_do_not_drain() {
    let mut sim = asked(queue(640_000, 13_990));
    sim.show(17_990, queue(650_000, 17_990))
        .assert_log(&[(10_000, Ping), (17_990, DEAD)]);
}

#[test]
fn a_queue_that_stops_draining_is_a_dead_peer_one_timeout_after_its_last_acknowledgement() {
    let mut sim = asked(queue(2_000_000, 13_000));
    sim.run_until(17_000)
        .assert_log(&[(10_000, Ping), (17_000, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Silent);
}

/// The ages are those at the system call, and the poll's `now` is older.
#[test]
fn acknowledgements_after_the_start_of_the_poll_count() {
    let mut sim = asked(queue(2_000_000, 14_700));
    sim.run_until(18_699).assert_log(&[(10_000, Ping)]);
    sim.run_until(18_700)
        .assert_log(&[(10_000, Ping), (18_700, DEAD)]);
}

/// A peer that receives nothing retransmits its own bytes, which carry acknowledgement numbers.
#[test]
fn segments_that_acknowledge_nothing_new_postpone_once() {
    let view = |last_ack| KernelView {
        retransmitting: true,
        ..queue(10, last_ack)
    };
    let mut sim = asked(view(13_990));
    sim.show(17_990, view(17_980))
        .assert_log(&[(10_000, Ping), (17_990, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Unknown);
}

/// The peer's window is closed at most moments, and nothing is in flight.
#[test]
fn a_slow_reader_with_nothing_in_flight_is_not_missed() {
    let mut sim = asked(closed(64_000, 13_990));
    sim.run_until(14_000);
    for step in 1..64 {
        let millis = 14_000 + 4_000 * step - 10;
        sim.show(millis, closed(64_000 - 1_000 * step as u32, millis));
    }
    sim.assert_log(&[(10_000, Ping)]);
    assert!(sim.receive_pong(0));
}

#[test]
fn a_stopped_peer_behind_a_closed_window_costs_one_more_timeout() {
    let mut sim = asked(closed(2_000_000, 13_999));
    // It acknowledges the probes of its window.
    sim.show(17_999, closed(2_000_000, 17_000))
        .assert_log(&[(10_000, Ping), (17_999, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

#[test]
fn a_64th_of_the_bytes_must_drain_between_two_views() {
    // (bytes at the first view, at the second, verdict)
    let table = [
        (6_400, 6_300, 22_000),
        (6_400, 6_301, 18_000),
        (6_401, 6_301, 18_000),
        (6_401, 6_300, 22_000),
        (10, 9, 22_000),
        (10, 10, 18_000),
    ];
    for (first, second, end) in table {
        let mut sim = asked(queue(first, 14_000));
        sim.run_until(14_000);
        sim.show(18_000, queue(second, 18_000));
        sim.kernel = Some(queue(second, 21_999));
        sim.run_until(end)
            .assert_log(&[(10_000, Ping), (end, DEAD)]);
    }
}

#[test]
fn a_view_from_an_earlier_silence_is_not_compared() {
    let mut sim = asked(queue(2_000_000, 14_000));
    sim.run_until(15_000).receive_frame();
    // No byte has drained since, and at a first view none has to.
    sim.kernel = Some(queue(2_000_010, 29_000));
    sim.run_until(33_000)
        .assert_log(&[(10_000, Ping), (25_000, Ping), (33_000, DEAD)]);
}

#[test]
fn without_a_question_to_the_peers_kernel_its_state_is_unknown() {
    // (sent bytes or probes are unacknowledged, what that shows)
    for (awaits_ack, expected) in [(false, PeerKernel::Unknown), (true, PeerKernel::Silent)] {
        let mut sim = asked(KernelView {
            awaits_ack,
            ..queue(2_000_000, 9_000)
        });
        sim.run_until(14_000)
            .assert_log(&[(10_000, Ping), (14_000, DEAD)]);
        assert_eq!(sim.peer_kernel(), expected);
    }
}

/// The program is stopped, and its kernel acknowledges as little as it may.
#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_kernel_that_acknowledges_slowly_postpones_for_a_bounded_time() {
    let bytes = MAX_DRAIN_STEPS * 1_000;
    let mut sim = asked(idle_kernel());
    let end = 10_000 + 4_000 * (1 + u64::from(MAX_POSTPONEMENTS));
    for millis in 10_000..end {
        let steps = (millis - 10_000) / 4_000;
        let left = bytes - 1_000 * (steps as u32).saturating_sub(1);
        sim.kernel = Some(queue(left, millis));
        sim.run_until(millis).assert_log(&[(10_000, Ping)]);
    }
    sim.run_until(end)
        .assert_log(&[(10_000, Ping), (end, DEAD)]);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn bytes_ahead_of_a_later_ping_in_a_silence_permit_no_more_postponements() {
    let mut sim = asked_with(idle_kernel(), |policy| policy.missed_pings = 2);
    let (first, step) = (6_400, 100);
    // The server keeps writing, and the peer's kernel takes a step of it in each timeout, but for one
    // that it takes in the next. One timeout is that of the first miss.
    let end = 10_000 + 4_000 * (2 + u64::from(MAX_POSTPONEMENTS));
    for millis in 10_000..=end {
        if millis == 100_000 {
            sim.monitor.sent(3_000);
        }
        let written = if millis < 100_000 { 0 } else { 3_000 };
        let stopped = (190_000..194_000).contains(&millis);
        let steps = ((millis - 10_000) / 4_000).saturating_sub(1 + u64::from(stopped));
        sim.kernel = Some(queue(first + written - step * steps as u32, millis));
        sim.run_until(millis);
        assert_eq!(sim.monitor.has_ended(), millis == end, "{millis}");
    }
    sim.assert_log(&[
        (10_000, Ping),
        (190_000, Ping),
        (end, End(Reason::HeartbeatTimeout { missed: 2 })),
    ]);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_kernel_that_drains_nothing_postpones_once() {
    let mut sim = asked(queue(2_000_000, 0));
    for millis in 10_000..18_000 {
        sim.kernel = Some(queue(2_000_000, millis));
        sim.run_until(millis).assert_log(&[(10_000, Ping)]);
    }
    sim.run_until(18_000)
        .assert_log(&[(10_000, Ping), (18_000, DEAD)]);
}

#[test]
fn a_byte_of_the_peer_permits_postponements_again() {
    let mut sim = asked(idle_kernel());
    for round in 1..4 {
        let begun = sim.millis();
        let bytes = MAX_DRAIN_STEPS * 1_000;
        for step in 0..u64::from(MAX_DRAIN_STEPS) {
            let millis = begun + 14_000 + 4_000 * step;
            sim.show(millis, queue(bytes - 1_000 * step as u32, millis));
        }
        assert_eq!(sim.log.len(), round, "one ping: {:?}", sim.log);
        sim.receive_frame();
    }
}

#[test]
fn a_requested_ping_while_the_timeout_runs_does_not_change_what_is_awaited() {
    let mut sim = asked(queue(10, 11_500));
    sim.run_until(12_000);
    sim.monitor.sent(1_000_000);
    sim.monitor.request_ping();
    sim.poll();
    // The first ping is delivered, the requested one is not.
    sim.kernel = Some(queue(1_000_010, 11_500));
    sim.run_until(14_000)
        .assert_log(&[(10_000, Ping), (12_000, Ping), (14_000, DEAD)]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

proptest! {
    /// Whatever the peer's kernel does, a peer that sends nothing is evicted.
    #[test]
    fn a_silent_peer_is_evicted_whatever_its_kernel_acknowledges(
        missed_pings in 1..4_u32,
        views in proptest::collection::vec(kernel_views(), 1..20),
        sent in 0..3_000_usize,
    ) {
        let mut sim = asked_with(views[0], |policy| policy.missed_pings = missed_pings);
        let bound = 10_000 + 4_000 * (u64::from(missed_pings) + u64::from(MAX_POSTPONEMENTS));
        let mut views = views.iter().cycle();
        while sim.deadline() <= at(bound) && !sim.monitor.has_ended() {
            sim.now = sim.deadline();
            sim.kernel = views.next().map(|view| view.aged(sim.now));
            sim.poll();
            sim.monitor.sent(sent);
        }
        let reason = Reason::HeartbeatTimeout { missed: missed_pings };
        prop_assert_eq!(sim.monitor.reason(), Some(reason));
    }

    /// If the peer's kernel is silent too, the bound is that without the kernel, counted from its
    /// last acknowledgement.
    #[test]
    fn a_dead_host_is_found_in_time(
        missed_pings in 1..4_u32,
        last_ack in 0..20_000_u64,
        unacknowledged in 1..3_000_000_u32,
        queued in 0..1_000_000_usize,
    ) {
        let mut kernel = queue(unacknowledged, 0);
        let mut sim = asked_with(kernel, |policy| policy.missed_pings = missed_pings);
        let bound = last_ack.max(10_000) + 4_000 * u64::from(missed_pings);
        while sim.deadline() <= at(bound) && !sim.monitor.has_ended() {
            sim.now = sim.deadline();
            kernel.last_ack = at(last_ack).min(sim.now);
            // The bytes after the ping are unacknowledged as well, and so is the ping.
            kernel.unacknowledged = unacknowledged + queued as u32;
            sim.kernel = Some(kernel);
            sim.poll();
            if sim.log.len() == 1 && queued > 0 {
                sim.monitor.sent(1);
            }
        }
        let reason = Reason::HeartbeatTimeout { missed: missed_pings };
        prop_assert_eq!(sim.monitor.reason(), Some(reason));
    }

    /// However long the bytes ahead of its ping take, if a 64th of them drains in each `timeout`, and
    /// some are left at the first view.
    #[test]
    #[cfg_attr(miri, ignore = "minutes for each case")]
    fn a_peer_that_answers_in_time_once_it_is_asked_is_never_missed(
        ahead in 64_000..3_000_000_u64,
        // In thousandths of the whole: the last view of a `timeout` may be up to a second old.
        drained_in_timeout in 22..1_000_u64,
        ack_interval in 1..1_000_u64,
        delay in 0..4_000_u64,
    ) {
        let mut sim = asked(queue(0, 0));
        sim.run_until(10_000);
        let mut kernel = queue(u32::try_from(ahead + 10).unwrap(), 10_000);
        let mut delivered = None;
        for millis in 10_001..400_000 {
            let passed = millis - 10_000;
            if delivered.is_none() && passed % ack_interval == 0 {
                let drained = ahead * drained_in_timeout * passed / 4_000_000;
                let left = (ahead + 10).saturating_sub(drained);
                kernel = queue(u32::try_from(left).unwrap(), millis);
                delivered = (left == 0).then_some(millis);
            }
            if delivered.is_some_and(|delivered| millis == delivered + delay) {
                break;
            }
            sim.kernel = Some(kernel);
            sim.run_until(millis);
            prop_assert!(!sim.monitor.has_ended(), "{:?} {:?}", sim.log, kernel);
        }
        prop_assert_eq!(sim.monitor.stats().missed_pings(), 0);
        prop_assert!(delivered.is_some(), "all drains");
    }
}
