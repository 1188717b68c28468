//! The scripted handler, and the eye on what it gets.

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

use super::log::{By, Event};
use super::opening::Stream;
use super::plan::{Spends, Step};
use super::rng::Rng;
use super::script::{BINARY, CLOSE, CONTINUATION, TEXT, frame};
use super::world::{Shared, lock};

/// Logs whatever the handler asks the stream for, and what it gets.
pub(crate) struct Observed {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) world: Shared,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    pub(crate) flushes: bool,
    pub(crate) shut: bool,
    pub(crate) spends: Spends,
    pub(crate) spent: Option<Instant>,
}

impl Observed {
    /// Uses up the task's budget before an operation, which `waits` already or begins.
    fn spend(&mut self, cx: &mut Context<'_>, waits: bool) {
        let now = Instant::now();
        let spends = match self.spends {
            Spends::Never => false,
            Spends::Once => !waits,
            Spends::Often => self.spent != Some(now),
        };
        if spends {
            self.spent = Some(now);
            while has_budget_remaining() {
                let _ = pin!(consume_budget()).poll(cx);
            }
        }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut Box<dyn Stream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        lock(&self.world).by = By::Handler;
        let polled = poll(Pin::new(&mut self.stream));
        lock(&self.world).by = By::Driver;
        polled
    }

    fn wrote(&mut self, bytes: &[IoSlice<'_>], wrote: &Poll<io::Result<usize>>) {
        let mut world = lock(&self.world);
        let waited = std::mem::replace(&mut self.writes, wrote.is_pending());
        match wrote {
            Poll::Pending if waited => {}
            Poll::Pending => world.note(Event::WriteWaits),
            Poll::Ready(Err(error)) => world.note(Event::WriteFails(why(error))),
            Poll::Ready(Ok(count)) => {
                let all = bytes.iter().flat_map(|slice| slice.iter());
                world.wrote.extend(all.take(*count));
                world.note(Event::Wrote(*count));
            }
        }
    }
}

fn why(error: &io::Error) -> Option<tower_ws_liveness::Reason> {
    Evicted::from_error(error).map(|evicted| evicted.reason())
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let waits = self.reads;
        self.spend(cx, waits);
        let read = self.poll(|stream| stream.poll_read(cx, buf));
        let waited = std::mem::replace(&mut self.reads, read.is_pending());
        let mut world = lock(&self.world);
        match &read {
            Poll::Pending if waited => {}
            Poll::Pending => world.note(Event::ReadWaits),
            Poll::Ready(Err(error)) => world.note(Event::ReadFails(why(error))),
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

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let waits = self.writes;
        self.spend(cx, waits);
        let wrote = self.poll(|stream| stream.poll_write(cx, bytes));
        self.wrote(&[IoSlice::new(bytes)], &wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let waits = self.writes;
        self.spend(cx, waits);
        let wrote = self.poll(|stream| stream.poll_write_vectored(cx, bytes));
        self.wrote(bytes, &wrote);
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waits = self.flushes;
        self.spend(cx, waits);
        let flushed = self.poll(|stream| stream.poll_flush(cx));
        self.flushes = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.shut, true) {
            lock(&self.world).note(Event::AsksShutdown);
        }
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        lock(&self.world).note(Event::HandlerDrops);
    }
}

/// How a task of the handler ended.
enum Left {
    /// It is done with its part of the socket.
    Half,
    /// It took the whole handler along.
    All,
}

/// Runs the script to its end, with the socket dropped at it.
pub(crate) async fn run(socket: Observed, live: Liveness) {
    let world = socket.world.clone();
    let plan = lock(&world).plan.handler.clone();
    let claims = lock(&world).plan.net.claims;
    let mut tasks = JoinSet::new();
    let task = |n: usize| Task {
        world: world.clone(),
        live: live.clone(),
        steps: plan.tasks[n].clone(),
        lingers: plan.lingers,
        owed: Vec::new(),
        paid: 0,
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
        // Each gets one direction, and what the other one would do is not in its script.
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
        if let Ok(Left::All) | Err(_) = left {
            return;
        }
    }
}

struct Task {
    world: Shared,
    live: Liveness,
    steps: Vec<Step>,
    lingers: u64,
    /// The rest of a frame that was begun. It goes before everything else.
    owed: Vec<u8>,
    /// How much of it was accepted.
    paid: usize,
    /// Whether what was offered and not accepted has to be offered again, and how much that is.
    claims: bool,
    offered: usize,
    rng: Rng,
}

impl Task {
    async fn play<S: AsyncRead + AsyncWrite + Unpin>(mut self, socket: &mut S) -> Left {
        for step in self.steps.clone() {
            match self.step(socket, step).await {
                Ok(None) => {}
                Ok(Some(left)) => return left,
                Err(_) => {
                    sleep(ms(self.lingers)).await;
                    return Left::Half;
                }
            }
        }
        Left::Half
    }

