//! The network: what becomes of bytes on their way, and its faults.

use std::io;
use std::mem::take;

use super::log::Event;
use super::plan::Fault;
use super::world::{Outbound, Timer, World};

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        use Fault::{BlackBoth, BlackIn, BlackOut, StallBoth, StallIn, StallOut};
        let now = self.clock;
        if let StallIn(_) | StallBoth(_) | BlackIn | BlackBoth = fault {
            let span = fault.span();
            self.inbound.flight.stall(now, span);
            self.log(Event::InboundStalls(span));
        }
        if let StallOut(_) | StallBoth(_) | BlackOut | BlackBoth = fault {
            let span = fault.span();
            self.outbound.flight.stall(now, span);
            self.log(Event::OutboundStalls(span));
        }
        match fault {
            Fault::Kill => {
                self.outbound.killed = true;
                self.hang_up();
            }
            Fault::HalfClose => self.hang_up(),
            Fault::Reset(kind) => self.reset(kind),
            _ => {}
        }
    }

    /// The peer sends its FIN, and nothing more.
    pub(super) fn hang_up(&mut self) {
        if self.inbound.fin.is_none() {
            let flight = &self.inbound.flight;
            let at = flight.last.max(self.clock + self.plan.net.inbound.latency);
            self.inbound.fin = Some(at);
            self.log(Event::PeerSends("FIN", 0));
            self.notify.notify_one();
        }
    }

    pub(super) fn hung_up(&self) -> bool {
        self.inbound.fin.is_some() || self.inbound.end.is_some()
    }

    pub(super) fn reset(&mut self, kind: io::ErrorKind) {
        if self.inbound.flight.stalled_until == u64::MAX || matches!(self.inbound.end, Some(Err(_)))
        {
            return;
        }
        self.inbound.ready.clear();
        self.inbound.flight.segments.clear();
        self.inbound.end = Some(Err(kind));
        self.log(Event::ResetArrived(kind));
        self.wake_reader();
        self.wake_writer();
    }

    /// The peer's bytes, `pace` at a time, each ms.
    pub(super) fn post(&mut self, bytes: &[u8], pace: usize) {
        let link = &self.plan.net.inbound;
        for (n, chunk) in bytes.chunks(pace).enumerate() {
            let at = self.clock + n as u64;
            self.inbound.flight.push(at, link, chunk);
        }
        self.notify.notify_one();
    }

    pub(super) fn arrive(&mut self) {
        let room = self.plan.net.inbound.capacity - self.inbound.ready.len();
        let Some((at, mut bytes)) = self.inbound.flight.segments.pop_front() else {
            self.inbound.end = Some(Ok(()));
            self.log(Event::EndArrived);
            return self.wake_reader();
        };
        if bytes.len() > room {
            let rest = bytes.split_off(room);
            self.inbound.flight.segments.push_front((at, rest));
        }
        self.log(Event::Arrived(bytes.len()));
        self.inbound.ready.extend(bytes);
        if self.outbound.dropped {
            return self.throw_away();
        }
        self.wake_reader();
    }

    /// The transport is dropped: closed without a FIN of its own if bytes wait in it.
    pub(super) fn dropped(&mut self) {
        self.log(Event::Dropped);
        self.outbound.dropped = true;
        match self.inbound.ready.is_empty() {
            true => self.finished(),
            false => self.throw_away(),
        }
    }

    /// The kernel says RST in place of what it still had to send.
    fn throw_away(&mut self) {
        self.log(Event::ThrownAway(self.outbound.used));
        self.outbound.flight.segments.clear();
        self.outbound.staged.clear();
        self.inbound.flight.segments.clear();
        self.inbound.fin = None;
        self.inbound.end = Some(Err(io::ErrorKind::ConnectionReset));
    }

    /// The peer reads our end of the stream behind all else, once that has come.
    pub(super) fn finished(&mut self) {
        let Outbound {
            shutdown,
            dropped,
            flight,
            ..
        } = &self.outbound;
        if (*shutdown || *dropped) && flight.segments.is_empty() {
            let at = self.clock + self.plan.net.outbound.latency + self.plan.peer.reaction;
            if self.plan.peer.hangs_up {
                self.set(at, Timer::HangUp);
            }
        }
    }

    /// Room for the process to write into.
    pub(super) fn room(&self) -> usize {
        // A claim goes out whole, be there room for all of it or not.
        (self.plan.net.outbound.capacity).saturating_sub(self.outbound.used)
    }

    pub(super) fn accept(&mut self, bytes: &[u8]) {
        self.outbound.used += bytes.len();
        self.outbound.untold = true;
        self.accepted.extend_from_slice(bytes);
        self.outbound.staged.extend_from_slice(bytes);
        self.log(Event::Accepted(bytes.len(), self.by));
        if self.room() == 0 {
            self.outbound.full = true;
            self.log(Event::Full);
        }
        if self.plan.net.buffered.is_none() {
            self.send_staged();
        }
    }

    pub(super) fn send_staged(&mut self) {
        let bytes = take(&mut self.outbound.staged);
        let link = &self.plan.net.outbound;
        self.outbound.flight.push(self.clock, link, &bytes);
        self.notify.notify_one();
    }

    /// Whether all that was accepted is on its way.
    pub(super) fn flush(&mut self) -> bool {
        if self.outbound.staged.is_empty() || self.plan.net.buffered == Some(0) {
            self.send_staged();
            return true;
        }
        if self.outbound.flushed_at.is_none() {
            let at = self.clock + self.plan.net.buffered.unwrap_or(0);
            self.outbound.flushed_at = Some(at);
            self.set(at, Timer::Flushed);
            self.log(Event::FlushWaits);
        }
        false
    }

    /// All that was accepted is sent. Not twice, if it was sent before its time to make room.
    pub(super) fn flushed(&mut self) {
        if self.outbound.flushed_at.take().is_some() {
            self.send_staged();
            self.log(Event::Flushed);
            self.wake_writer();
        }
    }

    pub(super) fn deliver(&mut self) {
        let Some((_, bytes)) = self.outbound.flight.segments.pop_front() else {
            return;
        };
        self.outbound.used -= bytes.len();
        self.log(Event::Delivered(bytes.len()));
        if self.outbound.full && self.room() > 0 {
            self.outbound.full = false;
            self.log(Event::Room);
        }
        self.wake_writer();
        if self.outbound.killed {
            return self.set(self.clock + self.plan.net.inbound.latency, Timer::Reset);
        }
        if let Some(mut peer) = self.peer.take() {
            peer.hear(self, &bytes);
            self.peer = Some(peer);
        }
        self.finished();
    }
}

impl Fault {
    fn span(self) -> Option<u64> {
        match self {
            Self::StallIn(span) | Self::StallOut(span) | Self::StallBoth(span) => Some(span),
            _ => None,
        }
    }
}
