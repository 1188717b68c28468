//! Evictions: the connection ends, and the driver takes the transport for the closing handshake.

use crate::connection::io::CloseHandshake;
use crate::connection::state::State;
use crate::monitor::{CloseFrame, Lifecycle, Moment, Reason};

impl<T: 'static> State<T> {
    /// Ends the connection with this Close frame. False if it has ended before.
    pub(crate) fn evict(&mut self, now: Moment, reason: Reason, frame: CloseFrame) -> bool {
        match self.monitor.lifecycle {
            Lifecycle::Ended { .. } => return false,
            Lifecycle::Opening => {
                self.monitor.end(now, reason);
                // It begins as soon as there is a transport.
                self.rare().close = Some(Box::new(CloseHandshake::new(reason, frame)));
            }
            Lifecycle::Open | Lifecycle::Closing { .. } => {
                self.monitor.end(now, reason);
                self.begin_close_handshake(reason, frame);
            }
        }
        true
    }

    /// Like [`evict`](Self::evict), with a label for the eviction.
    pub(crate) fn evict_as(
        &mut self,
        now: Moment,
        label: &'static str,
        reason: Reason,
        frame: CloseFrame,
    ) -> bool {
        let evicted = self.evict(now, reason, frame);
        if evicted {
            let rare = self.rare.as_mut();
            if let Some(close) = rare.and_then(|rare| rare.close.as_mut()) {
                close.label = Some(label);
            }
        }
        evicted
    }

    /// The label of the eviction that has just ended the connection, if it has one.
    pub(crate) fn eviction_label(&self) -> Option<&'static str> {
        self.rare.as_ref()?.close.as_ref()?.label
    }

    /// Takes the transport of an ended connection from the handler for the closing handshake.
    pub(crate) fn begin_close_handshake(&mut self, reason: Reason, frame: CloseFrame) {
        self.read_half.discard_unread();
        self.rare().close = Some(Box::new(CloseHandshake::new(reason, frame)));
        // The verdict may lie in the past: the driver judges as of before it yielded, and the process
        // may have stood still since.
        match &self.timer {
            Some(timer) => self.monitor.lifecycle.close_from(timer.now()),
            None => self.monitor.lifecycle.begin_close_handshake(),
        }
    }
}
