//! What Linux knows of a TCP connection, read from `TCP_INFO`, `SO_MEMINFO` and `SIOCOUTQ`.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::{Protocol, SockRef};

use super::syscalls;
use crate::monitor::{KernelView, Moment};

/// Longer than every `struct tcp_info` up to Linux 6.18, which has 280 bytes.
const MAX_INFO_BYTES: usize = 320;

/// The nine fields of `SO_MEMINFO` since Linux 4.12.
const MEMORY_BYTES: usize = 36;

/// A window of this many bytes is open for any segment of the peer's, also if the maximum segment
/// size is larger (loopback). The same amount of memory suffices for a segment with a pong, including
/// the kernel's own bytes.
const ROOM_BYTES: u32 = 16 * 1024;

/// `TCP_ESTABLISHED` of `linux/tcp.h`: neither end has closed its direction, and no reset came.
const ESTABLISHED: u8 = 1;

/// Offsets into `struct tcp_info` of `linux/tcp.h`. They are part of the kernel's interface, the
/// same on every architecture: new fields are added at the end.
mod offset {
    pub(super) const STATE: usize = 0;
    pub(super) const RETRANSMITS: usize = 2;
    pub(super) const PROBES: usize = 3;
    pub(super) const SEND_MSS: usize = 16;
    pub(super) const SEGMENTS_IN_FLIGHT: usize = 24;
    pub(super) const SEGMENTS_BEHIND_GAP: usize = 28;
    pub(super) const LAST_DATA_RECEIVED_MILLIS: usize = 52;
    pub(super) const LAST_ACK_RECEIVED_MILLIS: usize = 56;
    pub(super) const RTT_MICROS: usize = 68;
    pub(super) const ADVERTISED_MSS: usize = 84;
    pub(super) const UNSENT_BYTES: usize = 144;
    pub(super) const DATA_SEGMENTS_RECEIVED: usize = 152;
    pub(super) const RECEIVE_WINDOW: usize = 232;

    /// Offsets into the array of `SO_MEMINFO` (`linux/sock_diag.h`).
    pub(super) mod memory {
        pub(in super::super) const RECEIVE_USED: usize = 0;
        pub(in super::super) const RECEIVE_LIMIT: usize = 4;
    }
}

/// Unanswered probes from which on the peer's kernel does not answer them: one may be on its way.
const MIN_UNANSWERED_PROBES: u8 = 2;

/// Asks the kernel about a socket. `None` if it refuses, or if its answers need not be those of one
/// TCP connection. `now` reads the clock of the view's moments.
pub(super) fn kernel_view(socket: BorrowedFd<'_>, now: &dyn Fn() -> Moment) -> Option<KernelView> {
    let mut info = [0; MAX_INFO_BYTES];
    let info = Fields(syscalls::option(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        &mut info,
    )?);
    let mut memory = [0; MEMORY_BYTES];
    // Before Linux 4.12 there is no such option.
    let memory = syscalls::option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut memory);
    let memory = Fields(memory.unwrap_or_default());
    // A socket of MPTCP answers for its first subflow only, and may use others.
    if SockRef::from(&socket).protocol().ok()? != Some(Protocol::TCP) {
        return None;
    }
    // `TCP_INFO` counts segments in flight and not their bytes. Its byte counters count segments
    // twice that a local queue has dropped.
    let unacknowledged = syscalls::unacknowledged_bytes(socket)?;
    view(info, memory, unacknowledged, now())
}

/// `now` is the time at which the kernel wrote the fields, or shortly after.
fn view(
    info: Fields<'_>,
    memory: Fields<'_>,
    unacknowledged: u32,
    now: Moment,
) -> Option<KernelView> {
    // An emulated kernel (gVisor) leaves fields zero that it does not know. A connection has a
    // maximum segment size.
    (info.u32(offset::ADVERTISED_MSS)? > 0).then_some(())?;
    let rtt = info.u32(offset::RTT_MICROS)?;
    let segments_behind_gap = info.u32(offset::SEGMENTS_BEHIND_GAP)?;
    let unsent = info.u32(offset::UNSENT_BYTES).unwrap_or(unacknowledged);
    let [probes] = info.bytes(offset::PROBES)?;
    Some(KernelView {
        unacknowledged,
        received_behind_gap: segments_behind_gap
            .saturating_mul(info.u32(offset::SEND_MSS)?)
            .min(unacknowledged.saturating_sub(unsent)),
        awaits_ack: info.u32(offset::SEGMENTS_IN_FLIGHT)? > 0 || probes >= MIN_UNANSWERED_PROBES,
        retransmitting: info.bytes(offset::RETRANSMITS)? != [0],
        last_ack: now.before(info.millis(offset::LAST_ACK_RECEIVED_MILLIS)?),
        last_data: now.before(info.millis(offset::LAST_DATA_RECEIVED_MILLIS)?),
        data_segments: info.u32(offset::DATA_SEGMENTS_RECEIVED).unwrap_or(0),
        rtt_micros: (rtt > 0).then_some(rtt),
        peer_may_send: info.bytes(offset::STATE)? == [ESTABLISHED]
            && is_receive_window_open(info)
            && has_receive_memory(memory),
    })
}

/// Whether there is room for a segment of the peer; false if that is not known, as before Linux 6.2.
fn is_receive_window_open(info: Fields<'_>) -> bool {
    let (Some(window), Some(mss)) = (
        info.u32(offset::RECEIVE_WINDOW),
        info.u32(offset::ADVERTISED_MSS),
    ) else {
        return false;
    };
    // A peer may hold back a segment that does not fit as a whole (RFC 9293 section 3.8.6.2.1).
    window > 0 && window >= mss.min(ROOM_BYTES)
}

/// Whether the kernel has memory for a segment of the peer. Many small segments use it up while the
/// window is open. The kernel then drops the next ones, and before Linux 6.14 does not show that in
/// the window.
fn has_receive_memory(memory: Fields<'_>) -> bool {
    let (Some(used), Some(limit)) = (
        memory.u32(offset::memory::RECEIVE_USED),
        memory.u32(offset::memory::RECEIVE_LIMIT),
    ) else {
        return false;
    };
    limit.saturating_sub(used) >= ROOM_BYTES
}

/// The bytes of a structure that the kernel has written.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
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
