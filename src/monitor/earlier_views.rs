//! What the kernel showed at the earlier views of a wait, and how the bytes ahead drain.

use std::num::NonZeroU32;

use super::kernel_view::KernelView;
use super::moment::Moment;

/// One part in this many of the bytes that are ahead at the first view must drain between any two
/// views of a wait that follow one another.
pub(super) const MAX_DRAIN_STEPS: u32 = 64;

/// How often verdicts are postponed in one silence of the peer, or in the wait of one write, however
/// long the peer's kernel acknowledges: once at the first view, and after each step.
pub(super) const MAX_POSTPONEMENTS: u8 = MAX_DRAIN_STEPS as u8 + 1;

/// What earlier views have shown in the present waits. The default is none.
#[derive(Clone, Debug, Default)]
pub(super) struct EarlierViews {
    /// How the bytes ahead of the pings drain, in the current silence of the peer.
    pub(super) pings: Drain,
    /// The verdict on a ping that arrived late was postponed in the current silence.
    late_arrival: bool,
    /// How many segments with data had arrived at the last view in the current silence, if no byte
    /// behind the full read-ahead buffer had.
    pub(super) nothing_arrived: Option<u32>,
    /// How often the peer was pinged again since such a number had changed.
    pub(super) repeats: u8,
    /// How the bytes ahead of the write drain that was refused at this moment.
    pub(super) write: Option<(Moment, Drain)>,
}

impl EarlierViews {
    /// The peer is alive: ends the current silence.
    pub(super) fn on_proof_of_life(&mut self) {
        *self = Self {
            write: self.write,
            ..Self::default()
        };
    }

    /// Another ping follows in the same silence. Other bytes are ahead of it.
    pub(super) fn on_ping_again(&mut self) {
        self.pings.step = None;
    }

    /// Whether a ping that has reached the peer's kernel postpones a verdict: it came late if it was
    /// behind other bytes at an earlier view, or if the `path_is_slow`. Once in a silence.
    pub(super) fn arrival_postpones(&mut self, path_is_slow: bool, progress: Progress) -> bool {
        let was_behind = self.pings.step.take().is_some();
        self.pings.last = progress;
        let postpones = (was_behind || path_is_slow) && !self.late_arrival && self.pings.count();
        self.late_arrival |= postpones;
        postpones
    }
}

/// Up to where the peer's kernel had the outbound bytes at a view: the low half of their number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    acknowledged: u32,
    /// The same with those that were received behind a gap: an estimate.
    received: u32,
}

impl Progress {
    /// `sent` is the low half of the number of outbound bytes.
    pub(super) fn of(view: &KernelView, sent: u32) -> Self {
        let acknowledged = sent.wrapping_sub(view.unacknowledged);
        Self {
            acknowledged,
            received: acknowledged.wrapping_add(view.received_behind_gap),
        }
    }

    /// Whether this many bytes have drained since an earlier view. The peer's kernel may have
    /// discarded what it had behind a gap.
    fn exceeds(self, earlier: Self, step: u32) -> bool {
        let drained = step..=u32::MAX / 2;
        drained.contains(&self.acknowledged.wrapping_sub(earlier.acknowledged))
            || drained.contains(&self.received.wrapping_sub(earlier.received))
    }
}

/// How the bytes ahead of a ping or a write drain, from view to view. The default is a wait without a
/// view.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// How many bytes must drain between two views. `None` before the first view of a wait.
    step: Option<NonZeroU32>,
    last: Progress,
    postponements: u8,
}

impl Drain {
    /// Whether a verdict on a wait since `since` is postponed for the `ahead` bytes that it has to
    /// wait for.
    ///
    /// The very first view has nothing to compare with: there an acknowledgement in the wait
    /// suffices.
    pub(super) fn postpones(
        &mut self,
        view: &KernelView,
        since: Moment,
        ahead: u32,
        progress: Progress,
    ) -> bool {
        let is_first = self.step.is_none() && self.postponements == 0;
        let part = NonZeroU32::new(ahead.div_ceil(MAX_DRAIN_STEPS)).unwrap_or(NonZeroU32::MIN);
        let step = *self.step.get_or_insert(part);
        let drains = is_first || progress.exceeds(self.last, step.get());
        self.last = progress;
        // The time restarts at the last acknowledgement, so it must be a later one.
        drains && view.last_ack > since && self.count()
    }

    /// Counts a postponement. False if there were too many.
    fn count(&mut self) -> bool {
        let more = self.postponements < MAX_POSTPONEMENTS;
        self.postponements += u8::from(more);
        more
    }
}
