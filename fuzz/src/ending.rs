//! Checks at the end of a scenario: delivery of all bytes, one justified eviction, no leaks.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::Reason;

use crate::frames::{CLOSE, ParsedStream};
use crate::stream::Simulation;
use crate::transparent;

/// The longest delay of a deadline: the coarsest granularity of the driver's timer.
const MAX_DELAY: Duration = Duration::from_millis(256);

impl Simulation {
    /// Unblocks the transport, lets the handler read until nothing is left, and checks that all
    /// bytes were delivered.
    pub(crate) async fn read_to_the_end(&mut self) {
        self.peer_sends(&[], 0);
        self.peer.read_steps(&[]);
        self.peer.kick();
        self.peer.drain();
        self.settle().await;
        let mut idle = 0;
        while idle < 8 && self.stream.is_some() {
            idle = if self.read(1_000) { 0 } else { idle + 1 };
            self.settle().await;
        }
        self.check_outbound();
        // Bytes left in a dropped transport are lost.
        if self.stream.is_none() || self.peer.is_dropped() || !self.is_open() {
            return;
        }
        let (expected, held_back) = transparent::inbound(&self.sent, &self.answered);
        let held_back = if self.ended { 0 } else { held_back };
        assert!(
            self.handler_read.len() >= expected.len() - held_back,
            "only {} bytes of {} reached the handler",
            self.handler_read.len(),
            expected.len()
        );
    }

    /// Whether the layer has not ended the handler's stream.
    fn is_open(&self) -> bool {
        let evictions = self.evictions.lock().unwrap();
        let reason = evictions.first().map(|(reason, _)| *reason);
        matches!(
            reason,
            None | Some(
                Reason::PeerClosed { .. } | Reason::ServerClosed { .. } | Reason::PeerVanished
            )
        )
    }

    /// Drops the handler's stream and checks the eviction.
    pub(crate) async fn end(mut self) {
        self.check_outbound();
        let dropped = self.stream.take().is_none();
        let dropped_at = Instant::now();
        let evicted = timeout(Duration::from_secs(3_600), self.live.evicted()).await;
        let reason = evicted.expect("the connection ends").reason();
        // Time for further evictions, of which there must be none.
        sleep(Duration::from_secs(60)).await;
        let evictions = self.evictions.lock().unwrap().clone();
        let [(first, at)] = evictions[..] else {
            panic!("evicted {} times: {evictions:?}", evictions.len());
        };
        assert_eq!(first, reason);
        assert!(at <= dropped_at, "the eviction was reported late");
        self.assert_justified(reason, dropped || at == dropped_at);
        assert!(self.registry.is_empty(), "still registered");
        let transport_dropped = self.peer.wire().dropped;
        let transport_dropped = transport_dropped.expect("the transport is dropped");
        assert!(
            transport_dropped <= at + self.close_timeout + MAX_DELAY + self.paused,
            "the transport was held for {:?}",
            transport_dropped - at
        );
        self.check_outbound();
    }

    /// Checks that the scenario gave cause for `reason`.
    fn assert_justified(&mut self, reason: Reason, dropped: bool) {
        let closes = |bytes: &[u8]| {
            let parsed = ParsedStream::parse(bytes);
            parsed.frames.iter().any(|frame| frame.opcode == CLOSE)
        };
        let justified = match reason {
            Reason::PeerClosed { .. } => closes(&self.sent),
            Reason::ServerClosed { .. } | Reason::CloseTimeout => {
                self.shut || closes(&self.accepted)
            }
            Reason::HandlerDropped => dropped,
            Reason::PeerVanished => self.ended,
            Reason::Transport(kind) => match kind {
                ErrorKind::ConnectionReset => self.ended,
                kind => kind == ErrorKind::BrokenPipe,
            },
            Reason::HeartbeatTimeout { .. } => self.raw || !self.check_outbound().pings.is_empty(),
            Reason::Kicked { .. } => self.kicked,
            Reason::WriteStalled | Reason::HandlerStalled => true,
            _ => false,
        };
        assert!(justified, "{reason:?} without a cause");
    }
}
