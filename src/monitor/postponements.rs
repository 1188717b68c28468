//! Verdicts that are postponed for what our kernel knows of the peer.
//!
//! A ping that waits behind unacknowledged bytes has not reached the peer, so its silence proves
//! nothing while they drain. How long a verdict is postponed is bounded by the number of bytes,
//! since an acknowledgement does not show that the program behind the peer's kernel is alive.

use std::time::Duration;

use super::Monitor;
use super::earlier_views::{Drain, MAX_POSTPONEMENTS, Progress};
use super::faults::Faults;
use super::kernel_view::{JudgedView, Kernel, KernelView};
use super::moment::Moment;

impl Monitor {
    /// The view for the verdict on the ping whose timeout runs since `since`.
    pub(super) fn judge_ping(
        &self,
        since: Moment,
        now: Moment,
        kernel: &mut Kernel<'_>,
    ) -> Option<JudgedView> {
        kernel.judge(since, now, |view| self.bytes_ahead_of_ping(view) == 0)
    }

    /// How many bytes the peer's kernel has not acknowledged up to the end of the ping whose
    /// timeout runs.
    fn bytes_ahead_of_ping(&self, view: &KernelView) -> u32 {
        view.unacknowledged.saturating_sub(self.bytes_after_ping())
    }

    /// How many bytes were written after the ping whose timeout runs.
    fn bytes_after_ping(&self) -> u32 {
        self.sent_position().wrapping_sub(self.pings.awaited_end())
    }

    /// The low half of the number of bytes sent: enough for differences within one wait.
    fn sent_position(&self) -> u32 {
        self.counters.bytes_sent as u32
    }

    /// Postpones the verdict on a ping whose timeout runs since `since`, if the kernel shows that
    /// the ping has not reached the peer, or only now. Returns whether it did.
    ///
    /// While bytes are ahead, the time restarts at the last acknowledgement, so a peer that is dead by
    /// then is missed one `timeout` after it. For a ping that arrived late it restarts at `now`.
    pub(super) fn postpone_for_delivery(
        &mut self,
        now: Moment,
        since: Moment,
        timeout: Duration,
        view: &KernelView,
    ) -> bool {
        let ahead = self.bytes_ahead_of_ping(view);
        let progress = Progress::of(view, self.sent_position());
        let postponed_to = if ahead > 0 {
            let drain = &mut self.faults().earlier_views.pings;
            let drains = drain.postpones(view, since, ahead, progress);
            drains.then_some(view.last_ack)
        } else {
            let rtt = Duration::from_micros(view.rtt_micros.unwrap_or(0).into());
            let path_is_slow = rtt > timeout / 4;
            let views = &mut self.faults().earlier_views;
            let late = views.arrival_postpones(path_is_slow, progress);
            late.then_some(now)
        };
        if let Some(restart) = postponed_to {
            self.pings.extend(restart);
        }
        postponed_to.is_some()
    }

    /// Records how many segments with data have arrived, if no byte behind the full read-ahead
    /// buffer has. Returns whether the verdict is postponed for that: this was another number at the
    /// last view.
    ///
    /// Our kernel may have dropped the pong, or wait for bytes before it. The peer's kernel repeats
    /// those. But it may also repeat others for ever.
    pub(super) fn postpone_for_segments(&mut self, nothing_arrived: Option<u32>) -> bool {
        let views = &mut self.faults().earlier_views;
        let before = std::mem::replace(&mut views.nothing_arrived, nothing_arrived);
        let postpones = nothing_arrived.is_some()
            && nothing_arrived != before
            && views.repeats < MAX_POSTPONEMENTS;
        views.repeats += u8::from(postpones);
        postpones
    }

    /// Postpones the verdict on a stalled write while the bytes ahead of it drain: the transport
    /// has room again only when a third of its buffer has. Returns whether it did.
    pub(super) fn postpone_for_drain(&mut self, view: &KernelView) -> bool {
        let progress = Progress::of(view, self.sent_position());
        let Faults {
            blocked,
            earlier_views,
            ..
        } = self.faults();
        let Some(blocked) = blocked else {
            return false;
        };
        let same_wait = earlier_views
            .write
            .filter(|(refused, _)| *refused == blocked.refused);
        let (_, drain) = earlier_views
            .write
            .insert(same_wait.unwrap_or((blocked.refused, Drain::default())));
        let drains = drain.postpones(view, blocked.since, view.unacknowledged, progress);
        if drains {
            *blocked = blocked.restarted(view.last_ack);
        }
        drains
    }
}
