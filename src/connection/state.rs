//! What is behind a connection's lock: the transport, both directions, the verdicts, and who waits.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::connection::end::Departure;
use crate::connection::io::ReadHalf;
use crate::connection::io::TransportTraits;
use crate::connection::io::WriteHalf;
use crate::connection::io::{Observer, Report};
use crate::connection::metadata::HealthEvents;
use crate::connection::metadata::PingWaiters;
use crate::connection::metadata::{Attached, AttachmentId, Attachments};
use crate::connection::timing::CloseHandshake;
use crate::connection::timing::{DeadlineMove, TimerEntry};
use crate::driver::{Drive, Driver, tick};
use crate::eviction::Evicted;
use crate::monitor::{CloseFrame, Health, Moment, Monitor, Overrides, Policy, Reason};
use crate::wire::Role;

pub(super) struct State<T: 'static> {
    pub(super) phase: Phase,
    pub(super) policy: Policy,
    own: Option<Box<Settings>>,
    pub(super) monitor: Monitor,
    pub(super) io: Option<T>,
    /// The upgrade was completed once.
    opened: bool,
    pub(super) departure: Departure,
    pub(super) read_half: ReadHalf,
    pub(super) write_half: WriteHalf,
    /// Visits of the driver since one looked at everything.
    pub(super) looks: u8,
    pub(super) notes: Report,
    pub(super) ping_waiters: Option<Box<PingWaiters>>,
    /// Only where somebody wants to hear of the connection's health.
    pub(super) health_events: Option<Box<HealthEvents>>,
    pub(super) reader: HandlerWaker,
    pub(super) writer: HandlerWaker,
    pub(super) timer: Option<TimerEntry>,
    pub(super) capabilities: &'static TransportTraits<T>,
}

/// Settings of this connection alone. Most connections have none, so they are boxed.
#[derive(Default)]
struct Settings {
    /// Values that take precedence over those of all layers.
    overrides: Overrides,
    /// Present only while the response of an inner layer is outstanding.
    attachments: Option<Attachments>,
}

/// Who has the transport.
pub(super) enum Phase {
    /// Nobody: the upgrade is not complete.
    Opening {
        /// The connection was evicted, so its closing handshake begins as soon as the stream opens.
        closing: Option<Box<CloseHandshake>>,
    },
    /// The handler, with the driver's help.
    Open {
        /// The connection ends for this reason as soon as the handler is between two frames.
        parting: Option<Box<Parting>>,
    },
    /// The driver, which closes the transport.
    Evicting { closing: Box<CloseHandshake> },
    /// Nobody any more. No reason: it was the handler who dropped it.
    Closed {
        reason: Option<Reason>,
        /// What was read ahead is still the handler's: it was not evicted, only late.
        readable: bool,
    },
}

/// An end that is put off: why, and what the peer is health_events.
pub(super) type Parting = (Reason, CloseFrame);

/// The handler's waker for one direction of its stream.
#[derive(Default)]
pub(super) struct HandlerWaker {
    /// Kept after use: the next one is most likely the same.
    pub(super) waker: Option<Waker>,
    /// The handler got `Pending` and has not come back.
    pub(super) pending: bool,
    /// The transport was told to wake the driver, not the handler.
    pub(super) by_driver: bool,
    /// To be woken as soon as the lock is given back.
    pub(super) due: bool,
}

/// What has to be done after the lock was given back, in this order.
pub(super) struct Effects<T> {
    pub(super) notes: Report,
    pub(super) verdict: Option<Reason>,
    pub(super) timer: Option<TimerEntry>,
    pub(super) io: Option<T>,
    /// There will be no transport any more; see [`Departure::Untold`].
    pub(super) departed: Option<bool>,
    pub(super) ping_waiters: Option<PingWaiters>,
    /// A closing handshake has begun, so the driver must be scheduled.
    pub(super) closes: bool,
    pub(super) wakers: [Option<Waker>; 2],
    /// Wakers that nobody will need again: they keep their tasks' memory.
    pub(super) spent: [Option<Waker>; 2],
    /// The health hooks have to be told something.
    pub(super) news: bool,
}

