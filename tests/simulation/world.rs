//! The world outside the process: the network, and the peer behind it.
//!
//! The world has its own clock and catches up with the process at each access. So it continues
//! during a standstill of the process, as the real network does.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::time::Instant;
use tower_ws_liveness::Eviction;

use super::log::{Entry, Event, Poller, Report};
use super::peer::{Peer, SentFrame};
use super::plan::{ALL, Link, Plan};
use super::rng::Rng;

/// More polls than any schedule needs: above this a task is in a busy loop.
const MAX_POLLS: usize = 300_000;

pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) log: Vec<Entry>,
    /// Bytes that the transport accepted, that the handler wrote, and that it read.
    pub(crate) accepted: Vec<u8>,
    pub(crate) wrote: Vec<u8>,
    pub(crate) read: Vec<u8>,
    pub(crate) peer_sent: Vec<SentFrame>,

    start: Instant,
    pub(super) clock: u64,
    pub(super) rng: Rng,
    pub(super) peer: Option<Peer>,
    timers: BTreeMap<(u64, usize), Timer>,
    timers_set: usize,
    pub(super) poller: Poller,
    polls: usize,

    /// Rest of the request of the opening handshake. The handshake takes no time, and the response
    /// is dropped.
    pub(super) handshake: Option<VecDeque<u8>>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    woken: Vec<Waker>,
    pub(crate) notify: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Inbound {
    pub(super) flight: InFlight,
    /// Bytes that can be read.
    pub(super) ready: VecDeque<u8>,
    pub(super) fin: Option<u64>,
    pub(super) end: Option<Result<(), io::ErrorKind>>,
    pub(super) reader: Option<Waker>,
}

#[derive(Default)]
pub(super) struct Outbound {
    pub(super) flight: InFlight,
    /// Bytes accepted and not flushed.
    pub(super) staged: Vec<u8>,
    pub(super) flushed_at: Option<u64>,
    /// Whether bytes were accepted since a flush last returned.
    pub(super) flush_unreported: bool,
    /// Bytes with which the next write must begin.
    pub(super) claim: Option<Vec<u8>>,
    /// Number of bytes accepted and not read by the peer's program.
    pub(super) used: usize,
    pub(super) full: bool,
    pub(super) writer: Option<Waker>,
    pub(super) shutdown: bool,
    pub(super) dropped: bool,
    pub(super) killed: bool,
}

/// Bytes in transit, in order.
#[derive(Default)]
pub(super) struct InFlight {
    pub(super) segments: VecDeque<(u64, Vec<u8>)>,
    pub(super) last: u64,
    pub(super) stalled_until: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    Act(usize),
    Fault(usize),
    Steady { every: u64, len: usize, left: u64 },
    Answer,
    Thaw,
    Flushed,
    Reset,
    AnswerClose,
    SendFin,
}

impl InFlight {
    pub(super) fn push(&mut self, now: u64, link: &Link, bytes: &[u8]) {
        let Link {
            latency,
            rate,
            burst,
            ..
        } = *link;
        let piece = rate.saturating_mul(burst);
        for chunk in bytes.chunks(piece) {
            let travel = if rate == ALL {
                0
            } else {
                chunk.len().div_ceil(rate) as u64
            };
            self.last = self.last.max(now + latency) + travel;
            self.segments.push_back((self.last, chunk.to_vec()));
        }
    }

    fn next(&self) -> Option<u64> {
        let (at, _) = self.segments.front()?;
        self.after_stall(*at)
    }

    fn after_stall(&self, at: u64) -> Option<u64> {
        let at = at.max(self.stalled_until);
        (at < u64::MAX).then_some(at)
    }

