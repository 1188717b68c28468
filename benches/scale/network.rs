//! Peers without sockets: a network in memory that answers every ping after a while, until it is told
//! not to.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::percentiles::{self, Percentiles};

/// From a ping to its pong.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// After so many deliveries others get their turn.
const BATCH: usize = 64;

/// All lines to all peers.
pub(crate) struct Network {
    lines: Box<[Mutex<Line>]>,
    /// Pings that are not answered yet, in the order in which they will be.
    under_way: Mutex<VecDeque<(Instant, u32)>>,
    /// There is one again.
    pinged: Notify,
    started: Instant,
    interval: Duration,
    pings: AtomicU64,
    /// How often anything was read, or tried to be.
    reads: AtomicU64,
    /// How late pings came, but for the first ones, whose moment nobody knows.
    lateness: Mutex<Histogram<u64>>,
}

/// One end of one line: what a server holds instead of a socket.
pub(crate) struct Wire {
    network: Arc<Network>,
    index: u32,
}

struct Line {
    arrived: Arrived,
    reader: Option<Waker>,
    /// Payload of the ping that is under way.
    ping: [u8; 8],
    /// When bytes were last read, in microseconds since the start. 0 if none were.
    read_at: u64,
    /// The peer answers no more.
    silent: bool,
}

/// What waits to be read.
#[derive(Clone, Copy)]
enum Arrived {
    Nothing,
    Pong,
    /// A pong that nobody asked for.
    LastWord,
    End,
}

impl Network {
    /// With so many lines, on which pings are due after `interval`.
    pub(crate) fn new(count: u32, interval: Duration) -> Arc<Self> {
        let line = || {
            Mutex::new(Line {
                arrived: Arrived::Nothing,
                reader: None,
                ping: [0; 8],
                read_at: 0,
                silent: false,
            })
        };
        Arc::new(Self {
            lines: (0..count).map(|_| line()).collect(),
            under_way: Mutex::default(),
            pinged: Notify::new(),
            started: Instant::now(),
            interval,
            pings: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            lateness: Mutex::new(percentiles::histogram()),
        })
    }

    /// The server's ends of all lines.
    pub(crate) fn wires(self: &Arc<Self>) -> impl Iterator<Item = Wire> {
        (0..self.lines.len() as u32).map(|index| Wire {
            network: Arc::clone(self),
            index,
        })
    }

    /// Answers pings, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let next = lock(&self.under_way).front().copied();
            let Some((due, _)) = next else {
                self.pinged.notified().await;
                continue;
            };
            sleep_until(due).await;
            let now = Instant::now();
            let mut count = 0;
            while let Some(index) = self.due(now) {
                self.deliver(index, Arrived::Pong, false);
                count += 1;
                if count % BATCH == 0 {
                    yield_now().await;
                }
            }
        }
    }

    /// The first `count` peers say one thing more, all at once, and then nothing.
    pub(crate) async fn silence(&self, count: u32) {
        self.deliver_all(count, Arrived::LastWord).await;
    }

    /// All peers close their ends, at once and without a word.
    pub(crate) async fn hang_up(&self) {
        self.deliver_all(self.lines.len() as u32, Arrived::End)
            .await;
    }

    /// Whether somebody waits for every peer.
    pub(crate) fn is_read(&self) -> bool {
        self.lines.iter().all(|line| lock(line).reader.is_some())
    }

    /// How many pings were sent.
    pub(crate) fn pings(&self) -> u64 {
        self.pings.load(Ordering::Relaxed)
    }

    /// How often anything was read, or tried to be.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// How late pings were since this was last asked.
    pub(crate) fn take_lateness(&self) -> Percentiles {
        let mut lateness = lock(&self.lateness);
        let percentiles = Percentiles::from(&*lateness);
        lateness.reset();
        percentiles
    }

    async fn deliver_all(&self, count: u32, what: Arrived) {
        for index in 0..count {
            self.deliver(index, what, true);
            if index as usize % BATCH == BATCH - 1 {
                yield_now().await;
            }
        }
    }

    fn deliver(&self, index: u32, what: Arrived, last: bool) {
        let mut line = lock(&self.lines[index as usize]);
        if line.silent && !last {
            return;
        }
        line.silent = last;
        line.arrived = what;
        let reader = line.reader.take();
        drop(line);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// A ping that is to be answered by now.
    fn due(&self, now: Instant) -> Option<u32> {
        let mut under_way = lock(&self.under_way);
        let &(due, index) = under_way.front()?;
        if due > now {
            return None;
        }
        under_way.pop_front();
        Some(index)
    }

    fn micros(&self, now: Instant) -> u64 {
        (now - self.started).as_micros() as u64
    }

    /// A ping was written at `now` to a line from which something was last read at `read_at`.
    fn note_ping(&self, now: Instant, read_at: u64) {
        self.pings.fetch_add(1, Ordering::Relaxed);
        if read_at > 0 {
            let due = read_at + self.interval.as_micros() as u64;
            let late = self.micros(now).saturating_sub(due);
            lock(&self.lateness).saturating_record(late);
        }
    }

    fn answer_later(&self, now: Instant, index: u32) {
        let mut under_way = lock(&self.under_way);
        let first = under_way.is_empty();
        under_way.push_back((now + ROUND_TRIP, index));
        drop(under_way);
        if first {
            self.pinged.notify_one();
        }
    }
}

impl Wire {
    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.network.lines[self.index as usize])
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.network.reads.fetch_add(1, Ordering::Relaxed);
        let mut line = self.line();
        match line.arrived {
            Arrived::Nothing => {
                line.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // Masked with a key of zeros (RFC 6455 section 5.3).
            Arrived::Pong => {
                buf.put_slice(&[0x8a, 0x88, 0, 0, 0, 0]);
                buf.put_slice(&line.ping);
            }
            Arrived::LastWord => buf.put_slice(&[0x8a, 0x80, 0, 0, 0, 0]),
            // It stays, as an end does.
            Arrived::End => return Poll::Ready(Ok(())),
        }
        line.arrived = Arrived::Nothing;
        line.read_at = self.network.micros(Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // The server's pings come whole; its Close frames find nobody.
        if let [0x89, 8, payload @ ..] = buf {
            let now = Instant::now();
            let mut line = self.line();
            if let Ok(payload) = payload.try_into() {
                line.ping = payload;
            }
            let (read_at, silent) = (line.read_at, line.silent);
            drop(line);
            self.network.note_ping(now, read_at);
            if !silent {
                self.network.answer_later(now, self.index);
            }
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Nobody is woken by a socket that is closed, and a waker keeps a task's memory.
        let reader = self.line().reader.take();
        drop(reader);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
