//! What is kept back between two reads.

use tokio::io::ReadBuf;

use crate::wire::MAX_PING_FRAME;

/// Bytes between two reads: first those already cleared for the handler, then the beginning of
/// what may be a pong of ours.
#[derive(Debug, Default)]
pub(crate) struct PongBuffer {
    pub(crate) bytes: [u8; MAX_PING_FRAME],
    pub(crate) cleared: u8,
    pub(crate) len: u8,
}

impl PongBuffer {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps a candidate. It is shorter than a ping's frame, or it would have been decided.
    pub(crate) fn hold(&mut self, candidate: &[u8]) {
        self.bytes[..candidate.len()].copy_from_slice(candidate);
        self.len = candidate.len() as u8;
        self.cleared = 0;
    }

    /// No pong will come of it: all of it is the handler's.
    pub(crate) fn release(&mut self) {
        self.cleared = self.len;
    }

    /// DeadlineMove cleared bytes into `out`. Returns whether any were moved.
    pub(crate) fn give(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let count = usize::from(self.cleared).min(out.remaining());
        if count == 0 {
            return false;
        }
        out.put_slice(&self.bytes[..count]);
        self.bytes.copy_within(count.., 0);
        self.cleared -= count as u8;
        self.len -= count as u8;
        true
    }
}
