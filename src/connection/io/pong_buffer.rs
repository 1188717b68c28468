//! The bytes of a possible pong that is split across reads.

use tokio::io::ReadBuf;

use crate::wire::MAX_PING_FRAME;

/// Bytes held between two reads: first those cleared for the handler, then the beginning of what
/// may be a pong to one of our pings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PongBuffer {
    pub(crate) bytes: [u8; MAX_PING_FRAME],
    /// How many of the bytes belong to the handler.
    pub(crate) cleared: u8,
    pub(crate) len: u8,
}

impl PongBuffer {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Holds a candidate. It is shorter than a ping's frame, or it would have been decided.
    pub(crate) fn store(&mut self, candidate: &[u8]) {
        self.bytes[..candidate.len()].copy_from_slice(candidate);
        self.len = candidate.len() as u8;
        self.cleared = 0;
    }

    /// Clears all bytes for the handler: they are no pong.
    pub(crate) fn release(&mut self) {
        self.cleared = self.len;
    }

    /// Moves cleared bytes into `out`. Returns whether any were moved.
    pub(crate) fn give(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let count = usize::from(self.cleared).min(out.remaining());
        if count == 0 {
            return false;
        }
        out.put_slice(&self.bytes[..count]);
        self.remove(count);
        true
    }

    /// Discards the cleared bytes. A candidate stays, since the frame it begins may go on.
    pub(crate) fn discard_cleared(&mut self) {
        self.remove(usize::from(self.cleared));
    }

    /// Removes the first `count` cleared bytes.
    fn remove(&mut self, count: usize) {
        self.bytes.copy_within(count.., 0);
        self.cleared -= count as u8;
        self.len -= count as u8;
    }
}
