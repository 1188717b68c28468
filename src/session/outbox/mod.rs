//! The messages of a session, kept until its client has acknowledged them.
//!
//! | file | what |
//! |---|---|
//! | this file | [`Outbox`], which producers push into |
//! | [`reader`] | [`OutboxReader`], which the handler of the current connection reads |
//! | [`queue`] | the state that both share: positions, bounds, the current reader |
//! | [`limits`] | [`OutboxLimits`], the error of a refused push, and its report to the reader |

mod limits;
#[cfg(all(test, liveness_loom))]
mod loom_models;
mod queue;
mod reader;
#[cfg(all(test, not(liveness_loom)))]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use limits::{OutboxError, OutboxLimits, OutboxOverflow};
use queue::{ENDED, Queue};
pub use reader::OutboxReader;

use crate::connection::Liveness;
use crate::monitor::Health;

/// A bounded queue of messages that outlives the connections which send them.
///
/// Keep one in the value of a seat that [lingers](crate::Liveness::register_lingering). Producers
/// [`push`](Self::push) into it while the client is connected and while it is away. The handler of
/// the current connection takes a [`reader`](Self::reader), sends what it receives, and
/// [releases](OutboxReader::release) what the client has acknowledged. After a resume the handler
/// of the newer connection takes a reader of its own, at the first message that the client does not
/// have. So no message is lost with a connection, and none reaches the client twice.
///
/// ```
/// use std::sync::Arc;
///
/// use tokio::io::duplex;
/// use tower_ws_liveness::{HeartbeatLayer, Outbox, OutboxLimits};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layer = HeartbeatLayer::default();
/// let outbox: Outbox<Arc<str>> = Outbox::new(OutboxLimits::default());
/// for text in ["zero", "one", "two"] {
///     outbox.push(text.into(), text.len())?;
/// }
///
/// // The first connection is lost after two messages, of which the client has acknowledged one.
/// let (stream, live) = layer.wrap_server(duplex(64).0);
/// let reader = outbox.reader(&live);
/// assert_eq!(reader.recv().await, Some(Ok((0, "zero".into()))));
/// assert_eq!(reader.recv().await, Some(Ok((1, "one".into()))));
/// reader.release(0);
/// drop(stream);
///
/// // The client comes back. It has 0 and 1, so 2 is the first one that it needs.
/// let (_stream, live) = layer.wrap_server(duplex(64).0);
/// let reader = outbox.reader_from(&live, 2).ok_or("the client must reload")?;
/// assert_eq!(reader.recv().await, Some(Ok((2, "two".into()))));
/// # Ok(())
/// # }
/// ```
///
/// Each message has a position: 0 for the first one, and one more for each further one. The client
/// must be given the positions, since only it knows what it has received: a message that was
/// written to a connection may not have arrived.
///
/// A full outbox refuses a push. The producer gets the message back, and the reader gets an
/// [`OutboxOverflow`] in its place: the client must reload everything.
///
/// Cloning is cheap, and clones are the same outbox. It is closed when the last one is dropped. It
/// has no task and no timer. Each message is in an allocation of its own.
pub struct Outbox<T>(Arc<CloseOnDrop<T>>);

/// Shared by the clones of an [`Outbox`], but not by its readers.
struct CloseOnDrop<T>(Arc<Queue<T>>);

impl<T> Outbox<T> {
    /// An empty outbox.
    #[must_use]
    pub fn new(limits: OutboxLimits) -> Self {
        Self(Arc::new(CloseOnDrop(Arc::new(Queue::new(limits)))))
    }

    /// Appends a message, and returns its position. Never waits.
    ///
    /// `bytes` is what the message counts against the [limit](OutboxLimits), usually the length of
    /// its payload. It may be 0.
    ///
    /// # Errors
    ///
    /// Returns the message if the outbox has as many messages or counted bytes as it may have, or
    /// is [closed](Self::close). A message that has more bytes than an empty outbox may have is
    /// always refused. Refused messages have no position. Those refused because the outbox was full
    /// are [counted](Self::refused), and reported to the reader, even if the producer pushes them
    /// again later.
    pub fn push(&self, message: T, bytes: usize) -> Result<u64, OutboxError<T>> {
        self.queue().push(message, bytes)
    }

    /// A reader for the connection `live`, from the first message that was not released.
    ///
    /// For a client that has no message of this outbox. It becomes the current reader, and ends the
    /// one before, which then receives and releases nothing more: its
    /// [`recv`](OutboxReader::recv) returns `None`.
    ///
    /// Take it after the registration that has found the outbox. If the connection has ended, the
    /// reader that is returned has ended already, and the current one stays: the handler of a
    /// connection that was replaced cannot end the reader of the newer one, even if it comes late.
    ///
    /// # Panics
    ///
    /// If the transport of `live` calls it during a poll: see [`Liveness`].
    #[must_use = "the reader before has ended"]
    pub fn reader(&self, live: &Liveness) -> OutboxReader<T> {
        // Only a position can be missing.
        let number = self.begin_reading(live, None).unwrap_or(ENDED);
        OutboxReader::new(Arc::clone(self.queue()), number)
    }

