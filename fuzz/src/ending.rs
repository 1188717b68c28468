//! How a scenario ends, whatever was in it: all that came has reached the handler, the end was told
//! once with a reason that there was, and nothing is left of the connection.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_ws_liveness::Reason;

use crate::frames::{CLOSE, Reading};
use crate::stream::Scene;
use crate::transparent;

/// What a deadline may be late by: the coarsest tick there is.
const TICK: Duration = Duration::from_millis(256);

impl Scene {
    /// The transport moves on, and the handler reads all there is.
    pub(crate) async fn read_to_the_end(&mut self) {
        self.peer_says(&[], 0);
        self.peer.read_steps(&[]);
        self.peer.kick();
        self.peer.drain();
        self.settle().await;
        let mut idle = 0;
        while idle < 8 && self.stream.is_some() {
            idle = if self.read(1_000) { 0 } else { idle + 1 };
            self.settle().await;
        }
        self.look();
        // What is left in a transport that was let go of is lost.
        if self.stream.is_none() || self.peer.is_dropped() || !self.is_open() {
            return;
        }
        let (expected, back) = transparent::inbound(&self.sent, &self.answered);
        let back = if self.ended { 0 } else { back };
        assert!(
            self.heard.len() >= expected.len() - back,
            "{} bytes of {} did not reach the handler",
            self.heard.len(),
            expected.len()
        );
    }

    /// Nobody has taken the stream from the handler.
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

    pub(crate) async fn end(mut self) {
        self.look();
        let dropped = self.stream.take().is_none();
        let ending = Instant::now();
        let told = timeout(Duration::from_secs(3_600), self.live.evicted()).await;
        let reason = told.expect("the end is told").reason();
        // Whatever else might be told, in all the time it needs.
        sleep(Duration::from_secs(60)).await;
        let evictions = self.evictions.lock().unwrap().clone();
        let [(first, at)] = evictions[..] else {
            panic!("told {} times: {evictions:?}", evictions.len());
        };
        assert_eq!(first, reason);
        assert!(at <= ending, "the handler's end was told late");
        self.justify(reason, dropped || at == ending);
        assert!(self.registry.is_empty(), "still registered");
        let gone = self.peer.wire().dropped;
        let gone = gone.expect("the transport is let go of");
        assert!(
            gone <= at + self.close_timeout + TICK + self.jumped,
            "the transport was held for {:?}",
            gone - at
        );
        self.look();
    }

    /// The reason is one that there was.
    fn justify(&mut self, reason: Reason, dropped: bool) {
        let closes = |bytes: &[u8]| {
            let reading = Reading::of(bytes);
            reading.frames.iter().any(|frame| frame.opcode == CLOSE)
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
            Reason::HeartbeatTimeout { .. } => self.raw || !self.look().pings.is_empty(),
            Reason::Kicked { .. } => self.kicked,
            Reason::WriteStalled | Reason::HandlerStalled => true,
            _ => false,
        };
        assert!(justified, "{reason:?} for no reason");
    }
}
