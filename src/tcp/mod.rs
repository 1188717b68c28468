//! The TCP socket below a connection: its options, and what the kernel knows of it.

#[cfg(any(target_os = "android", target_os = "linux"))]
mod info;
mod options;
#[cfg(any(target_os = "android", target_os = "linux"))]
mod syscalls;

use tokio::net::TcpStream;

use crate::monitor::{KernelView, Moment};

pub use options::{TcpKeepalive, TcpOptions};

/// What the kernel knows of the connection of `socket`; `None` where it cannot be asked. `now` reads
/// the clock of the view's moments.
#[cfg(any(target_os = "android", target_os = "linux"))]
pub(crate) fn kernel_view(socket: &TcpStream, now: &dyn Fn() -> Moment) -> Option<KernelView> {
    info::kernel_view(std::os::fd::AsFd::as_fd(socket), now)
}

/// What the kernel knows of the connection of `socket`: nothing on this platform.
#[cfg(not(any(target_os = "android", target_os = "linux")))]
pub(crate) fn kernel_view(_: &TcpStream, _: &dyn Fn() -> Moment) -> Option<KernelView> {
    None
}
