//! Three system calls about a TCP socket: the only unsafe code of the crate.

#![expect(
    unsafe_code,
    reason = "neither std, tokio nor socket2 has a safe function for these calls"
)]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Writes the value of an option of the socket to `buf`. Returns the bytes written: older kernels
/// know fewer fields of a structure, newer ones more than fit.
pub(super) fn option<'a>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    buf: &'a mut [u8],
) -> Option<&'a [u8]> {
    let mut len = libc::socklen_t::try_from(buf.len()).ok()?;
    // SAFETY: the descriptor is open as long as it is borrowed. The kernel writes at most `len`
    // bytes to the first pointer, where `buf` has that many, and any value is valid there; and the
    // new length to the second pointer, which is that of a local variable.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
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

/// Sets how many bytes must be here for the socket to be readable (`SO_RCVLOWAT`). Returns whether
/// the kernel accepted it.
pub(super) fn set_receive_low_watermark(socket: BorrowedFd<'_>, bytes: c_int) -> bool {
    let Ok(len) = libc::socklen_t::try_from(size_of::<c_int>()) else {
        return false;
    };
    // SAFETY: the descriptor is open as long as it is borrowed. The kernel reads `len` bytes from
    // the pointer, which is that of a local variable of this size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&bytes).cast(),
            len,
        )
    };
    result == 0
}
