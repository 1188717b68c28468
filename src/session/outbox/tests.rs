//! Readers that follow each other, bounds, and messages that panic.

use std::cell::OnceCell;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::logs::Logs;
use crate::session::unopened::connection;

mod model;

type Item<T> = Option<Result<(u64, T), OutboxOverflow>>;

fn outbox<T>(max_messages: usize, max_bytes: usize) -> Outbox<T> {
    Outbox::new(OutboxLimits::new(max_messages, max_bytes).unwrap())
}

/// An outbox with these messages of one byte.
fn filled(messages: impl IntoIterator<Item = u32>) -> Outbox<u32> {
    let outbox = outbox(100, 100);
    for message in messages {
        outbox.push(message, 1).unwrap();
    }
    outbox
}

/// All that a reader receives without waiting.
fn drain<T: Clone>(reader: &OutboxReader<T>) -> Vec<Result<(u64, T), OutboxOverflow>> {
    std::iter::from_fn(|| reader.try_recv()).collect()
}

fn positions<T: Clone>(reader: &OutboxReader<T>) -> Vec<u64> {
    let items = drain(reader).into_iter();
    items.map(|item| item.unwrap().0).collect()
}

fn overflow(refused: u64) -> OutboxOverflow {
    OutboxOverflow { refused }
}

/// Counts its wake-ups.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that waits, and whether it was woken.
struct Waiting<'a, T> {
    future: Pin<Box<dyn Future<Output = Item<T>> + Send + 'a>>,
    waker: Arc<CountingWaker>,
}

impl<'a, T: Clone + Send + Sync> Waiting<'a, T> {
    fn begin(reader: &'a OutboxReader<T>) -> Self {
        let mut waiting = Self {
            future: Box::pin(reader.recv()),
            waker: Arc::default(),
        };
        assert!(waiting.poll().is_pending());
        waiting
    }

