//! What a connection's lock protects: the transport, the monitor, both I/O halves and the wakers.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::oneshot;

use super::io::{HandlerWait, Observer, ReadHalf, Report, TransportTraits, WriteHalf};
use super::layers::ConnectionSettings;
use super::metadata::{HealthEvents, PingWaiters};
use super::rare_state::RareState;
use crate::driver::{Drive, Driver, TimerEntry};
use crate::eviction::Evicted;
use crate::monitor::{KernelView, Lifecycle, Moment, Monitor, Policy};
use crate::wire::Role;

/// The state of one connection. How far the connection has come is in
/// [`monitor.lifecycle`](Monitor::lifecycle).
pub(crate) struct State<T: 'static> {
    pub(crate) policy: Policy,
    /// Settings of this connection alone. Boxed, since most connections have none. Every connection
    /// with an inner layer has some until its upgrade, so they are not in [`RareState`].
    pub(crate) settings: Option<Box<ConnectionSettings>>,
    pub(crate) monitor: Monitor,
    pub(crate) io: Option<T>,
    pub(crate) read_half: ReadHalf,
    pub(crate) write_half: WriteHalf,
    /// A layer of the connection has open hooks, or had before it left.
    pub(crate) has_open_hooks: bool,
    /// The handler's next operation needs only the transport: nothing else waits or is due. Set
    /// after an operation of the handler; every other access clears it, whatever it changes.
    pub(crate) routine: bool,
    /// Made on demand, and then kept.
    pub(crate) rare: Option<Box<RareState>>,
    pub(crate) reader: HandlerWait,
    pub(crate) writer: HandlerWait,
    /// The handler's waker for its reads. Kept after use: the next one is most likely the same.
    /// That for its writes is in [`RareState`].
    pub(crate) reader_waker: Option<Waker>,
    /// `None` before the upgrade is complete, and after the transport is released.
    pub(crate) timer: Option<TimerEntry>,
    pub(crate) transport: &'static TransportTraits<T>,
}

/// The transport that the handler may use, and what belongs to it.
pub(crate) struct Parts<'a, T> {
    pub(crate) io: &'a mut T,
    pub(crate) read_half: &'a mut ReadHalf,
    pub(crate) write_half: &'a mut WriteHalf,
    pub(crate) observer: Observer<'a>,
}

