//! Tests of the kernel's view at a verdict: what it postpones, for how long, and what it shows.

mod pings;
mod unread_bytes;
mod writes;

use proptest::prelude::*;

use super::Act::{End, Ping, Retry};
use super::random::kernel_views;
use super::*;
use crate::monitor::earlier_views::{MAX_DRAIN_STEPS, MAX_POSTPONEMENTS};

const DEAD: Act = End(Reason::HeartbeatTimeout { missed: 1 });

/// Pings at 10 s, whose timeout is 4 s.
fn asked(kernel: KernelView) -> Simulation {
    asked_with(kernel, |_| {})
}

fn asked_with(kernel: KernelView, change: impl FnOnce(&mut HeartbeatPolicy)) -> Simulation {
    let mut sim = Simulation::new(heartbeat(change));
    sim.kernel = Some(kernel);
    sim
}

/// `unacknowledged` bytes wait, some of which are sent, and the last acknowledgement was at this
/// millisecond.
fn queue(unacknowledged: u32, last_ack: u64) -> KernelView {
    KernelView {
        unacknowledged,
        awaits_ack: unacknowledged > 0,
        last_ack: at(last_ack),
        ..idle_kernel()
    }
}

/// The same with a closed window: nothing is sent, and the acknowledgement was that of a probe.
fn closed(unacknowledged: u32, last_ack: u64) -> KernelView {
    KernelView {
        awaits_ack: false,
        ..queue(unacknowledged, last_ack)
    }
}

impl Simulation {
    fn peer_kernel(&self) -> PeerKernel {
        self.judged.expect("the kernel was asked").peer_kernel
    }

    /// Advances to this millisecond, where the kernel shows `view`.
    fn show(&mut self, millis: u64, view: KernelView) -> &mut Self {
        self.run_until(millis - 1);
        self.kernel = Some(view);
        self.run_until(millis)
    }
}