    fn poll(&mut self) -> Poll<Item<T>> {
        let waker = Waker::from(Arc::clone(&self.waker));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// What it receives, of which it must have been woken.
    #[track_caller]
    fn woken(mut self) -> Item<T> {
        assert!(self.waker.0.load(Ordering::SeqCst) > 0, "not woken");
        match self.poll() {
            Poll::Ready(item) => item,
            Poll::Pending => panic!("still waiting"),
        }
    }
}

#[test]
fn messages_have_positions_and_stay_until_they_are_released() {
    let outbox = filled([7, 8, 9]);
    assert_eq!((outbox.len(), outbox.is_empty()), (3, false));
    let reader = outbox.reader(&connection());
    assert_eq!(drain(&reader), [Ok((0, 7)), Ok((1, 8)), Ok((2, 9))]);
    assert_eq!(outbox.len(), 3);
    assert_eq!(reader.release(1), 2);
    assert_eq!(outbox.len(), 1);
    // Only the drop of the last clone closes it.
    drop(outbox.clone());
    assert_eq!(outbox.push(10, 1), Ok(3));
    assert_eq!(drain(&reader), [Ok((3, 10))]);
    assert_eq!(
        drain(&outbox.reader(&connection())),
        [Ok((2, 9)), Ok((3, 10))]
    );
}

#[test]
fn a_release_of_anything_else_drops_nothing() {
    let outbox = filled([7, 8, 9]);
    let reader = outbox.reader(&connection());
    assert_eq!(reader.release(3), 0);
    assert_eq!(reader.release(u64::MAX), 0);
    assert_eq!(reader.release(0), 1);
    assert_eq!(reader.release(0), 0);
    assert_eq!(outbox.len(), 2);
    // Acknowledged over an older connection, before this reader has received them.
    assert_eq!(reader.release(1), 1);
    assert_eq!(positions(&reader), [2]);
    assert_eq!(reader.release(2), 1);
    assert!(outbox.is_empty());
}

#[test]
fn a_reader_begins_where_the_client_needs_it() {
    let outbox = filled([7, 8, 9]);
    assert_eq!(outbox.reader(&connection()).release(0), 1);
    for (from, expected) in [(1, vec![1, 2]), (2, vec![2]), (3, vec![])] {
        let reader = outbox.reader_from(&connection(), from).unwrap();
        assert_eq!(positions(&reader), expected, "{from}");
    }
    let reader = outbox.reader(&connection());
    for from in [0, 4, u64::MAX] {
        assert!(outbox.reader_from(&connection(), from).is_none(), "{from}");
    }
    // Those attempts have replaced no reader.
    assert_eq!(positions(&reader), [1, 2]);
    // All released: only the next position continues without a gap.
    reader.release(2);
    assert!(outbox.reader_from(&connection(), 2).is_none());
    let reader = outbox.reader_from(&connection(), 3).unwrap();
    outbox.push(10, 1).unwrap();
    assert_eq!(positions(&reader), [3]);
}

#[test]
fn a_newer_reader_ends_the_older_one() {
    let outbox = filled([]);
    let old = outbox.reader(&connection());
    let waiting = Waiting::begin(&old);
    let new = outbox.reader(&connection());
    assert_eq!(waiting.woken(), None);
    outbox.push(7, 1).unwrap();
    assert_eq!(old.try_recv(), None);
    // What the old connection has sent may not have arrived.
    assert_eq!(old.release(0), 0);
    assert_eq!(positions(&new), [0]);
    assert_eq!(new.release(0), 1);

    let waiting = Waiting::begin(&new);
    let newest = outbox.reader_from(&connection(), 1).unwrap();
    assert_eq!(waiting.woken(), None);
    let waiting = Waiting::begin(&newest);
    outbox.push(8, 1).unwrap();
    assert_eq!(waiting.woken(), Some(Ok((1, 8))));
}

#[test]
fn a_connection_that_has_ended_gets_no_reader() {
    let outbox = filled([7]);
    let (old, new) = (connection(), connection());
    let current = outbox.reader(&new);
    assert!(old.evict(4_000, "replaced"));
    for late in [
        outbox.reader(&old),
        outbox.reader_from(&old, 0).unwrap(),
        outbox.reader_from(&old, 9).unwrap(),
    ] {
        let received = pin!(late.recv()).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!((received, late.try_recv()), (Poll::Ready(None), None));
        assert_eq!(late.release(0), 0);
    }
    assert_eq!(positions(&current), [0]);
    assert_eq!(current.release(0), 1);
    // Also without a current reader.
    let outbox = filled([7]);
    let late = outbox.reader(&old);
    assert_eq!((late.try_recv(), late.release(0)), (None, 0));
}

#[test]
fn a_connection_that_is_replaced_while_it_takes_its_reader_ends_no_other() {
    let outbox = filled([7]);
    let (old, new) = (connection(), connection());
    let current = OnceCell::new();
    let number = outbox.queue().begin_reading(None, || {
        let has_ended = old.reason().is_some();
        current.get_or_init(|| {
            assert!(old.evict(4_000, "replaced"));
            outbox.reader(&new)
        });
        has_ended
    });
    assert_eq!(number, Some(ENDED));
    assert_eq!(positions(current.get().unwrap()), [0]);
}

#[test]
fn a_snapshot_goes_on_at_the_next_position() {
    let outbox = outbox(3, 100);
    for message in 0..4 {
        let _refused_at_the_end = outbox.push(message, 1);
    }
    let (position, refused) = (outbox.next_position(), outbox.refused());
    assert_eq!((position, refused), (3, 1));
    let reader = outbox.reader_from(&connection(), position).unwrap();
    // Older than the snapshot.
    assert_eq!(drain(&reader), [Err(overflow(refused))]);
    assert_eq!(reader.release(position - 1), 3);
    assert_eq!(outbox.next_position(), position);
    assert_eq!(outbox.push(4, 1), Ok(position));
    assert_eq!(drain(&reader), [Ok((position, 4))]);
    assert_eq!(outbox.next_position(), position + 1);
}

#[test]
fn a_cancelled_recv_loses_nothing() {
    let outbox = filled([]);
    let reader = outbox.reader(&connection());
    let waiting = Waiting::begin(&reader);
    outbox.push(7, 1).unwrap();
    // It was woken for the message, and did not take it.
    drop(waiting);
    assert_eq!(drain(&reader), [Ok((0, 7))]);
}

#[test]
fn a_full_outbox_returns_the_message_with_the_cause() {
    let outbox = outbox(2, 10);
    assert_eq!(outbox.push("a", 6), Ok(0));
    assert_eq!(outbox.push("b", 5), Err(OutboxError::TooManyBytes("b")));
    assert_eq!(
        outbox.push("b", usize::MAX),
        Err(OutboxError::TooManyBytes("b"))
    );
    assert_eq!(outbox.push("b", 4), Ok(1));
    assert_eq!(outbox.push("c", 0), Err(OutboxError::TooManyMessages("c")));
    assert_eq!((outbox.len(), outbox.refused()), (2, 3));
    // A release makes room for both.
    let reader = outbox.reader(&connection());
    reader.release(0);
    assert_eq!(outbox.push("c", 6), Ok(2));
    reader.release(2);
    assert_eq!(outbox.push("d", 11), Err(OutboxError::TooManyBytes("d")));
    assert_eq!(outbox.push("d", 10), Ok(3));
}

#[test]
fn a_refusal_is_reported_in_its_place_until_a_later_release() {
    let outbox = outbox(2, 100);
    for message in 0..4 {
        let _refused_from_the_third_on = outbox.push(message, 1);
    }
    let reader = outbox.reader(&connection());
    assert_eq!(drain(&reader), [Ok((0, 0)), Ok((1, 1)), Err(overflow(2))]);
    // The connection may end before the client has the report.
    let reader = outbox.reader_from(&connection(), 2).unwrap();
    assert_eq!(drain(&reader), [Err(overflow(2))]);
    reader.release(1);
    outbox.push(4, 1).unwrap();
    assert_eq!(drain(&reader), [Ok((2, 4))]);
    let reader = outbox.reader_from(&connection(), 2).unwrap();
    assert_eq!(drain(&reader), [Err(overflow(2)), Ok((2, 4))]);
    // The client has the message, and so the report before it.
    let reader = outbox.reader_from(&connection(), 3).unwrap();
    assert_eq!(drain(&reader), []);
    reader.release(2);
    assert_eq!(drain(&outbox.reader(&connection())), []);
}

#[test]
fn a_refusal_wakes_a_reader_that_has_received_all_messages() {
    let outbox = outbox(1, 10);
    outbox.push(0, 1).unwrap();
    let reader = outbox.reader(&connection());
    assert_eq!(drain(&reader), [Ok((0, 0))]);
    let waiting = Waiting::begin(&reader);
    outbox.push(1, 1).unwrap_err();
    assert_eq!(waiting.woken(), Some(Err(overflow(1))));
    outbox.push(2, 1).unwrap_err();
    assert_eq!(drain(&reader), [Err(overflow(2))]);
}

#[test]
fn a_closed_outbox_refuses_messages_and_gives_out_what_is_left() {
    let outbox = filled([7]);
    let reader = outbox.reader(&connection());
    outbox.close();
    outbox.close();
    assert_eq!(outbox.push(8, 1), Err(OutboxError::Closed(8)));
    assert_eq!(outbox.refused(), 0);
    let mut receiving = pin!(async { (reader.recv().await, reader.recv().await) });
    let received = receiving
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(received, Poll::Ready((Some(Ok((0, 7))), None)));
    // A newer connection gets it too.
    assert_eq!(drain(&outbox.reader(&connection())), [Ok((0, 7))]);

    for end in [
        (|outbox| outbox.close()) as fn(Outbox<u32>),
        // The last clone is dropped.
        |outbox| drop(outbox.clone()),
    ] {
        let outbox = filled([]);
        let reader = outbox.reader(&connection());
        let waiting = Waiting::begin(&reader);
        end(outbox);
        assert_eq!(waiting.woken(), None);
    }
}

#[test]
fn absurd_limits_are_refused() {
    let error = |messages, bytes| {
        let limits = OutboxLimits::new(messages, bytes);
        limits.unwrap_err().to_string()
    };
    for value in [0, 1_000_001, usize::MAX] {
        let expected = format!("OutboxLimits::new: {value} messages: must be within 1..=1000000");
        assert_eq!(error(value, 1), expected);
    }
    for value in [0, (1 << 30) + 1, usize::MAX] {
        let rule = "must be within 1..=1073741824 (1 GiB)";
        assert_eq!(
            error(1, value),
            format!("OutboxLimits::new: {value} bytes: {rule}")
        );
    }
    assert!(OutboxLimits::new(1, 1).is_ok() && OutboxLimits::new(1_000_000, 1 << 30).is_ok());
    assert_eq!(
        OutboxLimits::new(1_000, 1 << 20),
        Ok(OutboxLimits::default())
    );
}

#[test]
fn an_outbox_keeps_memory_for_what_is_left() {
    let outbox = outbox(10_000, 10_000);
    for message in 0..10_000 {
        outbox.push(message, 1).unwrap();
    }
    let reader = outbox.reader(&connection());
    let (mut capacity, mut changes) = (outbox.queue().lock().capacity(), 0);
    for position in 0..10_000 {
        reader.release(position);
        let now = outbox.queue().lock().capacity();
        let left = outbox.len();
        assert!(
            now >= left && now <= 64.max(4 * left + 4),
            "{now} for {left}"
        );
        changes += usize::from(now != capacity);
        capacity = now;
    }
    assert!(capacity <= super::queue::RETAINED_CAPACITY, "{capacity}");
    // Each one moves all messages that are left.
    assert!(changes < 16, "{changes}");
    // What comes and goes all the time does not move it.
    for message in 0..100 {
        let position = outbox.push(message, 1).unwrap();
        reader.release(position);
        assert_eq!(outbox.queue().lock().capacity(), capacity);
    }
}

#[test]
fn outboxes_and_their_futures_go_to_other_threads() {
    fn assert_send_sync<T: Send + Sync>(_: &T) {}
    fn assert_send<T: Send>(_: &T) {}
    let outbox = filled([]);
    let reader = outbox.reader(&connection());
    assert_send_sync(&outbox);
    assert_send_sync(&reader);
    assert_send(&reader.recv());
}

#[test]
fn debug_shows_the_state_and_no_message() {
    let outbox = outbox(1, 9);
    outbox.push("secret", 6).unwrap();
    let error = outbox.push("secret", 6).unwrap_err();
    let state = "{ messages: 1, bytes: 6, refused: 1, closed: false, .. }";
    assert_eq!(format!("{outbox:?}"), format!("Outbox {state}"));
    assert_eq!(
        format!("{:?}", outbox.reader(&connection())),
        format!("OutboxReader {state}")
    );
    assert_eq!(format!("{error:?}"), "TooManyMessages(..)");
    assert_eq!(
        OutboxOverflow { refused: 3 }.to_string(),
        "outbox full: 3 messages refused so far"
    );
}

#[test]
fn debug_writes_without_the_lock() {
    /// A log that uses the outbox.
    struct Log(Outbox<u32>, String);

    impl Write for Log {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            // Deadlocks if the outbox is locked.
            assert_eq!(self.0.len(), 1);
            self.1.push_str(text);
            Ok(())
        }
    }

