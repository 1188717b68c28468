//! Everything outside of the process: the network, and the peer behind it.
//!
//! It has a clock of its own, and catches up with the process whenever it is touched. So it goes on
//! while the process stands still, as the real one does.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::time::Instant;
use tower_ws_liveness::Eviction;

use super::log::{By, Entry, Event, Told};
use super::peer::{Peer, Said};
use super::plan::{ALL, Link, Plan};
use super::rng::Rng;

/// More polls than any schedule needs: somebody is spinning.
const MOST_POLLS: usize = 300_000;

pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) log: Vec<Entry>,
    /// All that the transport accepted, and all that the handler wrote and read.
    pub(crate) accepted: Vec<u8>,
    pub(crate) wrote: Vec<u8>,
    pub(crate) read: Vec<u8>,
    pub(crate) said: Vec<Said>,

    start: Instant,
    pub(super) clock: u64,
    pub(super) rng: Rng,
    pub(super) peer: Option<Peer>,
    timers: BTreeMap<(u64, usize), Timer>,
    timers_set: usize,
    pub(super) by: By,
    polls: usize,

    /// What is left of the request of an opening handshake. It is out of the schedule's time, and so
    /// is the response, which goes nowhere.
    pub(super) handshake: Option<VecDeque<u8>>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    woken: Vec<Waker>,
    pub(crate) notify: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Inbound {
    pub(super) flight: Flight,
    /// What can be read.
    pub(super) ready: VecDeque<u8>,
    pub(super) fin: Option<u64>,
    pub(super) end: Option<Result<(), io::ErrorKind>>,
    pub(super) reader: Option<Waker>,
}

#[derive(Default)]
pub(super) struct Outbound {
    pub(super) flight: Flight,
    /// Accepted and not flushed.
    pub(super) staged: Vec<u8>,
    pub(super) flushed_at: Option<u64>,
    /// Something was accepted since somebody was told that all is flushed.
    pub(super) untold: bool,
    /// What the next write has to begin with.
    pub(super) claim: Option<Vec<u8>>,
    /// Accepted, and not taken by the peer's program.
    pub(super) used: usize,
    pub(super) full: bool,
    pub(super) writer: Option<Waker>,
    pub(super) shutdown: bool,
    pub(super) dropped: bool,
    pub(super) killed: bool,
}

/// Bytes under way, in order.
#[derive(Default)]
pub(super) struct Flight {
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
    CloseBack,
    HangUp,
}

impl Flight {
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
            said: Vec::new(),
            start: Instant::now(),
            clock: 0,
            timers: BTreeMap::new(),
            timers_set: 0,
            by: By::Driver,
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

    pub(crate) fn log(&mut self, event: Event) {
        let at = self.clock;
        self.log.push(Entry { at, event });
    }

    /// Logs what happens in the process, now.
    pub(crate) fn note(&mut self, event: Event) {
        self.catch_up();
        self.log(event);
    }

    /// The hook is called.
    pub(crate) fn ended(&mut self, eviction: &Eviction) {
        self.note(Event::Evicted(Told {
            reason: eviction.reason(),
            rtt: eviction.rtt(),
            stats: eviction.stats(),
        }));
    }

    /// The peer asks for an upgrade before anything else happens.
    pub(crate) fn shake_hands(&mut self, request: &str) {
        self.handshake = Some(request.bytes().collect());
    }

    /// Somebody polls the transport.
    pub(super) fn polled(&mut self) {
        self.polls += 1;
        assert!(self.polls < MOST_POLLS, "somebody polls for ever");
        self.catch_up();
    }

    pub(super) fn set(&mut self, at: u64, timer: Timer) {
        self.timers_set += 1;
        self.timers.insert((at, self.timers_set), timer);
        self.notify.notify_one();
    }

    /// When the world goes on by itself.
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

    /// Those to wake. A transport never wakes anybody from within a poll, and not under its lock.
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