    pub(super) fn stall(&mut self, now: u64, span: Option<u64>) {
        let until = span.map_or(u64::MAX, |span| now + span);
        self.stalled_until = self.stalled_until.max(until);
    }
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut world = Self {
            rng: Rng::new(plan.seed ^ 0xA5A5),
            peer: Some(Peer::new(&plan)),
            log: Vec::new(),
            accepted: Vec::new(),
            wrote: Vec::new(),
            read: Vec::new(),
            peer_sent: Vec::new(),
            start: Instant::now(),
            clock: 0,
            timers: BTreeMap::new(),
            timers_set: 0,
            poller: Poller::Driver,
            polls: 0,
            handshake: None,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            woken: Vec::new(),
            notify: Arc::default(),
            plan,
        };
        for n in 0..world.plan.net.faults.len() {
            world.set(world.plan.net.faults[n].0, Timer::Fault(n));
        }
        for n in 0..world.plan.peer.acts.len() {
            world.set(world.plan.peer.acts[n].0, Timer::Act(n));
        }
        world
    }

    pub(crate) fn instant(&self, at: u64) -> Instant {
        self.start + std::time::Duration::from_millis(at)
    }

    /// Logs an event of the world at the world's time.
    pub(crate) fn log(&mut self, event: Event) {
        let at = self.clock;
        self.log.push(Entry { at, event });
    }

    /// Logs an event of the process at the current time.
    pub(crate) fn note(&mut self, event: Event) {
        self.catch_up();
        self.log(event);
    }

    /// The eviction hook.
    pub(crate) fn on_evict(&mut self, eviction: &Eviction) {
        self.note(Event::Evicted(Report {
            reason: eviction.reason(),
            rtt: eviction.rtt(),
            stats: eviction.stats(),
        }));
    }

    /// Sends the peer's upgrade request before anything else happens.
    pub(crate) fn begin_handshake(&mut self, request: &str) {
        self.handshake = Some(request.bytes().collect());
    }

    /// Called at each poll of the transport.
    pub(super) fn polled(&mut self) {
        self.polls += 1;
        assert!(
            self.polls < MAX_POLLS,
            "the transport is polled in a busy loop"
        );
        self.catch_up();
    }

    pub(super) fn set(&mut self, at: u64, timer: Timer) {
        self.timers_set += 1;
        self.timers.insert((at, self.timers_set), timer);
        self.notify.notify_one();
    }

    /// Time of the next event outside the process.
    pub(crate) fn next(&self) -> Option<u64> {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        [timer, self.next_in(), self.next_out()]
            .into_iter()
            .flatten()
            .min()
    }

    fn next_in(&self) -> Option<u64> {
        let Inbound {
            flight,
            ready,
            fin,
            end,
            ..
        } = &self.inbound;
        match flight.next() {
            _ if end.is_some() => None,
            Some(at) => (ready.len() < self.plan.net.inbound.capacity).then_some(at),
            None if flight.segments.is_empty() => flight.after_stall((*fin)?),
            None => None,
        }
    }

    fn next_out(&self) -> Option<u64> {
        let listens = self.peer.as_ref().is_some_and(|peer| !peer.frozen());
        self.outbound.flight.next().filter(|_| listens)
    }

    /// Plays the world's events up to the current time of the process.
    pub(crate) fn catch_up(&mut self) {
        let now = self.start.elapsed().as_millis() as u64;
        while let Some(at) = self.next().filter(|at| *at <= now) {
            self.clock = self.clock.max(at);
            if self
                .timers
                .keys()
                .next()
                .is_some_and(|(timer, _)| *timer <= at)
            {
                if let Some((_, timer)) = self.timers.pop_first() {
                    self.fire(timer);
                }
            } else if self.next_in().is_some_and(|next| next <= at) {
                self.arrive();
            } else {
                self.deliver();
            }
        }
        self.clock = now;
    }

    /// Wakers to wake. A transport does not wake them from within a poll, nor under its lock.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        take(&mut self.woken)
    }

    pub(super) fn wake_reader(&mut self) {
        self.woken.extend(self.inbound.reader.take());
        self.notify.notify_one();
    }

    pub(super) fn wake_writer(&mut self) {
        self.woken.extend(self.outbound.writer.take());
        self.notify.notify_one();
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Fault(n) => self.fault(self.plan.net.faults[n].1),
            Timer::Reset => self.reset(io::ErrorKind::ConnectionReset),
            Timer::Flushed => self.flushed(),
            timer => {
                if let Some(mut peer) = self.peer.take() {
                    peer.fire(self, timer);
                    self.peer = Some(peer);
                }
            }
        }
    }
}