    let outbox = filled([7]);
    let reader = outbox.reader(&connection());
    let mut log = Log(outbox.clone(), String::new());
    write!(log, "{outbox:?} {reader:?}").unwrap();
    assert_eq!(log.1, format!("{outbox:?} {reader:?}"));
}

/// A message that is released while it is cloned. Its clone and its drop panic.
struct ReleasedByClone(Arc<Mutex<Option<OutboxReader<ReleasedByClone>>>>);

impl Clone for ReleasedByClone {
    fn clone(&self) -> Self {
        assert_eq!(self.0.lock().unwrap().take().unwrap().release(0), 1);
        panic!("clone");
    }
}

impl Drop for ReleasedByClone {
    fn drop(&mut self) {
        panic!("drop");
    }
}

#[test]
fn a_message_that_is_released_while_its_clone_panics_may_panic_too() {
    let logs = Logs::keep();
    let (outbox, slot) = (Outbox::default(), Arc::default());
    assert!(outbox.push(ReleasedByClone(Arc::clone(&slot)), 1).is_ok());
    let reader = outbox.reader(&connection());
    let same = OutboxReader::new(Arc::clone(outbox.queue()), 1);
    *slot.lock().unwrap() = Some(same);
    let received = catch_unwind(AssertUnwindSafe(|| reader.try_recv().is_some()));
    let panicked = received.unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"clone"));
    assert_eq!((outbox.len(), logs.warnings().len()), (0, 1));
}

