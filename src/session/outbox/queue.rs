//! The messages of an outbox by position, and what its current reader has received.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError};

use super::limits::{OutboxError, OutboxLimits, OutboxOverflow};
use crate::panic_guard;
use crate::sync::{Mutex, MutexGuard, Notify};

/// The number of messages for which an outbox keeps memory when fewer are left.
pub(super) const RETAINED_CAPACITY: usize = 32;

/// The number of each reader that had ended when it was created. The current one never has it.
pub(super) const ENDED: u64 = u64::MAX;

/// The part of an outbox that producers and readers share.
pub(super) struct Queue<T> {
    /// No code of the application runs under this lock.
    state: Mutex<OutboxState<T>>,
    /// Notified of every change for which a reader may wait.
    changed: Notify,
}

pub(super) struct OutboxState<T> {
    limits: OutboxLimits,
    /// The messages that were not released, in the order of their positions.
    entries: VecDeque<Entry<T>>,
    /// The position of the first entry; without one, that of the next push.
    first: u64,
    /// The bytes of all entries, within the limit.
    bytes: usize,
    refused: u64,
    /// The value of `refused` when the message before `first` was pushed.
    refused_before_first: u64,
    closed: bool,
    reader: ReaderState,
}

struct Entry<T> {
    /// Shared, so that a reader can clone the message after it has released the lock.
    message: Arc<T>,
    bytes: usize,
    /// The value of [`OutboxState::refused`] when the message was pushed.
    refused: u64,
}

/// What the current reader has received.
#[derive(Default)]
struct ReaderState {
    /// The number of the current reader: they are numbered from 1 on. 0 before the first one.
    number: u64,
    /// The position that it receives next.
    next: u64,
    /// The number of refusals that were reported to it.
    reported: u64,
}

/// The state at one moment, copied so that it is formatted without the lock.
pub(super) struct Figures {
    pub(super) messages: usize,
    bytes: usize,
    pub(super) refused: u64,
    closed: bool,
}

impl Figures {
    pub(super) fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("messages", &self.messages)
            .field("bytes", &self.bytes)
            .field("refused", &self.refused)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// What a reader gets when it looks for a message.
pub(super) enum Received<T> {
    Message(u64, Arc<T>),
    Overflow(OutboxOverflow),
    /// Nothing yet: the reader must wait.
    Nothing,
    /// The reader has ended.
    End,
}

impl<T> Queue<T> {
    pub(super) fn new(limits: OutboxLimits) -> Self {
        Self {
            state: Mutex::new(OutboxState {
                limits,
                entries: VecDeque::new(),
                first: 0,
                bytes: 0,
                refused: 0,
                refused_before_first: 0,
                closed: false,
                reader: ReaderState::default(),
            }),
            changed: Notify::new(),
        }
    }

    pub(super) fn push(&self, message: T, bytes: usize) -> Result<u64, OutboxError<T>> {
        let pushed = self.lock().push(message, bytes);
        if !matches!(pushed, Err(OutboxError::Closed(_))) {
            self.notify();
        }
        pushed
    }

    /// Makes a new reader the current one, at `position`, or else at the first message. Returns its
    /// number; `None` if the position is not there. If the connection of the reader `has_ended`,
    /// the reader has ended too, and the current one stays.
    pub(super) fn begin_reading(
        &self,
        position: Option<u64>,
        has_ended: impl Fn() -> bool,
    ) -> Option<u64> {
        loop {
            let current = self.lock().reader.number;
            // Not under the lock: it locks the connection, under whose lock a transport is polled,
            // which may push.
            if has_ended() {
                return Some(ENDED);
            }
            let mut state = self.lock();
            // A reader that has come since may be that of a connection that replaced this one.
            if state.reader.number == current {
                let number = state.begin_reading(position)?;
                drop(state);
                self.notify();
                return Some(number);
            }
        }
    }

    /// The next message for the reader with this number.
    pub(super) fn receive(&self, reader: u64) -> Received<T> {
        self.lock().receive(reader)
    }

    /// Completes after the next change. A change after this call is not missed, even if it comes
    /// before the first poll.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Removes all messages up to `position` for the reader with this number. Returns how many.
    pub(super) fn release(&self, reader: u64, position: u64) -> usize {
        let released = self.lock().release(reader, position);
        let count = released.len();
        released.into_iter().for_each(discard);
        count
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.notify();
    }

