//! What Linux knows of a TCP connection, read from `TCP_INFO` and `SIOCOUTQ`.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::{Protocol, SockRef};

use super::syscalls;
use crate::monitor::{KernelView, Moment};

/// Longer than every `struct tcp_info` up to Linux 6.18, which has 280 bytes.
const MAX_INFO_BYTES: usize = 320;

/// A window of this many bytes is open for any segment of the peer's, also if the maximum segment
/// size is larger (loopback).
const OPEN_WINDOW_BYTES: u32 = 16 * 1024;

/// `TCP_ESTABLISHED` of `linux/tcp.h`: neither end has closed its direction, and no reset came.
const ESTABLISHED: u8 = 1;

/// Offsets into `struct tcp_info` of `linux/tcp.h`. They are part of the kernel's interface, the
/// same on every architecture: new fields are added at the end.
mod offset {
    pub(super) const STATE: usize = 0;
    pub(super) const RETRANSMITS: usize = 2;
    pub(super) const PROBES: usize = 3;
    pub(super) const SEGMENTS_IN_FLIGHT: usize = 24;
    pub(super) const LAST_DATA_RECEIVED_MILLIS: usize = 52;
    pub(super) const LAST_ACK_RECEIVED_MILLIS: usize = 56;
    pub(super) const RTT_MICROS: usize = 68;
    pub(super) const ADVERTISED_MSS: usize = 84;
    pub(super) const RECEIVE_WINDOW: usize = 232;
    pub(super) const TOTAL_RTO_MILLIS: usize = 244;
}

/// Unanswered probes from which on the peer's kernel does not answer them: one may be on its way.
const MIN_UNANSWERED_PROBES: u8 = 2;

/// Asks the kernel about a socket. `None` if it refuses, or if its answers need not be those of one
/// TCP connection. `now` reads the clock of the view's moments.
pub(super) fn kernel_view(socket: BorrowedFd<'_>, now: &dyn Fn() -> Moment) -> Option<KernelView> {
    let mut buf = [0; MAX_INFO_BYTES];
    let info = TcpInfo(syscalls::tcp_info(socket, &mut buf)?);
    // A socket of MPTCP answers for its first subflow only, and may use others.
    if SockRef::from(&socket).protocol().ok()? != Some(Protocol::TCP) {
        return None;
    }
    // `TCP_INFO` counts segments in flight and not their bytes. Its byte counters count segments
    // twice that a local queue has dropped.
    let unacknowledged = syscalls::unacknowledged_bytes(socket)?;
    info.view(unacknowledged, now())
}

/// The bytes of a `struct tcp_info` that the kernel has written.
struct TcpInfo<'a>(&'a [u8]);

impl TcpInfo<'_> {
    /// `now` is the time at which the kernel wrote the bytes, or shortly after.
    fn view(&self, unacknowledged: u32, now: Moment) -> Option<KernelView> {
        // An emulated kernel (gVisor) leaves fields zero that it does not know. A connection has a
        // maximum segment size.
        (self.u32(offset::ADVERTISED_MSS)? > 0).then_some(())?;
        let rtt = self.u32(offset::RTT_MICROS)?;
        let [probes] = self.bytes(offset::PROBES)?;
        Some(KernelView {
            unacknowledged,
            awaits_ack: self.u32(offset::SEGMENTS_IN_FLIGHT)? > 0
                || probes >= MIN_UNANSWERED_PROBES,
            retransmitting: self.bytes(offset::RETRANSMITS)? != [0],
            last_ack: now.before(self.millis(offset::LAST_ACK_RECEIVED_MILLIS)?),
            last_data: now.before(self.millis(offset::LAST_DATA_RECEIVED_MILLIS)?),
            rtt_micros: (rtt > 0).then_some(rtt),
            peer_may_send: self.bytes(offset::STATE)? == [ESTABLISHED]
                && self.is_receive_window_open(),
        })
    }

    /// Whether there is room for a segment of the peer; false if that is not known.
    ///
    /// The kernel may have no memory for another segment, as when very many small ones wait, and
    /// drop it without showing that in the window. Linux 6.6 and later advertise a closed window
    /// then, but not in this field, so one view of an open window proves nothing. Earlier versions
    /// do not advertise it, so theirs is not trusted. They lack the last field that is read here,
    /// which came with Linux 6.7.
    fn is_receive_window_open(&self) -> bool {
        let (Some(window), Some(mss), Some(_)) = (
            self.u32(offset::RECEIVE_WINDOW),
            self.u32(offset::ADVERTISED_MSS),
            self.u32(offset::TOTAL_RTO_MILLIS),
        ) else {
            return false;
        };
        // A peer may hold back a segment that does not fit as a whole (RFC 9293 section 3.8.6.2.1).
        window > 0 && window >= mss.min(OPEN_WINDOW_BYTES)
    }

    fn millis(&self, offset: usize) -> Option<Duration> {
        Some(Duration::from_millis(self.u32(offset)?.into()))
    }

    fn u32(&self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_ne_bytes)
    }

    /// `None` if the kernel has not written these bytes.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}

#[cfg(test)]
mod tests;
