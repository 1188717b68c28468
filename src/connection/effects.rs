//! What follows from an operation once the connection's lock is released.

use std::sync::Arc;
use std::task::Waker;

use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::end::drop_transport;
use super::expiry::{self, ExpiryWarning};
use super::io::Report;
use super::layers::{ErasedConnection, ExpiryHook};
use super::metadata::PingWaiters;
use super::state::State;
use crate::driver::{DeadlineMove, TimerEntry};
use crate::eviction::{ConnectionId, Eviction};
use crate::monitor::TransportUse;
use crate::panic_guard;
use crate::sync::Locked;

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Runs an operation on the state, releases the lock, and does what follows.
    #[inline]
    pub(super) fn enter<R>(
        self: &Arc<Self>,
        operation: impl FnOnce(&mut State<T>, &mut Report) -> R,
    ) -> R {
        self.enter_with(&mut Report::default(), operation)
    }

    /// Like [`enter`](Self::enter), with a report that survives a panic of the operation.
    #[inline]
    pub(super) fn enter_with<R>(
        self: &Arc<Self>,
        report: &mut Report,
        operation: impl FnOnce(&mut State<T>, &mut Report) -> R,
    ) -> R {
        let mut state = self.lock();
        let result = operation(&mut state, report);
        if !state.is_settled() || !report.is_empty() {
            self.settle(state, report);
        }
        result
    }

    /// Does an operation of the handler that is not [routine](State::routine), or the rest of one
    /// that turned out not to be.
    #[inline(never)]
    pub(super) fn continue_operation<R>(
        self: &Arc<Self>,
        mut state: Locked<'_, State<T>>,
        operation: impl FnOnce(&mut State<T>, &mut Report) -> R,
    ) -> R {
        let mut report = Report::default();
        let result = operation(&mut state, &mut report);
        let effects = match state.is_settled() && report.is_empty() {
            true => None,
            false => Effects::collect(self, &mut state, &mut report),
        };
        state.update_routine();
        drop(state);
        if let Some(effects) = effects {
            effects.run(self);
        }
        result
    }

    /// The rare part of [`enter`](Self::enter), out of line.
    #[inline(never)]
    fn settle(self: &Arc<Self>, mut state: Locked<'_, State<T>>, report: &mut Report) {
        let effects = Effects::collect(self, &mut state, report);
        drop(state);
        if let Some(effects) = effects {
            effects.run(self);
        }
    }
}

/// What follows from an operation, in the order of the fields. [`collect`](Self::collect) takes it
/// from the state under the lock, [`run`](Self::run) does it without.
struct Effects<T> {
    report: Report,
    /// The end, which is announced now.
    eviction: Option<Eviction>,
    timer: Option<TimerEntry>,
    /// The transport, and whether it must be shut down before it is dropped.
    io: Option<(T, bool)>,
    /// The transport is closed, or the upgrade failed. True if the closing handshake was completed.
    transport_closed: Option<bool>,
    /// Wakers that no poll will use again: they keep the memory of their tasks.
    dropped_wakers: [Option<Waker>; 2],
    ping_waiters: Option<PingWaiters>,
    wakers: [Option<Waker>; 2],
    visit: Visit,
    /// Changes of health must be delivered to hooks.
    delivers_health: bool,
    /// The hook that warns before the expiry, if that is due.
    expiry_hook: Option<ExpiryHook>,
    /// The connection has ended, so there is no expiry to warn of.
    dropped_warning: Option<Box<ExpiryWarning>>,
}

/// Whether the driver must visit the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    None,
    /// To read for the handler, or to retry its write.
    Poll,
    /// To begin the closing handshake. Without a driver the transport is dropped.
    CloseHandshake,
}

