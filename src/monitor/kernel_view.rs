//! What our kernel knows of the peer at a verdict, and what follows from it.
//!
//! A ping that waits behind unacknowledged bytes has not reached the peer, so its silence proves
//! nothing while they drain. How long a verdict is postponed is bounded by the number of bytes,
//! since an acknowledgement does not show that the program behind the peer's kernel is alive.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Monitor;
use super::faults::Faults;
use super::moment::Moment;
use super::peer_kernel::PeerKernel;

/// One part in this many of the bytes that are ahead at the first view must drain between any two
/// views of a wait that follow one another.
pub(super) const MAX_DRAIN_STEPS: u32 = 64;

/// How often verdicts are postponed in one silence of the peer, or in the wait of one write, however
/// long the peer's kernel acknowledges: once at the first view, and after each step.
pub(super) const MAX_POSTPONEMENTS: u8 = MAX_DRAIN_STEPS as u8 + 1;

/// The kernel counts the age of an arrival in clock ticks of up to 10 ms.
const AGE_TOLERANCE: Duration = Duration::from_millis(20);

/// The state of a TCP connection as our kernel sees it, at one moment.
///
/// The kernel reports how long ago something arrived. The moments are of the driver's clock, read
/// right after the kernel was asked: the driver's `now` may be older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelView {
    /// Bytes that the peer's kernel has not acknowledged, sent or not.
    pub(crate) unacknowledged: u32,
    /// At most how many of them the peer's kernel has received behind a gap (RFC 2018): its segments
    /// count as full ones.
    pub(crate) received_behind_gap: u32,
    /// Sent segments, or several probes in a row, are unacknowledged.
    pub(crate) awaits_ack: bool,
    /// A retransmission timeout has expired since the last new acknowledgement.
    pub(crate) retransmitting: bool,
    /// When the last acknowledgement arrived. It need not acknowledge anything new: a peer that
    /// receives nothing retransmits its own bytes. Data in order that acknowledges nothing new need
    /// not count.
    pub(crate) last_ack: Moment,
    /// When the last data in order arrived, read or not.
    pub(crate) last_data: Moment,
    /// How many segments with data have arrived since the connection began, also those that were
    /// dropped for lack of memory, repeated, or out of order.
    pub(crate) data_segments: u32,
    /// The smoothed round-trip time; `None` before the first.
    pub(crate) rtt_micros: Option<u32>,
    /// The peer has not ended its direction, and our receive window is open for more of its bytes;
    /// false if that is not known.
    pub(crate) peer_may_send: bool,
}

/// A view, and what it shows of the peer's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JudgedView {
    pub(crate) view: KernelView,
    pub(crate) peer_kernel: PeerKernel,
}

/// The kernel below the transport. It is asked in one poll at most once, and only for a verdict.
pub(crate) struct Kernel<'a> {
    ask: &'a dyn Fn() -> Option<KernelView>,
    widen_receive_window: &'a dyn Fn(),
    /// `None` until the kernel is asked.
    view: Option<Option<KernelView>>,
    judged: Option<JudgedView>,
}

impl<'a> Kernel<'a> {
    /// `ask` returns `None` if there is no kernel that can be asked. `widen_receive_window` lets the
    /// kernel receive more of the bytes that the handler does not read.
    pub(crate) fn new(
        ask: &'a dyn Fn() -> Option<KernelView>,
        widen_receive_window: &'a dyn Fn(),
    ) -> Self {
        Self {
            ask,
            widen_receive_window,
            view: None,
            judged: None,
        }
    }

    /// Lets the peer send what may be ahead of its pong. The next segment that we send announces
    /// it.
    pub(super) fn widen_receive_window(&self) {
        (self.widen_receive_window)();
    }

    /// The view for the last verdict of this poll.
    pub(crate) fn judged(&self) -> Option<JudgedView> {
        self.judged
    }

    /// The view for a verdict on a wait from `since` to `now`. `is_delivered` decides from it
    /// whether the peer's kernel has all that the peer must answer.
    pub(super) fn judge(
        &mut self,
        since: Moment,
        now: Moment,
        is_delivered: impl Fn(&KernelView) -> bool,
    ) -> Option<JudgedView> {
        let view = *self.view.get_or_insert_with(self.ask);
        self.judged = view.map(|view| JudgedView {
            peer_kernel: peer_kernel(&view, since, now, is_delivered(&view)),
            view,
        });
        self.judged
    }
}

fn peer_kernel(view: &KernelView, since: Moment, now: Moment, is_delivered: bool) -> PeerKernel {
    // The kernel doubles the pause after each probe of a closed window, so in a wait that began with
    // the closed window the answer to the last probe is up to half the time old.
    let is_recent = view.last_ack > since + now.since(since) / 4;
    if is_delivered || is_recent && !view.retransmitting {
        PeerKernel::Acknowledges
    } else if view.awaits_ack && !is_recent {
        PeerKernel::Silent
    } else {
        PeerKernel::Unknown
    }
}

/// What earlier views have shown in the present waits. The default is none.
#[derive(Clone, Debug, Default)]
pub(super) struct EarlierViews {
    /// How the bytes ahead of the pings drain, in the current silence of the peer.
    pings: Drain,
    /// The verdict on a ping that arrived late was postponed in the current silence.
    late_arrival: bool,
    /// How many segments with data had arrived at the last view in the current silence, if no byte
    /// behind the full read-ahead buffer had.
    nothing_arrived: Option<u32>,
    /// How often the peer was pinged again since such a number had changed.
    repeats: u8,
    /// How the bytes ahead of the write drain that was refused at this moment.
    write: Option<(Moment, Drain)>,
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
    fn arrival_postpones(&mut self, path_is_slow: bool, progress: Progress) -> bool {
        let was_behind = self.pings.step.take().is_some();
        self.pings.last = progress;
        let postpones = (was_behind || path_is_slow) && !self.late_arrival && self.pings.count();
        self.late_arrival |= postpones;
        postpones
    }
}

/// Up to where the peer's kernel had the outbound bytes at a view: the low half of their number.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    acknowledged: u32,
    /// The same with those that were received behind a gap: an estimate.
    received: u32,
}

impl Progress {
    /// `sent` is the low half of the number of outbound bytes.
    fn of(view: &KernelView, sent: u32) -> Self {
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
    fn postpones(
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

/// What the bytes behind a full read-ahead buffer show of a peer that does not answer a ping.
pub(super) enum BehindReadAhead {
    /// Bytes have arrived since the peer was asked, the last of them at this moment. The pong may
    /// be among them.
    Arrived(Moment),
    /// None arrived although the peer could send, or the peer's kernel is silent. So many segments
    /// with data have arrived by now.
    Nothing { data_segments: u32 },
    /// The pong may wait at the peer, since our receive window is closed, or is not known.
    Unknown,
}

impl BehindReadAhead {
    /// `asked` is a moment before the peer could answer the ping.
    pub(super) fn of(judged: Option<JudgedView>, asked: Moment) -> Self {
        let Some(JudgedView { view, peer_kernel }) = judged else {
            return Self::Unknown;
        };
        if view.last_data + AGE_TOLERANCE >= asked {
            return Self::Arrived(view.last_data);
        }
        if view.peer_may_send || peer_kernel == PeerKernel::Silent {
            return Self::Nothing {
                data_segments: view.data_segments,
            };
        }
        Self::Unknown
    }
}

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
