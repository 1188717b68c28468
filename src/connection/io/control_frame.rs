//! A control frame of ours on its way out.

use crate::wire::MAX_PING_FRAME;

/// The control frame of ours that is on its way out; there is at most one.
#[derive(Debug)]
pub(crate) enum ControlFrame {
    None,
    Ping {
        frame: [u8; MAX_PING_FRAME],
        len: u8,
        written: u8,
    },
    Close(Box<CloseBytes>),
    /// All bytes of a ping are written; the transport has yet to flush them.
    FlushPing,
    /// All bytes of a Close frame are written; the transport has yet to flush them.
    FlushClose,
}

/// A Close frame on its way out, which most connections never have.
#[derive(Debug)]
pub(crate) struct CloseBytes {
    frame: Vec<u8>,
    written: usize,
}

impl ControlFrame {
    pub(crate) fn close(frame: Vec<u8>) -> Self {
        Self::Close(Box::new(CloseBytes { frame, written: 0 }))
    }

    /// Some of it is written, and not all.
    pub(crate) fn has_begun(&self) -> bool {
        match self {
            Self::Ping { written, .. } => *written > 0,
            Self::Close(close) => close.written > 0,
            Self::None | Self::FlushPing | Self::FlushClose => false,
        }
    }

    /// What of it is to be written next, in one write. If a ping goes out in `strokes`, that is all
    /// but three bytes, and then each of these.
    pub(crate) fn next_write(&self, strokes: bool) -> Option<&[u8]> {
        match self {
            Self::Ping {
                frame,
                len,
                written,
            } => {
                let (start, end) = (usize::from(*written), usize::from(*len));
                let stroke = if strokes {
                    (end - 3).max(start + 1)
                } else {
                    end
                };
                Some(&frame[start..stroke])
            }
            Self::Close(close) => Some(&close.frame[close.written..]),
            Self::None | Self::FlushPing | Self::FlushClose => None,
        }
    }

    /// So many bytes of [`next_write`](Self::next_write) were written.
    pub(crate) fn advance(&mut self, count: usize) {
        match self {
            Self::Ping { len, written, .. } => {
                *written += count as u8;
                if written == len {
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
