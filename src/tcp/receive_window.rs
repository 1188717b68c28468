//! A wider receive window for a peer whose pong may wait behind bytes that the handler does not read.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use super::syscalls;

/// Enough for the bytes that a client's program leaves behind in its kernel when it hangs, and
/// little enough for a server on which many handlers hang. The kernel's own limit, of which half
/// can be requested so, is 6 MiB by default (`tcp_rmem`).
const WINDOW_BYTES: c_int = 512 * 1024;

/// The kernel's default.
const LOW_WATERMARK_BYTES: c_int = 1;

/// Has Linux (4.18 and later) enlarge the socket's receive buffer to this window, unless it is
/// larger, or the application has set its size (`SO_RCVBUF`).
///
/// The kernel does so for a low watermark that would not fit. `SO_RCVBUF` would do it too, but would
/// also end the kernel's own adaptation to the rate of the peer.
pub(super) fn widen(socket: BorrowedFd<'_>) {
    if syscalls::set_receive_low_watermark(socket, WINDOW_BYTES) {
        // Until then fewer bytes do not make the socket readable. The kernel reports it readable at
        // this call if it is, so no wake-up is lost.
        syscalls::set_receive_low_watermark(socket, LOW_WATERMARK_BYTES);
    }
}
