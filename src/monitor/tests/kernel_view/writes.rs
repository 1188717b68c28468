//! Writes that the transport refuses while the bytes ahead of them drain.

use super::*;

/// A write is refused from the beginning; `write_timeout` is 5 s.
fn blocked(kernel: KernelView) -> Simulation {
    blocked_with(kernel, |_| {})
}

fn blocked_with(kernel: KernelView, change: impl FnOnce(&mut HeartbeatPolicy)) -> Simulation {
    let mut sim = asked_with(kernel, |policy| {
        policy.interval = ms(10_000_000);
        policy.write_timeout = Some(ms(5_000));
        change(policy);
    });
    sim.io_state.can_inject = false;
    sim.refuse_writes = true;
    sim.monitor.refused(sim.now);
    sim
}

const STALLED: Act = End(Reason::WriteStalled);

#[test]
fn a_write_is_not_stalled_while_the_bytes_ahead_of_it_drain() {
    let mut sim = blocked(queue(2_000_000, 4_900));
    sim.run_until(5_000).assert_log(&[(5_000, Retry)]);
    sim.show(9_900, queue(1_900_000, 9_800));
    // Counted from the last acknowledgement.
    sim.run_until(14_800).assert_log(&[
        (5_000, Retry),
        (9_900, Retry),
        (14_800, Retry),
        (14_800, STALLED),
    ]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Silent);
}

#[test]
fn a_write_to_a_peer_that_reads_nothing_is_stalled_one_timeout_later() {
    let mut sim = blocked(closed(2_000_000, 4_500));
    sim.show(9_500, closed(2_000_000, 9_000)).assert_log(&[
        (5_000, Retry),
        (9_500, Retry),
        (9_500, STALLED),
    ]);
    assert_eq!(sim.peer_kernel(), PeerKernel::Acknowledges);
}

#[test]
fn the_bytes_ahead_of_an_earlier_write_are_not_compared() {
    let mut sim = blocked(queue(2_000_000, 4_900));
    sim.run_until(6_000).assert_log(&[(5_000, Retry)]);
    sim.monitor.accepted(sim.now, true, &sim.policy);
    sim.kernel = Some(queue(2_000_000, 10_900));
    sim.run_until(15_899)
        .assert_log(&[(5_000, Retry), (11_000, Retry)]);
}

/// The peer's kernel has taken the last byte just after the transport refused.
#[test]
fn a_write_behind_an_empty_queue_is_not_stalled() {
    let mut sim = blocked(queue(0, 5_000));
    sim.run_until(9_999).assert_log(&[(5_000, Retry)]);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn a_kernel_that_acknowledges_forever_postpones_a_write_stall_for_a_bounded_time() {
    let bytes = MAX_DRAIN_STEPS * 1_000;
    let mut sim = blocked(idle_kernel());
    let end = 5_000 * (1 + u64::from(MAX_POSTPONEMENTS));
    for millis in 1..end {
        let steps = (millis / 5_000).saturating_sub(1);
        sim.kernel = Some(queue(bytes - 1_000 * steps as u32, millis));
        sim.run_until(millis);
        assert!(!sim.monitor.has_ended(), "{millis}");
    }
    sim.run_until(end);
    assert_eq!(sim.log.last(), Some(&(end, STALLED)));
}

#[test]
fn a_pause_of_the_runtime_after_a_postponed_write_stall_still_counts() {
    let mut sim = blocked(queue(2_000_000, 4_900));
    sim.run_until(5_000);
    // The time is over at 9,900.
    sim.pause_until(60_000);
    sim.run_until(64_999).assert_log(&[(5_000, Retry)]);
    sim.run_until(65_000)
        .assert_log(&[(5_000, Retry), (65_000, Retry), (65_000, STALLED)]);
}

#[test]
fn a_write_stall_and_a_ping_due_in_one_poll_ask_once() {
    // (when the bytes ahead were last acknowledged, what is due then)
    for (last_ack, verdict) in [(13_000, None), (9_000, Some(STALLED))] {
        let mut sim = blocked_with(queue(2_000_000, last_ack), |policy| {
            policy.interval = ms(10_000);
            policy.timeout = ms(4_000);
            policy.write_timeout = None;
        });
        sim.refuse_writes = false;
        sim.monitor.accepted(sim.now, false, &sim.policy);
        sim.io_state.can_inject = true;
        sim.run_until(10_000).assert_log(&[(10_000, Ping)]);
        // Both times begin with the ping.
        sim.monitor.refused(sim.now);
        sim.refuse_writes = true;
        sim.io_state.can_inject = false;
        sim.policy = heartbeat(|policy| policy.write_timeout = Some(ms(4_000)));
        sim.run_until(14_000);
        let mut log = vec![(10_000, Ping), (14_000, Retry)];
        log.extend(verdict.map(|verdict| (14_000, verdict)));
        sim.assert_log(&log);
        if verdict.is_none() {
            // Each wait has kept its own drain.
            sim.show(17_000, queue(1_000_000, 16_900));
            sim.show(20_900, queue(900_000, 20_800));
            assert!(!sim.monitor.has_ended(), "{:?}", sim.log);
        }
    }
}
