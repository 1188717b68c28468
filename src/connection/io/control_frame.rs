//! Our own control frame that is being written: a ping or a Close frame.

use crate::wire::PingFrame;

/// The one control frame of ours that is being written.
#[derive(Debug)]
pub(crate) enum ControlFrame {
    None,
    Ping {
        frame: PingFrame,
        written: u8,
    },
    Close(Box<CloseBytes>),
    /// A ping is written and not flushed yet.
    FlushPing,
    /// A Close frame is written and not flushed yet.
    FlushClose,
}

/// The bytes of a Close frame. Boxed: most connections never send one of ours.
#[derive(Debug)]
pub(crate) struct CloseBytes {
    frame: Vec<u8>,
    written: usize,
}

impl ControlFrame {
    pub(crate) fn close(frame: Vec<u8>) -> Self {
        Self::Close(Box::new(CloseBytes { frame, written: 0 }))
    }

    /// Whether some of its bytes are written, and not all.
    pub(crate) fn has_begun(&self) -> bool {
        match self {
            Self::Ping { written, .. } => *written > 0,
            Self::Close(close) => close.written > 0,
            Self::None | Self::FlushPing | Self::FlushClose => false,
        }
    }

    /// The bytes of the next write. If `splits`, a ping is written in four pieces, the last three
    /// of one byte each.
    pub(crate) fn next_write(&self, splits: bool) -> Option<&[u8]> {
        match self {
            Self::Ping { frame, written } => {
                let frame = frame.bytes();
                let (start, len) = (usize::from(*written), frame.len());
                let end = if splits {
                    (len - 3).max(start + 1)
                } else {
                    len
                };
                Some(&frame[start..end])
            }
            Self::Close(close) => Some(&close.frame[close.written..]),
            Self::None | Self::FlushPing | Self::FlushClose => None,
        }
    }

    /// Records that `count` bytes of [`next_write`](Self::next_write) are written.
    pub(crate) fn advance(&mut self, count: usize) {
        match self {
            Self::Ping { frame, written } => {
                *written += count as u8;
                if usize::from(*written) == frame.bytes().len() {
                    *self = Self::FlushPing;
                }
            }
            Self::Close(close) => {
                close.written += count;
                if close.written == close.frame.len() {
                    *self = Self::FlushClose;
                }
            }
            Self::None | Self::FlushPing | Self::FlushClose => {}
        }
    }
}
