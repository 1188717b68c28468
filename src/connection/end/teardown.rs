//! The end of the transport: when it is released, and how it is dropped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::AsyncWrite;

use crate::connection::io::CloseHandshake;
use crate::connection::state::State;
use crate::monitor::{Moment, Reason, TransportUse};
use crate::panic_guard;

impl<T: 'static> State<T> {
    /// The upgrade failed: no transport will come.
    pub(crate) fn upgrade_failed(&mut self, now: Moment) {
        if self.monitor.lifecycle.awaits_transport() {
            // The reason of an earlier eviction stays. Its Close frame cannot be sent.
            self.monitor.end(now, Reason::UpgradeFailed);
            self.monitor.lifecycle.release(false);
        }
    }

    /// The handler dropped its stream. Returns false if there was no transport yet.
    ///
    /// The transport is dropped too, unless a pong may still arrive: at a closed socket the pong
    /// makes the kernel reset the connection, and the peer loses what the handler sent last.
    pub(crate) fn handler_dropped(&mut self) -> bool {
        self.read_half.discard_unread();
        if let (true, Some(timer)) = (self.monitor.lifecycle.is_usable(), &self.timer) {
            let now = timer.now();
            self.monitor.dropped(now);
            if self.may_get_pong() {
                self.rare().close = Some(Box::new(CloseHandshake::lingering()));
                self.monitor.lifecycle.begin_close_handshake();
            } else {
                // Without the layers no shutdown would happen either.
                self.write_half.skip_shutdown();
                self.monitor.lifecycle.release(false);
            }
        }
        !self.monitor.lifecycle.awaits_transport()
    }

    /// Whether the transport has at least a part of a ping, and its pong may still arrive.
    fn may_get_pong(&self) -> bool {
        let pinged = self.monitor.has_unanswered_ping() || self.write_half.has_unflushed_ping();
        pinged && !self.read_half.has_ended()
    }

    /// The runtime was shut down, and its driver with it: the connection ends with
    /// `HandlerDropped`, and its transport is released.
    pub(crate) fn runtime_shut_down(&mut self) {
        let lifecycle = self.monitor.lifecycle;
        if let (true, Some(timer)) = (lifecycle.is_usable(), &self.timer) {
            let now = timer.now();
            if !lifecycle.is_ended() {
                self.read_half.discard_unread();
                self.monitor.dropped(now);
            }
            self.monitor.lifecycle.release(false);
        } else {
            self.skip_close_handshake();
        }
    }

    /// No driver is left for the closing handshake.
    pub(crate) fn skip_close_handshake(&mut self) {
        if self.monitor.lifecycle.transport() == Some(TransportUse::CloseHandshake) {
            self.monitor.lifecycle.release(false);
        }
    }

    pub(crate) fn transport_panicked(&mut self) {
        self.fail(io::ErrorKind::Other);
        self.read_half.discard_unread();
        self.monitor.lifecycle.release(false);
    }

    /// Whether the transport must be shut down before it is dropped. Not if the handler or the
    /// runtime ended the connection, since without the layers no shutdown would happen either.
    pub(crate) fn needs_shutdown(&self) -> bool {
        self.monitor.reason() != Some(Reason::HandlerDropped) && self.write_half.can_shut_down()
    }
}

/// Drops a transport. If `shuts_down`, polls its shutdown once before.
///
/// A dropped socket sends its FIN by itself. TLS also needs a close_notify (RFC 8446 section 6.1):
/// without one, the peer must take the end for a possible truncation. RFC 6455 section 7.1.1 asks
/// for a clean close.
///
/// Returns false if the transport panicked. It is dropped in any case.
pub(crate) fn drop_transport<T: AsyncWrite + Unpin>(mut io: T, shuts_down: bool) -> bool {
    let shut_down = panic_guard::catch(|| {
        if shuts_down {
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut io).poll_shutdown(cx);
        }
    });
    let dropped = panic_guard::catch(|| drop(io));
    shut_down.and(dropped).is_some()
}
