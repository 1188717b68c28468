//! The transport that the wrapper reads and writes.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::{consume_budget, has_budget_remaining};
use tokio::time::sleep_until;

use super::log::Event;
use super::plan::Link;
use super::world::{Shared, World, lock};

/// Keeps one waker per direction, the last one, as real sockets do.
pub(crate) struct Transport(pub(crate) Shared);

/// Wakes readers and writers when the world's events are due, until the schedule ends.
pub(crate) async fn pump(world: Shared) {
    let notify = lock(&world).notify.clone();
    loop {
        let (woken, next) = {
            let mut world = lock(&world);
            world.catch_up();
            let next = world.next().map(|at| world.instant(at));
            (world.take_woken(), next)
        };
        for waker in woken {
            waker.wake();
        }
        match next {
            // In both cases the loop asks the world again.
            Some(next) => {
                tokio::select! {
                    biased;
                    () = notify.notified() => {}
                    () = sleep_until(next) => {}
                }
            }
            None => notify.notified().await,
        }
    }
}

/// Whether the task has no budget left. A cooperative transport then returns `Pending` in any
/// state, and wakes the task at once.
fn lacks_budget(world: &World, cx: &mut Context<'_>) -> bool {
    let lacks = world.plan.net.cooperative && !has_budget_remaining();
    lacks && pin!(consume_budget()).poll(cx).is_pending()
}

/// Each read or write takes one unit of budget.
fn spend_budget(world: &World, cx: &mut Context<'_>) {
    if world.plan.net.cooperative {
        let _ = pin!(consume_budget()).poll(cx);
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let world = &mut *lock(&self.0);
        world.polled();
        assert!(buf.remaining() > 0, "a read without room is an EOF");
        if let Some(request) = &mut world.handshake {
            let count = request.len().min(buf.remaining());
            request
                .drain(..count)
                .for_each(|byte| buf.put_slice(&[byte]));
            return match count {
                0 => Poll::Pending,
                _ => Poll::Ready(Ok(())),
            };
        }
        if lacks_budget(world, cx) {
            return Poll::Pending;
        }
        let poller = world.poller;
        let inbound = &mut world.inbound;
        if inbound.ready.is_empty() {
            let Some(end) = inbound.end else {
                inbound.reader = Some(cx.waker().clone());
                return Poll::Pending;
            };
            world.log(Event::TookEnd(poller));
            return Poll::Ready(end.map_err(io::Error::from));
        }
        let step = world.plan.net.inbound.step;
        let count = step.min(buf.remaining()).min(inbound.ready.len());
        let (front, back) = inbound.ready.as_slices();
        let split = count.min(front.len());
        buf.put_slice(&front[..split]);
        buf.put_slice(&back[..count - split]);
        inbound.ready.drain(..count);
        world.log(Event::Took(count, poller));
        spend_budget(world, cx);
        // Now there is room for bytes that waited in the network.
        world.catch_up();
        world.notify.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let world = &mut *lock(&self.0);
        world.polled();
        assert!(!world.outbound.shutdown, "written after the shutdown");
        if world.handshake.is_some() {
            let response: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            if response.ends_with(b"\r\n\r\n") {
                world.handshake = None;
            }
            return Poll::Ready(Ok(response.len()));
        }
        if let Some(Err(kind)) = world.inbound.end {
            return Poll::Ready(Err(kind.into()));
        }
        let first = slices.iter().find(|slice| !slice.is_empty());
        let first = first.map_or(&[][..], |slice| slice);
        if let Some(claim) = &world.outbound.claim {
            let (len, kept) = (first.len(), claim.len());
            assert!(
                first.starts_with(claim),
                "bad write retry: {len} bytes, but the refused write kept {kept}"
            );
        }
        let mut room = world.room();
        let lacks_budget = lacks_budget(world, cx);
        let claims = world.plan.net.claims && world.outbound.claim.is_none();
        if claims && (room == 0 || lacks_budget) && !first.is_empty() {
            let Link { capacity, step, .. } = world.plan.net.outbound;
            let count = first.len().min(step).min(capacity);
            world.outbound.claim = Some(first[..count].to_vec());
            world.log(Event::Claimed(count));
        }
        if lacks_budget {
            return Poll::Pending;
        }
        if room == 0 {
            // The transport is full of unflushed bytes: it sends them now.
            world.send_staged();
            world.flushed();
            world.log(Event::Refused(world.poller));
            world.outbound.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        spend_budget(world, cx);
        if let Some(claim) = world.outbound.claim.take() {
            world.accept(&claim);
            return Poll::Ready(Ok(claim.len()));
        }
        room = room.min(world.plan.net.outbound.step);
        // Without vectored writes only the first slice is written, as in tokio's default.
        let taken = if world.plan.net.vectored {
            slices.len()
        } else {
            1
        };
        let mut bytes = Vec::new();
        for slice in slices.iter().filter(|slice| !slice.is_empty()).take(taken) {
            let count = room.min(slice.len());
            bytes.extend_from_slice(&slice[..count]);
            room -= count;
        }
        if !bytes.is_empty() {
            world.accept(&bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).plan.net.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let world = &mut *lock(&self.0);
        world.polled();
        if world.handshake.is_some() {
            return Poll::Ready(Ok(()));
        }
        if let Some(Err(kind)) = world.inbound.end {
            return Poll::Ready(Err(kind.into()));
        }
        if world.flush() {
            if std::mem::take(&mut world.outbound.flush_unreported) {
                world.log(Event::FlushReturned);
            }
            return Poll::Ready(Ok(()));
        }
        world.outbound.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let world = &mut *lock(&self.0);
        world.polled();
        if !world.outbound.shutdown {
            world.outbound.shutdown = true;
            world.send_staged();
            world.log(Event::Shutdown);
            world.end_outbound();
        }
        match world.plan.net.shutdown_waits {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        let mut world = lock(&self.0);
        world.catch_up();
        world.on_drop();
        // A socket's reactor would drop them.
        let wakers = (world.inbound.reader.take(), world.outbound.writer.take());
        drop(world);
        drop(wakers);
    }
}