impl<T: 'static> State<T> {
    pub(super) fn new(role: Role, capabilities: &'static TransportTraits<T>) -> Self {
        let policy = Policy::default();
        Self {
            phase: Phase::Opening { closing: None },
            monitor: Monitor::new(Moment::START, &policy, 0.0, 0),
            policy,
            own: None,
            io: None,
            opened: false,
            departure: Departure::Opening,
            read_half: ReadHalf::new(),
            write_half: WriteHalf::new(role),
            looks: 0,
            notes: Report::default(),
            ping_waiters: None,
            health_events: None,
            reader: HandlerWaker::default(),
            writer: HandlerWaker::default(),
            timer: None,
            capabilities,
        }
    }

    /// Adds a layer's settings. The later layer of a kind is the inner one, and wins.
    pub(super) fn attach(&mut self, layer: &Policy) {
        self.policy.add(layer);
        if let Some(own) = &self.own {
            own.overrides.apply(&mut self.policy);
        }
    }

    /// Adds the settings of an inner layer that may leave, and the overrides that came with its request.
    pub(super) fn join(&mut self, now: Moment, attached: Attached, overrides: Option<&Overrides>) {
        let (id, layer) = (attached.id, Arc::clone(&attached.layer));
        let own = self.own.get_or_insert_default();
        let policy = &self.policy;
        let attachments = own
            .attachments
            .get_or_insert_with(|| Attachments::new(policy.clone(), own.overrides.clone()));
        attachments.add(attached);
        let before = self.heartbeat_timeout();
        self.attach(&layer.policy);
        self.policy_changed(now, before);
        if let Some(overrides) = overrides {
            self.override_policy(now, Some(id), overrides);
        }
    }

    /// Removes the settings of an inner layer and of the layers within it. Returns these layers.
    pub(super) fn leave(&mut self, now: Moment, id: AttachmentId) -> Vec<Attached> {
        let before = self.heartbeat_timeout();
        let Some(own) = &mut self.own else {
            return Vec::new();
        };
        let Some(attachments) = &mut own.attachments else {
            return Vec::new();
        };
        let removed = attachments.remove(id);
        (self.policy, own.overrides) = attachments.policy();
        self.policy_changed(now, before);
        removed
    }

    /// The inner layers, while a response of one of them is outstanding.
    pub(super) fn attachments(&mut self) -> Option<&mut Attachments> {
        self.own.as_mut()?.attachments.as_mut()
    }

    /// Takes the state of inner layers once no response is outstanding. Drop it without the lock.
    pub(super) fn take_final_attachments(&mut self) -> Option<Attachments> {
        let own = self.own.as_mut()?;
        let attachments = own.attachments.take_if(|all| all.are_final())?;
        if own.overrides == Overrides::default() {
            self.own = None;
        }
        Some(attachments)
    }

    /// Replaces values of the policy, for this connection alone. `by` is the inner layer with whose request
    /// they came, if any.
    pub(super) fn override_policy(
        &mut self,
        now: Moment,
        by: Option<AttachmentId>,
        overrides: &Overrides,
    ) {
        let before = self.heartbeat_timeout();
        let own = self.own.get_or_insert_default();
        if let Some(attachments) = &mut own.attachments {
            attachments.add_overrides(by, overrides);
        }
        own.overrides.merge(overrides);
        own.overrides.apply(&mut self.policy);
        self.policy_changed(now, before);
    }

    fn heartbeat_timeout(&self) -> Option<Duration> {
        Some(self.policy.heartbeat.as_ref()?.timeout)
    }

    /// Applies a changed policy; the timeout of the pings was `before`.
    fn policy_changed(&mut self, now: Moment, before: Option<Duration>) {
        if let Some(timer) = &mut self.timer {
            timer.granularity = self.policy.step_millis();
        }
        self.monitor.policy_changed(now, &self.policy, before);
        self.tune();
    }

    /// Has the transport follow the heartbeat's times, if it can.
    fn tune(&mut self) {
        if let (Some(io), Some(heartbeat)) = (&self.io, &self.policy.heartbeat) {
            let tuned = (self.capabilities.tune)(io, heartbeat);
            self.notes.untuned = tuned.err().map(|error| error.kind());
        }
    }

    /// Stores the transport. False if the handler does not get it: either the connection was evicted
    /// before, and its closing handshake begins, or the runtime is being shut down, and it is dropped.
    pub(super) fn open(&mut self, io: T, connection: Arc<dyn Drive>, driver: Arc<Driver>) -> bool {
        let takes_any_bytes = (self.capabilities.takes_any_bytes)(&io)
            || (self.policy.heartbeat.as_ref()).is_some_and(|heartbeat| heartbeat.takes_any_bytes);
        self.write_half.repeats_writes(!takes_any_bytes);
        self.io = Some(io);
        self.departure = Departure::Untold { clean: false };
        let Phase::Opening { closing } = &mut self.phase else {
            return false;
        };
        let (closing, now) = (closing.take(), driver.clock().now());
        match closing {
            None => self.begin(now),
            Some(_) => self.monitor.close_from(now),
        }
        let granularity = self.policy.step_millis();
        let armed = tick(self.deadline(), granularity);
        let Some(key) = driver.insert(connection, armed) else {
            self.monitor.dropped(now);
            self.phase = Phase::Closed {
                reason: self.monitor.reason(),
                readable: false,
            };
            return false;
        };
        self.timer = Some(TimerEntry {
            driver,
            key,
            armed,
            granularity,
        });
        self.opened = closing.is_none();
        self.phase = match closing {
            Some(closing) => Phase::Evicting { closing },
            None => Phase::Open { parting: None },
        };
        self.opened
    }

    /// Starts the monitor of a connection that is now open.
    fn begin(&mut self, now: Moment) {
        self.tune();
        self.monitor = Monitor::new(now, &self.policy, fastrand::f32(), fastrand::u64(..));
        if let Some(ping_waiters) = &mut self.ping_waiters {
            ping_waiters.begin(self.monitor.ask_ping(), now);
        }
        if let Some(health_events) = &mut self.health_events {
            health_events.look(now);
        }
    }

    pub(super) fn give_up_opening(&mut self, now: Moment) {
        if let Departure::Opening = self.departure {
            self.departure = Departure::Untold { clean: false };
        }
        if matches!(self.phase, Phase::Opening { .. }) {
            // An earlier eviction stays the reason. There is no transport to send its frame over.
            self.monitor.end(now, Reason::UpgradeFailed);
            self.phase = Phase::Closed {
                reason: self.monitor.reason(),
                readable: false,
            };
        }
    }

    pub(super) fn was_opened(&self) -> bool {
        self.opened
    }

    pub(super) fn health(&self, now: Moment) -> Health {
        match self.phase {
            Phase::Opening { closing: None } => Health::Opening,
            Phase::Open { .. } => self.monitor.health(now, &self.policy),
            Phase::Opening { .. } | Phase::Evicting { .. } | Phase::Closed { .. } => Health::Ended,
        }
    }

    /// A ping went out, with the handler's own bytes, and it is not the driver who is to be woken
    /// when the pong comes. The handler may be busy by then, and the round trip would be its own.
    pub(super) fn is_unwatched(&self) -> bool {
        self.monitor.is_waiting() && !self.reader.by_driver
    }

    /// Whether nothing can follow from what was just done, as after nearly every operation. If not,
    /// [`settle`](Self::settle) tells what follows.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
            && !self.monitor.is_stirred()
            && self.health_events.is_none()
            && !self
                .ping_waiters
                .as_ref()
                .is_some_and(|waiters| waiters.has_answers())
            && !self.reader.due
            && !self.writer.due
            && self.notes.is_empty()
    }

    /// What follows from what was just done; `None` if nothing does.
    pub(super) fn settle(&mut self) -> Option<Effects<T>> {
        if self.notes.malformed.is_some() {
            self.write_half.cancel_ping();
        }
        let news = self.note_health();
        if self.monitor.take_moved() || self.health_events.is_some() {
            self.rearm(DeadlineMove::Forward);
        }
        let verdict = self.monitor.take_verdict();
        let closed = matches!(self.phase, Phase::Closed { .. });
        let taken = closed || matches!(self.phase, Phase::Evicting { .. });
        if taken {
            self.reader.due |= self.reader.pending;
            self.writer.due |= self.writer.pending;
        }
        let ping_waiters = self.take_callers();
        let closes = match &mut self.phase {
            Phase::Evicting { closing } => closing.take_begun(),
            Phase::Opening { .. } | Phase::Open { .. } | Phase::Closed { .. } => false,
        };
        let departed = if closed { self.departure.tell() } else { None };
        let leftovers = ping_waiters.is_some()
            || departed.is_some()
            || closed && (self.io.is_some() || self.timer.is_some());
        let woken = self.reader.due || self.writer.due;
        if verdict.is_none() && !leftovers && !woken && !closes && !news && self.notes.is_empty() {
            return None;
        }
        let wakers = [self.reader.take_due(), self.writer.take_due()];
        let spent = if taken {
            [self.reader.waker.take(), self.writer.waker.take()]
        } else {
            [None, None]
        };
        Some(Effects {
            notes: std::mem::take(&mut self.notes),
            verdict,
            io: if closed { self.io.take() } else { None },
            timer: if closed { self.timer.take() } else { None },
            departed,
            ping_waiters,
            closes,
            wakers,
            spent,
            news,
        })
    }

    /// Those who are to hear of a pong, or that there will be none.
    fn take_callers(&mut self) -> Option<PingWaiters> {
        let ping_waiters = self.ping_waiters.as_mut()?;
        if self.monitor.is_over() {
            return self.ping_waiters.take().map(|waiters| *waiters);
        }
        ping_waiters
            .has_answers()
            .then(|| ping_waiters.take_answers())
    }

    /// Asks for a ping. The answer is an error if the connection ends first, or has ended.
    pub(super) fn ping(&mut self, now: Moment) -> oneshot::Receiver<Duration> {
        let sequence = self.monitor.ask_ping();
        let ping_waiters = self.ping_waiters.get_or_insert_default();
        ping_waiters.add(sequence, now)
    }

    pub(super) fn evict(&mut self, now: Moment, reason: Reason, frame: CloseFrame) -> bool {
        match &mut self.phase {
            _ if self.monitor.is_over() => return false,
            Phase::Opening { closing } => {
                *closing = Some(Box::new(CloseHandshake::new(reason, frame)));
            }
            Phase::Open { .. } => {
                self.begin_closing(reason, frame);
            }
            Phase::Evicting { .. } | Phase::Closed { .. } => return false,
        }
        self.monitor.end(now, reason);
        true
    }

    /// Takes the transport from the handler, to say goodbye.
    pub(super) fn begin_closing(&mut self, reason: Reason, frame: CloseFrame) {
        self.read_half.forget_ahead();
        self.phase = Phase::Evicting {
            closing: Box::new(CloseHandshake::new(reason, frame)),
        };
    }

    /// There is no driver to say goodbye.
    pub(super) fn close_now(&mut self) {
        if let Phase::Evicting { closing } = &self.phase {
            self.phase = Phase::Closed {
                reason: Some(closing.reason()),
                readable: false,
            };
        }
    }

    /// The runtime was shut down, and its driver with it: ends the connection as if the handler had
    /// dropped it, and drops the transport.
    pub(super) fn abandon(&mut self) {
        let (Phase::Open { .. }, Some(timer)) = (&self.phase, &self.timer) else {
            self.close_now();
            return;
        };
        let was_over = self.monitor.is_over();
        self.monitor.dropped(timer.driver.clock().now());
        self.phase = Phase::Closed {
            reason: self.monitor.reason(),
            readable: was_over,
        };
    }

    pub(super) fn transport_panicked(&mut self) {
        self.fail(io::ErrorKind::Other);
        self.phase = Phase::Closed {
            reason: self.monitor.reason(),
            readable: false,
        };
    }

    pub(super) fn fail(&mut self, kind: io::ErrorKind) {
        if let Some(timer) = &self.timer {
            self.monitor.failed(timer.driver.clock().now(), kind);
        }
    }

    /// The transport with what belongs to it, as long as it is the handler's.
    pub(super) fn parts(
        &mut self,
    ) -> io::Result<(&mut T, &mut ReadHalf, &mut WriteHalf, Observer<'_>)> {
        match (&self.phase, &mut self.io, &self.timer) {
            (Phase::Open { .. }, Some(io), Some(timer)) => {
                let observer = Observer {
                    monitor: &mut self.monitor,
                    policy: &self.policy,
                    notes: &mut self.notes,
                    ping_waiters: &mut self.ping_waiters,
                    clock: timer.driver.clock(),
                };
                Ok((io, &mut self.read_half, &mut self.write_half, observer))
            }
            (Phase::Evicting { closing }, ..) => {
                Err(Evicted::new(closing.reason()).into_io_error())
            }
            (
                Phase::Closed {
                    reason: Some(reason),
                    ..
                },
                ..,
            ) => Err(Evicted::new(*reason).into_io_error()),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl HandlerWaker {
    /// Stores the waker of a handler that waits. Returns the one that it replaces.
    pub(super) fn park(&mut self, waker: &Waker, by_driver: bool) -> Option<Waker> {
        self.pending = true;
        self.by_driver = by_driver;
        let known = self.waker.as_ref();
        if known.is_some_and(|known| known.will_wake(waker)) {
            return None;
        }
        self.waker.replace(waker.clone())
    }

    fn take_due(&mut self) -> Option<Waker> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        self.pending = false;
        self.waker.take()
    }
}
