//! The network between process and peer, and its faults.

use std::io;
use std::mem::take;

use super::log::Event;
use super::plan::Fault;
use super::world::{Outbound, Timer, World};

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        use Fault::{BlackholeBoth, BlackholeIn, BlackholeOut, StallBoth, StallIn, StallOut};
        let now = self.clock;
        if let StallIn(_) | StallBoth(_) | BlackholeIn | BlackholeBoth = fault {
            let span = fault.span();
            self.inbound.flight.stall(now, span);
            self.log(Event::InboundStalls(span));
        }
        if let StallOut(_) | StallBoth(_) | BlackholeOut | BlackholeBoth = fault {
            let span = fault.span();
            self.outbound.flight.stall(now, span);
            self.log(Event::OutboundStalls(span));
        }
        match fault {
            Fault::Kill => {
                self.outbound.killed = true;
                self.send_fin();
            }
            Fault::HalfClose => self.send_fin(),
            Fault::Reset(kind) => self.reset(kind),
            _ => {}
        }
    }

    /// The peer sends its FIN.
    pub(super) fn send_fin(&mut self) {
        if self.inbound.fin.is_none() {
            let flight = &self.inbound.flight;
            let at = flight.last.max(self.clock + self.plan.net.inbound.latency);
            self.inbound.fin = Some(at);
            self.log(Event::PeerSends("FIN", 0));
            self.notify.notify_one();
        }
    }

    pub(super) fn has_sent_fin(&self) -> bool {
        self.inbound.fin.is_some() || self.inbound.end.is_some()
    }

    /// A reset arrives, unless the inbound direction is a blackhole or one arrived before.
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

    /// Sends bytes of the peer, `pace` of them each ms.
    pub(super) fn send_inbound(&mut self, bytes: &[u8], pace: usize) {
        let link = &self.plan.net.inbound;
        for (n, chunk) in bytes.chunks(pace).enumerate() {
            let at = self.clock + n as u64;
            self.inbound.flight.push(at, link, chunk);
        }
        self.notify.notify_one();
    }

    /// The next bytes of the peer, or its FIN, become readable at the transport.
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
            return self.discard_unsent();
        }
        self.wake_reader();
    }

    /// The transport is dropped. With unread bytes it is reset, without its own FIN.
    pub(super) fn on_drop(&mut self) {
        self.log(Event::Dropped);
        self.outbound.dropped = true;
        match self.inbound.ready.is_empty() {
            true => self.end_outbound(),
            false => self.discard_unsent(),
        }
    }

    /// The kernel sends RST in place of the bytes that it has not sent.
    fn discard_unsent(&mut self) {
        self.log(Event::Discarded(self.outbound.used));
        self.outbound.flight.segments.clear();
        self.outbound.staged.clear();
        self.inbound.flight.segments.clear();
        self.inbound.fin = None;
        self.inbound.end = Some(Err(io::ErrorKind::ConnectionReset));
    }

    /// The peer reads the server's end of stream once all bytes before it are delivered.
    pub(super) fn end_outbound(&mut self) {
        let Outbound {
            shutdown,
            dropped,
            flight,
            ..
        } = &self.outbound;
        if (*shutdown || *dropped) && flight.segments.is_empty() {
            let at = self.clock + self.plan.net.outbound.latency + self.plan.peer.reaction;
            if self.plan.peer.answers_fin {
                self.set(at, Timer::SendFin);
            }
        }
    }

    /// Number of bytes that the transport can accept.
    pub(super) fn room(&self) -> usize {
        // A repeated write is accepted whole, also beyond the capacity.
        (self.plan.net.outbound.capacity).saturating_sub(self.outbound.used)
    }

    /// The transport accepts bytes of a write.
    pub(super) fn accept(&mut self, bytes: &[u8]) {
        self.outbound.used += bytes.len();
        self.outbound.flush_unreported = true;
        self.accepted.extend_from_slice(bytes);
        self.outbound.staged.extend_from_slice(bytes);
        self.log(Event::Accepted(bytes.len(), self.poller));
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

    /// Starts or continues a flush. Returns whether all accepted bytes are in transit.
    pub(super) fn flush(&mut self) -> bool {
        if self.outbound.staged.is_empty() || self.plan.net.buffered == Some(0) {
            self.send_staged();
            return true;
        }
        if self.outbound.flushed_at.is_none() {
            let at = self.clock + self.plan.net.buffered.unwrap_or(0);
            self.outbound.flushed_at = Some(at);
            self.set(at, Timer::Flushed);
            self.log(Event::FlushPending);
        }
        false
    }

    /// Ends a pending flush, unless the bytes were sent earlier to make room.
    pub(super) fn flushed(&mut self) {
        if self.outbound.flushed_at.take().is_some() {
            self.send_staged();
            self.log(Event::Flushed);
            self.wake_writer();
        }
    }

    /// The peer's program reads the next bytes.
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
            peer.receive(self, &bytes);
            self.peer = Some(peer);
        }
        self.end_outbound();
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
