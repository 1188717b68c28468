//! What is behind a connection's lock: the transport, both directions, the verdicts, and who waits.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::closing::Closing;
use super::inbound::{Filled, Inbound, READ_AHEAD};
use super::inject::Outbound;
use super::shared::Connection;
use super::watch::{Notes, Watch};
use crate::driver::{Drive, Driver, Key, tick};
use crate::monitor::{Action, CloseFrame, Health, Moment, Monitor, Outlook, Policy, Reason};
use crate::wire::Role;

pub(super) struct State<T> {
    pub(super) phase: Phase,
    pub(super) policy: Policy,
    pub(super) monitor: Monitor,
    pub(super) io: Option<T>,
    /// The upgrade was completed once.
    opened: bool,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    notes: Notes,
    reader: Waiting,
    writer: Waiting,
    link: Option<Link>,
}

/// Who has the transport.
pub(super) enum Phase {
    /// Nobody: the upgrade is not complete.
    Opening,
    /// The handler, with the driver's help.
    Open,
    /// The driver, which says goodbye to the peer.
    Evicting { reason: Reason, closing: Closing },
    /// Nobody any more. No reason: it was the handler who dropped it.
    Closed { reason: Option<Reason> },
}

/// A connection's place in the driver's wheel.
pub(super) struct Link {
    pub(super) driver: Arc<Driver>,
    pub(super) key: Key,
    /// The tick at which the driver comes by. In the past, if it has come and was not asked again.
    armed: u64,
    granularity: u64,
}

/// The handler's waker for one direction of its stream.
#[derive(Default)]
struct Waiting {
    /// Kept after use: the next one is most likely the same.
    waker: Option<Waker>,
    /// The handler got `Pending` and has not come back.
    pending: bool,
    /// The transport was told to wake the driver, not the handler.
    by_driver: bool,
    /// To be woken as soon as the lock is given back.
    due: bool,
}

/// What has to be done after the lock was given back, in this order.
pub(super) struct Aftermath<T> {
    pub(super) notes: Notes,
    pub(super) verdict: Option<Reason>,
    pub(super) io: Option<T>,
    pub(super) link: Option<Link>,
    pub(super) wakers: [Option<Waker>; 2],
}

impl<T> State<T> {
    pub(super) fn new(role: Role) -> Self {
        let policy = Policy::default();
        Self {
            phase: Phase::Opening,
            monitor: Monitor::new(Moment::START, &policy, 0.0, 0),
            policy,
            io: None,
            opened: false,
            inbound: Inbound::new(role),
            outbound: Outbound::new(role),
            notes: Notes::default(),
            reader: Waiting::default(),
            writer: Waiting::default(),
            link: None,
        }
    }

    /// Adds a layer's settings. The later layer of a kind is the inner one, and wins.
    pub(super) fn attach(&mut self, layer: &Policy) {
        if let Some(heartbeat) = &layer.heartbeat {
            self.policy.heartbeat = Some(Arc::clone(heartbeat));
        }
        if let Some(idle) = &layer.idle {
            self.policy.idle = Some(Arc::clone(idle));
        }
    }

    /// Puts the transport in. False if the connection was ended before; the transport then goes
    /// the way of every ended connection's.
    pub(super) fn open(&mut self, io: T, connection: Arc<dyn Drive>, driver: Arc<Driver>) -> bool {
        self.io = Some(io);
        if !matches!(self.phase, Phase::Opening) {
            return false;
        }
        self.phase = Phase::Open;
        self.opened = true;
        let now = driver.clock().now();
        self.monitor = Monitor::new(now, &self.policy, fastrand::f32(), fastrand::u64(..));
        let granularity = self.policy.tick_millis();
        let armed = tick(self.monitor.deadline(&self.policy), granularity);
        let key = driver.insert(connection, armed);
        self.link = Some(Link {
            driver,
            key,
            armed,
            granularity,
        });
        true
    }

    pub(super) fn give_up_opening(&mut self, now: Moment) {
        if matches!(self.phase, Phase::Opening) {
            self.monitor.end(now, Reason::UpgradeFailed);
            self.phase = Phase::Closed {
                reason: Some(Reason::UpgradeFailed),
            };
        }
    }

    pub(super) fn was_opened(&self) -> bool {
        self.opened
    }