impl<T: 'static> State<T> {
    pub(crate) fn new(role: Role, transport: &'static TransportTraits<T>) -> Self {
        Self {
            monitor: Monitor::opening(),
            policy: Policy::default(),
            settings: None,
            io: None,
            read_half: ReadHalf::new(),
            write_half: WriteHalf::new(role),
            has_open_hooks: false,
            routine: false,
            rare: None,
            reader: HandlerWait::default(),
            writer: HandlerWait::default(),
            reader_waker: None,
            timer: None,
            transport,
        }
    }

    /// Stores the transport of a completed upgrade. Returns whether the handler may use it. If not,
    /// the connection was evicted before and the closing handshake begins, or the runtime is being
    /// shut down and the transport is dropped.
    pub(crate) fn open(
        &mut self,
        io: T,
        connection: Arc<dyn Drive>,
        driver: Arc<Driver>,
        report: &mut Report,
    ) -> bool {
        let heartbeat = self.policy.heartbeat.as_ref();
        let takes_any_bytes = (self.transport.takes_any_bytes)(&io)
            || heartbeat.is_some_and(|heartbeat| heartbeat.takes_any_bytes);
        self.write_half.set_repeats_writes(!takes_any_bytes);
        if (self.transport.flushes_nothing)(&io) {
            self.write_half.set_flushes_nothing();
        }
        self.io = Some(io);
        if !self.monitor.lifecycle.awaits_transport() {
            return false;
        }
        let now = driver.clock().now();
        match self.monitor.lifecycle {
            Lifecycle::Opening => {
                self.apply_expiry(driver.clock());
                self.begin(now, report);
            }
            _ => self.monitor.lifecycle.close_from(now),
        }
        let granularity = self.policy.step_millis();
        let deadline = self.deadline();
        let Some(timer) = TimerEntry::insert(driver, connection, deadline, granularity) else {
            if self.monitor.lifecycle == Lifecycle::Open {
                // The handler never gets it, so it was never open.
                self.monitor = Monitor::opening();
            }
            self.monitor.dropped(now);
            self.monitor.lifecycle.release(false);
            return false;
        };
        self.timer = Some(timer);
        self.monitor.lifecycle == Lifecycle::Open
    }

    /// Starts the monitor of a connection whose upgrade is complete.
    fn begin(&mut self, now: Moment, report: &mut Report) {
        self.set_socket_options(report);
        self.monitor = Monitor::new(now, fastrand::f32(), draw_tag());
        if let Some(waiters) = self
            .rare
            .as_mut()
            .and_then(|rare| rare.ping_waiters.as_mut())
        {
            waiters.begin(self.monitor.request_ping(), now);
        }
        if let Some(events) = self.health_events() {
            events.record_read(now);
        }
    }

    /// Sets the socket options that follow from the heartbeat's times, if the transport has any.
    pub(crate) fn set_socket_options(&mut self, report: &mut Report) {
        if let (Some(io), Some(heartbeat)) = (&self.io, &self.policy.heartbeat) {
            let tuned = (self.transport.tune)(io, heartbeat);
            report.socket_options_error = tuned.err().map(|error| error.kind());
        }
    }

    /// What the kernel knows of the connection now, if it can be asked.
    pub(crate) fn kernel_view(&self) -> Option<KernelView> {
        let clock = self.timer.as_ref()?.clock();
        (self.transport.kernel_view)(self.io.as_ref()?, &|| clock.now())
    }

    /// Requests a ping. The receiver fails if the connection ends before the pong, or has ended.
    pub(crate) fn ping(&mut self, now: Moment) -> oneshot::Receiver<Duration> {
        let sequence = self.monitor.request_ping();
        let waiters = self.rare().ping_waiters.get_or_insert_default();
        waiters.add(sequence, now)
    }

    /// Whether a ping was flushed with the handler's bytes, and the transport has the handler's
    /// waker. The handler may be busy when the pong comes, and the round trip would include its
    /// delay.
    pub(crate) fn is_unwatched(&self) -> bool {
        self.monitor.awaits_answer() && !self.reader.by_driver
    }

    /// The transport failed.
    pub(crate) fn fail(&mut self, kind: io::ErrorKind) {
        if let Some(timer) = &self.timer {
            self.monitor.failed(timer.now(), kind);
        }
    }

    /// The transport and what belongs to it, while the handler may use it.
    #[inline]
    pub(crate) fn parts<'a>(&'a mut self, report: &'a mut Report) -> io::Result<Parts<'a, T>> {
        match (&mut self.io, &self.timer) {
            (Some(io), Some(timer)) if self.monitor.lifecycle.is_usable() => Ok(Parts {
                io,
                read_half: &mut self.read_half,
                write_half: &mut self.write_half,
                observer: Observer {
                    monitor: &mut self.monitor,
                    policy: &self.policy,
                    report,
                    ping_waiters: self
                        .rare
                        .as_mut()
                        .and_then(|rare| rare.ping_waiters.as_deref_mut()),
                    clock: timer.clock(),
                },
            }),
            _ => Err(no_transport(&self.monitor)),
        }
    }

    /// Whether nothing follows from the last operation, as after nearly every one.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.monitor.lifecycle.is_settled()
            && !self.monitor.has_moved()
            && self.rare.as_ref().is_none_or(|rare| rare.is_settled())
            && !self.reader.due
            && !self.writer.due
    }

    /// Finds out whether the handler's next operation is [routine](Self::routine).
    pub(crate) fn update_routine(&mut self) {
        self.routine = self.is_settled()
            && self.monitor.is_routine()
            && self.read_half.is_routine()
            && self.write_half.is_routine()
            && self.rare.as_ref().is_none_or(|rare| rare.is_routine());
    }

    /// The rare state, made if there is none yet.
    pub(crate) fn rare(&mut self) -> &mut RareState {
        self.rare.get_or_insert_default()
    }

    /// Whether hooks of an open connection may be called after the last operation.
    pub(crate) fn may_call_hooks(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.may_call_hooks())
    }

    /// `None` without health hooks.
    pub(crate) fn health_events(&mut self) -> Option<&mut HealthEvents> {
        self.rare.as_mut()?.health_events.as_deref_mut()
    }

    /// The waiters whose pong came, or all of them after the end.
    pub(crate) fn take_answered_waiters(&mut self) -> Option<PingWaiters> {
        let slot = &mut self.rare.as_mut()?.ping_waiters;
        if self.monitor.has_ended() {
            return slot.take().map(|waiters| *waiters);
        }
        let waiters = slot.as_mut()?;
        waiters.has_answers().then(|| waiters.take_answers())
    }

    /// Takes both wakers of the handler that must be woken.
    pub(crate) fn take_due_wakers(&mut self) -> [Option<Waker>; 2] {
        let reader = self.reader.take_due(&mut self.reader_waker);
        let stored = self.rare.as_mut().map(|rare| &mut rare.writer_waker);
        let writer = self.writer.take_due(stored.unwrap_or(&mut None));
        [reader, writer]
    }

    /// Takes both wakers of the handler, which no poll will use again.
    pub(crate) fn take_wakers(&mut self) -> [Option<Waker>; 2] {
        let writer = self.rare.as_mut().and_then(|rare| rare.writer_waker.take());
        [self.reader_waker.take(), writer]
    }
}

/// The handler's error where it may not use the transport.
#[cold]
pub(crate) fn no_transport(monitor: &Monitor) -> io::Error {
    match monitor.reason() {
        Some(reason) => Evicted::new(reason).into_io_error(),
        None => io::ErrorKind::NotConnected.into(),
    }
}

/// A random tag for the pings of a connection. Its first bit is set, so that a counter or a time
/// with which the handler fills the eight bytes of its own pings is not taken for one of ours.
fn draw_tag() -> u32 {
    fastrand::u32(..) | 1 << 31
}

#[cfg(all(test, not(liveness_loom)))]
mod tests {
    use super::*;

    #[test]
    fn no_counter_or_time_begins_with_the_tag_of_pings() {
        for _ in 0..100 {
            assert!(draw_tag() > u32::MAX / 2);
        }
    }
}
