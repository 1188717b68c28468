//! The scripted handler, and the stream that logs its reads and writes.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split};
use tokio::task::JoinSet;
use tokio::task::coop::{consume_budget, has_budget_remaining};
use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::{Evicted, Liveness};

use super::log::{Event, Poller};
use super::opening::Stream;
use super::plan::{Spends, Step};
use super::rng::Rng;
use super::script::{BINARY, CLOSE, CONTINUATION, TEXT, frame};
use super::world::{Shared, lock};

/// The handler's stream. Logs each operation and its result.
pub(crate) struct ObservedStream {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) world: Shared,
    pub(crate) read_pending: bool,
    pub(crate) write_pending: bool,
    pub(crate) flush_pending: bool,
    pub(crate) shutdown_called: bool,
    pub(crate) spends: Spends,
    pub(crate) exhausted_at: Option<Instant>,
}

impl ObservedStream {
    /// Exhausts the task's budget before a poll. `waits`: the operation was pending before.
    fn exhaust_budget(&mut self, cx: &mut Context<'_>, waits: bool) {
        let now = Instant::now();
        let spends = match self.spends {
            Spends::Never => false,
            Spends::Once => !waits,
            Spends::Often => self.exhausted_at != Some(now),
        };
        if spends {
            self.exhausted_at = Some(now);
            while has_budget_remaining() {
                let _ = pin!(consume_budget()).poll(cx);
            }
        }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut Box<dyn Stream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        lock(&self.world).poller = Poller::Handler;
        let polled = poll(Pin::new(&mut self.stream));
        lock(&self.world).poller = Poller::Driver;
        polled
    }

    fn wrote(&mut self, bytes: &[IoSlice<'_>], wrote: &Poll<io::Result<usize>>) {
        let mut world = lock(&self.world);
        let waited = std::mem::replace(&mut self.write_pending, wrote.is_pending());
        match wrote {
            Poll::Pending if waited => {}
            Poll::Pending => world.note(Event::WritePending),
            Poll::Ready(Err(error)) => world.note(Event::WriteFails(eviction_reason(error))),
            Poll::Ready(Ok(count)) => {
                let all = bytes.iter().flat_map(|slice| slice.iter());
                world.wrote.extend(all.take(*count));
                world.note(Event::Wrote(*count));
            }
        }
    }
}

fn eviction_reason(error: &io::Error) -> Option<tower_ws_liveness::Reason> {
    Evicted::from_error(error).map(|evicted| evicted.reason())
}

impl AsyncRead for ObservedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let waits = self.read_pending;
        self.exhaust_budget(cx, waits);
        let read = self.poll(|stream| stream.poll_read(cx, buf));
        let waited = std::mem::replace(&mut self.read_pending, read.is_pending());
        let mut world = lock(&self.world);
        match &read {
            Poll::Pending if waited => {}
            Poll::Pending => world.note(Event::ReadPending),
            Poll::Ready(Err(error)) => world.note(Event::ReadFails(eviction_reason(error))),
            Poll::Ready(Ok(())) => match &buf.filled()[before..] {
                [] => world.note(Event::ReadEnds),
                bytes => {
                    world.read.extend_from_slice(bytes);
                    world.note(Event::Read(bytes.len()));
                }
            },
        }
        drop(world);
        read
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let waits = self.write_pending;
        self.exhaust_budget(cx, waits);
        let wrote = self.poll(|stream| stream.poll_write(cx, bytes));
        self.wrote(&[IoSlice::new(bytes)], &wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let waits = self.write_pending;
        self.exhaust_budget(cx, waits);
        let wrote = self.poll(|stream| stream.poll_write_vectored(cx, bytes));
        self.wrote(bytes, &wrote);
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waits = self.flush_pending;
        self.exhaust_budget(cx, waits);
        let flushed = self.poll(|stream| stream.poll_flush(cx));
        self.flush_pending = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.shutdown_called, true) {
            lock(&self.world).note(Event::ShutdownCalled);
        }
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}

impl Drop for ObservedStream {
    fn drop(&mut self) {
        lock(&self.world).note(Event::HandlerDrops);
    }
}

/// How a task of the handler ended.
enum TaskEnd {
    /// The task is done with its direction of the socket.
    Half,
    /// The whole handler is dropped.
    All,
}

/// Runs the script, and then drops the socket.
pub(crate) async fn run(socket: ObservedStream, live: Liveness) {
    let world = socket.world.clone();
    let plan = lock(&world).plan.handler.clone();
    let claims = lock(&world).plan.net.claims;
    let mut tasks = JoinSet::new();
    let task = |n: usize| Task {
        world: world.clone(),
        live: live.clone(),
        steps: plan.tasks[n].clone(),
        linger_ms: plan.linger_ms,
        queued: Vec::new(),
        accepted: 0,
        claims,
        offered: 0,
        rng: Rng::new(lock(&world).plan.seed ^ n as u64),
    };
    if plan.tasks.len() == 1 {
        let mut socket = socket;
        let task = task(0);
        tasks.spawn(async move { task.play(&mut socket).await });
    } else {
        let (reader, writer) = split(socket);
        let (reads, writes) = (task(0), task(1));
        // Each task gets one direction. Its script has no steps for the other one.
        tasks.spawn(async move {
            reads
                .play(&mut tokio::io::join(reader, tokio::io::sink()))
                .await
        });
        tasks.spawn(async move {
            writes
                .play(&mut tokio::io::join(tokio::io::empty(), writer))
                .await
        });
    }
    while let Some(left) = tasks.join_next().await {
        if let Ok(TaskEnd::All) | Err(_) = left {
            return;
        }
    }
}

