//! An in-memory network whose peers answer every ping after 20 ms until they are silenced.

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

/// Time from a ping to its pong.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Deliveries before the task yields.
const YIELD_AFTER: usize = 64;

/// The connections to all peers.
pub(crate) struct Network {
    connections: Box<[Mutex<Connection>]>,
    /// Pings to answer, with the time and the index of the connection, in order of time.
    unanswered: Mutex<VecDeque<(Instant, u32)>>,
    /// Notified when `unanswered` stops being empty.
    pinged: Notify,
    started: Instant,
    interval: Duration,
    pings: AtomicU64,
    /// Calls of `poll_read`.
    reads: AtomicU64,
    /// Delay of pings after their due time. Excludes the first ping of a connection, whose due time
    /// is not known here because of jitter.
    lateness: Mutex<Histogram<u64>>,
}

/// The server's end of a connection, in place of a socket.
pub(crate) struct ServerStream {
    network: Arc<Network>,
    index: u32,
}

struct Connection {
    incoming: Incoming,
    reader: Option<Waker>,
    /// Payload of the unanswered ping.
    ping: [u8; 8],
    /// Time of the last read in microseconds since the start; 0 before the first.
    read_at: u64,
    /// Whether the peer has stopped answering.
    silent: bool,
}

/// Bytes or EOF that the server has not read yet.
#[derive(Clone, Copy)]
enum Incoming {
    Nothing,
    Pong,
    /// An unsolicited pong (RFC 6455 section 5.5.3).
    LastPong,
    Eof,
}

impl Network {
    /// Creates `count` connections, on which a ping is due `interval` after the last byte.
    pub(crate) fn new(count: u32, interval: Duration) -> Arc<Self> {
        let connection = || {
            Mutex::new(Connection {
                incoming: Incoming::Nothing,
                reader: None,
                ping: [0; 8],
                read_at: 0,
                silent: false,
            })
        };
        Arc::new(Self {
            connections: (0..count).map(|_| connection()).collect(),
            unanswered: Mutex::default(),
            pinged: Notify::new(),
            started: Instant::now(),
            interval,
            pings: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            lateness: Mutex::new(percentiles::histogram()),
        })
    }

    /// Returns the server's ends of all connections.
    pub(crate) fn server_streams(self: &Arc<Self>) -> impl Iterator<Item = ServerStream> {
        (0..self.connections.len() as u32).map(|index| ServerStream {
            network: Arc::clone(self),
            index,
        })
    }

    /// Answers pings; never returns.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let next = lock(&self.unanswered).front().copied();
            let Some((due, _)) = next else {
                self.pinged.notified().await;
                continue;
            };
            sleep_until(due).await;
            let now = Instant::now();
            let mut count = 0;
            while let Some(index) = self.pop_due(now) {
                self.deliver(index, Incoming::Pong, false);
                count += 1;
                if count % YIELD_AFTER == 0 {
                    yield_now().await;
                }
            }
        }
    }

    /// Silences the first `count` peers, each after a last unsolicited pong.
    pub(crate) async fn silence(&self, count: u32) {
        self.deliver_all(count, Incoming::LastPong).await;
    }

    /// Closes the connections of all peers without a Close frame.
    pub(crate) async fn close_peers(&self) {
        self.deliver_all(self.connections.len() as u32, Incoming::Eof)
            .await;
    }

    /// Whether a reader waits on every connection.
    pub(crate) fn has_readers(&self) -> bool {
        self.connections
            .iter()
            .all(|connection| lock(connection).reader.is_some())
    }

    /// Returns the number of pings sent.
    pub(crate) fn pings(&self) -> u64 {
        self.pings.load(Ordering::Relaxed)
    }

    /// Returns the number of calls of `poll_read`.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Returns the percentiles of the pings' delay since the previous call.
    pub(crate) fn take_lateness(&self) -> Percentiles {
        let mut lateness = lock(&self.lateness);
        let percentiles = Percentiles::from(&*lateness);
        lateness.reset();
        percentiles
    }

    async fn deliver_all(&self, count: u32, what: Incoming) {
        for index in 0..count {
            self.deliver(index, what, true);
            if index as usize % YIELD_AFTER == YIELD_AFTER - 1 {
                yield_now().await;
            }
        }
    }

    fn deliver(&self, index: u32, what: Incoming, last: bool) {
        let mut connection = lock(&self.connections[index as usize]);
        if connection.silent && !last {
            return;
        }
        connection.silent = last;
        connection.incoming = what;
        let reader = connection.reader.take();
        drop(connection);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Removes the next ping that must be answered by `now`, and returns its connection.
    fn pop_due(&self, now: Instant) -> Option<u32> {
        let mut unanswered = lock(&self.unanswered);
        let &(due, index) = unanswered.front()?;
        if due > now {
            return None;
        }
        unanswered.pop_front();
        Some(index)
    }

    fn micros(&self, now: Instant) -> u64 {
        (now - self.started).as_micros() as u64
    }

    /// Records a ping that was written at `now` to a connection last read from at `read_at`.
    fn record_ping(&self, now: Instant, read_at: u64) {
        self.pings.fetch_add(1, Ordering::Relaxed);
        if read_at > 0 {
            let due = read_at + self.interval.as_micros() as u64;
            let late = self.micros(now).saturating_sub(due);
            lock(&self.lateness).saturating_record(late);
        }
    }

    fn answer_later(&self, now: Instant, index: u32) {
        let mut unanswered = lock(&self.unanswered);
        let first = unanswered.is_empty();
        unanswered.push_back((now + ROUND_TRIP, index));
        drop(unanswered);
        if first {
            self.pinged.notify_one();
        }
    }
}

impl ServerStream {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        lock(&self.network.connections[self.index as usize])
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.network.reads.fetch_add(1, Ordering::Relaxed);
        let mut connection = self.connection();
        match connection.incoming {
            Incoming::Nothing => {
                connection.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // Masked with a key of zeros (RFC 6455 section 5.3).
            Incoming::Pong => {
                buf.put_slice(&[0x8a, 0x88, 0, 0, 0, 0]);
                buf.put_slice(&connection.ping);
            }
            Incoming::LastPong => buf.put_slice(&[0x8a, 0x80, 0, 0, 0, 0]),
            // Every later read returns EOF too.
            Incoming::Eof => return Poll::Ready(Ok(())),
        }
        connection.incoming = Incoming::Nothing;
        connection.read_at = self.network.micros(Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // The server writes a ping in one piece. Its Close frames are ignored.
        if let [0x89, 8, payload @ ..] = buf {
            let now = Instant::now();
            let mut connection = self.connection();
            if let Ok(payload) = payload.try_into() {
                connection.ping = payload;
            }
            let (read_at, silent) = (connection.read_at, connection.silent);
            drop(connection);
            self.network.record_ping(now, read_at);
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

impl Drop for ServerStream {
    fn drop(&mut self) {
        // Drops the waker, which would keep the task's memory allocated. A closed socket wakes no
        // task.
        let reader = self.connection().reader.take();
        drop(reader);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
