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

/// Of the bytes that are ahead at the first view of a wait, one part in this many must drain between
/// two later views.
pub(super) const MAX_DRAIN_STEPS: u32 = 64;

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
    /// Those of them that the peer's kernel has received behind a gap (RFC 2018), in whole segments:
    /// the last one counts as a full one.
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
    /// The number of segments, since the connection began, that arrived without being readable:
    /// dropped for lack of memory or for another reason, or out of order.
    pub(crate) arrived_in_vain: u32,
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
    /// How the bytes ahead of a ping drain, in the current silence of the peer.
    ping: Option<Drain>,
    /// How many segments had arrived in vain at the last view in the current silence, if nothing
    /// else had arrived behind the full read-ahead buffer.
    nothing_arrived: Option<u32>,
    /// How the bytes ahead of the write drain that was refused at this moment.
    write: Option<(Moment, Drain)>,
}

impl EarlierViews {
    /// The peer is alive: ends the current silence.
    pub(super) fn on_proof_of_life(&mut self) {
        self.ping = None;
        self.nothing_arrived = None;
    }
}

/// How the bytes drain that were ahead at the first view of a wait.
///
/// After the first view, each postponement takes a step of the bytes that are left. So there are at
/// most [`MAX_DRAIN_STEPS`] and the first, however long the peer's kernel acknowledges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// How many bytes must drain between two views.
    step: NonZeroU32,
    /// How many bytes of those at the first view were left at the last one.
    left: u32,
    /// How many outbound bytes the peer's kernel had received at the last view: the low half of
    /// their number.
    received: u32,
}

impl Drain {
    fn begin(ahead: u32, received: u32) -> Self {
        let step = NonZeroU32::new(ahead.div_ceil(MAX_DRAIN_STEPS));
        Self {
            step: step.unwrap_or(NonZeroU32::MIN),
            left: ahead,
            received,
        }
    }

    /// Whether a verdict on a wait since `since` is postponed for the `ahead` bytes that it has to
    /// wait for. `drain` is what the last view of the wait has left.
    ///
    /// The first view has nothing to compare with: there an acknowledgement in the wait suffices.
    fn postpones(
        drain: &mut Option<Self>,
        view: &KernelView,
        since: Moment,
        ahead: u32,
        received: u32,
    ) -> bool {
        // The time restarts at the last acknowledgement, so it must be a later one.
        let is_acknowledged = view.last_ack > since;
        match drain {
            Some(drain) => drain.advance(received) && is_acknowledged,
            None if is_acknowledged => {
                *drain = Some(Self::begin(ahead, received));
                true
            }
            None => false,
        }
    }

    /// Whether the peer's kernel has received enough bytes since the last view.
    fn advance(&mut self, received: u32) -> bool {
        let drained = received.wrapping_sub(self.received);
        if drained > u32::MAX / 2 {
            // Fewer than at the last view: it has discarded what it had behind a gap, or there was
            // less in the segments than counted.
            return false;
        }
        let is_enough = self.left > 0 && drained >= self.step.get();
        self.received = received;
        self.left = self.left.saturating_sub(drained);
        is_enough
    }

    /// Whether a ping that has reached the peer's kernel postpones a verdict: it came late if it
    /// was behind other bytes at an earlier view, or at the first one if it `may_be_late`. The last
    /// postponement of a wait.
    fn arrival_postpones(drain: &mut Option<Self>, may_be_late: bool) -> bool {
        match drain {
            Some(drain) => std::mem::take(&mut drain.left) > 0,
            None if may_be_late => {
                *drain = Some(Self::begin(0, 0));
                true
            }
            None => false,
        }
    }
}

/// What the bytes behind a full read-ahead buffer show of a peer that does not answer a ping.
pub(super) enum BehindReadAhead {
    /// Bytes have arrived since the peer was asked, the last of them at this moment. The pong may
    /// be among them.
    Arrived(Moment),
    /// None arrived although the peer could send, or the peer's kernel is silent. So many segments
    /// arrived in vain by now.
    Nothing { in_vain: u32 },
    /// The pong may wait at the peer, since our receive window is closed.
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
                in_vain: view.arrived_in_vain,
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

    /// Whether the ping may have reached the peer's kernel in the second half of its timeout only:
    /// something was acknowledged then, and at most half of what was written after the ping. (The
    /// bytes behind a ping that arrived early are acknowledged by now, unless nothing drains.)
    fn may_have_arrived_late(&self, since: Moment, timeout: Duration, view: &KernelView) -> bool {
        let acknowledged_after = self.bytes_after_ping().saturating_sub(view.unacknowledged);
        view.last_ack > since + timeout / 2 && acknowledged_after <= view.unacknowledged
    }

    /// How many outbound bytes the peer's kernel has received, in order or behind a gap: the low half
    /// of their number.
    fn bytes_received_by_peer(&self, view: &KernelView) -> u32 {
        let behind_gap = view.received_behind_gap.min(view.unacknowledged);
        self.sent_position()
            .wrapping_sub(view.unacknowledged - behind_gap)
    }

    /// The low half of the number of bytes sent: enough for differences within one wait.
    fn sent_position(&self) -> u32 {
        self.counters.bytes_sent as u32
    }

    /// Postpones the verdict on a ping whose timeout runs since `since`, if the kernel shows that
    /// the ping has not reached the peer, or only now. Returns whether it did.
    ///
    /// The time restarts at the last acknowledgement, so a peer that is dead by then is missed one
    /// `timeout` after it.
    pub(super) fn postpone_for_delivery(
        &mut self,
        now: Moment,
        since: Moment,
        timeout: Duration,
        view: &KernelView,
    ) -> bool {
        let ahead = self.bytes_ahead_of_ping(view);
        if ahead == 0 {
            let rtt = Duration::from_micros(view.rtt_micros.unwrap_or(0).into());
            let may_be_late = rtt > timeout / 4 || self.may_have_arrived_late(since, timeout, view);
            let drain = &mut self.faults().earlier_views.ping;
            let late = Drain::arrival_postpones(drain, may_be_late);
            if late {
                self.pings.extend(now);
            }
            return late;
        }
        let received = self.bytes_received_by_peer(view);
        let drain = &mut self.faults().earlier_views.ping;
        let drains = Drain::postpones(drain, view, since, ahead, received);
        if drains {
            self.pings.extend(view.last_ack);
        }
        drains
    }

    /// Sets how many segments have arrived in vain, if nothing else has behind the full read-ahead
    /// buffer. Returns what that was at the last view.
    pub(super) fn set_nothing_arrived(&mut self, in_vain: Option<u32>) -> Option<u32> {
        std::mem::replace(&mut self.faults().earlier_views.nothing_arrived, in_vain)
    }

    /// Postpones the verdict on a stalled write while the bytes ahead of it drain: the transport
    /// has room again only when a third of its buffer has. Returns whether it did.
    pub(super) fn postpone_for_drain(&mut self, view: &KernelView) -> bool {
        let received = self.bytes_received_by_peer(view);
        let Faults {
            blocked,
            earlier_views,
            ..
        } = self.faults();
        let Some(blocked) = blocked else {
            return false;
        };
        let slot = &mut earlier_views.write;
        let same_wait = slot.filter(|(refused, _)| *refused == blocked.refused);
        let mut drain = same_wait.map(|(_, drain)| drain);
        let ahead = view.unacknowledged;
        let drains = Drain::postpones(&mut drain, view, blocked.since, ahead, received);
        *slot = drain.map(|drain| (blocked.refused, drain));
        if drains {
            *blocked = blocked.restarted(view.last_ack);
        }
        drains
    }
}