    pub(super) fn health(&self) -> Health {
        match self.phase {
            Phase::Opening => Health::Opening,
            Phase::Open => self.monitor.health(),
            Phase::Evicting { .. } | Phase::Closed { .. } => Health::Ended,
        }
    }

    /// What follows from what was just done; `None`, almost always, if nothing does.
    pub(super) fn settle(&mut self) -> Option<Aftermath<T>> {
        if self.monitor.take_moved() {
            self.rearm();
        }
        let verdict = self.monitor.take_verdict();
        let closed = matches!(self.phase, Phase::Closed { .. });
        if closed || matches!(self.phase, Phase::Evicting { .. }) {
            self.reader.due |= self.reader.pending;
            self.writer.due |= self.writer.pending;
        }
        let leftovers = closed && (self.io.is_some() || self.link.is_some());
        let woken = self.reader.due || self.writer.due;
        if verdict.is_none() && !leftovers && !woken && self.notes.is_empty() {
            return None;
        }
        Some(Aftermath {
            notes: std::mem::take(&mut self.notes),
            verdict,
            io: if closed { self.io.take() } else { None },
            link: if closed { self.link.take() } else { None },
            wakers: [self.reader.take_due(), self.writer.take_due()],
        })
    }

    /// Tells the driver of a deadline that has come nearer.
    fn rearm(&mut self) {
        let Some(link) = &mut self.link else {
            return;
        };
        let deadline = tick(self.monitor.deadline(&self.policy), link.granularity);
        if deadline < link.armed {
            link.armed = deadline;
            link.driver.rearm(link.key, deadline);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> State<T> {
    // ---- the handler -------------------------------------------------------------------------

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        connection: &Arc<Connection<T>>,
    ) -> Poll<io::Result<()>> {
        let (io, inbound, _, mut watch) = self.parts()?;
        if inbound.ahead() > 0 {
            let now = watch.now();
            inbound.take_ahead(out);
            watch.monitor.handler_read(now, inbound.ahead() > 0);
            self.reader.pending = false;
            return Poll::Ready(Ok(()));
        }
        loop {
            // While a ping is unanswered the driver watches the transport: the pong is not the
            // handler's business, and its round trip should not include the handler's delay.
            let by_driver = watch.monitor.is_waiting();
            let filled = if by_driver {
                let waker = connection.waker();
                inbound.poll_fill(io, &mut Context::from_waker(&waker), out, &mut watch)
            } else {
                inbound.poll_fill(io, cx, out, &mut watch)
            };
            match filled {
                Poll::Ready(Ok(Filled::Nothing)) => continue,
                Poll::Ready(Ok(Filled::Bytes)) => {}
                Poll::Ready(Ok(Filled::Eof)) => watch.monitor.eof(watch.clock.now()),
                Poll::Ready(Err(error)) => {
                    watch.monitor.failed(watch.clock.now(), error.kind());
                    self.reader.pending = false;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    self.reader.park(cx.waker(), by_driver);
                    return Poll::Pending;
                }
            }
            self.reader.pending = false;
            return Poll::Ready(Ok(()));
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Arc<Connection<T>>,
        bytes: Outgoing<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_out(cx, connection, |io, outbound, cx, watch| match bytes {
            Outgoing::Slice(bytes) => outbound.poll_write(io, cx, bytes, watch),
            Outgoing::Slices(slices) => outbound.poll_write_vectored(io, cx, slices, watch),
        })
    }

    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Arc<Connection<T>>,
    ) -> Poll<io::Result<()>> {
        self.poll_out(cx, connection, |io, outbound, cx, watch| {
            outbound.poll_flush(io, cx, watch)
        })
    }

    pub(super) fn poll_shutdown(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Arc<Connection<T>>,
    ) -> Poll<io::Result<()>> {
        if !matches!(self.phase, Phase::Open) {
            // The driver shuts an evicted connection down; there is nothing left to fail.
            return Poll::Ready(Ok(()));
        }
        self.poll_out(cx, connection, |io, outbound, cx, watch| {
            watch.monitor.server_closed(watch.clock.now(), None);
            outbound.poll_shutdown(io, cx, watch)
        })
    }

    /// One operation of the handler on the way out.
    fn poll_out<R>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Arc<Connection<T>>,
        operation: impl FnOnce(
            &mut T,
            &mut Outbound,
            &mut Context<'_>,
            &mut Watch<'_>,
        ) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        let (io, _, outbound, mut watch) = self.parts()?;
        // While a frame of ours is under way it is the driver's to go on with, since the handler
        // may lose its interest in writing at any time.
        let by_driver = outbound.is_busy();
        let result = if by_driver {
            let waker = connection.waker();
            operation(io, outbound, &mut Context::from_waker(&waker), &mut watch)
        } else {
            operation(io, outbound, cx, &mut watch)
        };
        match &result {
            Poll::Pending => self.writer.park(cx.waker(), by_driver),
            Poll::Ready(done) => {
                self.writer.pending = false;
                if let Err(error) = done {
                    self.fail(error.kind());
                }
            }
        }
        result
    }

    /// The handler dropped its stream. An eviction goes on without it.
    pub(super) fn dropped(&mut self) {
        if let (Phase::Open, Some(link)) = (&self.phase, &self.link) {
            self.monitor.dropped(link.driver.clock().now());
            self.phase = Phase::Closed { reason: None };
        }
    }

    pub(super) fn is_write_vectored(&self) -> bool
    where
        T: AsyncWrite,
    {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    // ---- the driver --------------------------------------------------------------------------

    /// Does what is due. `waker` has the driver come by again.
    pub(super) fn drive(&mut self, waker: &Waker, scratch: &mut [u8]) {
        let Some(link) = &mut self.link else {
            return;
        };
        let now = link.driver.clock().now();
        // What the wheel has found due it has also forgotten.
        let expired = now >= Moment::after_millis(link.armed);
        if expired {
            link.armed = u64::MAX;
        }
        match self.phase {
            Phase::Open => self.drive_open(waker, scratch, expired),
            Phase::Evicting { .. } => self.drive_closing(waker, scratch),
            Phase::Opening | Phase::Closed { .. } => {}
        }
        self.rearm();
    }

    fn drive_open(&mut self, waker: &Waker, scratch: &mut [u8], expired: bool) {
        self.push(waker);
        if expired || self.reader.by_driver || self.monitor.is_waiting() {
            self.look(waker, scratch);
        }
        loop {
            let Ok((_, inbound, outbound, watch)) = self.parts() else {
                return;
            };
            let outlook = Outlook {
                can_inject: outbound.can_inject(),
                blind: inbound.is_blind(),
            };
            match watch.monitor.poll(watch.clock.now(), watch.policy, outlook) {
                Action::Wait => return,
                Action::Ping(payload) => {
                    outbound.ping(payload);
                    self.push(waker);
                    if self.monitor.is_waiting() {
                        self.look(waker, scratch);
                    }
                }
                Action::Evict(reason) => {
                    let frame = self.policy.close_frame(reason);
                    self.phase = Phase::Evicting {
                        reason,
                        closing: Closing::new(reason, frame),
                    };
                    return;
                }
                Action::Cut => {
                    self.phase = Phase::Closed {
                        reason: self.monitor.reason(),
                    };
                    return;
                }
            }
        }
    }

    /// Goes on with a control frame of ours.
    fn push(&mut self, waker: &Waker) {
        let Ok((io, _, outbound, mut watch)) = self.parts() else {
            return;
        };
        if outbound.is_busy() {
            match outbound.poll_control(io, &mut Context::from_waker(waker), &mut watch) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.fail(error.kind()),
            }
        }
        // The transport's waker was ours; the handler has to register its own again.
        if self.writer.by_driver {
            self.writer.by_driver = false;
            self.writer.due = self.writer.pending;
        }
    }

    /// Looks whether anything has come from the peer, on behalf of a handler that does not.
    fn look(&mut self, waker: &Waker, scratch: &mut [u8]) {
        loop {
            let handler = self.reader.waker.clone().filter(|_| self.reader.pending);
            let Ok((io, inbound, _, mut watch)) = self.parts() else {
                return;
            };
            let room = READ_AHEAD
                .saturating_sub(inbound.ahead())
                .min(scratch.len());
            if room == 0 || inbound.has_ended() {
                return;
            }
            // A handler that waits is to be woken by the transport itself, unless there is a pong
            // to be kept from it.
            let by_driver = handler.is_none() || watch.monitor.is_waiting();
            let waker = handler.as_ref().filter(|_| !by_driver).unwrap_or(waker);
            let mut buf = ReadBuf::new(&mut scratch[..room]);
            let filled =
                inbound.poll_fill(io, &mut Context::from_waker(waker), &mut buf, &mut watch);
            let now = watch.now();
            match filled {
                Poll::Pending => {
                    self.reader.by_driver = by_driver;
                    return;
                }
                Poll::Ready(Ok(Filled::Nothing)) => continue,
                Poll::Ready(Ok(Filled::Bytes)) => {
                    inbound.put_ahead(buf.filled());
                    watch.monitor.bytes_wait(now);
                    if handler.is_none() {
                        continue;
                    }
                }
                Poll::Ready(Ok(Filled::Eof)) => watch.monitor.eof(now),
                Poll::Ready(Err(error)) => {
                    watch.monitor.failed(now, error.kind());
                    inbound.fail(error);
                }
            }
            self.reader.by_driver = false;
            self.reader.due = self.reader.pending;
            return;
        }
    }

    // ---- the end -----------------------------------------------------------------------------

    pub(super) fn evict(&mut self, now: Moment, reason: Reason, frame: CloseFrame) -> bool {
        match self.phase {
            _ if self.monitor.is_over() => return false,
            Phase::Opening => {
                self.phase = Phase::Closed {
                    reason: Some(reason),
                }
            }
            Phase::Open => {
                self.phase = Phase::Evicting {
                    reason,
                    closing: Closing::new(reason, frame),
                };
            }
            Phase::Evicting { .. } | Phase::Closed { .. } => return false,
        }
        self.monitor.end(now, reason);
        true
    }

    pub(super) fn transport_panicked(&mut self) {
        self.fail(io::ErrorKind::Other);
        self.phase = Phase::Closed {
            reason: self.monitor.reason(),
        };
    }

    fn fail(&mut self, kind: io::ErrorKind) {
        if let Some(link) = &self.link {
            self.monitor.failed(link.driver.clock().now(), kind);
        }
    }

    fn drive_closing(&mut self, waker: &Waker, scratch: &mut [u8]) {
        let Phase::Evicting { reason, closing } = &mut self.phase else {
            return;
        };
        let (Some(io), Some(link)) = (&mut self.io, &self.link) else {
            return;
        };
        let mut watch = Watch {
            monitor: &mut self.monitor,
            policy: &self.policy,
            notes: &mut self.notes,
            clock: link.driver.clock(),
        };
        let now = watch.now();
        let outlook = Outlook {
            can_inject: false,
            blind: false,
        };
        let late = watch.monitor.poll(now, watch.policy, outlook) == Action::Cut;
        let cx = &mut Context::from_waker(waker);
        let halves = (&mut self.inbound, &mut self.outbound);
        if closing.poll(io, halves, cx, scratch, &mut watch).is_ready() || late {
            self.phase = Phase::Closed {
                reason: Some(*reason),
            };
        }
    }

    /// The transport with what belongs to it, as long as it is the handler's.
    fn parts(&mut self) -> io::Result<(&mut T, &mut Inbound, &mut Outbound, Watch<'_>)> {
        match (&self.phase, &mut self.io, &self.link) {
            (Phase::Open, Some(io), Some(link)) => {
                let watch = Watch {
                    monitor: &mut self.monitor,
                    policy: &self.policy,
                    notes: &mut self.notes,
                    clock: link.driver.clock(),
                };
                Ok((io, &mut self.inbound, &mut self.outbound, watch))
            }
            (
                Phase::Evicting { reason, .. }
                | Phase::Closed {
                    reason: Some(reason),
                },
                ..,
            ) => Err(Connection::<T>::eviction_error(*reason)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// What the handler writes.
pub(super) enum Outgoing<'a> {
    Slice(&'a [u8]),
    Slices(&'a [IoSlice<'a>]),
}

impl Waiting {
    fn park(&mut self, waker: &Waker, by_driver: bool) {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            None => self.waker = Some(waker.clone()),
        }
        self.pending = true;
        self.by_driver = by_driver;
    }

    fn take_due(&mut self) -> Option<Waker> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        self.pending = false;
        self.waker.take()
    }
}
