//! What our kernel knows of the peer at a verdict.

use std::time::Duration;

use super::moment::Moment;
use super::peer_kernel::PeerKernel;

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
