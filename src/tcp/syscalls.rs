//! Two system calls about a TCP socket: the only unsafe code of the crate.

#![expect(
    unsafe_code,
    reason = "neither std, tokio nor socket2 has a safe function for these calls"
)]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Writes the socket's `struct tcp_info` to `buf`. Returns the bytes written: older kernels know
/// fewer fields, newer ones more than fit.
pub(super) fn tcp_info<'a>(socket: BorrowedFd<'_>, buf: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut len = libc::socklen_t::try_from(buf.len()).ok()?;
    // SAFETY: the descriptor is open as long as it is borrowed. The kernel writes at most `len`
    // bytes to the first pointer, where `buf` has that many, and any value is valid there; and the
    // new length to the second pointer, which is that of a local variable.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            buf.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(())?;
    buf.get(..usize::try_from(len).ok()?)
}

/// Returns how many bytes the peer has not acknowledged, sent or not (`SIOCOUTQ`).
pub(super) fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: the descriptor is open as long as it is borrowed. For this request the kernel writes
    // an `int` to the pointer, which is that of a local variable. Linux gives the request for
    // sockets the value of the one for terminals.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::TIOCOUTQ,
            std::ptr::from_mut(&mut bytes),
        )
    };
    (result == 0).then_some(())?;
    u32::try_from(bytes).ok()
}