struct Task {
    world: Shared,
    live: Liveness,
    steps: Vec<Step>,
    linger_ms: u64,
    /// Frame bytes to write, before anything else, and how many of them were accepted.
    queued: Vec<u8>,
    accepted: usize,
    /// Whether a refused write must be repeated, and how many bytes it had.
    claims: bool,
    offered: usize,
    rng: Rng,
}

impl Task {
    async fn play<S: AsyncRead + AsyncWrite + Unpin>(mut self, socket: &mut S) -> TaskEnd {
        for step in self.steps.clone() {
            match self.step(socket, step).await {
                Ok(None) => {}
                Ok(Some(left)) => return left,
                Err(_) => {
                    sleep(ms(self.linger_ms)).await;
                    return TaskEnd::Half;
                }
            }
        }
        TaskEnd::Half
    }

    fn note(&self, event: Event) {
        lock(&self.world).note(event);
    }

    async fn step<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        step: Step,
    ) -> io::Result<Option<TaskEnd>> {
        match step {
            Step::Read { span, size } => {
                let reading = async {
                    while self.read(socket, size).await? > 0 {}
                    Ok::<_, io::Error>(Some(TaskEnd::Half))
                };
                let Ok(ended) = timeout(ms(span), reading).await else {
                    self.note(Event::ReadCancelled);
                    return Ok(None);
                };
                return ended;
            }
            Step::ReadOnce { size } => {
                if self.read(socket, size).await? == 0 {
                    return Ok(Some(TaskEnd::Half));
                }
            }
            Step::ReadOn { size } => {
                while self.read(socket, size).await? > 0 {}
                return Ok(Some(TaskEnd::Half));
            }
            Step::Busy(span) => {
                self.note(Event::Busy(span));
                sleep(ms(span)).await;
            }
            Step::Write {
                len,
                parts,
                piece,
                gap,
            } => {
                for part in 0..parts {
                    self.queue_frame(len, part, parts);
                    while self.remaining() > 0 {
                        let count = piece.min(self.remaining());
                        self.write_queued(socket, count).await?;
                        if gap > 0 && self.remaining() > 0 {
                            sleep(ms(gap)).await;
                        }
                    }
                }
                socket.flush().await?;
            }
            Step::TryWrite { len, cancel_after } => {
                self.queue_frame(len, 0, 1);
                let all = self.remaining();
                let Ok(wrote) = timeout(ms(cancel_after), self.write_queued(socket, all)).await
                else {
                    self.note(Event::WriteCancelled);
                    return Ok(None);
                };
                wrote?;
            }
            Step::Begin { len, cut } => {
                self.queue_frame(len, 0, 1);
                let count = cut.min(self.remaining() - 1);
                self.write_queued(socket, count).await?;
            }
            Step::Steady { every, len } => loop {
                self.queue_frame(len, 0, 1);
                let all = self.remaining();
                self.write_queued(socket, all).await?;
                socket.flush().await?;
                sleep(ms(every)).await;
            },
            Step::Close(code) => {
                let body = code.map(u16::to_be_bytes);
                let body = body.as_ref().map_or(&[][..], |body| body);
                self.queued.extend(frame(0x80 | CLOSE, None, body));
                let all = self.remaining();
                self.write_queued(socket, all).await?;
                socket.flush().await?;
                // After the Close frame the handler only waits for the peer's.
                while self.read(socket, 4_096).await? > 0 {}
                return Ok(Some(TaskEnd::Half));
            }
            Step::Shutdown => {
                let all = self.remaining();
                self.write_queued(socket, all).await?;
                socket.shutdown().await?;
                return Ok(Some(TaskEnd::Half));
            }
            Step::Kick(code) => {
                self.note(Event::EvictCalled(code));
                self.live.evict(code, "kicked");
            }
            Step::Stop => {
                self.note(Event::Stops);
                poll_fn(|_| Poll::<()>::Pending).await;
            }
            Step::Drop => return Ok(Some(TaskEnd::All)),
        }
        Ok(None)
    }

    async fn read<S: AsyncRead + Unpin>(&self, socket: &mut S, size: usize) -> io::Result<usize> {
        socket.read(&mut vec![0; size]).await
    }

    fn remaining(&self) -> usize {
        self.queued.len() - self.accepted
    }

    fn queue_frame(&mut self, len: usize, part: usize, parts: usize) {
        let opcode = match part {
            0 if len % 2 == 0 => TEXT,
            0 => BINARY,
            _ => CONTINUATION,
        };
        let fin = if part + 1 == parts { 0x80 } else { 0 };
        let payload = self.rng.bytes(len);
        self.queued.extend(frame(fin | opcode, None, &payload));
    }

    /// Writes `count` of the queued bytes. Keeps the number of accepted bytes when it is cancelled.
    async fn write_queued<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        count: usize,
    ) -> io::Result<()> {
        let mut left = count.max(self.offered);
        while left > 0 {
            self.offered = if self.claims { left } else { 0 };
            let queued = &self.queued[self.accepted..self.accepted + left];
            let (front, back) = queued.split_at(left / 2);
            let slices = [IoSlice::new(front), IoSlice::new(back)];
            let wrote = match socket.is_write_vectored() {
                true => socket.write_vectored(&slices).await?,
                false => socket.write(queued).await?,
            };
            if wrote == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.accepted += wrote;
            left -= wrote;
            self.offered = 0;
            if self.accepted == self.queued.len() {
                self.queued.clear();
                self.accepted = 0;
            }
        }
        Ok(())
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