    /// A reader for the connection `live` from the message at `position`, the first one that the
    /// client does not have: 0, or one more than the position of the last one that it has received.
    ///
    /// It becomes the current reader, as that of [`reader`](Self::reader). If the connection has
    /// ended, the reader has ended too, whatever the position. It releases nothing.
    ///
    /// Returns `None` if the client would miss a message or skip one, and changes nothing then: if
    /// the message at `position` was released, or if the position is after that of the next push.
    /// The client must reload everything, and the handler takes a [`reader`](Self::reader), or one
    /// from [`next_position`](Self::next_position) if it sends a snapshot.
    ///
    /// A position says nothing in another outbox: if the session of the client has ended, and a new
    /// one has begun at the same key, pass no position of the old one. To distinguish them, put an
    /// id into the value of the seat, which the client repeats with the position.
    ///
    /// # Panics
    ///
    /// As for [`reader`](Self::reader).
    #[must_use = "the reader before has ended"]
    pub fn reader_from(&self, live: &Liveness, position: u64) -> Option<OutboxReader<T>> {
        let number = self.begin_reading(live, Some(position))?;
        Some(OutboxReader::new(Arc::clone(self.queue()), number))
    }

    /// The position of the next push.
    ///
    /// For a client that must reload everything, if the application keeps a state of which the
    /// messages are the changes. A snapshot contains the changes before some position, so the
    /// reader must begin exactly there: with a lower one the client gets changes twice, with a
    /// higher one it misses some. Read both under the lock that covers a change and its push:
    ///
    /// ```
    /// use std::sync::{Arc, Mutex, PoisonError};
    ///
    /// use tower_ws_liveness::{Liveness, Outbox, OutboxReader};
    ///
    /// struct Session {
    ///     items: Mutex<Vec<Arc<str>>>,
    ///     outbox: Outbox<Arc<str>>,
    /// }
    ///
    /// fn add(session: &Session, item: Arc<str>) {
    ///     let mut items = session.items.lock().unwrap_or_else(PoisonError::into_inner);
    ///     items.push(Arc::clone(&item));
    ///     let bytes = item.len();
    ///     // A full outbox reports the refusal to the client, which then loads a snapshot.
    ///     let _ = session.outbox.push(item, bytes);
    /// }
    ///
    /// /// What to send first, and the reader of what comes after it.
    /// fn reload(session: &Session, live: &Liveness) -> (Vec<Arc<str>>, OutboxReader<Arc<str>>) {
    ///     loop {
    ///         let items = session.items.lock().unwrap_or_else(PoisonError::into_inner);
    ///         let (snapshot, position) = (items.clone(), session.outbox.next_position());
    ///         drop(items);
    ///         // `None` if later messages were released meanwhile, by an older reader.
    ///         if let Some(reader) = session.outbox.reader_from(live, position) {
    ///             return (snapshot, reader);
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// When the client has acknowledged the snapshot, it has the messages before it too:
    /// [release](OutboxReader::release) those up to `position - 1`. Read [`refused`](Self::refused)
    /// under the lock as well: an [`OutboxOverflow`] with that number, or a lower one, is older
    /// than the snapshot.
    #[must_use]
    pub fn next_position(&self) -> u64 {
        self.queue().lock().next()
    }

    /// Refuses all later pushes. The readers receive what is left, and then `None`.
    ///
    /// For the hook of
    /// [`LingerBuilder::on_session_end`](crate::LingerBuilder::on_session_end), so that a producer
    /// that still has the seat stops. Closing it again does nothing.
    pub fn close(&self) {
        self.queue().close();
    }

    /// The number of messages that were not released.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue().figures().messages
    }

    /// Whether all messages were released.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of pushes that were refused because the outbox was full, since it was created.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.queue().figures().refused
    }

    fn begin_reading(&self, live: &Liveness, position: Option<u64>) -> Option<u64> {
        // Not `live.reason()`, which is recorded a moment after the end: a registration that has
        // found the end of this connection may return in between.
        let has_ended = || live.health() == Health::Ended;
        self.queue().begin_reading(position, has_ended)
    }

    fn queue(&self) -> &Arc<Queue<T>> {
        &self.0.0
    }
}

impl<T> Drop for CloseOnDrop<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// An empty outbox with the default limits.
impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self::new(OutboxLimits::default())
    }
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Outbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue().figures().fmt_as("Outbox", f)
    }
}
