//! The end of the transport, and the news that it is gone.

use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::AsyncWrite;

use crate::panic_guard;

/// What is known of the transport's end, which is told once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Departure {
    /// There may yet be a transport: the upgrade is not complete.
    Opening,
    /// To be told when the transport is gone; `clean` if the closing handshake of the connection's
    /// eviction was completed.
    Untold {
        clean: bool,
    },
    HealthEvents,
}

impl Departure {
    /// The news, if they are due.
    pub(crate) fn tell(&mut self) -> Option<bool> {
        let Self::Untold { clean } = *self else {
            return None;
        };
        *self = Self::HealthEvents;
        Some(clean)
    }
}

/// Drops a transport; if `shuts_down`, shuts it down before, as far as that goes at once.
///
/// A socket that is dropped says all there is to say. Under TLS that lacks the close_notify (RFC 8446
/// section 6.1), and to the peer that is an end which somebody else may have forced;
/// RFC 6455 section 7.1.1 asks for a clean one.
///
/// False if the transport panicked. It is dropped in any case.
pub(crate) fn drop_transport<T: AsyncWrite + Unpin>(mut io: T, shuts_down: bool) -> bool {
    let health_events = panic_guard::catch(|| {
        if shuts_down {
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut io).poll_shutdown(cx);
        }
    });
    let dropped = panic_guard::catch(|| drop(io));
    health_events.and(dropped).is_some()
}
