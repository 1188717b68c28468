//! What Linux knows of a TCP connection, read from `TCP_INFO` and `SIOCOUTQ`.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::syscalls;
use crate::monitor::KernelView;

/// Longer than every `struct tcp_info` up to Linux 6.18, which has 280 bytes.
const MAX_INFO_BYTES: usize = 320;

/// A window of this many bytes is open for any segment of the peer's, also if the maximum segment
/// size is larger (loopback).
const OPEN_WINDOW_BYTES: u32 = 16 * 1024;

/// Offsets into `struct tcp_info` of `linux/tcp.h`. They are part of the kernel's interface, the
/// same on every architecture: new fields are added at the end.
mod offset {
    pub(super) const PROBES: usize = 3;
    pub(super) const SEGMENTS_IN_FLIGHT: usize = 24;
    pub(super) const LAST_DATA_RECEIVED_MILLIS: usize = 52;
    pub(super) const LAST_ACK_RECEIVED_MILLIS: usize = 56;
    pub(super) const RTT_MICROS: usize = 68;
    pub(super) const ADVERTISED_MSS: usize = 84;
    pub(super) const RECEIVE_WINDOW: usize = 232;
    pub(super) const TOTAL_RTO_MILLIS: usize = 244;
}

/// Asks the kernel about a TCP socket. `None` if it refuses.
pub(super) fn kernel_view(socket: BorrowedFd<'_>) -> Option<KernelView> {
    let mut buf = [0; MAX_INFO_BYTES];
    let info = TcpInfo(syscalls::tcp_info(socket, &mut buf)?);
    // `TCP_INFO` counts segments in flight and not their bytes. Its byte counters count segments
    // twice that a local queue has dropped.
    info.view(syscalls::unacknowledged_bytes(socket)?)
}

/// The bytes of a `struct tcp_info` that the kernel has written.
struct TcpInfo<'a>(&'a [u8]);

impl TcpInfo<'_> {
    fn view(&self, unacknowledged: u32) -> Option<KernelView> {
        let rtt = self.u32(offset::RTT_MICROS)?;
        Some(KernelView {
            unacknowledged,
            in_flight: self.u32(offset::SEGMENTS_IN_FLIGHT)? > 0,
            probing: self.bytes::<1>(offset::PROBES)?[0] > 0,
            last_ack: self.millis(offset::LAST_ACK_RECEIVED_MILLIS)?,
            last_data: self.millis(offset::LAST_DATA_RECEIVED_MILLIS)?,
            rtt_micros: (rtt > 0).then_some(rtt),
            receive_window_open: self.is_receive_window_open(),
        })
    }

    /// Whether the peer may send a segment; false if that is not known.
    ///
    /// The window may be open although there is no memory for another segment, as when very many
    /// small ones wait. Linux 6.6 and later close the window when they drop a segment for that
    /// reason. Earlier ones do not, so theirs is not trusted. They lack the last field that is read
    /// here, which came with Linux 6.7.
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