impl<T> Effects<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// `None` if nothing follows.
    fn collect(
        connection: &Connection<T>,
        state: &mut State<T>,
        report: &mut Report,
    ) -> Option<Self> {
        if report.malformed.is_some() {
            state.write_half.cancel_ping();
        }
        let delivers_health = state.queue_health_change();
        if state.monitor.take_moved() || state.health_events().is_some() {
            state.rearm(DeadlineMove::Earlier);
        }
        let lifecycle = &mut state.monitor.lifecycle;
        let verdict = lifecycle.take_unannounced_end();
        let transport_closed = lifecycle.take_released();
        let transport = lifecycle.transport();
        let gone = transport == Some(TransportUse::Closed);
        let closing = transport == Some(TransportUse::CloseHandshake);
        if gone || closing {
            state.reader.wake_if_pending();
            state.writer.wake_if_pending();
        }
        let ping_waiters = state.take_answered_waiters();
        let (expiry_hook, dropped_warning) = state.take_expiry_warning();
        let rare = state.rare.as_mut().filter(|_| closing);
        let close = rare.and_then(|rare| rare.close.as_mut());
        let visit = if close.is_some_and(|close| close.take_unscheduled()) {
            Visit::CloseHandshake
        } else if report.uncertain || report.ping_sent && state.is_unwatched() {
            Visit::Poll
        } else {
            Visit::None
        };
        let releases = gone && (state.io.is_some() || state.timer.is_some());
        let wakes = state.reader.due || state.writer.due;
        let nothing = verdict.is_none()
            && transport_closed.is_none()
            && ping_waiters.is_none()
            && visit == Visit::None
            && !(releases || wakes || delivers_health)
            && expiry_hook.is_none()
            && dropped_warning.is_none()
            && report.is_empty();
        if nothing {
            return None;
        }
        let eviction = verdict.map(|reason| connection.describe(reason, state, report));
        let wakers = state.take_due_wakers();
        let dropped_wakers = match gone || closing {
            true => state.take_wakers(),
            false => [None, None],
        };
        if let Some(rare) = state.rare.as_mut().filter(|_| gone) {
            rare.close = None;
        }
        let shuts_down = state.needs_shutdown();
        let io = state.io.take_if(|_| gone).map(|io| (io, shuts_down));
        Some(Self {
            report: std::mem::take(report),
            eviction,
            timer: state.timer.take_if(|_| gone),
            io,
            transport_closed,
            dropped_wakers,
            ping_waiters,
            wakers,
            visit,
            delivers_health,
            expiry_hook,
            dropped_warning,
        })
    }

    /// The caller holds no lock of the connection.
    fn run(self, connection: &Arc<Connection<T>>) {
        let metadata = &connection.metadata;
        let id = metadata.id();
        log(id, &self.report);
        if let Some(eviction) = self.eviction {
            metadata.in_runtime(|| connection.announce_end(eviction));
        }
        if let Some(timer) = self.timer {
            timer.remove();
        }
        if let Some((io, shuts_down)) = self.io {
            if !drop_transport(io, shuts_down) {
                let message = "a transport panicked while it was dropped";
                panic_guard::log(|| tracing::warn!(conn_id = %id, "{message}"));
            }
        }
        if let Some(clean) = self.transport_closed {
            metadata.transport_closed(clean);
            connection.membership.transport_closed();
        }
        for waker in self.dropped_wakers.into_iter().flatten() {
            panic_guard::wake(id, || drop(waker));
        }
        if let Some(waiters) = self.ping_waiters {
            waiters.notify(id);
        }
        for waker in self.wakers.into_iter().flatten() {
            panic_guard::wake(id, || waker.wake());
        }
        match self.visit {
            Visit::None => {}
            Visit::Poll => connection.schedule(),
            Visit::CloseHandshake => connection.schedule_close_handshake(),
        }
        if self.delivers_health {
            metadata.in_runtime(|| connection.deliver_health_changes());
        }
        if let Some(hook) = self.expiry_hook {
            // A health hook may have ended the connection.
            if !metadata.has_ended() {
                let erased = Arc::clone(connection) as Arc<dyn ErasedConnection>;
                metadata.in_runtime(|| expiry::call(&hook, erased, id));
                let now = metadata.now();
                connection.enter(|state, _| state.expiry_hook_returned(now));
            }
            panic_guard::discard(id, hook);
        }
        if let Some(warning) = self.dropped_warning {
            panic_guard::discard(id, warning);
        }
    }
}

fn log(id: ConnectionId, report: &Report) {
    if report.ping_sent {
        panic_guard::log(|| tracing::trace!(conn_id = %id, "ping sent"));
    }
    if let Some(kind) = report.socket_options_error {
        let error = std::io::Error::from(kind);
        let message = "socket options not set";
        panic_guard::log(|| tracing::debug!(conn_id = %id, %error, "{message}"));
    }
    if let Some((direction, rule)) = report.malformed {
        let direction = direction.as_str();
        let message = "malformed frame, passing bytes on unseen";
        panic_guard::log(|| tracing::debug!(conn_id = %id, direction, %rule, "{message}"));
    }
}

#[cfg(all(test, not(liveness_loom)))]
mod tests;
