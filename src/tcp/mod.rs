//! The TCP socket below a connection: its options, and what the kernel knows of it.

#[cfg(any(target_os = "android", target_os = "linux"))]
mod info;
mod options;
#[cfg(any(target_os = "android", target_os = "linux"))]
mod syscalls;

use tokio::net::TcpStream;

use crate::monitor::KernelView;

pub use options::{TcpKeepalive, TcpOptions};

/// What the kernel knows of the connection of `socket`; `None` where it cannot be asked.
#[cfg(any(target_os = "android", target_os = "linux"))]
pub(crate) fn kernel_view(socket: &TcpStream) -> Option<KernelView> {
    info::kernel_view(std::os::fd::AsFd::as_fd(socket))
}

/// What the kernel knows of the connection of `socket`: nothing on this platform.
#[cfg(not(any(target_os = "android", target_os = "linux")))]
pub(crate) fn kernel_view(_: &TcpStream) -> Option<KernelView> {
    None
}
