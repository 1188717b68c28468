//! Properties of a kind of transport that `AsyncWrite` does not expose.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

#[cfg(feature = "tcp")]
use std::any::Any;

use crate::monitor::{HeartbeatPolicy, KernelView, Moment};
#[cfg(feature = "tcp")]
use crate::tcp;

/// Functions that query or configure a transport of one kind.
pub(crate) struct TransportTraits<T> {
    /// Sets the socket options that follow from a heartbeat's times, if the transport has any.
    pub(crate) tune: fn(&T, &HeartbeatPolicy) -> io::Result<()>,
    /// Whether a write that returned `Pending` may be followed by a write of other bytes.
    ///
    /// OpenSSL encrypts a write before it finds the socket full, and sends these encrypted bytes
    /// with the next write, which therefore must be of the same bytes.
    pub(crate) takes_any_bytes: fn(&T) -> bool,
    /// Whether a flush does nothing: bytes that the transport accepted are with the kernel.
    pub(crate) flushes_nothing: fn(&T) -> bool,
    /// Polls whether the transport would accept a byte. `Ready` if it cannot tell.
    ///
    /// An empty write is no substitute: a transport that frames messages may send an empty message.
    pub(crate) poll_writable: fn(&T, &mut Context<'_>) -> Poll<()>,
    /// What the kernel knows of the connection; `None` if the transport is no TCP socket, or the
    /// kernel cannot be asked. Up to four system calls, after which the function reads the clock.
    pub(crate) kernel_view: fn(&T, &dyn Fn() -> Moment) -> Option<KernelView>,
    /// The address of the peer; `None` if the transport is no TCP socket.
    pub(crate) peer_addr: fn(&T) -> Option<SocketAddr>,
    /// Has the kernel of a TCP socket buffer more of the peer's bytes, where it can and the heartbeat
    /// may change the socket.
    pub(crate) widen_receive_window: fn(&T, &HeartbeatPolicy),
}

impl<T: 'static> TransportTraits<T> {
    /// A transport that the application supplies and whose socket options it sets itself.
    pub(crate) const FOREIGN: &'static Self = &Self {
        tune: |_, _| Ok(()),
        takes_any_bytes: is_socket,
        flushes_nothing: is_socket,
        poll_writable,
        kernel_view,
        peer_addr,
        widen_receive_window,
    };
}

#[cfg(feature = "tcp")]
fn is_socket<T: 'static>(io: &T) -> bool {
    let io: &dyn Any = io;
    #[cfg(unix)]
    if io.is::<tokio::net::UnixStream>() {
        return true;
    }
    io.is::<tokio::net::TcpStream>()
}

#[cfg(not(feature = "tcp"))]
fn is_socket<T>(_: &T) -> bool {
    false
}

#[cfg(feature = "tcp")]
fn poll_writable<T: 'static>(io: &T, cx: &mut Context<'_>) -> Poll<()> {
    let io: &dyn Any = io;
    #[cfg(unix)]
    if let Some(socket) = io.downcast_ref::<tokio::net::UnixStream>() {
        return socket.poll_write_ready(cx).map(|_| ());
    }
    match io.downcast_ref::<tokio::net::TcpStream>() {
        Some(socket) => socket.poll_write_ready(cx).map(|_| ()),
        None => Poll::Ready(()),
    }
}

#[cfg(not(feature = "tcp"))]
fn poll_writable<T>(_: &T, _: &mut Context<'_>) -> Poll<()> {
    Poll::Ready(())
}

#[cfg(feature = "tcp")]
fn kernel_view<T: 'static>(io: &T, now: &dyn Fn() -> Moment) -> Option<KernelView> {
    let io: &dyn Any = io;
    tcp::kernel_view(io.downcast_ref()?, now)
}

#[cfg(not(feature = "tcp"))]
fn kernel_view<T>(_: &T, _: &dyn Fn() -> Moment) -> Option<KernelView> {
    None
}

#[cfg(feature = "tcp")]
fn peer_addr<T: 'static>(io: &T) -> Option<SocketAddr> {
    let io: &dyn Any = io;
    let socket: &tokio::net::TcpStream = io.downcast_ref()?;
    socket.peer_addr().ok()
}

#[cfg(not(feature = "tcp"))]
fn peer_addr<T>(_: &T) -> Option<SocketAddr> {
    None
}

#[cfg(feature = "tcp")]
fn widen_receive_window<T: 'static>(io: &T, heartbeat: &HeartbeatPolicy) {
    let io: &dyn Any = io;
    match io.downcast_ref() {
        Some(socket) if heartbeat.tune_tcp => tcp::widen_receive_window(socket),
        _ => {}
    }
}

#[cfg(not(feature = "tcp"))]
fn widen_receive_window<T>(_: &T, _: &HeartbeatPolicy) {}