/// A message that uses its outbox when it is cloned and dropped, and panics then if it must.
struct Hostile {
    number: u32,
    shared: Arc<HostileState>,
}

#[derive(Default)]
struct HostileState {
    outbox: Mutex<Option<Outbox<Hostile>>>,
    panics: AtomicBool,
    dropped: Mutex<Vec<u32>>,
}

impl HostileState {
    fn act(&self) {
        let outbox = self.outbox.lock().unwrap().clone();
        // Deadlocks if the outbox is locked.
        assert!(outbox.is_none_or(|outbox| outbox.len() < 100));
        assert!(!self.panics.load(Ordering::SeqCst), "hostile");
    }
}

impl Clone for Hostile {
    fn clone(&self) -> Self {
        self.shared.act();
        Self {
            number: self.number,
            shared: Arc::default(),
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.dropped.lock().unwrap().push(self.number);
        self.shared.act();
    }
}

#[test]
fn messages_may_use_the_outbox_and_panic_when_they_are_cloned_and_dropped() {
    let logs = Logs::keep();
    let state = Arc::new(HostileState::default());
    let outbox = outbox(10, 10);
    for number in 0..6 {
        let shared = Arc::clone(&state);
        assert!(outbox.push(Hostile { number, shared }, 1).is_ok());
    }
    *state.outbox.lock().unwrap() = Some(outbox.clone());
    let panics = |panics| state.panics.store(panics, Ordering::SeqCst);
    let received = |reader: &OutboxReader<Hostile>| {
        let item = reader.try_recv().unwrap();
        item.unwrap_or_else(|_| panic!("a report")).1.number
    };

    let mut reader = outbox.reader(&connection());
    panics(true);
    assert!(catch_unwind(AssertUnwindSafe(|| received(&reader))).is_err());
    panics(false);
    assert_eq!(received(&reader), 1);
    assert_eq!(received(&outbox.reader_from(&connection(), 0).unwrap()), 0);

    reader = outbox.reader(&connection());
    panics(true);
    assert_eq!(reader.release(2), 3);
    panics(false);
    assert_eq!(*state.dropped.lock().unwrap(), [0, 1, 2]);
    assert_eq!((received(&reader), outbox.len()), (3, 3));
    assert_eq!(logs.warnings().len(), 3);

    // The last references to the outbox.
    *state.outbox.lock().unwrap() = None;
    drop(reader);
    panics(true);
    drop(outbox);
    assert_eq!(*state.dropped.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(logs.warnings().len(), 6);
}
