//! The TCP socket below a connection: its options, and what the kernel knows of it.

#[cfg(target_os = "linux")]
mod info;
mod options;
#[cfg(target_os = "linux")]
mod receive_window;
#[cfg(target_os = "linux")]
mod syscalls;

use tokio::net::TcpStream;

use crate::monitor::{KernelView, Moment};

pub use options::{TcpKeepalive, TcpOptions};

/// What the kernel knows of the connection of `socket`; `None` where it cannot be asked. `now` reads
/// the clock of the view's moments.
#[cfg(target_os = "linux")]
pub(crate) fn kernel_view(socket: &TcpStream, now: &dyn Fn() -> Moment) -> Option<KernelView> {
    info::kernel_view(std::os::fd::AsFd::as_fd(socket), now)
}

/// Has the kernel buffer more of the peer's bytes. The next segment that it sends announces the
/// wider receive window. The buffer does not shrink again.
#[cfg(target_os = "linux")]
pub(crate) fn widen_receive_window(socket: &TcpStream) {
    receive_window::widen(std::os::fd::AsFd::as_fd(socket));
}

/// Has the kernel buffer more of the peer's bytes: nothing on this platform.
#[cfg(not(target_os = "linux"))]
pub(crate) fn widen_receive_window(_: &TcpStream) {}

/// What the kernel knows of the connection of `socket`: nothing on this platform.
#[cfg(not(target_os = "linux"))]
pub(crate) fn kernel_view(_: &TcpStream, _: &dyn Fn() -> Moment) -> Option<KernelView> {
    None
}