    fn note(&self, event: Event) {
        lock(&self.world).note(event);
    }

    async fn step<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        step: Step,
    ) -> io::Result<Option<Left>> {
        match step {
            Step::Read { span, size } => {
                let reading = async {
                    while self.read(socket, size).await? > 0 {}
                    Ok::<_, io::Error>(Some(Left::Half))
                };
                let Ok(ended) = timeout(ms(span), reading).await else {
                    self.note(Event::ReadGivenUp);
                    return Ok(None);
                };
                return ended;
            }
            Step::ReadOnce { size } => {
                if self.read(socket, size).await? == 0 {
                    return Ok(Some(Left::Half));
                }
            }
            Step::ReadOn { size } => {
                while self.read(socket, size).await? > 0 {}
                return Ok(Some(Left::Half));
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
                    self.owe(len, part, parts);
                    while self.owing() > 0 {
                        let count = piece.min(self.owing());
                        self.pay(socket, count).await?;
                        if gap > 0 && self.owing() > 0 {
                            sleep(ms(gap)).await;
                        }
                    }
                }
                socket.flush().await?;
            }
            Step::TryWrite { len, patience } => {
                self.owe(len, 0, 1);
                let all = self.owing();
                let Ok(wrote) = timeout(ms(patience), self.pay(socket, all)).await else {
                    self.note(Event::WriteGivenUp);
                    return Ok(None);
                };
                wrote?;
            }
            Step::Begin { len, cut } => {
                self.owe(len, 0, 1);
                let count = cut.min(self.owing() - 1);
                self.pay(socket, count).await?;
            }
            Step::Steady { every, len } => loop {
                self.owe(len, 0, 1);
                let all = self.owing();
                self.pay(socket, all).await?;
                socket.flush().await?;
                sleep(ms(every)).await;
            },
            Step::Close(code) => {
                let body = code.map(u16::to_be_bytes);
                let body = body.as_ref().map_or(&[][..], |body| body);
                self.owed.extend(frame(0x80 | CLOSE, None, body));
                let all = self.owing();
                self.pay(socket, all).await?;
                socket.flush().await?;
                // After a Close nothing is sent; the peer's answer is waited for.
                while self.read(socket, 4_096).await? > 0 {}
                return Ok(Some(Left::Half));
            }
            Step::Shutdown => {
                let all = self.owing();
                self.pay(socket, all).await?;
                socket.shutdown().await?;
                return Ok(Some(Left::Half));
            }
            Step::Kick(code) => {
                self.note(Event::Kicks(code));
                self.live.evict(code, "kicked");
            }
            Step::Stop => {
                self.note(Event::Stops);
                poll_fn(|_| Poll::<()>::Pending).await;
            }
            Step::Drop => return Ok(Some(Left::All)),
        }
        Ok(None)
    }

    async fn read<S: AsyncRead + Unpin>(&self, socket: &mut S, size: usize) -> io::Result<usize> {
        socket.read(&mut vec![0; size]).await
    }

    fn owing(&self) -> usize {
        self.owed.len() - self.paid
    }

    fn owe(&mut self, len: usize, part: usize, parts: usize) {
        let opcode = match part {
            0 if len % 2 == 0 => TEXT,
            0 => BINARY,
            _ => CONTINUATION,
        };
        let fin = if part + 1 == parts { 0x80 } else { 0 };
        let payload = self.rng.bytes(len);
        self.owed.extend(frame(fin | opcode, None, &payload));
    }

    /// Writes so much of what is owed. What was accepted is remembered, even if this is given up.
    async fn pay<S: AsyncWrite + Unpin>(&mut self, socket: &mut S, count: usize) -> io::Result<()> {
        let mut left = count.max(self.offered);
        while left > 0 {
            self.offered = if self.claims { left } else { 0 };
            let owed = &self.owed[self.paid..self.paid + left];
            let (front, back) = owed.split_at(left / 2);
            let slices = [IoSlice::new(front), IoSlice::new(back)];
            let wrote = match socket.is_write_vectored() {
                true => socket.write_vectored(&slices).await?,
                false => socket.write(owed).await?,
            };
            if wrote == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.paid += wrote;
            left -= wrote;
            self.offered = 0;
            if self.paid == self.owed.len() {
                self.owed.clear();
                self.paid = 0;
            }
        }
        Ok(())
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
