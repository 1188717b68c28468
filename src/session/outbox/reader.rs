//! [`OutboxReader`]: how the handler of the current connection gets the messages.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use super::limits::OutboxOverflow;
use super::queue::{self, Queue, Received};

/// Receives the messages of an [`Outbox`](super::Outbox) for one connection.
///
/// Created by [`Outbox::reader`](super::Outbox::reader) and
/// [`Outbox::reader_from`](super::Outbox::reader_from). The current reader of an outbox is the last
/// one that was taken for a connection that was open then. It gets all messages from its start on,
/// in order and each once, whatever others have received. All others have ended, so the handler of
/// a replaced connection takes no message from the newer one, and ends no reader of it.
///
/// ```
/// use std::sync::Arc;
///
/// use axum::extract::ws::{Message, WebSocket};
/// use tower_ws_liveness::OutboxReader;
///
/// /// Sends messages as `POSITION TEXT`, and reads the positions that the client acknowledges.
/// async fn serve(mut socket: WebSocket, reader: OutboxReader<Arc<str>>) {
///     loop {
///         tokio::select! {
///             received = reader.recv() => {
///                 let text = match received {
///                     Some(Ok((position, text))) => format!("{position} {text}"),
///                     Some(Err(overflow)) => format!("refused {}", overflow.refused()),
///                     None => return, // a newer connection reads, or the session has ended
///                 };
///                 if socket.send(text.into()).await.is_err() {
///                     return;
///                 }
///             }
///             message = socket.recv() => match message {
///                 Some(Ok(Message::Text(text))) => {
///                     if let Ok(position) = text.parse() {
///                         reader.release(position);
///                     }
///                 }
///                 Some(Ok(_)) => {}
///                 Some(Err(_)) | None => return,
///             },
///         }
///     }
/// }
/// ```
///
/// All methods take `&self`, so that one half of a handler can send while the other half reads.
pub struct OutboxReader<T> {
    queue: Arc<Queue<T>>,
    number: u64,
}

impl<T> OutboxReader<T> {
    pub(super) fn new(queue: Arc<Queue<T>>, number: u64) -> Self {
        Self { queue, number }
    }

    /// Waits for the next message, and returns it with its position. It stays in the outbox until
    /// it is [released](Self::release).
    ///
    /// An [`OutboxOverflow`] takes the place of messages that were refused; the reader continues
    /// after it.
    ///
    /// Returns `None` if this reader has ended: because a newer one was taken, or because its
    /// connection had ended before it was taken. Also after the last message of an outbox that is
    /// closed, or whose clones are all dropped.
    ///
    /// Only one task at a time should wait here. Of several tasks each message goes to one, and a
    /// waker that panics may keep the others from being woken.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the next call gets the message.
    ///
    /// # Panics
    ///
    /// If the clone of a message panics. This reader then continues with the next message; a newer
    /// reader gets it again.
    pub async fn recv(&self) -> Option<Result<(u64, T), OutboxOverflow>>
    where
        T: Clone,
    {
        loop {
            let changed = self.queue.changed();
            match self.queue.receive(self.number) {
                Received::Message(position, message) => return Some(Ok((position, copy(message)))),
                Received::Overflow(overflow) => return Some(Err(overflow)),
                Received::Nothing => {}
                Received::End => return None,
            }
            changed.await;
        }
    }

    /// As [`recv`](Self::recv), without waiting: `None` if there is no message now, or never will
    /// be one. For a handler that sends several messages before it flushes.
    ///
    /// # Panics
    ///
    /// As for [`recv`](Self::recv).
    pub fn try_recv(&self) -> Option<Result<(u64, T), OutboxOverflow>>
    where
        T: Clone,
    {
        match self.queue.receive(self.number) {
            Received::Message(position, message) => Some(Ok((position, copy(message)))),
            Received::Overflow(overflow) => Some(Err(overflow)),
            Received::Nothing | Received::End => None,
        }
    }

    /// Drops the message at `position` and all before it. Returns their number.
    ///
    /// Call it when the client has acknowledged the position. If the client sends no
    /// acknowledgements, call it when the message was sent: messages that are in flight when a
    /// connection ends are lost then, and [`reader_from`](super::Outbox::reader_from) returns
    /// `None` if the client asks for one of them.
    ///
    /// Releases nothing if the message was released before, if there is none with this position, or
    /// if this reader [has ended](Self::recv): what an old connection has sent may not have
    /// arrived. The position may come from the client unchecked; one that it has not received costs
    /// it messages, and nothing else.
    pub fn release(&self, position: u64) -> usize {
        self.queue.release(self.number, position)
    }
}

impl<T> fmt::Debug for OutboxReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.figures().fmt_as("OutboxReader", f)
    }
}

/// Clones a message with the lock released.
fn copy<T: Clone>(message: Arc<T>) -> T {
    let copy = panic::catch_unwind(AssertUnwindSafe(|| T::clone(&message)));
    // If it was released meanwhile, this drops it: not while a panic unwinds, since a second one
    // would abort the process.
    queue::discard(message);
    copy.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}