    pub(super) fn figures(&self) -> Figures {
        let state = self.lock();
        Figures {
            messages: state.entries.len(),
            bytes: state.bytes,
            refused: state.refused,
            closed: state.closed,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, OutboxState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the readers. The caller must have released the lock.
    fn notify(&self) {
        panic_guard::wake_waiting(|| self.changed.notify_waiters());
    }
}

impl<T> OutboxState<T> {
    #[cfg(all(test, not(liveness_loom)))]
    pub(super) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    fn push(&mut self, message: T, bytes: usize) -> Result<u64, OutboxError<T>> {
        if self.closed {
            return Err(OutboxError::Closed(message));
        }
        if self.entries.len() >= self.limits.max_messages {
            self.refused += 1;
            return Err(OutboxError::TooManyMessages(message));
        }
        if bytes > self.limits.max_bytes - self.bytes {
            self.refused += 1;
            return Err(OutboxError::TooManyBytes(message));
        }
        let position = self.next();
        self.entries.push_back(Entry {
            message: Arc::new(message),
            bytes,
            refused: self.refused,
        });
        self.bytes += bytes;
        Ok(position)
    }

    /// The position of the next push.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The index of the entry at `position`, if there is one.
    fn index(&self, position: u64) -> Option<usize> {
        let index = usize::try_from(position.checked_sub(self.first)?).ok()?;
        (index < self.entries.len()).then_some(index)
    }

    /// `None` if the position is neither that of an entry nor that of the next push.
    fn begin_reading(&mut self, position: Option<u64>) -> Option<u64> {
        let position = position.unwrap_or(self.first);
        if !(self.first..=self.next()).contains(&position) {
            return None;
        }
        let previous = position
            .checked_sub(1)
            .and_then(|previous| self.index(previous));
        let reported = previous.map_or(self.refused_before_first, |index| {
            self.entries[index].refused
        });
        self.reader = ReaderState {
            number: self.reader.number + 1,
            next: position,
            reported,
        };
        Some(self.reader.number)
    }

    fn receive(&mut self, reader: u64) -> Received<T> {
        if self.reader.number != reader {
            return Received::End;
        }
        let position = self.reader.next;
        let entry = self.index(position).map(|index| &self.entries[index]);
        let refused = entry.map_or(self.refused, |entry| entry.refused);
        if refused > self.reader.reported {
            self.reader.reported = refused;
            return Received::Overflow(OutboxOverflow { refused });
        }
        match entry {
            Some(entry) => {
                self.reader.next += 1;
                Received::Message(position, Arc::clone(&entry.message))
            }
            None if self.closed => Received::End,
            None => Received::Nothing,
        }
    }

    fn release(&mut self, reader: u64, position: u64) -> Vec<Arc<T>> {
        let last = self.index(position);
        let Some(last) = last.filter(|_| self.reader.number == reader) else {
            return Vec::new();
        };
        self.first = position + 1;
        self.refused_before_first = self.entries[last].refused;
        // A client may have received messages by an older connection that this reader has not
        // received yet.
        self.reader.next = self.reader.next.max(self.first);
        self.reader.reported = self.reader.reported.max(self.refused_before_first);
        let mut bytes = 0;
        let released = self.entries.drain(..=last);
        let released = released.map(|entry| {
            bytes += entry.bytes;
            entry.message
        });
        let released = released.collect();
        self.bytes -= bytes;
        let left = self.entries.len();
        if left < self.entries.capacity() / 4 {
            // This moves what is left: fewer messages than were released since it was done last.
            // The next pushes find room.
            self.entries.shrink_to(RETAINED_CAPACITY.max(2 * left));
        }
        released
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut self.lock().entries);
        entries.into_iter().for_each(|entry| discard(entry.message));
    }
}

/// Drops a message. A panic must not affect the others, or the caller.
pub(super) fn discard<T>(message: Arc<T>) {
    if panic_guard::catch(|| drop(message)).is_none() {
        panic_guard::log(|| tracing::warn!("a message of an outbox panicked while it was dropped"));
    }
}
